from pathlib import Path

import pytest

from gpt_modules.storage.paths import is_there, lies_in_folder, near_names, path_of


def test_a_tilde_is_the_home_folder_where_there_is_one(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert path_of("~/a") == path_of(Path("~/a")) == tmp_path / "a"
    assert path_of("~nobody-of-this-name/a.txt") == Path("~nobody-of-this-name/a.txt")
    assert path_of("a/~b") == Path("a/~b")


@pytest.mark.parametrize("name", ["n" * 5000, "a\0b", "gone"])
def test_what_no_file_can_be_called_is_not_there(name, tmp_path):
    assert not is_there(tmp_path / name)
    assert is_there(tmp_path)


def test_a_slip_in_a_name_or_in_its_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "runs" / "export").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert near_names("runs/exprot") == [str(Path("runs/export"))]
    assert near_names("run/export") == [str(Path("runs/export"))]
    assert near_names("rns") == ["runs"]
    for other in ("owner/name", "gpt2", "runs/gpt2", "n" * 5000, "a\0b"):
        assert near_names(other) == []


def test_a_name_in_a_folder_that_is_here_means_something_here(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert [name for name in ("runs/x", "gpt2", "owner/name", "a\0b/c") if lies_in_folder(name)] == ["runs/x"]
