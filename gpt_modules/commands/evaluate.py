"""`gpt evaluate`: a model folder on tasks, with no, one or a few demonstrations."""

import argparse
import dataclasses
import sys
from typing import TYPE_CHECKING, Any

from gpt_modules.commands.arguments import Arguments, add_device, device_of, path_name, whole_number
from gpt_modules.commands.opening import open_language_model
from gpt_modules.errors import UserError
from gpt_modules.progress import Meter

if TYPE_CHECKING:
    from gpt_modules.evaluation.tasks.definitions import EvaluationTask
    from gpt_modules.evaluation.tasks.measure import Settings

DESCRIPTION = """Measure a model folder on tasks, zero-, one- and few-shot. Results go to OUTPUT/results.json and to the
screen; started again with the same settings, a run that was cut off goes on."""


def main(words: list[str]) -> None:
    """`gpt evaluate --model FOLDER --tasks NAME... --shots 0,1,5 --output DIR`.

    Raises:
        UserError: For a mistake in an argument, a task's file or its data.
    """
    options = _parser().parse_args(words)
    tasks, shots = _tasks(options), _shots(options.shots)
    if options.demonstrations is not None and not any(shots):
        raise UserError(f"--demonstrations: found {options.demonstrations} with --shots {options.shots}, expected a "
                        "number of shots above 0")  # fmt: skip
    from gpt_modules.evaluation.tasks.measure import Settings, check_shots

    check_shots("--shots", tasks, shots)
    settings = Settings(options.limit, options.seed, not options.no_end_token, options.batch_tokens)
    _run(options, tasks, shots, settings)


def _parser() -> Arguments:
    parser = Arguments(prog="gpt evaluate", description=DESCRIPTION)
    parser.add_argument("--model", required=True, help="an exported folder, a transformers folder, or a hub name")
    parser.add_argument("--tasks", required=True, nargs="+", metavar="TASK",
                        help="files, or names of files in recipes/evaluation")  # fmt: skip
    parser.add_argument("--shots", default="0", metavar="K,...", help="numbers of demonstrations (default 0)")
    parser.add_argument("--output", required=True, type=path_name, metavar="DIR")
    parser.add_argument("--source", metavar="FILE", help="the data in place of what the task names; for one task")
    parser.add_argument("--demonstrations", metavar="FILE", help="the demonstrations likewise")
    parser.add_argument("--limit", type=whole_number(1), metavar="N", help="the first N items of each task only")
    parser.add_argument("--seed", type=whole_number(0), default=0)
    parser.add_argument("--items", action="store_true", help="write every item to DIR/items")
    parser.add_argument("--no-end-token", action="store_true",
                        help="begin prompts without an end token, as lm-evaluation-harness does")  # fmt: skip
    add_device(parser)
    parser.add_argument(
        "--batch-tokens", type=whole_number(1), default=8192, metavar="N", help="of a batch (default 8192)"
    )
    return parser


def _shots(text: str) -> list[int]:
    try:
        shots = sorted(whole_number(0)(part) for part in text.split(","))
    except argparse.ArgumentTypeError:
        expected = "expected whole numbers parted by commas, such as 0,1,5"
        raise UserError(f"--shots: found {text[:40]!r}, {expected}") from None
    if len(set(shots)) < len(shots):
        raise UserError(f"--shots: found {text[:40]!r}, expected each number once")
    return shots


def _tasks(options: argparse.Namespace) -> "list[EvaluationTask]":
    """The tasks of the command line, with the data that it names."""
    from gpt_modules.evaluation.tasks.definitions import find_tasks

    tasks = find_tasks(options.tasks)
    changes = {key: getattr(options, key) for key in ("source", "demonstrations") if getattr(options, key) is not None}
    if changes and len(tasks) > 1:
        raise UserError(f"--{next(iter(changes))}: found {len(tasks)} tasks, expected one whose data it is")
    return [dataclasses.replace(task, **changes) for task in tasks]


def _run(options: argparse.Namespace, tasks: "list[EvaluationTask]", shots: list[int], settings: "Settings") -> None:
    from gpt_modules.evaluation.tasks.measure import check_fits, measure, prepare, read_data, shots_of
    from gpt_modules.evaluation.tasks.results import Results, table_header, table_rows, weights_digest

    device = device_of(options)
    definitions = {task.name: _definition(task, shots) for task in tasks}
    data = [read_data(task, settings, shots) for task in tasks]  # a bad row is told before anything is measured
    for task in tasks:
        if _definition(task, shots) != definitions[task.name]:
            raise UserError(f"{task.name}: found its data changed while it was read, expected it to stay as it is")
    model, tokenizer = open_language_model(options.model, device)
    for task, rows in zip(tasks, data, strict=True):
        check_fits(task, rows, model.config.n_positions, shots)
    kept = {"model": options.model, "weights": weights_digest(options.model), "tokenizer": tokenizer.fingerprint}
    kept |= {"limit": settings.limit, "seed": settings.seed, "end_token": settings.end_token}
    results = Results(options.output, kept, definitions)
    names = [task.name for task in tasks]
    _say(table_header(names))
    for task, rows in zip(tasks, data, strict=True):
        for count in shots_of(task, shots):
            if results.has(task.name, count, options.items):
                _say(*table_rows(results.entry(task.name, count), names))
                continue
            work = prepare(task, rows, tokenizer, model.config.n_positions, count, settings)
            with Meter(f"{task.name}, {count} shots", len(work.prompts) + len(work.texts)) as meter:
                found = measure(work, model, tokenizer, settings, meter.update)
            entry = results.add(task.name, count, found)
            _say(*table_rows(entry, names))  # before it is written: the disk may have filled up meanwhile
            results.write(entry, found.records if options.items else None)


def _definition(task: "EvaluationTask", shots: list[int]) -> dict[str, Any]:
    """The task as plain values, with the SHA-256 of the data that it is measured with."""
    found = {"source": _digest(task, "source", task.split)}
    if task.kind != "perplexity" and task.demonstrations is not None and any(shots):
        found["demonstrations"] = _digest(task, "demonstrations", "train")
    return {**task.to_dict(), "sha256": found}


def _digest(task: "EvaluationTask", key: str, split: str) -> str:
    from gpt_modules.data.rows.sources import fingerprint

    try:
        return fingerprint(getattr(task, key), split)  # type: ignore[arg-type]
    except UserError as error:  # nothing was read yet: it is not there
        raise UserError(f"{error}; --{key} FILE names the data of {task.name}") from error


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()
