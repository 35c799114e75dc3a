"""`gpt prepare` from files to a folder that a run can be trained on, whatever happens in between."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt_modules.commands import prepare as prepare_cli
from gpt_modules.commands.prepare import main, parse_size
from gpt_modules.data.corpus import documents as corpus_documents
from gpt_modules.data.corpus.cleaning import survey
from gpt_modules.data.corpus.shards import open_shards, read_manifest
from gpt_modules.data.pretraining import PretrainingDataModule
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError
from gpt_modules.storage.durable import temporary_for

TEXTS = [f"Document {i} has {i * i} words, or so it says.\n" * (1 + i % 7) for i in range(300)]
SMALL = "from gpt_modules.data.corpus import documents; documents.CHUNK = 500"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(source, tokenizer folder)."""
    root = tmp_path_factory.mktemp("world")
    (root / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    Tokenizer.train(TEXTS, 300).save(root / "tokenizer")
    return root / "a.jsonl", root / "tokenizer"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GPT_MODULES_CACHE", str(tmp_path / "cache"))


def prepare(world, output, *words):
    source, tokenizer = world
    main(["--source", str(source), "--tokenizer", str(tokenizer), "--output", str(output), "--workers", "1", *words])


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_to_train_on(world, tmp_path, capsys):
    prepare(world, tmp_path / "out", "--shard-tokens", "2k")
    tokenizer = Tokenizer.load(tmp_path / "out")
    tokens, manifest = open_shards(tmp_path / "out", tokenizer)
    assert tokenizer.decode(tokens.tolist(), skip_special=False).split("<|endoftext|>") == ["", *TEXTS, ""]
    assert manifest.documents == 300
    assert f"300 documents, 0.1 MB of text, {len(tokens):,} tokens in {len(manifest.shards)}" in capsys.readouterr().out
    assert len(manifest.shards) == -(-len(tokens) // 2000) > 3
    data = PretrainingDataModule(str(tmp_path / "out"), tokenizer=str(tmp_path / "out"), context=16)
    data.prepare_data()
    data.setup("fit")
    assert data.train_tokens.tolist() + data.validation_tokens.tolist()[1:] == tokens.tolist()
    assert next(iter(data.train_dataloader())).inputs.shape == (16, 16)


def test_the_tokenizer_must_be_the_folders(world, tmp_path):
    prepare(world, tmp_path / "out")
    with pytest.raises(UserError, match=r"manifest.json: tokenizer: found another tokenizer's tokens") as caught:
        PretrainingDataModule(str(tmp_path / "out")).prepare_data()
    assert "\n" not in str(caught.value)


def started(world, output):
    """A process that has written five shards of its output, and stays in the sixth."""
    source, tokenizer = world
    words = ["--source", source, "--tokenizer", tokenizer, "--shard-tokens", "1k", "--workers", 1, "--output", output]
    stops = "from gpt_modules.data.corpus import shard_writer as w; real = w._flush; "
    stops += "w._flush = lambda file: pause() if len(list(Path(sys.argv[-1]).glob('*.bin'))) == 5 else real(file)"
    code = f"from pathlib import Path; from signal import pause; import sys; {SMALL}; {stops}"
    code += "; from gpt_modules.commands.prepare import main"
    return subprocess.Popen(
        [sys.executable, "-c", f"{code}; main(sys.argv[1:])", *map(str, words)], stdout=subprocess.DEVNULL
    )


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes(world, tmp_path, monkeypatch):
    process, output = started(world, tmp_path / "cut"), tmp_path / "cut"
    while process.poll() is None and len(list(output.glob("*.bin"))) < 5:
        time.sleep(0.001)
    with pytest.raises(UserError, match="found another gpt prepare at work on it"):
        prepare(world, output, "--shard-tokens", "1k")
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    monkeypatch.setattr("gpt_modules.data.corpus.documents.CHUNK", 500)
    before = {name: data for name, data in content(output).items() if name.endswith(".bin")}
    prepare(world, output, "--shard-tokens", "1k")
    prepare(world, tmp_path / "whole", "--shard-tokens", "1k")
    assert content(output) == content(tmp_path / "whole")
    assert len(before) == 5 < len(list(output.glob("*.bin")))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--shard-tokens", "3k"), r"manifest.json: shard_tokens: found 2000, expected this run's 3000"),
        (
            ("--shard-tokens", "2k", "--text-field", "body"),
            r"manifest.json: text_field: found 'text', expected .* 'body'",
        ),
        (("--shard-tokens", "2k", "--tokenizer", "gpt2"), r"manifest.json: tokenizer: found another one's tokens"),
        (("--shard-tokens", "2k", "--near-duplicates", "0.8"), r"manifest.json: near_duplicates: found None"),
    ],
)
def test_other_settings_are_refused_and_touch_nothing(world, tmp_path, words, message):
    prepare(world, tmp_path / "out", "--shard-tokens", "2k")
    before = content(tmp_path / "out")
    with pytest.raises(UserError, match=message) as caught:
        prepare(world, tmp_path / "out", *words)
    assert "\n" not in str(caught.value)
    assert content(tmp_path / "out") == before


def test_twins_and_test_sets_are_left_out(world, tmp_path, capsys):
    pytest.importorskip("datasketch")
    source = tmp_path / "b.jsonl"
    words = [" ".join(f"w{i * 1000 + j}" for j in range(200)) for i in range(20)]
    words[5] = words[3] + " twin"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in words))
    test = tmp_path / "test.jsonl"
    test.write_text(json.dumps({"question": " ".join(words[8].split()[90:110])}) + "\n")
    out = tmp_path / "out"
    prepare((source, world[1]), out, "--near-duplicates", "0.8", "--exclude", str(test))
    tokenizer = Tokenizer.load(out)
    found = tokenizer.decode(open_shards(out, tokenizer)[0].tolist(), skip_special=False).split("<|endoftext|>")[1:-1]
    expected = [text for i, text in enumerate(words) if i not in (5, 8)]
    assert [text for text in found if text in expected] == expected
    assert len(found) == len(expected) + 2
    assert all("w8100" not in text for text in found)
    (twin,) = json.loads((out / "survey.json").read_text())["duplicates"]
    assert (twin["document"], twin["of"]) == (5, 3)
    printed = capsys.readouterr().out
    assert "1 near-duplicates among 20 documents; 8 runs of words" in printed
    assert "left out: 1 near-duplicates; of test sets, something in 1 documents and 0 documents whole" in printed


def test_a_log_file_gets_lines(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("gpt_modules.data.corpus.documents.CHUNK", 5000)
    monkeypatch.setattr(prepare_cli, "LINE_EVERY", 0.0)
    prepare(world, tmp_path / "out")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("encode: ")]
    assert len(lines) > 3
    assert all("MB/s" in line and "tokens" in line for line in lines)


@pytest.mark.parametrize(("text", "size"), [("5000", 5000), ("100M", 10**8), ("1.5g", 15 * 10**8), ("2_000", 2000)])
def test_sizes(text, size):
    assert parse_size(text) == size


def test_mistakes_are_one_line(world, tmp_path):
    for text in ("0", "-5", "x", "1T"):
        with pytest.raises(UserError, match="--shard-tokens: found"):
            parse_size(text)
    with pytest.raises(UserError, match="gpt prepare: the following arguments are required"):
        main(["--source", "reviews"])
    with pytest.raises(UserError, match=r"nowhere.jsonl: found no such file"):
        prepare((tmp_path / "nowhere.jsonl", world[1]), tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/out: could not be written \(Not a directory"):
        prepare(world, tmp_path / "file" / "out")
    assert not list(Path(tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--near-duplicates", "2"), "--near-duplicates: found '2', expected a similarity above 0 to 1"),
        (("--near-duplicates", "nan"), "--near-duplicates: found 'nan', expected a similarity"),
        (("--near-duplicates", "0"), "--near-duplicates: found '0', expected a similarity"),
        (("--workers", "0"), "--workers: found '0', expected a whole number from 1"),
        (("--workers", "-1"), "--workers: found '-1', expected a whole number from 1"),
        (("--shard-tokens", "0"), "--shard-tokens: found '0', expected a number of tokens"),
        (("--shard-tokens", "9" * 5000), "--shard-tokens: found '9"),
        (("--shard-tokens", "999"), "--shard-tokens: found '999', expected a number of tokens .*, from 1000"),
        (("--shard-tokens", "٣٠٠٠"), "--shard-tokens: found '٣٠٠٠', expected a number of tokens"),
        (("--workers", "٣"), "--workers: found '٣', expected a whole number from 1"),
        (("--near-duplicates", "٠.٥"), "--near-duplicates: found '٠.٥', expected a similarity"),
        (("--split", "test"), "--split: invalid choice"),
        (("--split", "validation"), "--split: found 'validation', which nothing would follow, expected none beside f"),
        (("--exclude", ""), "--exclude: found an empty name, expected the name of a file"),
        (("--output", ""), "--output: found '', expected the name of a file or a folder"),
    ],
)
def test_values_are_checked_before_anything_is_made(world, tmp_path, words, message):
    with pytest.raises(UserError, match=message) as caught:
        main(["--source", str(world[0]), "--tokenizer", str(world[1]), "--output", str(tmp_path / "out"), *words])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("s", "s"), ("s", "s/out"), ("s/a.jsonl", "s"), ("s/a.jsonl", "."), ("s/a.jsonl", "s/a.jsonl"),
        ("s*/*.json*", "sout"), ("s/**/*.json*", "s/x/out"), ("link", "s"), ("link/a.jsonl", "s"),
    ],
)  # fmt: skip
def test_shards_stay_out_of_what_is_read(world, tmp_path, monkeypatch, source, output):
    monkeypatch.chdir(tmp_path)
    Path("s").mkdir()
    Path("s/a.jsonl").write_bytes(world[0].read_bytes())
    Path("link").symlink_to("s")
    with pytest.raises(UserError, match="--output: found"):
        prepare((source, world[1]), output)
    assert sorted(map(str, Path().rglob("*"))) == ["link", "s", "s/a.jsonl"]


def test_a_file_is_prepared_once(world, tmp_path):
    with pytest.raises(UserError, match="found this file twice in one source"):
        main(["--source", *[str(world[0])] * 2, "--tokenizer", str(world[1]), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_the_users_files_stay(world, tmp_path):
    """Only what a killed run of ours left behind is cleared away."""
    (tmp_path / "out").mkdir()
    mine = {".notes.tmp": b"mine", ".x.12.tmp": b"mine", "readme.txt": b"mine", ".manifest.json.tmp": b"mine"}
    for name, data in mine.items():
        (tmp_path / "out" / name).write_bytes(data)
    left = [temporary_for(tmp_path / "out" / name) for name in ("shard", "manifest.json", "tokenizer.json")]
    for path in left:
        path.touch()
    prepare(world, tmp_path / "out")
    found = content(tmp_path / "out")
    assert {name: found.get(name) for name in mine} == mine
    assert not any(path.exists() for path in left)


def test_a_source_that_changes_while_it_is_read_is_told(world, tmp_path, monkeypatch):
    source = tmp_path / "a.jsonl"
    source.write_bytes(world[0].read_bytes())

    def growing(*arguments, **options):
        yield from documents(*arguments, **options)
        source.write_bytes(world[0].read_bytes() + b'{"text": "late"}\n')

    documents = corpus_documents.source_documents
    monkeypatch.setattr(corpus_documents, "source_documents", growing)
    with pytest.raises(UserError, match=r"a\.jsonl: found it changed while it was read, expected it to stay"):
        prepare((source, world[1]), tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists() or not read_manifest(tmp_path / "out").complete


def test_a_test_set_that_changes_while_it_is_read_is_told(world, tmp_path, monkeypatch):
    tests = tmp_path / "tests.jsonl"
    tests.write_text(json.dumps({"text": "a test of some words that nobody else has written before today " * 3}) + "\n")
    real = survey.grams_of_tests

    def read(*arguments):
        found = real(*arguments)
        tests.write_text(json.dumps({"text": "other words"}) + "\n")
        return found

    monkeypatch.setattr(survey, "grams_of_tests", read)
    with pytest.raises(UserError, match=r"^--exclude: found \S+tests\.jsonl changed while it was read, expected it to"):
        prepare(world, tmp_path / "out", "--exclude", str(tests))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "config.yaml", "checkpoints", "export"])
def test_a_run_or_a_model_is_no_place_for_shards(world, tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("x")
    with pytest.raises(UserError, match=rf"^--output: found .*/out/{name}, which belongs to a run or a model"):
        prepare(world, tmp_path / "out")
    assert content(tmp_path / "out") == {name: b"x"}
