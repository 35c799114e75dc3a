"""A folder is replaced whole or not at all, never at the cost of other files; names that are no folder say so."""

import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from gpt_modules.backbone.folders import replacing as folders
from gpt_modules.backbone.folders.replacing import find_folder, replace_folder
from gpt_modules.errors import UserError
from gpt_modules.storage.durable import clear_leftovers
from gpt_modules.storage.model_files import CONFIG_FILE, WEIGHTS_FILE


def write(folder: Path, text: str) -> None:
    with replace_folder(folder) as new:
        (new / "config.json").write_text(text)


def test_new_and_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "model"
    write(folder, "one")
    write(folder, "two")
    assert (folder / "config.json").read_text() == "two"
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_card_goes_with_its_model_and_a_readme_alone_is_kept(tmp_path: Path) -> None:
    write(tmp_path / "model", "one")
    (tmp_path / "model" / "README.md").write_text("of one")
    write(tmp_path / "model", "two")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["config.json"]
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "README.md").write_text("mine")
    with pytest.raises(UserError, match=r"own: found README\.md, expected a new folder"):
        write(tmp_path / "own", "three")


def test_files_are_as_readable_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with replace_folder(tmp_path / "model") as new:
            save_file({"weight": torch.zeros(1)}, new / WEIGHTS_FILE)
            (new / CONFIG_FILE).write_text("{}")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert modes == {WEIGHTS_FILE: 0o640, CONFIG_FILE: 0o640}


def test_an_error_half_way_leaves_all_as_it_was(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        with replace_folder(folder) as new:
            (new / "config.json").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail(tmp_path / "model")
    assert not list(tmp_path.iterdir())
    write(tmp_path / "model", "whole")
    with pytest.raises(KeyboardInterrupt):
        fail(tmp_path / "model")
    assert [path.read_text() for path in (tmp_path / "model").iterdir()] == ["whole"]


def test_a_process_killed_half_way_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    write(tmp_path / "model", "whole")
    # The module alone: importing the package would bring torch and seconds with it.
    script = """
import importlib.util, os, pathlib, signal, sys, types
sys.modules["gpt_modules.errors"] = types.SimpleNamespace(UserError=RuntimeError)
spec = importlib.util.spec_from_file_location("folders", sys.argv[1])
folders = importlib.util.module_from_spec(spec)
spec.loader.exec_module(folders)
with folders.replace_folder(pathlib.Path(sys.argv[2])) as new:
    (new / "config.json").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    source = str(folders.__file__)
    killed = subprocess.run([sys.executable, "-c", script, source, str(tmp_path / "model")], check=False)
    assert killed.returncode == -9
    assert [path.read_text() for path in (tmp_path / "model").iterdir()] == ["whole"]
    assert len(list(tmp_path.iterdir())) == 2
    clear_leftovers(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    write(tmp_path / "model", "next")
    assert (tmp_path / "model" / "config.json").read_text() == "next"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have two renames and an instant between them")
def test_the_old_folder_is_at_its_place_until_the_new_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process killed at any moment leaves one of the two there: no step takes the old one away."""
    write(tmp_path / "model", "old")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", killed)
    write(tmp_path / "model", "new")
    assert [path.read_text() for path in tmp_path.rglob("config.json")] == ["new"]


def test_a_file_system_that_exchanges_no_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "exchanged", lambda *_: False)
    for text in ("one", "two"):
        write(tmp_path / "model", text)
    assert [path.read_text() for path in tmp_path.rglob("config.json")] == ["two"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("exchanging", [True, False])
def test_a_link_is_replaced_and_what_it_points_at_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanging: bool
) -> None:
    if not exchanging:
        monkeypatch.setattr(folders, "exchanged", lambda *_: False)
    write(tmp_path / "elsewhere", "old")
    (tmp_path / "model").symlink_to(tmp_path / "elsewhere")
    write(tmp_path / "model", "new")
    assert (tmp_path / "model" / "config.json").read_text() == "new"
    assert (tmp_path / "elsewhere" / "config.json").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2


def test_other_files_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"found thesis\.tex, expected a new folder"):
        write(tmp_path, "model")
    with pytest.raises(UserError, match="found a file, expected a folder"):
        write(tmp_path / "thesis.tex", "model")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_what_is_no_folder_and_no_name(tmp_path: Path) -> None:
    for name in (tmp_path / "none", str(tmp_path / "none"), "runs/sft/export", "./none"):
        with pytest.raises(
            UserError, match="no such folder, expected a model folder or a name on the Hugging Face hub"
        ):
            find_folder(name)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="found a file, expected a model folder"):
        find_folder(tmp_path / "file")


def test_hub_names_fetch_weights_and_text_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert find_folder("openai-community/gpt2") == tmp_path
    assert asked[0][0] == "openai-community/gpt2"
    assert all(pattern.endswith((".json", ".jinja", ".safetensors")) for pattern in asked[0][1])


def test_a_hub_that_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        raise OSError("404: no such repository\nand a long story")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(UserError) as caught:
        find_folder("runs/stf")
    reason = "not to be had from the Hugging Face hub: 404: no such repository"
    assert str(caught.value) == f"runs/stf: no such folder, and {reason}"


@pytest.mark.parametrize("name", ["", "  "])
def test_no_name_is_not_the_folder_that_a_command_runs_in(name: str) -> None:
    with pytest.raises(UserError, match=rf"^model folder: found '{name}', expected a folder's path or a name on the"):
        find_folder(name)
