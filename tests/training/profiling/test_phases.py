"""Every moment has one phase, that of the innermost action."""

import time

from gpt_modules.training.profiling.phases import Phases, phase_of


def test_the_innermost_phase_has_the_time_and_nothing_is_lost(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    phases = Phases()  # at 0
    step, forward = "[LightningModule]X.optimizer_step", "[Strategy]SingleDeviceStrategy.training_step"
    phases.start("run_training_batch")  # no phase: no look at the clock
    phases.start(step)  # 1
    phases.start(forward)  # 2
    phases.start("[LightningModule]X.forward")
    assert phases.now == "forward"
    phases.stop("[LightningModule]X.forward")
    phases.stop(forward)  # 3
    phases.stop(step)  # 4
    phases.stop("run_training_batch")
    assert phases.seconds() == {"rest": 2, "optimizer": 2, "forward": 1}  # 5
    phases.restart()  # 6
    assert phases.seconds() == {"rest": 1}


def test_actions_of_lightning_by_their_names():
    expected = {
        "[Strategy]DDPStrategy.backward": "backward",
        "[LightningModule]SFTModule.configure_gradient_clipping": "optimizer",
        "[_TrainingEpochLoop].train_dataloader_next": "data",
        "[Callback]ExportBest.on_train_batch_end": "callbacks",
        "[PPOModule]sampling": "sampling",
        "[LightningModule]PPOModule.on_train_start": None,
        "run_training_epoch": None,
    }
    assert {action: phase_of(action) for action in expected} == expected
