"""`gpt run`: stages in order, each in a process of its own; finished ones are skipped, a cut-off one is resumed."""

import sys
import time
from collections.abc import Sequence

from rich.console import Console

from gpt_modules.commands.arguments import Arguments
from gpt_modules.commands.pipelines.board import check_board, write_board
from gpt_modules.commands.pipelines.comparing import ComparePlan
from gpt_modules.commands.pipelines.document import Pipeline
from gpt_modules.commands.pipelines.fitting import FitPlan
from gpt_modules.commands.pipelines.labelling import LabelPlan
from gpt_modules.commands.pipelines.plan import Plan, check_made
from gpt_modules.commands.pipelines.process import run_process
from gpt_modules.commands.pipelines.reading import read_pipeline
from gpt_modules.commands.pipelines.steps import Step, check_start, steps_of
from gpt_modules.errors import UserError
from gpt_modules.storage.recipes import find_recipe

DESCRIPTION = """Run recipes in order, each stage's folder feeding the next, and rounds of comparisons and PPO. What is
done is skipped, what was cut off goes on; where people are to rank answers, it ends with a line that says so, and the
same command goes on."""
WAITS = 75
"""The status where people are waited for: EX_TEMPFAIL of sysexits.h, try again later."""


def main(words: list[str]) -> None:
    """`gpt run PIPELINE [--root DIR] [--config OVERLAY]...`.

    Raises:
        UserError: For a mistake in the pipeline, in any of its recipes or in what they read, before a stage begins.
        SystemExit: With a stage's own status when it fails or is told to stop; with `WAITS` when people are to rank
            answers before it goes on.
    """
    parser = Arguments(prog="gpt run", description=DESCRIPTION)
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
    run_plans(pipeline, plans, console)
    show_result(pipeline, console)


def make_plans(pipeline: Pipeline, overlays: Sequence[str] = (), allowed: Sequence[str] = ()) -> list[Plan]:
    """Every step's recipe or command parsed, its data looked for, and what is done already compared with it.

    Raises:
        UserError: one line that names the stage.
    """
    check_start(pipeline)
    check_board(pipeline)
    plans: list[Plan] = []
    for step in steps_of(pipeline):
        try:
            plan = _plan(step, pipeline, overlays, allowed)
            plan.check()
            _check_beside(plan, plans)
        except UserError as error:
            raise UserError(f"stage {step.name}: {error}") from error
        plans.append(plan)
    for plan in plans:
        if plan.done or plan.cut_off:
            plan.refuse_changes(whole=False)
        else:
            plan.refuse_foreign()
    return plans


def _check_beside(plan: Plan, earlier: Sequence[Plan]) -> None:
    """What it is fed with beside an export is made there."""
    makers = {maker.step.folder / name: maker for maker in earlier for name in maker.beside}
    for key, paths in plan.step.sources.items():
        for path in paths:
            stage = next((maker.step for maker in earlier if maker.step.folder == path.parent), None)
            if stage is not None and path != stage.artefact and path not in makers:
                expected = "a stage whose recipe makes it: PPO makes a critic, and an ema with export beside"
                raise UserError(f"feeds.{key}: found {path.name} of {stage.name}, expected {expected}")


def _plan(step: Step, pipeline: Pipeline, overlays: Sequence[str], allowed: Sequence[str]) -> Plan:
    if step.stage.command == "compare":
        return ComparePlan(step, pipeline)
    if step.stage.command == "label":
        return LabelPlan(step, pipeline)
    return FitPlan(step, pipeline, overlays, allowed)


def run_plans(pipeline: Pipeline, plans: Sequence[Plan], console: Console) -> None:
    """All of them, in order; after each round, what it reached joins the picture of all rounds.

    Raises:
        UserError, SystemExit: see `run_plan`.
    """
    for number, plan in enumerate(plans, start=1):
        run_plan(plan, f"[{number}/{len(plans)}]", console)
        last_of_round = number == len(plans) or plans[number].step.round != plan.step.round
        if plan.step.round is not None and last_of_round:
            write_board(pipeline, plan.step.round)


def run_plan(plan: Plan, label: str, console: Console) -> None:
    """Skip, resume or start one step.

    Raises:
        UserError: when the folder holds the outcome of something else, or an earlier step's is gone.
        SystemExit: with the process's own status when it fails or is told to stop; with `WAITS` for people.
    """

    def say(words: str) -> None:
        console.print(f"{label} {plan.step.name}: {words}", highlight=False, markup=False, soft_wrap=True)

    plan.check_sources()
    if plan.done or plan.cut_off:
        plan.refuse_changes(whole=True)
    if plan.done:
        check_made(plan.step.artefact)
        say("done before, skipped")
        return
    words, started = plan.words(), time.perf_counter()
    if not plan.cut_off:
        plan.begin()
    if waiting := plan.waiting():
        say(f"{waiting}; then the same gpt run goes on")
        raise SystemExit(WAITS)
    say(f"resuming in {plan.step.folder}" if plan.cut_off else f"{plan.title} -> {plan.step.folder}")
    if words and (status := run_process([sys.executable, "-m", "gpt_modules", *words])):
        say(f"ended with status {status}; the same command goes on from there")
        raise SystemExit(status)
    plan.finish(time.perf_counter() - started)


def show_result(pipeline: Pipeline, console: Console) -> None:
    """The tables, the pictures, and what the stages' models say."""
    from gpt_modules.commands.pipelines import report

    def say(words: str) -> None:
        console.print(words, highlight=False, markup=False, soft_wrap=True)

    for table in report.result_tables(pipeline):
        console.print(table)
    if (picture := report.draw_result(pipeline)) is not None:
        say(f"Picture: {picture}")
    say(f"TensorBoard: tensorboard --logdir {pipeline.root}")
    if pipeline.prompts:
        console.print(report.sample_table(pipeline))
