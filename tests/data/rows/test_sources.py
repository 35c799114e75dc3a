import json
import os
import re
from pathlib import Path

import pyarrow.parquet
import pytest

from gpt_modules.data.rows import sources
from gpt_modules.data.rows.fields import FieldError, describe
from gpt_modules.data.rows.sources import fingerprint, iter_rows, load_rows, load_splits, split_key, split_rows
from gpt_modules.errors import UserError
from gpt_modules.feedback.exchange import check_imported

ROWS = [{"prompt": f"q{i}", "response": f"a{i}"} for i in range(40)]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def cache(tmp_path):
    return str(tmp_path / "cache")


def test_every_kind_of_file_holds_the_same_rows(tmp_path, cache):
    from datasets import Dataset

    lines = write_lines(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    (tmp_path / "a.csv").write_text("prompt,response\n" + "".join(f'{r["prompt"]},"{r["response"]}"\n' for r in ROWS))
    Dataset.from_list(ROWS).to_parquet(tmp_path / "a.parquet")
    for name in ("a.json", "a.csv", "a.parquet"):
        assert load_rows(str(tmp_path / name), "train", "sft", cache_dir=cache) == ROWS
    assert load_rows(lines, "train", "sft", cache_dir=cache) == ROWS
    assert list(iter_rows(lines, "train", "sft", cache_dir=cache, streaming=True)) == ROWS


def test_lists_globs_and_folders(tmp_path, cache):
    files = [write_lines(tmp_path / f"{i}.jsonl", ROWS[10 * i : 10 * i + 10]) for i in range(4)]
    for source in (files, str(tmp_path / "*.jsonl"), str(tmp_path)):
        assert load_rows(source, "train", "sft", cache_dir=cache) == ROWS


def test_a_hidden_file_of_a_folder_is_not_read(tmp_path, cache):
    write_lines(tmp_path / "a.jsonl", ROWS)
    write_lines(tmp_path / ".a.jsonl", [{"prompt": "hidden", "response": "x"}])
    assert load_rows(str(tmp_path), "train", "sft", cache_dir=cache) == ROWS


@pytest.mark.parametrize("kind", ["same", "glob", "folder", "link", "hard link"])
@pytest.mark.parametrize("read", [lambda source: load_rows(source, "train", "sft"), lambda s: fingerprint(s, "train")])
def test_a_file_stands_once_in_a_source(tmp_path, monkeypatch, kind, read):
    monkeypatch.chdir(tmp_path)
    write_lines(Path("a.jsonl"), ROWS)
    if kind == "link":
        Path("b.jsonl").symlink_to("a.jsonl")
    if kind == "hard link":
        Path("b.jsonl").hardlink_to("a.jsonl")
    other = {"same": "a.jsonl", "glob": "*.jsonl", "folder": str(tmp_path)}.get(kind, "b.jsonl")
    with pytest.raises(UserError, match=r"\.jsonl: found this file twice in one source(, first as a.jsonl)?, expected"):
        read(["a.jsonl", other])


def test_a_data_set_stands_once_in_a_source():
    with pytest.raises(UserError, match="owner/name: found this data set twice in one source, expected each once"):
        fingerprint(["owner/name", "owner/name"], "train")


BAD_LINES = {
    "truncated": (b'{"text": "b', "row: found broken JSON"),
    "wrong type": (b'{"text": 3}', "text: found the number 3"),
    "missing": (b'{"tex": "b"}', "text: found no such field among ['tex']"),
    "null": (b'{"text": null}', "text: found null"),
    "empty": (b'{"text": ""}', "text: found empty text"),
    "bytes": (b'{"text": "\xff"}', "row: found bytes that are not UTF-8"),
    "no object": (b"[1]", "row: found a list of 1"),
    "deep": (b'{"text": ' + b"[" * 5000 + b"]" * 5000 + b"}", "row: found broken JSON (more than 100 objects"),
    "surrogate": (b'{"text": "\\ud800"}', "row: found broken JSON (half of a surrogate pair)"),
}


@pytest.mark.parametrize("kind", BAD_LINES)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_bad_line_is_named(tmp_path, cache, kind, streaming):
    bad, message = BAD_LINES[kind]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "a"}\n\n' + bad + b'\n{"text": "c"}\n')
    with pytest.raises(UserError) as caught:
        list(iter_rows(str(path), "train", "pretraining", cache_dir=cache, streaming=streaming))
    assert str(caught.value).startswith(f"{path}:3: {message}")
    assert "\n" not in str(caught.value)


def test_a_cut_off_file_is_named(tmp_path, cache):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "b\xc3')
    with pytest.raises(UserError, match=r"rows\.jsonl:2: row: found the file cut off inside a character"):
        load_rows(str(path), "train", "pretraining", cache_dir=cache)


def test_what_only_looks_wrong_to_the_library_is_read(tmp_path, cache):
    rows = [{"text": "2020-01-01"}, {"text": "2020-01-02"}, {"text": "x", "meta": {"a": 1}}, {"text": "y", "meta": "b"}]
    source = write_lines(tmp_path / "rows.jsonl", rows)
    assert load_rows(source, "train", "pretraining", cache_dir=cache) == [{"text": row["text"]} for row in rows]
    dates = write_lines(tmp_path / "dates.jsonl", rows[:2])
    assert load_rows(dates, "train", "pretraining", cache_dir=cache) == rows[:2]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.jsonl", None, "found no such file"),
        ("a/b/c", None, "found no such file"),
        ("*.nothing", None, "found no file"),
        ("empty.jsonl", "", "found an empty file"),
        ("blank.jsonl", "\n \n", "found only blank lines"),
        ("a.doc", "x", "found the ending '.doc'"),
        ("a.csv", "text,n\na,1\n,2\n", ":3: text: found empty text"),
        ("b.csv", "n\n1\n", ":2: text: found no such field"),
        ("a.json", '[{"text": "a"},\n\n {"text": 1}]', ":3: row 2: text: found the number 1"),
        ("c.json", "[]", ": found no row, expected at least one"),
        ("c.csv", "text\n", ": found no row, expected at least one"),
        ("a.jsonl.gz", "x", ": found a compressed file, expected it unpacked (.jsonl, .json"),
        ("rows.jsn", None, ": found no such file, expected .jsonl"),
        ("b.json", '[{"text": "a"},', "found broken JSON"),
        ("a.parquet", "not parquet", "found no readable .parquet file"),
    ],
)
def test_mistakes_are_one_line(tmp_path, cache, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as caught:
        load_rows(str(tmp_path / name), "train", "pretraining", cache_dir=cache)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_cells_that_look_like_numbers_are_text(tmp_path, cache):
    (tmp_path / "a.csv").write_text('text\n007\n"a, b"\nNA\n')
    rows = load_rows(str(tmp_path / "a.csv"), "train", "pretraining", cache_dir=cache)
    assert [row["text"] for row in rows] == ["007", "a, b", "NA"]


def test_the_hub_is_asked_and_its_failure_is_one_line(monkeypatch, cache):
    import datasets

    rows = datasets.Dataset.from_dict({"text": ["a", "", "b"]})
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, **kwargs: {"owner/x": rows}[name])
    assert load_rows("owner/x:config", "train", "pretraining", cache_dir=cache) == [{"text": "a"}, {"text": "b"}]
    with pytest.raises(UserError, match=r"^owner/y: found no such file and no such data set on the hub"):
        load_rows("owner/y", "train", "pretraining", cache_dir=cache)
    with pytest.raises(UserError, match=r"^owner/x\[train\]:1: prompt: found no such field"):
        load_rows("owner/x", "train", "ppo", cache_dir=cache)
    with pytest.raises(UserError, match="a name on the hub was expected"):
        load_rows("what is this", "train", "ppo", cache_dir=cache)


def test_a_local_file_is_nobody_elses_business(tmp_path, cache, monkeypatch):
    import socket

    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: asked.append(args) or [])
    source = write_lines(tmp_path / "a.jsonl", ROWS)
    for streaming in (False, True):
        assert list(iter_rows(source, "train", "sft", cache_dir=cache, streaming=streaming)) == ROWS
    assert not asked


def test_transcripts_that_part_early_are_left_out_and_counted(tmp_path, cache, caplog):
    """As hh-rlhf holds them; whoever reads: a reward model's data, or an import of votes."""
    asked, parted = "\n\nHuman: Why?\n\nAssistant:", " So.\n\nHuman: Oh.\n\nAssistant: Yes."
    ends = [(" So.", " No."), (parted, " No."), ("", " No."), (" No.", " No. ")]
    source = write_lines(
        tmp_path / "a.jsonl", [{"chosen": asked + one, "rejected": asked + other} for one, other in ends]
    )
    for schema in ("reward", check_imported):
        (row,) = load_rows(source, "train", schema, cache_dir=cache)
        assert (row["messages"], row["responses"]) == ([{"role": "user", "content": "Why?"}], ["So.", "No."])
    (told,) = caplog.messages
    assert told.startswith(f"{source}: left out 3 of 4 rows whose transcripts are not one question with two answers")


def test_tied_rows_are_left_out_and_counted(tmp_path, cache, caplog):
    rows = [{"prompt": "q", "responses": ["a", "b"], "ranking": ranking} for ranking in ([1, 1], [2, 1])]
    source = write_lines(tmp_path / "a.jsonl", rows)
    assert load_rows(source, "train", "reward", cache_dir=cache) == rows[1:]
    assert "left out 1 of 2 rows whose answers are all tied" in caplog.text
    assert "transcripts" not in caplog.text
    only_ties = write_lines(tmp_path / "b.jsonl", rows[:1])
    with pytest.raises(UserError, match="found no usable row"):
        load_rows(only_ties, "train", "reward", cache_dir=cache)


def test_columns_of_any_name_with_a_check_of_ones_own(tmp_path, cache):
    def check(record):
        if record["n"] != 1:
            raise FieldError("n", describe(record["n"]), "1")
        return {"text": record["title"]}

    good = write_lines(tmp_path / "a.jsonl", [{"title": "x", "n": 1}])
    bad = write_lines(tmp_path / "b.jsonl", [{"title": "x", "n": 1}, {"title": "y", "n": 2}])
    assert load_rows(good, "train", check, cache_dir=cache) == [{"text": "x"}]
    with pytest.raises(UserError, match=r"b\.jsonl:2: n: found the number 2, expected 1$"):
        load_rows([good, bad], "train", check, cache_dir=cache)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match=r"a\.txt: found a text file, expected rows with fields"):
        load_rows(str(tmp_path / "a.txt"), "train", check, cache_dir=cache)


KEYS = ("pretraining", "text"), ("sft", "prompt"), ("reward", "prompt"), ("ppo", "prompt"), (dict, "text")


@pytest.mark.parametrize(("schema", "field"), KEYS)
def test_what_shares_a_text_shares_a_split_and_no_growth_or_order_moves_it(schema, field):
    rows = [{field: f"text {i // 2}", "other": i} for i in range(400)]
    train, validation = split_rows(rows, schema, 0.1)
    assert sorted(row["other"] for row in train + validation) == list(range(400))
    assert 20 < len(validation) < 60
    assert not {row[field] for row in train} & {row[field] for row in validation}
    for count in range(50, 400, 7):
        fewer = [row for row in rows[::-1] if row["other"] < count]
        assert all(row in validation for row in split_rows(fewer, schema, 0.1)[1])
        assert all(row in train for row in split_rows(fewer, schema, 0.1)[0])


def test_a_conversation_goes_with_what_its_user_asks_first():
    def messages(*turns):
        return {"messages": [{"role": role, "content": content} for role, content in turns]}

    asked = messages(("system", "Be brief."), ("user", "Who?"), ("assistant", "I."))
    assert split_key(asked, "sft") == split_key({"prompt": "Who?", "response": "Me."}, "sft") == "Who?"
    assert split_key(messages(("user", "Who?"), ("assistant", "x"), ("user", "y"), ("assistant", "z")), "sft") == "Who?"
    assert split_key(messages(("assistant", "Hello.")), "sft") == "Hello."


def test_too_few_texts_for_their_hash_are_refused_with_a_fraction_that_fits():
    rows = [{"prompt": "a"}, {"prompt": " A"}, {"prompt": "b"}]
    with pytest.raises(UserError) as caught:
        split_rows(rows, "ppo", 0.001, "x.jsonl")
    found = re.fullmatch(
        r"x\.jsonl: different prompts: found 0 of 2 held out by hash with validation_fraction 0\.001, "
        r"expected a fraction of (\S+) to (\S+), or a validation source",
        str(caught.value),
    )
    for fraction in map(float, found.groups()):
        assert sorted(map(len, split_rows(rows, "ppo", fraction))) == [1, 2]
    with pytest.raises(
        UserError, match=r"^validation: different prompts: found 1 to split, expected at least 2, or a v"
    ):
        split_rows(rows[:2], "ppo", 0.5)


def test_a_file_may_not_train_and_validate(tmp_path, cache, caplog):
    one, two = write_lines(tmp_path / "a.jsonl", ROWS), write_lines(tmp_path / "b.jsonl", ROWS)
    other = write_lines(
        tmp_path / "c.jsonl", [*ROWS[:3], {"prompt": "Q3 ", "response": "A3"}, {"prompt": "q", "response": "a"}]
    )
    train, validation = load_splits(one, None, "sft", cache_dir=cache, fraction=0.2)
    assert sorted(map(str, train + validation)) == sorted(map(str, ROWS))
    with pytest.raises(UserError) as caught:
        load_splits(one, one, "sft", cache_dir=cache)
    assert str(caught.value) == f"validation: found {one}, the training file too, expected rows that are not trained on"
    with pytest.raises(UserError) as caught:
        load_splits(one, [other, two], "sft", cache_dir=cache)
    assert str(caught.value) == (
        f"validation: found {two}, the content of the training file {one}, expected rows that are not trained on"
    )
    assert not caplog.records
    assert load_splits(one, other, "sft", cache_dir=cache)[0] == ROWS
    assert [record.getMessage() for record in caplog.records] == [
        f"{other}: 4 of 5 validation rows are in the training rows too"
    ]


def test_an_old_date_hides_no_new_content(tmp_path, cache):
    """As `cp -p` and reproducible archives leave it."""
    for name, schema in (("a.jsonl", "pretraining"), ("a.parquet", "pretraining"), ("a.csv", "pretraining")):
        path = tmp_path / name
        for text in ("old", "new"):
            if name.endswith("parquet"):
                pyarrow.parquet.write_table(pyarrow.table({"text": [text]}), path)
            else:
                path.write_text(f'{{"text": "{text}"}}\n' if name.endswith("jsonl") else f"text\n{text}\n")
            os.utime(path, (1e9, 1e9))
            assert load_rows(str(path), "train", schema, cache_dir=cache) == [{"text": text}]
    assert not Path(cache).exists()


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("reviws", "did you mean reviews"),
        ("shakespear", "did you mean shakespeare"),
        ("synthetic-2D+", "did you mean synthetic:2D+"),
        ("my_anwsers", "did you mean my_answers.jsonl"),
        (
            "my_anwsers.jsonl",
            "found no such file, expected .jsonl, .json, .csv, .tsv, .parquet, .txt; did you mean my_answers.jsonl?",
        ),
        ("products", "found labelled rows, expected rows for this procedure"),
        ("~nobody.txt", "found no such file"),
        ("", "expected the name of a file"),
        ("what\\is.this", "found no such file"),
        ("x" * 5000, "a name on the hub was expected"),
        ("/dev/zero", "found a device, pipe or socket, expected a file"),
        ("link.txt", "found a link to nothing"),
    ],
)
def test_a_mistyped_source_asks_nobody(tmp_path, cache, monkeypatch, name, meant):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "my_answers.jsonl", ROWS)
    (tmp_path / "link.txt").symlink_to("gone")
    with pytest.raises(UserError) as caught:
        load_rows(name, "train", "sft", cache_dir=cache)
    assert meant in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fingerprint_follows_the_content(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", ROWS)
    before = fingerprint(source, "train")
    assert before == fingerprint(write_lines(tmp_path / "b.jsonl", ROWS), "train")
    write_lines(tmp_path / "a.jsonl", ROWS[:-1])
    assert before != fingerprint(source, "train")
    assert fingerprint("reviews", "train") != fingerprint("reviews", "validation")


def test_cache_folder_is_the_argument_then_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("GPT_MODULES_CACHE", str(tmp_path))
    assert sources.cache_folder() == tmp_path
    assert sources.cache_folder(tmp_path / "x") == tmp_path / "x"
