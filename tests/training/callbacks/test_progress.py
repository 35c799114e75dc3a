"""Lines in a log by a clock of our own, a bar on a terminal; nothing on other ranks."""

import io

import lightning.pytorch as L
import pytest
import torch
from rich.console import Console

from gpt_modules.training.callbacks import progress
from gpt_modules.training.callbacks.progress import StepBar


class ToyModule(L.LightningModule):
    """Whose name labels the line."""


class Steps(L.Trainer):
    """What a callback reads of a Trainer, and nothing that trains."""

    global_step = is_global_zero = progress_bar_metrics = callback_metrics = None

    def __init__(self, **known):
        vars(self).update(known)


class Loop:
    """Whose every batch takes a step."""

    def _should_accumulate(self):
        return False


class Run:
    """A StepBar, told of steps as Lightning tells it.

    Args:
        total: optimizer steps that the run is to have, inf for no end.
        seconds: a step takes on the run's own clock.
    """

    def __init__(self, monkeypatch, total, first=0, seconds=2.0, terminal=False, rank=0, every=1, **arguments):
        self.out, self.seconds, self.now = io.StringIO(), seconds, 1000.0
        monkeypatch.setattr(progress.time, "perf_counter", lambda: self.now)
        self.bar = StepBar(**arguments)
        self.bar._console = Console(file=self.out, force_terminal=terminal, width=200)
        monkeypatch.setattr(progress, "run_length", lambda trainer: total)
        self.trainer = Steps(
            global_step=first,
            is_global_zero=rank == 0,
            log_every_n_steps=every,
            progress_bar_metrics={"v_num": 7},
            callback_metrics={},
            fit_loop=Loop(),
        )
        self.bar.on_train_start(self.trainer, ToyModule())

    def step(self, number, **metrics):
        self.now += self.seconds * (number - self.trainer.global_step)
        self.trainer.global_step = number
        self.trainer.callback_metrics = {name: torch.tensor(value) for name, value in metrics.items()}
        self.bar.on_train_batch_end(self.trainer, None, None, 0)

    @property
    def lines(self):
        return self.out.getvalue().splitlines()


def test_ten_lines_a_run_with_the_time_that_is_left(monkeypatch):
    run = Run(monkeypatch, total=100)
    for number in range(1, 101):
        run.step(number, **{"train/loss": 1 / 3, "value/loss": 5.0})
    shown = [*range(1, 101, 10), 100]
    assert run.lines == [f"toy step {n}/100, {2 * (100 - n)} s left  train/loss 0.3333" for n in shown]


def test_what_a_validation_showed_stands_behind_the_speed(monkeypatch):
    run = Run(monkeypatch, total=1)
    run.trainer.progress_bar_metrics = {"val/loss": 2.0}
    run.step(1, **{"perf/tokens_per_s": 512.0})
    assert run.lines == ["toy step 1/1, 0 s left  perf/tokens_per_s 512  val/loss 2"]


def test_a_resumed_run_counts_its_own_time_only(monkeypatch):
    run = Run(monkeypatch, total=100, first=50, seconds=3.0)
    run.step(50)
    run.step(55)
    run.step(60, **{"train/loss": 12345.678, "kl": 0.0})
    assert run.lines == ["toy step 50/100  ", "toy step 60/100, 120 s left  train/loss 1.235e+04  kl 0"]


def test_a_short_run_says_every_step_and_one_without_an_end_every_hundredth(monkeypatch):
    run = Run(monkeypatch, total=3, name="mine")
    for number in (1, 2, 3):
        run.step(number)
    assert run.lines == ["mine step 1/3, 4 s left  ", "mine step 2/3, 2 s left  ", "mine step 3/3, 0 s left  "]
    run = Run(monkeypatch, total=float("inf"))
    for number in range(1, 202):
        run.step(number)
    assert run.lines == ["toy step 1/?  ", "toy step 101/?  ", "toy step 201/?  "]


def test_accumulated_batches_of_one_step_are_one_line(monkeypatch):
    run = Run(monkeypatch, total=10)
    for number in (1, 1, 1, 2):
        run.step(number)
    assert [line.partition(",")[0] for line in run.lines] == ["toy step 1/10", "toy step 2/10"]


@pytest.mark.parametrize("terminal", [False, True])
def test_other_ranks_are_silent(monkeypatch, terminal):
    run = Run(monkeypatch, total=10, rank=1, terminal=terminal)
    run.step(1)
    run.bar.on_train_end()
    assert run.out.getvalue() == ""


def test_a_bar_on_a_terminal_reads_metrics_at_log_steps_and_goes(monkeypatch):
    run = Run(monkeypatch, total=8, first=2, terminal=True, every=4)
    shown = run.bar._progress
    assert (shown.tasks[0].completed, shown.tasks[0].total, shown.tasks[0].description) == (2, 8, "toy")
    run.step(3, kl=1.0)
    assert (shown.tasks[0].completed, shown.tasks[0].fields["metrics"]) == (3, "")
    run.step(4, kl=2.0)
    run.step(5, kl=3.0)
    assert (shown.tasks[0].completed, shown.tasks[0].fields["metrics"]) == (5, "kl 2")
    assert shown.live.is_started
    run.bar.on_exception(run.trainer)
    assert not shown.live.is_started, "before the message"
    run.bar.on_train_end()
