"""Checkpoints are whole or absent, verified when read, and never executed."""

import pickle
import random
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import lightning.pytorch as L
import numpy as np
import pytest
import torch

from gpt_modules.errors import UserError
from gpt_modules.storage.durable import write_durably
from gpt_modules.training.callbacks.checkpointing import (
    ExactCheckpoint,
    RandomState,
    VerifiedCheckpointIO,
    checkpoints,
    digest_path,
    newest_checkpoint,
    step_of,
    verifies,
)


@pytest.fixture
def folder(tmp_path):
    for step in (1, 2, 3):
        VerifiedCheckpointIO().save_checkpoint(
            {"step": step, "weights": torch.arange(100.0)}, tmp_path / f"step={step:08d}.ckpt"
        )
    return tmp_path


def test_no_checkpoint_is_written_outside_of_the_root(tmp_path):
    with pytest.raises(UserError, match=r"found a checkpoint's name, expected one below the run's folder"):
        VerifiedCheckpointIO(tmp_path / "run").save_checkpoint({}, tmp_path / "run" / "a" / ".." / ".." / "x.ckpt")
    assert not (tmp_path / "x.ckpt").exists()
    VerifiedCheckpointIO(tmp_path / "run").save_checkpoint({}, tmp_path / "run" / "x.ckpt")


def flip_a_bit(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_what_is_written_is_read(folder):
    newest = newest_checkpoint(folder)
    assert newest.name == "step=00000003.ckpt"
    assert VerifiedCheckpointIO().load_checkpoint(newest)["step"] == 3
    assert not list(folder.glob(".*")), "no temporary file is left"


def test_every_flipped_bit_is_detected(folder):
    path = folder / "step=00000003.ckpt"
    size = path.stat().st_size
    for offset in random.Random(0).sample(range(size), 60):
        flip_a_bit(path, offset)
        assert not verifies(path)
        with pytest.raises(UserError, match="damaged"):
            VerifiedCheckpointIO().load_checkpoint(path)
        flip_a_bit(path, offset)
    assert verifies(path)


@pytest.mark.parametrize("damage", ["truncate", "empty", "no digest"])
def test_a_damaged_newest_is_named_and_passed_over(folder, damage):
    path = folder / "step=00000003.ckpt"
    if damage == "no digest":
        digest_path(path).unlink()
    else:
        path.write_bytes(path.read_bytes()[: 0 if damage == "empty" else 77])
    with pytest.warns(UserWarning, match="step=00000003"):
        assert newest_checkpoint(folder).name == "step=00000002.ckpt"


def test_a_digest_of_other_bytes_is_no_digest(folder):
    digest_path(folder / "step=00000003.ckpt").write_bytes(b"\xff\xfe\x00")
    with pytest.warns(UserWarning, match="step=00000003"):
        assert newest_checkpoint(folder).name == "step=00000002.ckpt"


def test_a_name_that_only_ends_as_a_checkpoint_is_none(folder):
    for name in ("step=x step=5.ckpt", "step=.ckpt", "step=-7.ckpt", "step=5.ckpt.bak", "step=٣.ckpt"):
        (folder / name).write_bytes(b"")
    assert newest_checkpoint(folder).name == "step=00000003.ckpt"


def test_resuming_from_nothing_is_an_error_and_never_a_fresh_start(folder, tmp_path):
    for path in folder.glob("*.ckpt"):
        path.write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UserError, match="found 3 checkpoints, none of them intact"):
            newest_checkpoint(folder)
    with pytest.raises(UserError, match="found no checkpoint, expected"):
        newest_checkpoint(tmp_path / "absent")


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("marker"),))


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_code_in_a_checkpoint_does_not_run(tmp_path, monkeypatch, form):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "0")
    path = tmp_path / "evil.ckpt"
    path.write_bytes(pickle.dumps(Evil())) if form == "pickle" else torch.save({"x": Evil()}, path)
    with pytest.raises(UserError, match=r"evil\.ckpt: not a checkpoint of plain data"):
        VerifiedCheckpointIO().load_checkpoint(path, weights_only=False)
    assert not (tmp_path / "marker").exists()


def test_urls_and_missing_files_are_one_line(tmp_path):
    for path in ("http://127.0.0.1/x.ckpt", tmp_path / "absent.ckpt"):
        with pytest.raises(UserError) as error:
            VerifiedCheckpointIO().load_checkpoint(path)
        assert "\n" not in str(error.value)


FULL_DISK = """
import resource, sys, torch
from gpt_modules.training.callbacks.checkpointing import VerifiedCheckpointIO
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    VerifiedCheckpointIO().save_checkpoint({"x": torch.zeros(100_000)}, sys.argv[1])
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_full_disk_keeps_the_earlier_checkpoint(folder):
    before = (folder / "step=00000003.ckpt").read_bytes()
    answer = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(folder / "step=00000003.ckpt")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert answer.startswith("UserError")
    assert "MB free" in answer
    assert answer.count("\n") == 1
    assert (folder / "step=00000003.ckpt").read_bytes() == before
    assert not list(folder.glob(".*.tmp"))


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="could not be written"):
        write_durably(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def draws():
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)]  # noqa: NPY002


def test_random_state_round_trip_survives_weights_only(tmp_path):
    VerifiedCheckpointIO().save_checkpoint({"state": RandomState().state_dict()}, tmp_path / "step=1.ckpt")
    expected = draws()
    restored, trainer = RandomState(), L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    restored.load_state_dict(VerifiedCheckpointIO().load_checkpoint(tmp_path / "step=1.ckpt")["state"])
    restored.on_train_batch_start(trainer)
    assert draws() == expected
    restored.on_train_batch_start(trainer)  # a second step does not restore again
    assert draws() != expected


def test_a_device_that_no_run_uses_has_no_state(monkeypatch):
    """To ask for it would take it into use, with half a gigabyte of its memory."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert RandomState().state_dict()["ranks"][0]["cuda"] is None


@pytest.mark.parametrize("settings", [{"check_val_every_n_epoch": 9}, {"limit_val_batches": 0}, {}])
def test_a_run_that_is_extended_trains_as_many_epochs_as_it_says(fit, parts, tmp_path, settings):
    """Lightning does not count the epoch after one at whose last batch a checkpoint was written."""

    def run(epochs, resume=None):
        trainer = fit(
            *parts(),
            max_epochs=epochs,
            callbacks=[ExactCheckpoint()],
            enable_checkpointing=True,
            ckpt_path=resume,
            **settings,
        )
        assert checkpoints(tmp_path / "checkpoints")[-1].name == f"step={trainer.global_step:08d}.ckpt"
        return trainer.global_step, trainer.current_epoch

    an_epoch, _ = run(1)
    for epochs in (2, 3, 3, 4, 4):
        resumed = run(epochs, checkpoints(tmp_path / "checkpoints")[-1])
        assert resumed == (epochs * an_epoch, epochs)


def test_who_goes_back_leaves_the_steps_that_were_made_from_there(fit, parts, tmp_path, caplog):
    """What is gone on with next is the run that was gone back for, however few steps it has; nothing is lost."""

    def run(steps, every, resume=None):
        settings = {
            "max_steps": steps,
            "enable_checkpointing": True,
            "ckpt_path": resume,
            "plugins": [VerifiedCheckpointIO()],
        }
        return fit(*parts(), callbacks=[ExactCheckpoint(every, keep=9)], **settings)

    folder = tmp_path / "checkpoints"
    run(4, 1)
    caplog.clear()
    run(3, 9, folder / "step=00000002.ckpt")
    assert [step_of(path) for path in checkpoints(folder)] == [1, 2, 3]
    assert newest_checkpoint(folder).name == "step=00000003.ckpt"
    left = checkpoints(folder / "left")
    assert [step_of(path) for path in left] == [3, 4]
    assert all(map(verifies, left))
    line = f"going on from step 2; the checkpoints of later steps, 3, 4, are now in {folder / 'left'}"
    assert stops(caplog) == [line]
    run(4, 9, folder / "step=00000002.ckpt")
    assert [step_of(path) for path in checkpoints(folder)] == [1, 2, 4]


def test_the_last_step_of_the_last_epoch_is_kept_though_more_steps_were_allowed(fit, parts, tmp_path):
    trainer = fit(
        *parts(),
        max_epochs=1,
        max_steps=1000,
        enable_checkpointing=True,
        callbacks=[ExactCheckpoint(every_n_steps=5000)],
    )
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == [f"step={trainer.global_step:08d}.ckpt"]


def stops(caplog):
    """What was said of the end of a run."""
    return [record.getMessage() for record in caplog.records if record.name.endswith("checkpointing")]


class Stop(L.Callback):
    """A signal at a moment that is no step's end."""

    def __init__(self, hook, error):
        setattr(self, hook, self.stop)
        self.error = error

    def stop(self, *_):
        raise self.error


@pytest.mark.parametrize("there", [False, True])
def test_a_run_that_is_stopped_before_its_first_step_says_what_is_there(fit, parts, tmp_path, caplog, there):
    if there:
        VerifiedCheckpointIO().save_checkpoint({}, tmp_path / "checkpoints" / "step=00000001.ckpt")
    callbacks = [Stop("on_validation_start", SystemExit(143)), ExactCheckpoint()]
    with pytest.raises(SystemExit, match="143"):
        fit(*parts(), callbacks=callbacks, num_sanity_val_steps=1, enable_checkpointing=True)
    then = "go on with --ckpt_path last" if there else "begin anew: nothing was saved"
    assert stops(caplog) == [f"stopped before a step was made; {then}"]


@pytest.mark.parametrize("error", [SystemExit(1), UserError("a mistake")])
def test_a_run_that_ends_itself_speaks_for_itself(fit, parts, caplog, error):
    with pytest.raises(type(error)):
        fit(*parts(), callbacks=[Stop("on_train_batch_start", error), ExactCheckpoint()], enable_checkpointing=True)
    assert stops(caplog) == []


@pytest.mark.parametrize("word", ["sft", "ppo"])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_run_that_is_told_to_stop_finishes_its_step(fit, procedure, tmp_path, caplog, word, index):
    """Of two micro-batches: what is accumulated of a step is in no checkpoint, so that none is written inside one."""
    checkpoint = ExactCheckpoint(1000)

    class Told(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if batch_idx == index:
                checkpoint._request_stop(signal.SIGTERM, None)

    def run(*callbacks, path=None, folder="run"):
        L.seed_everything(0, verbose=False)
        settings = {"accumulate_grad_batches": 2, "enable_checkpointing": True, "max_epochs": 2, "ckpt_path": path}
        settings["default_root_dir"] = tmp_path / folder
        return fit(*procedure(word), callbacks=[RandomState(), *callbacks], **settings).lightning_module.state_dict()

    with pytest.raises(SystemExit, match="143"):
        run(checkpoint, Told())
    (saved,) = checkpoints(tmp_path / "run" / "checkpoints")
    assert saved.stem == f"step={index // 2 + 1:08d}"
    assert stops(caplog) == [f"saved at step {index // 2 + 1}; go on with --ckpt_path last"]
    straight, resumed = run(ExactCheckpoint(1000), folder="straight"), run(ExactCheckpoint(1000), path=saved)
    assert all(torch.equal(value, resumed[name]) for name, value in straight.items())
