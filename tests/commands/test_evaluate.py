"""`gpt evaluate`: what it prints and writes, how it goes on, and the one line that a mistake gets."""

import json

import pytest
import torch

from gpt_modules.backbone import load_pretrained, save_pretrained
from gpt_modules.commands import evaluate as evaluate_cli
from gpt_modules.errors import UserError
from gpt_modules.evaluation.tasks import measure as evaluate

TASK = 'kind: choice\nsource: {folder}/rows.jsonl\nseparator: "\\n"\nscoring: sum\n'


@pytest.fixture
def world(micro, tmp_path, monkeypatch):
    """A folder with a task of 6 rows by name, and the words of a command that measures it at 0 and 2 demonstrations."""
    monkeypatch.setenv("GPT_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    rows = [{"query": f"the film {n}", "choices": ["is good", "so bad"], "gold": n % 2} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipes/evaluation").mkdir(parents=True)
    (tmp_path / "recipes/evaluation/quiz.yaml").write_text(TASK.format(folder=tmp_path))
    words = ["--model", str(micro.gpt), "--tasks", "quiz", "--shots", "0,2", "--output", "out", "--device", "cpu"]
    return tmp_path, words


def results(folder):
    return json.loads((folder / "out/results.json").read_text())


def test_a_table_and_results(world, micro, capsys):
    folder, words = world
    evaluate_cli.main([*words, "--items"])
    found, lines = results(folder), capsys.readouterr().out.splitlines()
    assert [(entry["task"], entry["shots"], entry["n"]) for entry in found["results"]] == [
        ("quiz", 0, 6),
        ("quiz", 2, 6),
    ]
    assert lines[0].split() == ["task", "shots", "metric", "value", "std.", "error", "n"]
    for line, entry in zip(lines[1:], found["results"], strict=True):
        accuracy = entry["metrics"]["accuracy"]
        assert line.split() == ["quiz", str(entry["shots"]), "accuracy", f"{accuracy['value']:.4f}",
                                f"{accuracy['standard_error']:.4g}", "6"]  # fmt: skip
        records = (folder / f"out/items/quiz-{entry['shots']}.jsonl").read_text().splitlines()
        items = [json.loads(record) for record in records]
        assert sum(item["right"] for item in items) / 6 == pytest.approx(accuracy["value"])
        assert {"prompt", "choices", "scores", "prediction", "gold", "right"} == set(items[0])
        assert all(item["prompt"].count("\n") == entry["shots"] for item in items)
    settings = {key: found["settings"][key] for key in ("model", "tokenizer", "limit", "seed", "end_token")}
    assert settings == {"model": str(micro.gpt), "tokenizer": micro.tokenizer.fingerprint, "limit": None, "seed": 0,
                        "end_token": True}  # fmt: skip
    assert found["tasks"]["quiz"]["scoring"] == "sum"
    assert not [path for path in folder.glob("out/**/*") if path.name.endswith(".tmp")]


def test_a_run_that_was_cut_off_goes_on(world, capsys, monkeypatch):
    folder, words = world
    real, calls = evaluate.measure, []

    def measure(work, *rest):
        calls.append(work.shots)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(work, *rest)

    monkeypatch.setattr(evaluate, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        evaluate_cli.main(words)
    first = results(folder)["results"]
    assert [entry["shots"] for entry in first] == [0]
    evaluate_cli.main(words)
    assert calls == [0, 2, 2], "what was measured is not measured again"
    assert results(folder)["results"][0] == first[0]
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[-2:]] == [["quiz", "0"], ["quiz", "2"]]
    evaluate_cli.main([*words, "--items"])
    assert calls == [0, 2, 2, 0, 2], "the items were not written yet"


def test_results_of_other_settings_are_kept(world, micro, tmp_path):
    folder, words = world
    evaluate_cli.main(words)
    before = (folder / "out/results.json").read_bytes()
    with pytest.raises(
        UserError, match=r"out/results\.json: seed: found results of 0, expected 1; choose another --out"
    ):
        evaluate_cli.main([*words, "--seed", "1"])
    other = load_pretrained(str(micro.gpt), kind="gpt")
    with torch.no_grad():
        other.decoder.wte.weight.add_(0.01)
    save_pretrained(tmp_path / "other", other, tokenizer_json=micro.tokenizer.to_json())
    with pytest.raises(UserError, match=r"out/results\.json: weights: found results of"):
        evaluate_cli.main([*words, "--model", str(tmp_path / "other")])
    path = folder / "recipes/evaluation/quiz.yaml"
    path.write_text(path.read_text().replace("sum", "token"))
    with pytest.raises(
        UserError, match=r"out/results\.json: quiz: found results of another definition or of other data"
    ):
        evaluate_cli.main(words)
    path.write_text(path.read_text().replace("token", "sum"))
    with (folder / "rows.jsonl").open("a") as file:
        file.write('{"query": "a", "choices": ["b", "c"], "gold": 0}\n')
    with pytest.raises(
        UserError, match=r"out/results\.json: quiz: found results of another definition or of other data"
    ):
        evaluate_cli.main(words)
    assert (folder / "out/results.json").read_bytes() == before
    (folder / "out/results.json").write_text("{")
    with pytest.raises(UserError, match=r"out/results\.json:1: found broken JSON .* expected the results of an"):
        evaluate_cli.main(words)


def test_data_of_ones_own_and_a_limit(world):
    folder, words = world
    (folder / "mine.jsonl").write_text('{"query": "a", "choices": ["b", "c"], "gold": 0}\n' * 3)
    evaluate_cli.main([*words, "--source", "mine.jsonl", "--demonstrations", "rows.jsonl", "--limit", "2"])
    found = results(folder)
    assert [entry["n"] for entry in found["results"]] == [2, 2]
    assert (found["tasks"]["quiz"]["source"], found["settings"]["limit"]) == ("mine.jsonl", 2)


def test_demonstrations_need_not_be_there_for_zero_shot(world):
    folder, words = world
    with (folder / "recipes/evaluation/quiz.yaml").open("a") as file:
        file.write("demonstrations: later.jsonl\n")
    with pytest.raises(
        UserError, match=r"^later\.jsonl: found no such file.*; --demonstrations FILE names the data of "
    ):
        evaluate_cli.main(words)
    evaluate_cli.main([*words, "--shots", "0"])
    (folder / "later.jsonl").write_bytes((folder / "rows.jsonl").read_bytes())
    evaluate_cli.main(words)
    evaluate_cli.main([*words, "--shots", "0"])
    assert [entry["shots"] for entry in results(folder)["results"]] == [0, 2]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--shots", "0,1,0"], "--shots: found '0,1,0', expected each number once"),
        (["--shots", "0,one"], "--shots: found '0,one', expected whole numbers parted by commas"),
        (["--shots", "-1"], "expected"),
        (
            ["--tasks", "ptb"],
            "--shots: found 0,2 for tasks of perplexity alone, which have no demonstrations, expected 0",
        ),
        (["--tasks", "none"], r"none: no such task, expected a \.yaml file or one of: .* quiz, "),
        (["--tasks", "quiz", "quiz"], "tasks: found quiz twice, expected each name once"),
        (["--limit", "0"], "--limit: found '0', expected a whole number from 1"),
        (
            ["--shots", "0", "--demonstrations", "rows.jsonl"],
            "--demonstrations: found rows.jsonl with --shots 0, expected",
        ),
        (["--seed", "-1"], "--seed: found '-1', expected a whole number from 0"),
        (["--batch-tokens", "0"], "--batch-tokens: found '0', expected a whole number from 1"),
        (["--device", "cuda"], "--device: found 'cuda', expected auto or cpu"),
        (["--source", "none.jsonl"], r"none\.jsonl: found no such file"),
        (
            ["--tasks", "lambada", "--shots", "0"],
            r"lambada/test\.jsonl: found no such file.*; --source FILE names the da",
        ),
        (["--shots", "6"], "quiz: demonstrations: found 5 besides item 1, expected at least 6"),
        (["--model", "none/such/folder"], "none/such/folder: no such folder, expected a model folder"),
    ],
)
def test_a_mistake_gets_one_line(world, more, message):
    folder, words = world
    with pytest.raises(UserError, match=message) as caught:
        evaluate_cli.main([*words, *more])
    assert "\n" not in str(caught.value)
    assert not (folder / "out/results.json").exists() or results(folder)["results"]


def test_what_was_measured_is_on_the_screen_when_the_disk_is_full(world, capsys, monkeypatch):
    _, words = world

    def full(path, text):
        raise UserError(f"{path}: could not be written (No space left on device)")

    monkeypatch.setattr("gpt_modules.evaluation.tasks.results.replace_durably", full)
    with pytest.raises(UserError, match=r"out/results\.json: could not be written \(No space left on device\)"):
        evaluate_cli.main(words)
    assert capsys.readouterr().out.splitlines()[1].split()[:3] == ["quiz", "0", "accuracy"]


def test_where_nothing_can_be_written_nothing_is_measured(world, monkeypatch):
    folder, words = world
    monkeypatch.setattr(evaluate, "measure", None)
    (folder / "file").touch()
    with pytest.raises(UserError, match="file: found a file, expected a folder to write to"):
        evaluate_cli.main([*words, "--output", "file"])
    with pytest.raises(UserError, match=r"file/out: could not be written \(Not a directory"):
        evaluate_cli.main([*words, "--output", "file/out"])
    with pytest.raises(UserError, match="--output: found '', expected the name of a file or a folder"):
        evaluate_cli.main([*words, "--output", ""])


def test_answers_that_were_cut_off_are_said(world, capsys):
    folder, words = world
    rows = [{"context": "the film", "completion": " is"}] * 4
    (folder / "free.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "free.yaml").write_text(
        "kind: generate\nsource: free.jsonl\nstop: [qqq]\nmax_new_tokens: 2\ntemperature: 3\n"
    )
    evaluate_cli.main([*words, "--tasks", "free.yaml", "--shots", "0", "--items"])
    items = [json.loads(line) for line in (folder / "out/items/free-0.jsonl").read_text().splitlines()]
    cut_off = sum(not item["finished"] for item in items)
    assert cut_off >= 1
    assert capsys.readouterr().out.splitlines()[-1] == f"  of 4 answers, max_new_tokens cut off {cut_off}"
    assert results(folder)["results"][0]["unfinished"] == cut_off


def test_a_model_of_another_kind(world, micro):
    _, words = world
    with pytest.raises(UserError, match=r"reward: found a model of kind 'reward', expected 'gpt'"):
        evaluate_cli.main([*words, "--model", str(micro.reward)])


def test_data_for_one_task_only(world):
    folder, words = world
    (folder / "second.yaml").write_text(TASK.format(folder=folder))
    with pytest.raises(UserError, match="--source: found 2 tasks, expected one whose data it is"):
        evaluate_cli.main([*words, "--tasks", "quiz", "second.yaml", "--source", "rows.jsonl"])


def test_data_that_changes_while_it_is_read_is_told(world, monkeypatch):
    folder, words = world
    real = evaluate.read_data

    def read(*arguments):
        found = real(*arguments)
        with (folder / "rows.jsonl").open("a") as file:
            file.write(json.dumps({"query": "another", "choices": ["a", "b"], "gold": 0}) + "\n")
        return found

    monkeypatch.setattr(evaluate, "read_data", read)
    with pytest.raises(UserError, match=r"^quiz: found its data changed while it was read, expected it to stay"):
        evaluate_cli.main(words)
    assert not (folder / "out/results.json").exists()
