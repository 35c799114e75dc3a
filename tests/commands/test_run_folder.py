"""A run's folder is begun once, and nothing is written outside it."""

import pytest

from gpt_modules.commands.parsing.composition import Composition
from gpt_modules.commands.run_folder import (
    begin_anew,
    keep_inside,
    leave_nothing,
    lock,
    missing,
    weights_of,
)
from gpt_modules.errors import UserError


@pytest.mark.parametrize("held", ["summary.json", "export", "checkpoints/step=00000002.ckpt"])
def test_a_folder_that_holds_a_run_is_not_begun_anew(tmp_path, held):
    path = tmp_path / held
    path.parent.mkdir(exist_ok=True)
    path.mkdir() if held == "export" else path.write_text("x")
    with pytest.raises(UserError, match="holds an earlier run") as refused:
        begin_anew(tmp_path, lambda: "a: 1\n")
    assert ("--ckpt_path last" in str(refused.value)) == held.startswith("checkpoints")


def test_whose_weights_are_measured_is_said_or_refused(tmp_path):
    assert weights_of(tmp_path, "x.ckpt", None) == "those of the checkpoint x.ckpt"
    assert weights_of(tmp_path, None, None) == "new ones, drawn with the seed"
    assert weights_of(tmp_path, None, "m") == "those of init_from, m"
    (tmp_path / "export").mkdir()
    with pytest.raises(
        UserError, match=rf"holds \(export\); expected --model.config null --model.init_from {tmp_path}/"
    ):
        weights_of(tmp_path, None, None)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/step=00000002.ckpt").write_text("x")
    with pytest.raises(UserError, match=r"^--ckpt_path: not given, .* \(export, checkpoints\); expected last; for new"):
        weights_of(tmp_path, None, None)
    assert weights_of(tmp_path, "x.ckpt", None) == "those of the checkpoint x.ckpt"
    own = str(tmp_path / "export")
    assert weights_of(tmp_path, None, own) == f"those of init_from, {own}"
    found = weights_of(tmp_path, None, "m")
    assert found == f"those of init_from, m; those of the run in {tmp_path}: --ckpt_path last"


def test_a_run_cut_off_before_its_first_checkpoint_is_begun_again_by_its_own_recipe_only(tmp_path):
    (tmp_path / "config.yaml").write_text("a: 1\n")
    (tmp_path / "events.out.tfevents.1").write_text("x")
    with pytest.raises(UserError, match="an earlier run began here with another recipe"):
        begin_anew(tmp_path, lambda: "a: 2\n")
    assert (tmp_path / "events.out.tfevents.1").exists()
    begin_anew(tmp_path, lambda: "a: 1\n")
    assert not (tmp_path / "events.out.tfevents.1").exists()
    begin_anew(tmp_path / "none", lambda: "a: 1\n")


def test_a_run_that_was_refused_leaves_nothing(tmp_path):
    root = tmp_path / "runs" / "new" / "one"
    made = missing(root)
    assert made == [root, root.parent, root.parent.parent]
    with lock(root):
        leave_nothing(root, made)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old").mkdir()
    with lock(tmp_path / "old"):
        leave_nothing(tmp_path / "old", missing(tmp_path / "old"))
    assert (tmp_path / "old" / ".lock").exists(), "the folder was there before"
    with lock(root):
        (root / "config.yaml").write_text("")
        leave_nothing(root, made)
    assert (root / "config.yaml").exists()


def trainer(**arguments):
    return {"callbacks": [{"class_path": "ModelCheckpoint", "init_args": arguments}]}


@pytest.mark.parametrize(
    "arguments", [{"filename": "../../x"}, {"dirpath": "/elsewhere/x"}, {"save_dir": "elsewhere"}, {"name": "../x"},
                  {"filename": "/elsewhere/x"}, {"filename": "{a/b/c/d}/../../../../x"}, {"name": "a/../b"}]
)  # fmt: skip
def test_what_leads_out_of_the_folder_is_refused(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"trainer\.callbacks\.0\..*expected a place below the run's folder"):
        keep_inside(tmp_path / "run", trainer(**arguments), Composition())


def test_what_a_logger_hands_on_stays_inside_too(tmp_path):
    logger = {"class_path": "TensorBoardLogger", "dict_kwargs": {"filename_suffix": "/../../../EVIL"}}
    with pytest.raises(UserError, match=r"^trainer.logger.dict_kwargs.filename_suffix: found '/../../../EVIL'"):
        keep_inside(tmp_path, {"logger": logger}, Composition())


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_a_recipe_that_is_none_is_that_of_another_run(tmp_path, content):
    path = tmp_path / "config.yaml"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^{path}: (found a folder|an earlier run began here with another recipe)"):
        begin_anew(tmp_path, lambda: "a: 1\n")


def test_what_stays_inside_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inside = {
        "dirpath": str(tmp_path / "run" / "best"),
        "filename": "step={step}-{val/loss:.2f}",
        "save_dir": "run",
        "version": 3,
    }
    keep_inside(tmp_path / "run", trainer(**inside), Composition())


def test_one_process_holds_the_folder_and_a_file_is_none(tmp_path):
    held = lock(tmp_path / "run")
    with pytest.raises(UserError, match="another run writes here"):
        lock(tmp_path / "run")
    held.close()
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"trainer.default_root_dir: .*file: found a file, expected a folder"):
        lock(tmp_path / "file")
