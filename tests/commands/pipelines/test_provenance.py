"""What a stage was made from is the parsed recipe and the content of what it names, and nothing else."""

import json
import os

import pytest

from gpt_modules.commands.pipelines.provenance import (
    Origin,
    changes,
    content_digest,
    origin_of,
    read_origin,
    write_origin,
)
from gpt_modules.errors import UserError


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("one\n")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")


def recipe(**changed):
    arguments = {"train": "rows.jsonl", "validation": ["texts/*.txt"], "seed": 1, "cache_dir": "cache"} | changed
    trainer = {"default_root_dir": "runs/a", "max_steps": 3, "accelerator": "cpu", "precision": None}
    return {"trainer": trainer, "data": {"class_path": "D", "init_args": arguments}, "checkpoint": {"keep": 2}}


def test_paths_count_by_content_and_the_hardware_does_not(tmp_path):
    before = origin_of(recipe(), tmp_path / "runs")
    here = recipe(train=str(tmp_path / "rows.jsonl"), cache_dir="other")
    here["trainer"] |= {"default_root_dir": "x", "accelerator": "gpu", "precision": "bf16-mixed", "devices": 8}
    here["checkpoint"]["keep"] = 5
    assert changes(before, origin_of(here, tmp_path / "elsewhere")) == []
    (tmp_path / "moved").mkdir()
    (tmp_path / "rows.jsonl").rename(tmp_path / "moved" / "renamed.jsonl")
    assert changes(before, origin_of(recipe(train="moved/renamed.jsonl"), tmp_path)) == []


def test_an_edited_row_is_noticed_whatever_its_date(tmp_path):
    before, status = origin_of(recipe(), tmp_path), (tmp_path / "rows.jsonl").stat()
    (tmp_path / "rows.jsonl").write_text("two\n")
    os.utime(tmp_path / "rows.jsonl", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert changes(before, origin_of(recipe(), tmp_path)) == ["the content of data.train changed"]


def test_every_key_that_differs_is_named(tmp_path):
    now = recipe(seed=2, more="x")
    del now["data"]["init_args"]["validation"]
    assert changes(origin_of(recipe(), tmp_path), origin_of(now, tmp_path)) == [
        "data.more was None, is now 'x'",
        "data.seed was 1, is now 2",
        "data.validation was files, is now None",
    ]


def test_what_lies_below_the_root_moves_with_it(tmp_path):
    origins = [origin_of(recipe(train=f"{root}/a/export"), tmp_path.joinpath(root)) for root in ("r", "s")]
    assert origins[0].made_from["data.init_args.train"] == "r/a/export"
    origins = [origin_of(recipe(train=f"/nowhere/{root}/a"), tmp_path.joinpath(f"/nowhere/{root}")) for root in "rs"]
    assert changes(*origins) == []
    assert origins[0].unmade == ["data.init_args.train"]


def test_the_content_of_files_folders_globs_and_functions(tmp_path):
    digests = {name: content_digest(name) for name in ("rows.jsonl", "texts", "texts/*.txt", str(tmp_path / "texts"))}
    assert digests["texts"] == digests[str(tmp_path / "texts")]
    assert len({*digests.values()}) == 2  # the folder has one file, which is all that the glob finds
    (tmp_path / "texts" / "b.txt").write_text("b")
    assert content_digest("texts") != digests["texts"]
    assert content_digest("texts/*.txt") != digests["texts/*.txt"]
    (tmp_path / "scores.py").write_text("def polite(): ...")
    before = content_digest("scores:polite")
    (tmp_path / "scores.py").write_text("def polite(): 1")
    assert before is not None
    assert content_digest("scores:polite") not in (None, before)
    for name in (
        "",
        "reviews",
        "synthetic:2D+",
        "gpt2",
        "owner/name",
        "a\0b",
        "x" * 5000,
        "[",
        "nothing/*.txt",
        "~no/x",
    ):
        assert content_digest(name) is None


def test_a_function_of_a_package_counts_with_the_whole_of_it(tmp_path):
    (tmp_path / "scores" / "parts").mkdir(parents=True)
    for name in ("scores/__init__.py", "scores/parts/__init__.py"):
        before = [content_digest("scores:polite"), content_digest("scores.parts:polite")]
        (tmp_path / name).write_text(f"# {name}")
        after = [content_digest("scores:polite"), content_digest("scores.parts:polite")]
        assert None not in after
        assert not {*before} & {*after}


def test_a_word_is_one_only_where_it_is_a_word(tmp_path):
    """A folder may be called as a tokenizer or an embedded text is; its files count wherever it is read."""
    names = ("train", "gpt2", "characters", "reviews", "shakespeare")
    keys = {"data": ("train", "validation", "tokenizer"), "model": ("init_from", "rewards")}

    def origin(name):
        return origin_of({part: dict.fromkeys(inner, name) for part, inner in keys.items()}, tmp_path / "runs")

    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("before")
    before = {name: origin(name) for name in names}
    for name in names:
        (tmp_path / name / "a.txt").write_text("after")
    changed = {name: {line.split()[3] for line in changes(before[name], origin(name))} for name in names}
    every = {f"{part}.{key}" for part, inner in keys.items() for key in inner}
    read_as_text = {"data.train", "data.validation"}
    assert changed == {
        "gpt2": every,
        **dict.fromkeys(("train", "characters"), every - {"data.tokenizer"}),
        **dict.fromkeys(("reviews", "shakespeare"), every - read_as_text),
    }


def test_a_folder_of_shards_counts_by_its_manifest(tmp_path):
    (tmp_path / "texts" / "manifest.json").write_text("{}")
    before = content_digest("texts")
    (tmp_path / "texts" / "a.txt").write_text("other")
    assert content_digest("texts") == before


def test_an_origin_comes_back_as_it_was(tmp_path):
    odd = recipe(train=float("inf"), validation=[1.5, None, {"a": ("b", True)}])
    origin = origin_of(odd, tmp_path)
    write_origin(tmp_path / "stage", origin)
    assert read_origin(tmp_path / "stage") == origin == Origin(json.loads(json.dumps(origin.made_from)))
    with pytest.raises(UserError, match=r"other/stage.json: no such file, expected what gpt run made this folder from"):
        read_origin(tmp_path / "other")
