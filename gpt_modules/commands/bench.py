"""`gpt bench`: how fast a recipe trains on this machine, phase by phase, and what holds it up."""

import io
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import astuple
from functools import partial
from typing import Any

import lightning.pytorch as L
from rich.console import Console
from rich.table import Table

from gpt_modules.commands.arguments import Arguments, number
from gpt_modules.commands.fit import TrainerCLI
from gpt_modules.commands.recipe_cli import open_recipe
from gpt_modules.errors import UserError
from gpt_modules.training.callbacks.gradients import FreedGradients
from gpt_modules.training.callbacks.guards import FiniteLossGuard
from gpt_modules.training.callbacks.peers import PeerWatch
from gpt_modules.training.profiling.phases import Phases
from gpt_modules.training.profiling.roofline import Work
from gpt_modules.training.profiling.stopwatch import Found, Stopwatch

DESCRIPTION = """Train what a recipe describes for some seconds and write nothing: no validation, checkpoints, export or
callbacks of the recipe. Tell what each phase takes: seconds, floating-point operations a second, the share of what this
machine reaches in a large product, and what holds it up: arithmetic, memory, or the rest (starting operations, Python,
waiting). Of a run of several processes the table is the first one's, beside the share that collective calls would take
alone; the rate is that of all. What is not an option here is a word of gpt fit."""

_BUSY = 0.9  # of the time, below which the numbers are not the machine's own
_COLUMNS = ("phase", "ms", "share", "GFLOP/s", "of peak")
# A schedule may need an end, which is far away.
_ENDLESS: dict[str, Any] = {"max_epochs": 1_000_000, "max_steps": -1, "max_time": None}


class Bench(TrainerCLI):
    """`gpt fit` that leaves nothing behind: what a recipe says of checkpoints, exports and logs is parsed and idle."""

    def __init__(self, stopwatch: Stopwatch, *args: Any, **options: Any) -> None:
        self.stopwatch = stopwatch
        super().__init__(*args, **options)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Training alone, for as long as it is measured: where a recipe's run would end is left out, unless the command
        line says it.
        """
        # In a folder that cannot be: what would write there fails.
        own = {"default_root_dir": os.devnull, "profiler": self.stopwatch.phases}
        idle = {"logger": False, "limit_val_batches": 0, "num_sanity_val_steps": 0, "enable_checkpointing": False}
        endless = {key: value for key, value in _ENDLESS.items() if not self.recipe.is_asked(("trainer", key))}
        for key, value in (own | idle | endless).items():
            self.config_init[self.subcommand]["trainer"][key] = value
        self.save_config_callback = None
        return super().instantiate_trainer(**kwargs)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[L.Callback]) -> L.Trainer:
        config["callbacks"] = []  # those of a recipe measure, draw and evaluate
        self.trainer_defaults = {"callbacks": [FiniteLossGuard(), PeerWatch(), FreedGradients(), self.stopwatch]}
        return super()._instantiate_trainer(config, [])

    def before_fit(self) -> None:
        """A run of its own, that nothing goes on from."""
        if self.config[self.subcommand].get("ckpt_path") is not None:
            raise UserError(f"{self.recipe.where(('ckpt_path',))}: found a checkpoint, expected none: gpt bench begins")


def main(words: list[str]) -> None:
    """`gpt bench RECIPE [--seconds 10] [...]`.

    Raises:
        UserError: the recipe is wrong, as `gpt fit` says it, or too short to be measured.
    """
    parser = Arguments(prog="gpt bench", usage="gpt bench RECIPE [--seconds 10] [...]", description=DESCRIPTION)
    parser.add_argument("--seconds", type=number(lambda value: value > 0, "a number above 0"), default=10.0,
                        help="to measure, at least one step or iteration (default 10)")  # fmt: skip
    options, others = parser.parse_known_args(words)
    if others and not others[0].startswith("-"):  # behind an option of gpt fit, a word is its value
        others = ["--config", *others]
    if not any(re.match(r"(--config|-c)(=|$)", word) for word in others):
        raise UserError("recipe: found none, expected one, such as gpt bench ppo/tiny")
    stopwatch = Stopwatch(Phases(), options.seconds)
    run = open_recipe(partial(Bench, stopwatch), "fit", others, ["bench", *words])
    if not run.trainer.is_global_zero:
        return
    if stopwatch.found is None:
        name, _ = run.recipe.configs[0]
        raise UserError(f"{name}: found a run that ends before it is measured, expected a longer one: "
                        "--trainer.max_steps, max_epochs or max_time, no fast_dev_run, or fewer --seconds")  # fmt: skip
    sys.stdout.write(report(stopwatch.found))


def report(found: Found) -> str:
    """The table, and what it comes to."""
    seconds, all_work = sum(found.seconds.values()), _sum(found.work.values())
    phases = sorted(found.seconds, key=lambda name: -found.seconds[name])
    rows = [_row(name, found.work.get(name, Work()), found.seconds[name], found) for name in phases]
    table = Table(box=None, pad_edge=False)
    for column in (*_COLUMNS, *_shares(all_work, seconds, found)):
        table.add_column(column, justify="left" if column == "phase" else "right")
    for row in (*rows, _row("all", all_work, seconds, found)):
        table.add_row(*row)
    console = Console(file=io.StringIO(), width=100)
    console.print(table)
    several = f"{found.processes} processes, of which the first has " if found.processes > 1 else "this machine: "
    lines = [
        f"{several}{found.peak / 1e9:,.0f} GFLOP/s in products of {found.dtype}, {found.copied / 1e9:,.1f} GB/s "
        f"in copies; {found.pieces} {found.piece}{'s' * (found.pieces > 1)} in {seconds:.1f} s, per {found.piece}:",
        console.file.getvalue(),  # type: ignore[attr-defined]
        f"{found.amount / seconds:,.1f} {found.unit}/s; {found.memory / 1e9:.2f} GB at the peak",
    ]
    if found.busy >= _BUSY:
        lines[-1] += f"; held up by {_bound(_shares(all_work, seconds / found.pieces, found))}"
    else:
        lines.append(f"At work for {found.busy:.0%} of the time: it waited, or other work is on this machine.")
    return "\n".join([*lines, ""])


def _sum(works: Iterable[Work]) -> Work:
    return Work(*(sum(of) for of in zip(*map(astuple, works), strict=True)))


def _row(name: str, work: Work, seconds: float, found: Found) -> tuple[str, ...]:
    """Of a phase, for one piece of work."""
    of_piece = seconds / found.pieces
    rate = work.flops / of_piece
    measured = (f"{_digits(rate / 1e9)}", _percent(rate / found.peak)) if work.flops else ("", "")
    shares = (_percent(share) for share in _shares(work, of_piece, found).values())
    return (name, f"{1000 * of_piece:,.1f}", f"{seconds / sum(found.seconds.values()):.0%}", *measured, *shares)


def _shares(work: Work, seconds: float, found: Found) -> dict[str, float]:
    """Of the time: what arithmetic would take at the peak, what copies would, what collective calls of several
    processes would, each waited for, and what none of them explains.
    """
    shares = {"arithmetic": work.arithmetic / seconds, "memory": work.memory / seconds}
    if found.processes > 1:
        shares["collectives"] = work.collectives / seconds
    return {**shares, "rest": max(0.0, 1.0 - sum(shares.values()))}


def _bound(shares: Mapping[str, float]) -> str:
    most = max(shares, key=lambda name: shares[name])
    return "the rest: starting operations, Python, waiting" if most == "rest" else most


def _percent(share: float) -> str:
    """Of the time or the peak there is; what exceeds it was measured while the machine did other work."""
    return f"{share:.0%}" if share <= 1.0 else ">100%"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
