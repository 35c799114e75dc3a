"""`gpt recipes`: the list, one of them, and a copy that takes no file's place."""

import errno
import os
from pathlib import Path

import pytest

from gpt_modules.commands.recipes import listing, main
from gpt_modules.errors import UserError
from gpt_modules.storage.recipes import SHIPPED, recipe_names


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder with two recipes of its own, one of them under a name that ships too."""
    monkeypatch.chdir(tmp_path)
    for name, content in {
        "zoo/mine": "# What mine\n# is for. More\n# of it.\n#   gpt fit\ntrainer: {}\n",
        "zoo/without-a-comment": "trainer: {}\n# too late\n",
        "ppo/tiny": "## My own.\n",
    }.items():
        path = tmp_path / "recipes" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path


def refusal(*words):
    with pytest.raises(UserError) as refused:
        main(list(words))
    return str(refused.value)


def test_the_list_has_every_recipe_with_its_first_sentence(capsys):
    main([])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()
    (line,) = [line for line in lines if line.startswith("sft/tiny ")]
    shipped = " ".join((SHIPPED / "sft" / "tiny.yaml").read_text().replace("# ", "").split())
    assert shipped.startswith(line.partition("  ")[2].strip())
    assert len(line.split()) > 3


@pytest.mark.parametrize("folder", ["zoo", "recipes/zoo", "zoo/", "recipes/zoo/"])
def test_a_folder_is_listed_alone_in_columns(capsys, folder):
    main([folder])
    assert capsys.readouterr().out == "zoo/mine               What mine is for.\nzoo/without-a-comment\n"


def test_a_folder_that_there_is_not_lists_nothing():
    assert listing("zo") == ""


def test_a_recipe_here_goes_before_the_one_that_ships(capsys):
    assert "ppo/tiny  " in listing("ppo")
    assert [line.split(maxsplit=1)[1] for line in listing("ppo").splitlines() if line.startswith("ppo/tiny ")] == [
        "My own."
    ]
    main(["ppo/tiny"])
    assert capsys.readouterr().out == "## My own.\n"


@pytest.mark.parametrize("name", ["sft/tiny", "recipes/sft/tiny.yaml"])
def test_one_is_printed_and_copied_as_it_is(capsys, here, name):
    shipped = (SHIPPED / "sft" / "tiny.yaml").read_bytes()
    main([name])
    assert capsys.readouterr().out.encode() == shipped
    main([name, "--copy", "my.yaml"])
    assert capsys.readouterr().out == ""
    assert (here / "my.yaml").read_bytes() == shipped


def test_a_copy_takes_no_files_place(here):
    (here / "my.yaml").write_text("mine")
    assert refusal("sft/tiny", "--copy", "my.yaml") == "--copy: my.yaml exists, expected the name of a new file"
    (here / "link.yaml").symlink_to("nowhere.yaml")
    assert refusal("sft/tiny", "--copy", "link.yaml").startswith("--copy: link.yaml exists")
    assert (here / "my.yaml").read_text() == "mine"
    assert not (here / "nowhere.yaml").exists()


def test_a_copy_that_finds_no_room_leaves_no_file(here, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("gpt_modules.storage.durable.sync", full)
    assert refusal("sft/tiny", "--copy", "my.yaml").startswith("my.yaml: could not be written (No space left")
    assert not (here / "my.yaml").exists()
    monkeypatch.undo()
    monkeypatch.chdir(here)
    main(["sft/tiny", "--copy", "my.yaml"])
    assert (here / "my.yaml").stat().st_size > 0


def test_what_is_no_text_is_one_line(here):
    """Printed, copied, or in a list."""
    (here / "recipes" / "zoo" / "latin.yaml").write_bytes(b"# caf\xe9\n")
    os.mkfifo(here / "pipe.yaml")
    line = "recipes/zoo/latin.yaml:1: found bytes that are not UTF-8, expected a recipe"
    assert refusal("zoo/latin") == refusal("zoo/latin", "--copy", "my.yaml") == refusal("zoo") == refusal() == line
    assert refusal("pipe.yaml") == "pipe.yaml: found no file, expected a recipe"
    assert not (here / "my.yaml").exists()


def test_mistakes_are_one_line_and_leave_nothing(here):
    nothing = "--copy: found no recipe to copy, expected a name before it; gpt recipes lists them"
    assert refusal("--copy", "my.yaml") == refusal("zoo", "--copy", "my.yaml") == nothing
    assert refusal("sft/tinny", "--copy", "my.yaml").startswith("sft/tinny: no such recipe; near it: sft/tiny")
    assert refusal("sft/tiny", "--copy", "") == "--copy: found '', expected the name of a file or a folder"
    assert refusal("") == "found '', expected the path or the name of a recipe; gpt recipes lists them"
    told = refusal("sft/tiny", "--copy", "no/such/folder/my.yaml")
    assert "no/such/folder/my.yaml" in told
    assert "\n" not in told
    assert sorted(path.name for path in Path().iterdir()) == ["recipes"]
