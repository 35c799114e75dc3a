"""A write happens whole or not at all, says why not in a line, and leaves nothing behind."""

import errno
import os

import pytest
import torch
from safetensors.torch import save_file

from gpt_modules.errors import UserError
from gpt_modules.storage import durable
from gpt_modules.storage.durable import (
    check_writable,
    clear_leftovers,
    no_room,
    replace_durably,
    room_for,
    temporary_for,
    write_durably,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_by_its_bytes(tmp_path):
    for text in ("one\r\nline\n", "zwei é\n"):
        replace_durably(tmp_path / "a.json", text)
        assert (tmp_path / "a.json").read_bytes() == text.encode()
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("step", ["write", "sync", "replace"])
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, OSError, ValueError])
def test_a_write_that_is_cut_off_leaves_the_old_file_alone(tmp_path, monkeypatch, step, kind):
    """A signal raises SystemExit or KeyboardInterrupt wherever the process is."""
    replace_durably(tmp_path / "a", "old")

    def cut(*_):
        raise kind(errno.ENOSPC, "No space left on device")

    def write(temporary):
        temporary.write_text("half")
        if step == "write":
            cut()

    if step == "sync":
        monkeypatch.setattr(durable, "sync", cut)
    if step == "replace":
        monkeypatch.setattr("pathlib.Path.replace", cut)
    with pytest.raises(UserError if kind is OSError else kind) as caught:
        write_durably(tmp_path / "a", write)
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]
    if kind is OSError:
        assert str(caught.value).startswith(f"{tmp_path / 'a'}: could not be written (No space left on device, ")
        assert str(caught.value).endswith(" MB free), expected room and the right to write")


def test_what_is_no_fault_of_the_disk_stays_what_it_is(tmp_path):
    for error in (UserError("tokenizer: found x, expected y"), RuntimeError("shapes do not match")):
        with pytest.raises(type(error), match=f"^{error}$"), room_for(tmp_path / "a"):
            raise error


def test_what_libraries_raise_for_a_disk_is_that_line(tmp_path):
    missing = tmp_path / "none" / "a"
    for write in (
        lambda: torch.save({}, missing),
        lambda: save_file({"a": torch.zeros(1)}, missing),
        lambda: missing.write_text(""),
    ):
        with (
            pytest.raises(UserError, match=r"none/a: could not be written \(.*MB free\).* write; go on$") as caught,
            room_for(missing, "go on"),
        ):
            write()
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux only")  # noqa: PTH110
def test_torch_on_a_full_disk(tmp_path):
    with pytest.raises(UserError, match="could not be written"):
        write_durably(tmp_path / "a", lambda temporary: (temporary.symlink_to("/dev/full"), torch.save({"a": torch.zeros(10**6)}, temporary)))  # noqa: E501  # fmt: skip
    assert names(tmp_path) == []


def test_only_ones_own_leftovers_are_cleared(tmp_path):
    left = temporary_for(tmp_path / "manifest.json")
    left.touch()
    folder = temporary_for(tmp_path / "manifest.json")
    (folder / "inside").mkdir(parents=True)
    theirs = [".notes.tmp", ".manifest.json.tmp", "manifest.json.tmp", ".manifest.json.12.tmp", temporary_for(tmp_path / "other").name]  # noqa: E501  # fmt: skip
    for name in theirs:
        (tmp_path / name).write_text("mine")
    clear_leftovers(tmp_path / "manifest.json")
    assert names(tmp_path) == sorted(theirs)


def test_leftovers_of_any_name_that_fits(tmp_path):
    """Of a folder that this process alone writes to."""
    for name in ("export", "export-critic", "step=00000002.ckpt"):
        temporary_for(tmp_path / name).mkdir()
    theirs = [".notes.tmp", ".export.old", f".{'0' * 32}.tmp", f".a.{'g' * 32}.tmp", f"a.{'0' * 32}.tmp"]
    for name in theirs:
        (tmp_path / name).write_text("mine")
    clear_leftovers(tmp_path / "*")
    assert names(tmp_path) == sorted(theirs)


def test_the_line_has_no_more_than_there_is_to_say(tmp_path):
    line = str(no_room(tmp_path / "a", RuntimeError("first\nsecond " + "x" * 1000)))
    assert line.startswith(f"{tmp_path / 'a'}: could not be written (first, ")
    assert "second" not in line


def test_a_folder_to_write_to_is_made_and_left_empty(tmp_path):
    check_writable(tmp_path / "a" / "b")
    check_writable(tmp_path / "a" / "b")
    assert names(tmp_path / "a" / "b") == []


def test_what_cannot_be_written_is_told_before_there_is_anything_to_write(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: found a file, expected a folder to write to"):
        check_writable(tmp_path / "file")
    with pytest.raises(UserError, match=r"file/a: could not be written \(Not a directory"):
        check_writable(tmp_path / "file" / "a")
    with pytest.raises(UserError, match=r"could not be written \(File name too long"):
        check_writable(tmp_path / ("x" * 300))

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable.os, "fsync", full)
    with pytest.raises(UserError, match=r"could not be written \(No space left on device"):
        check_writable(tmp_path)
    assert names(tmp_path) == ["file"]
