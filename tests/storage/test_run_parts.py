"""What is given in the place of another part of a run is told for what it is, with what to give."""

from pathlib import Path
from zipfile import ZipFile

import pytest

from gpt_modules.errors import UserError
from gpt_modules.storage.run_parts import expect_checkpoint, expect_model


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A run of one file a checkpoint, one in shards that was cut off, and other things, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for folder in ("run/export", "run/checkpoints", "shards/checkpoints/step=00000002.ckpt", "other"):
        Path(folder).mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        Path("run/export", name).write_text("{}")
    for name in ("index.json", "rest.ckpt", "shard-00001-of-00002.safetensors"):
        Path("shards/checkpoints/step=00000002.ckpt", name).write_text("{}")
    with ZipFile("run/checkpoints/step=00000001.ckpt", "w") as file:
        file.writestr("data.pkl", "")
    Path("run/config.yaml").write_text("trainer: {}")


ONE, SHARDS = "run/checkpoints/step=00000001.ckpt", "shards/checkpoints/step=00000002.ckpt"
IS = "a checkpoint, from which its own run goes on"


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (ONE, f"{IS}, expected a model's folder, as the run's run/export"),
        (SHARDS, f"{IS}, expected a model's folder, as the run's shards/export, which is not there yet"),
        (
            f"{SHARDS}/index.json",
            f"{IS}, expected a model's folder, as the run's shards/export, which is not there yet",
        ),
        ("run", "the folder of a run, expected a model's folder, as the run's run/export"),
        ("run/checkpoints", "the folder of a run, expected a model's folder, as the run's run/export"),
        ("run/export/model.safetensors", "a file of a model's, expected its folder: run/export"),
        ("run/export/config.json", "a file of a model's, expected its folder: run/export"),
    ],
)
def test_what_is_no_model(here, path, found):
    with pytest.raises(UserError) as refused:
        expect_model(Path(path))
    assert str(refused.value) == f"{path}: found {found}"


@pytest.mark.parametrize("path", ["run/export", "run/export/tokenizer.json", "other", "nowhere", "run/config.yaml"])
def test_what_may_be_a_model_or_is_nothing_of_a_run(here, path):
    expect_model(Path(path))


RUN = "the folder of a run, expected one in %s/checkpoints, or last beside its trainer.default_root_dir"
MODEL = "an exported model, expected a checkpoint; --model.init_from run/export begins a run with its weights"


@pytest.mark.parametrize(
    ("path", "found"),
    [
        *((f"{SHARDS}/{name}", f"a part of a checkpoint, expected all of it: {SHARDS}") for name in
          ("index.json", "rest.ckpt", "shard-00001-of-00002.safetensors")),
        ("run", RUN % "run"),
        ("shards/checkpoints", RUN % "shards"),
        ("run/export", MODEL),
        ("run/export/model.safetensors", MODEL),
        ("other", "which a run did not write, expected a checkpoint"),
        ("run/config.yaml", "which a run did not write, expected a checkpoint"),
    ],
)  # fmt: skip
def test_what_is_no_checkpoint(here, path, found):
    with pytest.raises(UserError) as refused:
        expect_checkpoint(Path(path), "--ckpt_path")
    assert str(refused.value) == f"--ckpt_path: found {path!r}, {found}"


def test_what_is_not_there(here):
    with pytest.raises(UserError, match=r"^nowhere: no such checkpoint$"):
        expect_checkpoint(Path("nowhere"), "--ckpt_path")


def test_what_may_be_a_checkpoint(here):
    """What is damaged is told by who reads it: a file that has its digest beside it, or one in shards."""
    expect_checkpoint(Path(ONE), "--ckpt_path")
    expect_checkpoint(Path(SHARDS), "--ckpt_path")
    Path("damaged.ckpt").write_text("")
    Path("damaged.ckpt.sha256").write_text("0")
    expect_checkpoint(Path("damaged.ckpt"), "--ckpt_path")
