"""`gpt run`: stages in order, each a recipe in a process of its own; finished ones are skipped, a cut-off one is
resumed.
"""

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.console import Console

from gpt_modules.commands.arguments import Arguments
from gpt_modules.commands.pipelines import ROOT_KEY, Pipeline, Stage, read_pipeline, stage_words
from gpt_modules.errors import UserError
from gpt_modules.storage.model_files import CONFIG_FILE
from gpt_modules.storage.recipes import find_recipe
from gpt_modules.storage.summary import SUMMARY_FILE, read_summary

if TYPE_CHECKING:
    from gpt_modules.commands.provenance import Origin


@dataclass(frozen=True)
class Plan:
    """A stage whose recipe has been parsed.

    Args:
        words: of `gpt fit`.
        recipe: every key with its value, those that no recipe names among them.
    """

    stage: Stage
    folder: Path
    words: list[str]
    recipe: dict[str, Any]

    @property
    def done(self) -> bool:
        """Whether the run is complete."""
        return (self.folder / SUMMARY_FILE).exists()

    @property
    def cut_off(self) -> bool:
        """Whether the run has a checkpoint to go on from."""
        return any((self.folder / "checkpoints").glob("step=*.ckpt"))

    def origin(self, root: Path) -> "Origin":
        """What the stage would be made from now."""
        from gpt_modules.commands.provenance import origin_of

        return origin_of(self.recipe, root)


def main(words: list[str]) -> None:
    """`gpt run PIPELINE [--root DIR] [--config OVERLAY]...`.

    Raises:
        UserError: For a mistake in the pipeline, in any of its recipes or in what they read, before a stage begins.
        SystemExit: With a stage's own status when it fails or is told to stop.
    """
    parser = Arguments(prog="gpt run", description="Run recipes in order, each stage's folder feeding the next.")
    parser.add_argument("pipeline", help="a file, or a name such as pipelines/demo")
    parser.add_argument("--root", help="folder for the stages, in place of the file's")
    parser.add_argument(
        "--config", action="append", default=[], metavar="OVERLAY",
        help="recipe laid over every stage, e.g. hardware/gpu",
    )  # fmt: skip
    parser.add_argument("--allow", action="append", default=[], metavar="PACKAGE", help="as of gpt fit, of every stage")
    options = parser.parse_args(words)
    pipeline = read_pipeline(find_recipe(options.pipeline), options.root)
    plans = make_plans(pipeline, [str(find_recipe(overlay)) for overlay in options.config], options.allow)
    console = Console(width=None if sys.stdout.isatty() else 140)
    for number, plan in enumerate(plans, start=1):
        run_stage(pipeline, plan, f"[{number}/{len(plans)}]", console)
    show_result(pipeline, console)


def make_plans(pipeline: Pipeline, overlays: Sequence[str], allowed: Sequence[str] = ()) -> list[Plan]:
    """Every stage's recipe parsed, its data looked for, and what is done already compared with it.

    Raises:
        UserError: one line that names the stage.
    """
    from gpt_modules.commands.fit import parse_recipe

    plans = []
    for stage in pipeline.stages:
        words = stage_words(pipeline, stage, overlays, allowed)
        try:
            plan = Plan(stage, pipeline.folder(stage), words, parse_recipe(words))
            _check_folder(plan)
            _check_data(plan, pipeline.root)
            _check_samples(plan, pipeline)
        except UserError as error:
            raise UserError(f"stage {stage.name}: {error}") from error
        plans.append(plan)
    for plan in plans:
        if plan.done or plan.cut_off:
            _refuse_changes(plan, pipeline, whole=False)
        else:
            _refuse_foreign(plan)
    return plans


def _check_recipe(plan: Plan) -> None:
    """The stage's process reads the files again, hours after they were checked; what it was made from is written down
    as they were.
    """
    from gpt_modules.commands.fit import parse_recipe

    if parse_recipe(plan.words) != plan.recipe:
        found = "found its recipe changed since gpt run began, expected it to stay as it is"
        raise UserError(f"stage {plan.stage.name}: {found}; the same command goes on from here with the new one")


def _check_folder(plan: Plan) -> None:
    """However a stage says its keys, it writes where the pipeline looks."""
    if (found := plan.recipe["trainer"]["default_root_dir"]) != str(plan.folder):
        raise UserError(f"{ROOT_KEY}: found {found!r}, expected the pipeline's own {str(plan.folder)!r}: set no other")


def _check_data(plan: Plan, root: Path) -> None:
    """Files that a recipe's data names are there, unless a stage is to make them."""
    from gpt_modules.data.rows.files import find_files, is_local

    arguments = plan.recipe.get("data", {}).get("init_args") or {}
    for key in ("train", "validation", "test"):
        for item in _texts(arguments.get(key)):
            if is_local(item) and not Path(item).is_dir() and root not in Path(item).parents:
                find_files(item)


def _texts(value: Any) -> Iterator[str]:
    yield from (item for item in (value if isinstance(value, list | tuple) else [value]) if isinstance(item, str))


def _check_samples(plan: Plan, pipeline: Pipeline) -> None:
    config = (plan.recipe.get("model", {}).get("init_args") or {}).get("config")
    room = config.get("n_positions") if isinstance(config, dict) else None
    if pipeline.prompts and isinstance(room, int) and pipeline.sample_tokens >= room:
        raise UserError(f"sample_tokens: found {pipeline.sample_tokens}, expected fewer than the model's {room}")


def _refuse_foreign(plan: Plan) -> None:
    """Nothing, where a stage may make its export anew.

    Raises:
        UserError: there is one that gpt run did not make.
    """
    from gpt_modules.commands.provenance import ORIGIN_FILE

    if (export := plan.folder / "export").exists() and not (plan.folder / ORIGIN_FILE).exists():
        raise UserError(f"{export}: found a folder that gpt run did not make, expected none; name another --root")


def _refuse_changes(plan: Plan, pipeline: Pipeline, whole: bool) -> None:
    """Nothing, where a stage that has begun is still the same.

    Args:
        whole: also compare what earlier stages export; until they have run there may be nothing yet.

    Raises:
        UserError: something it was made from has changed since, each by its key.
    """
    from gpt_modules.commands.provenance import changes, read_origin

    now = plan.origin(pipeline.root)
    found = changes(read_origin(plan.folder), now, [] if whole else now.unmade)
    if found:
        more = f" and {len(found) - 2} more" if len(found) > 2 else ""
        raise UserError(
            f"{plan.folder}: since it was run, {'; '.join(found[:2])}{more}; remove the folder to run it anew, or name "
            "another --root"
        )


def run_stage(pipeline: Pipeline, plan: Plan, label: str, console: Console) -> None:
    """Skip, resume or start one stage.

    Raises:
        UserError: when the folder holds the outcome of something else, or an earlier stage's export is gone.
        SystemExit: with the stage's own status when it fails or is told to stop.
    """
    from gpt_modules.commands.provenance import write_origin

    name, words = plan.stage.name, plan.words
    for source in plan.stage.feeds.values():
        _check_export(pipeline, source)
    if plan.done or plan.cut_off:
        _refuse_changes(plan, pipeline, whole=True)
    if plan.done:
        _check_export(pipeline, name)
        console.print(f"{label} {name}: done before, skipped", highlight=False, markup=False, soft_wrap=True)
        return
    _check_recipe(plan)
    if plan.cut_off:
        words = [*words, "--ckpt_path", "last"]
        console.print(f"{label} {name}: resuming in {plan.folder}", highlight=False, markup=False, soft_wrap=True)
    else:
        _refuse_foreign(plan)
        shutil.rmtree(pipeline.export(name), ignore_errors=True)  # of an attempt that left nothing to go on from
        write_origin(plan.folder, plan.origin(pipeline.root))
        recipes = ", ".join(plan.stage.recipes)
        console.print(f"{label} {name}: {recipes} -> {plan.folder}", highlight=False, markup=False, soft_wrap=True)
    status = run_process([sys.executable, "-m", "gpt_modules", "fit", *words])
    if status:
        line = f"{label} {name}: ended with status {status}; the same command goes on from there"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
        raise SystemExit(status)
    read_summary(plan.folder)
    _check_export(pipeline, name)


def _check_export(pipeline: Pipeline, name: str) -> None:
    config = pipeline.export(name) / CONFIG_FILE
    if not config.is_file():
        raise UserError(f"{config}: missing, though its stage is done; remove {config.parent.parent} to run it anew")


def run_process(command: list[str]) -> int:
    """Run a stage; hand on the signals that ask to stop, and wait for it to save. Returns its exit status, 128 + n
    for signal n.
    """
    process: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        if process is None:
            early.append(number)
        # Ctrl-C reaches the whole foreground group by itself; a second copy would be the "at once" of the stage.
        elif number != signal.SIGINT:
            process.send_signal(number)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        process = subprocess.Popen(command)
        for number in early:
            process.send_signal(number)
        status = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status


def show_result(pipeline: Pipeline, console: Console) -> None:
    """The table, the picture, and what the stages' models say."""
    from gpt_modules.commands.report import draw_result, result_table, sample_table

    console.print(result_table(pipeline))
    if any(stage.metrics for stage in pipeline.stages):
        draw_result(pipeline, pipeline.root / "result.png")
        console.print(f"Picture: {pipeline.root / 'result.png'}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"TensorBoard: tensorboard --logdir {pipeline.root}", highlight=False, markup=False, soft_wrap=True)
    if pipeline.prompts:
        console.print(sample_table(pipeline))
