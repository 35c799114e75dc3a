"""`gpt label`: votes into a store of comparisons and out of it."""

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from gpt_modules import listening
from gpt_modules.commands.arguments import Arguments, add_device, number, path_name, utf8_text, whole_number
from gpt_modules.commands.scorers import open_scorer, plain_name, read_term
from gpt_modules.errors import UserError
from gpt_modules.progress import Meter
from gpt_modules.storage.comparisons import FLAGS, LONGEST_NAME, ComparisonStore, Desk, Task, Wanted, is_store
from gpt_modules.storage.durable import check_writable, replace_durably
from gpt_modules.storage.paths import near_names

if TYPE_CHECKING:
    from gpt_modules.data.splits import Row

DESCRIPTION = """Votes into a store of comparisons and out of it. By people, on a page that is served until Ctrl-C; by
models or functions (--by), from a file (--import), into a file (--export); the best answers as demonstrations (--best);
or what the votes say of their labelers (--statistics). A labeler has one vote on a task."""
WAYS = ("by", "import", "export", "best", "statistics")
READ = {
    "page": ("round", "port", "host", "labelers", "overlap", "flags"),
    "by": ("name", "temperature", "margin", "seed", "round", "device"),
    "import": ("name", "flags"),
    "export": ("round",),
    "best": ("name", "round"),
    "statistics": ("round",),
}
PORT = 7861
AT_ONCE = 64  # tasks that are scored together and then kept


def main(words: list[str]) -> None:
    """`gpt label FILE`, which serves the page, and its other ways.

    Raises:
        UserError: For a mistake in an argument, a labeler, a file or the store.
    """
    options = parse(words)
    way = _way(options)
    if way == "import":
        _import(options)
        return
    ways = {"page": _page, "by": _by, "export": _export, "best": _best, "statistics": _statistics}
    with Desk.open(options.store, writing=way in ("page", "by")) as store:
        store.check()
        ways[way](store, options)


def parse(words: list[str]) -> Namespace:
    """The words of the command, its options checked; the store is not opened.

    Raises:
        UserError: for an option that does not fit, or that is not read beside the others.
    """
    options = _parser().parse_args(words)
    given = [way for way in WAYS if getattr(options, way) is not None]
    if len(given) > 1:
        found = " and ".join(f"--{way}" for way in given)
        raise UserError(f"gpt label: found {found}, expected one of {', '.join(f'--{way}' for way in WAYS)}, or none")
    _refuse_idle(options, _way(options))
    _check_names("--name", [] if options.name is None else [options.name])
    _check_names("--labelers", options.labelers or [])
    _check_names("--flags", options.flags or [])
    return options


def _way(options: Namespace) -> str:
    return next((way for way in WAYS if getattr(options, way) is not None), "page")


def _parser() -> Arguments:
    parser = Arguments(prog="gpt label", description=DESCRIPTION)
    parser.add_argument("store", type=path_name, metavar="FILE",
                        help="a store that gpt compare made; --import makes one")  # fmt: skip
    parser.add_argument("--port", type=whole_number(0), default=PORT,
                        help=f"of the page (default {PORT}; 0: any that is free)")  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="where the page is served (default 127.0.0.1: to this "
                        "machine alone); to others with --labelers only")  # fmt: skip
    parser.add_argument("--labelers", nargs="+", type=utf8_text, metavar="NAME",
                        help="who ranks: each gets a link of their own, and nobody else gets anything")  # fmt: skip
    parser.add_argument("--overlap", type=number(lambda value: 0 <= value <= 1, "a number from 0 to 1"), default=0.0,
                        help="the share of tasks that two people rank, for their agreement (default 0)")  # fmt: skip
    parser.add_argument("--flags", nargs="*", type=utf8_text, metavar="FLAG",
                        help="of the labelling form, from now on; none for none (at first: InstructGPT's)")  # fmt: skip
    parser.add_argument("--by", nargs="+", metavar="SCORES",
                        help="reward-model folders or functions package.module:name of (prompts, answers) -> scores; "
                        "several, and SCORES*WEIGHT, are summed: one labeler")  # fmt: skip
    parser.add_argument(
        "--name",
        type=utf8_text,
        metavar="NAME",
        help="of the labeler (default: the scores; whom a row names, or its file; with --best the only one)",
    )
    heat = number(lambda value: 0 <= value <= 1e6, "a number from 0 to a million")
    parser.add_argument("--temperature", type=heat, default=0.0,
                        help="of Bradley and Terry's noise, in units of the scores (default 0: none)")  # fmt: skip
    parser.add_argument("--margin", type=number(lambda value: value >= 0, "a number from 0"), default=0.0,
                        help="scores that are less apart from the best of a tie belong to it (default 0)")  # fmt: skip
    parser.add_argument("--seed", type=whole_number(0), default=0, help="of the noise")
    parser.add_argument("--round", type=whole_number(1), metavar="N", help="this round's tasks only")
    parser.add_argument("--import", nargs="+", metavar="FILE", help="rows with prompt or messages, responses and "
                        "ranking; chosen and rejected; responses and best; or hh-rlhf's transcripts")  # fmt: skip
    parser.add_argument("--export", type=path_name, metavar="FILE", help="a JSONL file, a row for each vote")
    parser.add_argument("--best", type=path_name, metavar="FILE", help="a JSONL file of demonstrations for SFT: each "
                        "prompt with the answer that is ranked best, of those that were not cut off")  # fmt: skip
    parser.add_argument("--statistics", nargs="?", const=Path(), type=path_name, metavar="FILE",
                        help="agreement as a table, and as JSON in FILE")  # fmt: skip
    add_device(parser)
    return parser


def _refuse_idle(options: Namespace, way: str) -> None:
    """Options that the way does not read."""
    read = READ[way]
    plain = _parser().parse_args([str(options.store)])
    for name in dict.fromkeys(name for names in READ.values() for name in names):
        if name not in read and getattr(options, name) != getattr(plain, name):
            found = getattr(options, name)
            said = " ".join(found) if isinstance(found, list) else found
            where = "on the page" if way == "page" else f"with --{way}"
            raise UserError(f"--{name}: found {said} {where}, which does not read it")
    if way == "by" and not options.temperature and options.seed:
        raise UserError(f"--seed: found {options.seed} without noise, expected a --temperature above 0")


# --- ways ---


def _page(store: Desk, options: Namespace) -> None:
    _tasks(store, options)
    try:
        from gpt_modules.feedback.page import server
    except ImportError as error:
        if not (error.name or "").startswith(("starlette", "uvicorn", "markdown_it")):
            raise
        line = f"gpt label: the package {error.name} is not installed; pip install 'gpt-modules[feedback]'"
        raise UserError(line) from error
    with listening.listen(options.host, options.port) as listener:
        if options.labelers is None and not listening.is_private(listener):
            raise UserError(f"--host: found {options.host}, which others can reach, expected --labelers NAME..., who "
                            "get a link each")  # fmt: skip
        tokens = _tokens(store, options)
        address = listening.address_of(listener)
        if tokens is None:
            _say(f"{store.path}: rank the answers at {address} (Ctrl-C ends it)")
        for name, token in (tokens or {}).items():
            _say(f"{store.path}: {name} ranks at {address}{token}/")
        server.serve(server.make_app(store.path, Wanted(1, options.overlap, options.round), tokens), listener)


def _tokens(store: Desk, options: Namespace) -> dict[str, str] | None:
    """Of those who get links, who become known; and the form as it is asked for."""
    from gpt_modules.feedback.page.links import tokens_of

    for name in options.labelers or []:
        store.add_labeler(name, "person")
    if options.flags is not None:
        store.set_form(options.flags)
    return None if options.labelers is None else tokens_of(store.secret(), options.labelers)


def _check_names(option: str, names: Sequence[str]) -> None:
    for name in names:
        plain = 0 < len(name) <= LONGEST_NAME and name.isprintable() and name == name.strip()
        if not plain or names.count(name) > 1:
            expected = f"different names of up to {LONGEST_NAME} characters"
            raise UserError(f"{option}: found {name[:70]!r}, expected {expected}")


def _by(store: ComparisonStore, options: Namespace) -> None:
    from gpt_modules.feedback.labelers import Manner, settings_of, votes

    manner = Manner(options.temperature, options.margin, options.seed)
    scorers = [open_scorer(read_term(term), options) for term in options.by]
    name = options.name or " + ".join(of.name if of.weight == 1 else f"{of.name}*{of.weight:g}" for of in scorers)
    every = _tasks(store, options)
    tasks = [task for task in every if store.vote_of(task.id, name) is None]
    store.add_labeler(name, "scores", settings_of(scorers, manner))
    with Meter("tasks", len(tasks)) as meter:
        for start in range(0, len(tasks), AT_ONCE):
            some = tasks[start : start + AT_ONCE]
            for vote in votes(some, name, scorers, manner):
                store.vote(vote)
            meter.update((start + len(some)) / len(tasks))
    _say(f"{store.path}: {name} ranked {len(tasks)} tasks, {len(every) - len(tasks)} before")


def _tasks(store: ComparisonStore, options: Namespace) -> list[Task]:
    found = list(store.tasks(options.round))
    if not found:
        where = "" if options.round is None else f" in round {options.round}"
        raise UserError(f"{store.path}: found no task{where}, expected some (gpt compare samples them)")
    return found


def _import(options: Namespace) -> None:
    from gpt_modules.feedback.exchange import bring_in, refuse_other_flags

    _check_names("--flags", options.flags or [])
    new = not options.store.exists()
    if not new:
        with ComparisonStore.open(options.store) as store:
            store.check()
    files = _imported_rows(options)
    if new:
        refuse_other_flags(chain(*files.values()), FLAGS if options.flags is None else options.flags)
        check_writable(options.store.parent)
    with ComparisonStore.create(options.store) as store:
        with store.together():
            if options.flags is not None:
                store.set_form(options.flags)
            found = {name: bring_in(store, rows, name) for name, rows in files.items()}
        if new:
            _say(f"{store.path}: a new store{_beside(store.path)}")
        for name, of in found.items():
            _say(f"{store.path}: {name}: {of.new} votes are new, {of.replaced} take the place of the same labeler's, "
                 f"{of.known} of {len(files[name])} rows changed nothing")  # fmt: skip


def _imported_rows(options: Namespace) -> "dict[str, list[Row]]":
    """Of each file, with --name in place of whom they name."""
    from gpt_modules.data.rows.sources import load_rows
    from gpt_modules.feedback.exchange import check_imported

    files = {plain_name(name): load_rows(name, "train", check_imported) for name in getattr(options, "import")}
    if options.name is None:
        return files
    return {name: [{**row, "labeler": options.name} for row in rows] for name, rows in files.items()}


def _beside(path: Path) -> str:
    """Stores of nearly the same name, one of which may have been meant."""
    near = [name for name in near_names(str(path)) if is_store(Path(name)) and Path(name) != path]
    return f"; beside it there is {' and '.join(near)}" if near else ""


def _export(store: ComparisonStore, options: Namespace) -> None:
    from gpt_modules.feedback.exchange import exported

    _expect_new("--export", options.export)
    rows = list(exported(store.rankings(options.round), store.kind_of))
    if not rows:
        raise UserError(f"{store.path}: found no vote, expected at least one")
    _write(options.export, rows)
    _say(f"{options.export}: {len(rows)} votes")


def _best(store: ComparisonStore, options: Namespace) -> None:
    from gpt_modules.feedback.best import best_answers, of_one_labeler

    _expect_new("--best", options.best)
    rankings = of_one_labeler(store.rankings(options.round), options.name, store.path)
    rows = list(best_answers(rankings))
    if not rows:
        raise UserError(f"{store.path}: found {len(rankings)} prompts whose answers were all cut off, expected answers "
                        "that came to their end: gpt compare with more --max-new-tokens samples them")  # fmt: skip
    _write(options.best, rows)
    left = len(rankings) - len(rows)
    _say(f"{options.best}: {len(rows)} prompts with the answer that {rankings[0].labeler} ranks best"
         + (f"; {left} more are left out, whose answers were all cut off" if left else ""))  # fmt: skip


def _expect_new(option: str, path: Path) -> None:
    if path.exists():
        raise UserError(f"{option}: found {path}, which is there already, expected a new file")


def _write(path: Path, rows: "Sequence[Row]") -> None:
    replace_durably(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _statistics(store: ComparisonStore, options: Namespace) -> None:
    from gpt_modules.feedback.agreement import statistics
    from gpt_modules.feedback.table import json_of, table_of

    if options.statistics != Path():
        _expect_new("--statistics", options.statistics)
    rankings = list(store.rankings(options.round))
    if not rankings:
        raise UserError(f"{store.path}: found no vote, expected at least one")
    found = statistics(rankings, store.form)
    Console(file=sys.stdout).print(table_of(found))
    if options.statistics != Path():
        replace_durably(options.statistics, json_of(found))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
