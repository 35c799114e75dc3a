"""Recipes by path or by name."""

from pathlib import Path

import pytest

from gpt_modules.errors import UserError
from gpt_modules.storage.recipes import SHIPPED, find_recipe, read_recipe, recipe_names, resolver_in, writer_of


@pytest.mark.parametrize("name", ["ppo/tiny", "ppo/tiny.yaml", "recipes/ppo/tiny", "recipes/ppo/tiny.yaml"])
def test_a_name_is_found_here_first_and_then_in_the_package(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert find_recipe(name) == SHIPPED / "ppo" / "tiny.yaml"
    here = Path("recipes/ppo/tiny.yaml")
    here.parent.mkdir(parents=True)
    here.write_text("trainer: {}\n")
    assert find_recipe(name) == here


def test_a_dot_in_a_name_is_no_suffix(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe("pretraining/gpt3-1.3b") == SHIPPED / "pretraining" / "gpt3-1.3b.yaml"


def test_a_pipeline_finds_what_lies_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "stage.yaml").write_text("a: 1\n")
    assert find_recipe("stage.yaml", beside=tmp_path / "p" / "all.yaml") == tmp_path / "p" / "stage.yaml"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("ppo/tinny", "ppo/tinny: no such recipe; near it: ppo/tiny"),
        ("x/y", "x/y: no such recipe; gpt recipes lists those that are here"),
        ("../ppo/tiny", "../ppo/tiny: no such recipe; near it: ppo/tiny"),
        ("http://a/b", "http://a/b: a recipe is read from a local file only, expected a path"),
    ],
)
def test_a_name_that_nothing_has(tmp_path, monkeypatch, name, line):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refused:
        find_recipe(name)
    assert str(refused.value).startswith(line)


def test_every_shipped_recipe_has_a_name_and_can_be_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = recipe_names()
    assert {"ppo/tiny", "pipelines/demo", "hardware/gpu", "evaluation/2D+"} <= set(names)
    assert all(read_recipe(find_recipe(name)) for name in names)


@pytest.mark.parametrize("text", ["${oc.env:X}", "a ${ oc.env : X }", "${ foo.${x}:y}", "${x:}"])
def test_resolvers_are_seen(text):
    assert resolver_in(text)


@pytest.mark.parametrize("text", ["${a.b}", "${x} and: y", "a: b", "$ {x:y}", "${a.${b}}"])
def test_interpolations_and_colons_are_no_resolvers(text):
    assert resolver_in(text) is None


def test_a_resolver_is_told_with_its_line(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("a:\n  b: ${oc.env:SECRET}\n")
    with pytest.raises(UserError) as refused:
        read_recipe(path)
    assert str(refused.value) == (
        f"{path}:2: a.b: found ${{oc.env:...}}, expected ${{key}} only: resolvers are not allowed"
    )


def test_what_writes_a_folder_that_is_not_there() -> None:
    assert writer_of("runs/sft/tiny/export") == "; gpt fit --config sft/tiny writes it"
    assert writer_of("runs/ppo/tiny/export-critic") == "; gpt fit --config ppo/tiny writes it"
    for other in ("runs/sft/mine/export", "runs/sft/tiny", "sft/tiny/export", "/runs/sft/tiny/export", ""):
        assert writer_of(other) == ""
