"""What a recipe and a launcher say of the processes and the Trainer is refused or told by its keys."""

import sys

import pytest

from gpt_modules.commands import bench, fit
from gpt_modules.errors import UserError

SFT = ["-c", "sft/tiny"]
BROKEN = """
import lightning.pytorch as L
class Broken(L.Callback):
    def __init__(self, n: int = 3):
        raise RuntimeError("no such device")
"""


@pytest.mark.parametrize(
    ("world", "local", "line"),
    [
        (2, None, "--trainer.devices 2"),
        (2, 2, "--trainer.devices 2"),
        (16, 8, "--trainer.devices 8 --trainer.num_nodes 2"),
    ],
)
def test_what_a_launcher_has_started_is_said_as_keys(monkeypatch, world, local, line):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
    assert fit.launched(world) == line


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--trainer.devices 1000000", "--trainer.devices: found 1000000 processes on the CPU, expected at most"),
        ("--trainer.devices -7", "--trainer.devices: found '-7', which is refused: "),
        ("--trainer.precision 16-true --trainer.strategy foo", "--trainer.strategy: found 'foo', which is refused: "),
        ("--trainer.strategy deepspeed", "--trainer.strategy: found 'deepspeed', expected auto, ddp or fsdp2, which"),
        ("--trainer.strategy fsdp", "--trainer.strategy: found 'fsdp', expected auto, ddp or fsdp2, which shards as"),
        (
            "--trainer.strategy DeepSpeedStrategy",
            "--trainer.strategy: found 'DeepSpeedStrategy', expected auto, ddp or",
        ),
        ("--trainer.accelerator abacus", "--trainer.accelerator: found 'abacus', which is refused: "),
        ("--trainer.precision 16-mixed", "--trainer.precision: found 16-mixed on a CPU, expected bf16-mixed"),
        (
            "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=x --trainer.callbacks.mode=up",
            "--trainer.callbacks.0: found EarlyStopping, which is refused: MisconfigurationException `mode` can be ",
        ),
        (
            "--allow mine_of_fit --trainer.callbacks+=mine_of_fit.Broken",
            "--trainer.callbacks.0: found Broken, which is refused: RuntimeError no such device",
        ),
        ("--trainer.max_time foo", "--trainer.max_time: found 'foo', which is refused: "),
        ("--trainer.default_root_dir=", "--trainer.default_root_dir: found nothing, expected the run's folder"),
    ],
)
def test_what_the_trainer_refuses_is_told_by_key(monkeypatch, tmp_path, words, line):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    (tmp_path / "mine_of_fit.py").write_text(BROKEN)
    monkeypatch.setattr("sys.argv", ["gpt"])
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    with pytest.raises(UserError) as refused:
        fit.run_trainer("fit", [*SFT, "--trainer.accelerator", "cpu", *words.split()])
    assert str(refused.value).startswith(line)


@pytest.mark.parametrize("run", [lambda words: fit.run_trainer("fit", words), bench.main])
def test_who_was_started_by_a_launcher_ends_with_it_in_every_command(monkeypatch, tmp_path, run):
    """From the beginning: here nothing else begins."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["gpt"])
    monkeypatch.setattr(fit.one_voice, "launcher", lambda: 7)
    watched = []
    monkeypatch.setattr(fit, "leave_with", watched.append)
    with pytest.raises(UserError):
        run([*SFT, "--trainer.max_steps", "many"])
    assert watched == [7]
