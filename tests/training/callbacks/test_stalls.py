"""Who makes no step for long says where it is; who does, or only waits for others, says nothing."""

import sys
import threading
from itertools import count

import lightning.pytorch as L

from gpt_modules.training.callbacks import stalls
from gpt_modules.training.callbacks.stalls import LOOKS, StallReport, calls, watch_progress


class Looks(threading.Event):
    """An event that is waited for without a clock: set once so many looks have been taken."""

    def __init__(self, looks):
        super().__init__()
        self.left = looks

    def wait(self, seconds):
        self.left -= 1
        return self.left < 0


def told(progress, looks):
    """How often in so many looks."""
    lines = []
    watch_progress(progress, lambda: lines.append(1), Looks(looks))
    return len(lines)


def test_a_stretch_without_progress_is_told_once():
    assert told(lambda: 7, LOOKS - 1) == 0
    assert told(lambda: 7, LOOKS) == 1
    assert told(lambda: 7, 5 * LOOKS) == 1
    steps = count()
    assert told(lambda: next(steps), 5 * LOOKS) == 0
    looks = count()
    assert told(lambda: next(looks) // (LOOKS + 2), 5 * (LOOKS + 2)) == 5, "slow, and told each time"


def reward():
    return sys._getframe()


def test_the_calls_of_code_of_ones_own_innermost_last():
    found = calls(reward())
    assert found[-1].startswith(f"{__file__}:")
    assert found[-1].endswith("(reward)")
    assert found[-2].endswith("(test_the_calls_of_code_of_ones_own_innermost_last)")
    namespace = {"reward": reward}
    exec(compile("def wait():\n    return reward().f_back", "/torch/distributed/wait.py", "exec"), namespace)
    assert calls(namespace["wait"]()) == [], "it waits for others"


class Run(L.Trainer):
    """One of several processes, that runs nothing."""

    world_size, global_rank = 2, 1


class Thread:
    """One that is not started."""

    def __init__(self, **given):
        self.given = given

    def start(self):
        made.append(self.given)


made = []


def test_batches_of_any_loop_are_progress_and_a_process_alone_is_not_watched(capsys, monkeypatch):
    report, module, quiet = StallReport(), L.LightningModule(), {"accelerator": "cpu", "logger": False}
    run = Run(**quiet, enable_checkpointing=False, enable_progress_bar=False)
    monkeypatch.setattr(stalls.threading, "Thread", Thread)
    report.setup(L.Trainer(**quiet, devices=1, enable_checkpointing=False), module, "fit")
    assert not made
    report.setup(run, module, "fit")
    progress, tell, ended = made.pop()["args"]
    assert progress() == 0
    run.fit_loop.epoch_loop.val_loop.batch_progress.increment_ready()
    run.fit_loop.epoch_loop.batch_progress.increment_completed()
    assert progress() == 2
    tell()
    assert capsys.readouterr().err.startswith("process 1: no step for 10 minutes; it is at ")
    report.teardown(run, module, stage="fit")
    assert ended.is_set()


def test_the_first_process_says_that_it_waits_and_the_others_are_silent(capsys):
    for rank in (0, 1):
        StallReport._teller(rank, -1)()
    assert capsys.readouterr().err == ("process 0: no step for 10 minutes; it computes, or waits for another process\n")
