"""Results in a folder and on the screen."""

import json

import pytest

from gpt_modules.errors import UserError
from gpt_modules.evaluation.tasks.measure import Result
from gpt_modules.evaluation.tasks.metrics import Estimate
from gpt_modules.evaluation.tasks.results import Results, table_header, table_rows, weights_digest

SHA = "0" * 64
TASKS = {"quiz": {"kind": "choice", "sha256": {"source": SHA}}}
SETTINGS = {"model": "m", "weights": "w", "seed": 0}


def result(value=0.5, **changes):
    sizes = {"n": 4, "shortened": 0, "cut": 0, "unfinished": 0, "seconds": 1.23456}
    return Result(metrics={"accuracy": Estimate(value, 0.25)}, records=[{"right": True}], **{**sizes, **changes})


def test_what_is_written_is_found_again(tmp_path):
    results = Results(tmp_path / "out", SETTINGS, TASKS)
    entry = results.add("quiz", 2, result())
    assert not (tmp_path / "out/results.json").exists(), "noted, not written"
    results.write(entry, [{"right": "né"}])
    assert (tmp_path / "out/items/quiz-2.jsonl").read_text(encoding="utf-8") == '{"right": "né"}\n'
    document = json.loads((tmp_path / "out/results.json").read_text())
    assert (document["settings"], document["tasks"]) == (SETTINGS, TASKS)
    assert document["results"] == [{
        "task": "quiz", "shots": 2, "metrics": {"accuracy": {"value": 0.5, "standard_error": 0.25}}, "n": 4,
        "shortened": 0, "cut": 0, "unfinished": 0, "seconds": 1.235,
    }]  # fmt: skip
    again = Results(tmp_path / "out", {**SETTINGS, "model": "elsewhere"}, TASKS)
    assert again.entry("quiz", 2) == entry
    assert again.has("quiz", 2, items=True)
    assert not again.has("quiz", 0, items=False)
    (tmp_path / "out/items/quiz-2.jsonl").unlink()
    assert again.has("quiz", 2, items=False)
    assert not again.has("quiz", 2, items=True)


def test_a_result_takes_the_place_of_an_older_one(tmp_path):
    results = Results(tmp_path, SETTINGS, TASKS)
    for value in (0.25, 0.75):
        results.write(results.add("quiz", 0, result(value)), None)
    (entry,) = json.loads((tmp_path / "results.json").read_text())["results"]
    assert entry["metrics"]["accuracy"]["value"] == 0.75


def test_results_of_other_weights(tmp_path):
    results = Results(tmp_path, SETTINGS, TASKS)
    results.write(results.add("quiz", 0, result()), None)
    with pytest.raises(
        UserError, match=r"results\.json: weights: found results of .*w.*, expected .*v.*; choose another"
    ):
        Results(tmp_path, {**SETTINGS, "weights": "v"}, TASKS)


def test_a_table():
    long = {"task": "a-long-name", "shots": 16, **{"n": 1200, "shortened": 3, "cut": 1, "unfinished": 7}}
    metrics = {"accuracy": {"value": 0.123456, "standard_error": 0.0098774},
               "perplexity": {"value": 123456.7, "standard_error": None}}  # fmt: skip
    lines = [table_header(["quiz", "a-long-name"]), *table_rows({**long, "metrics": metrics}, ["quiz", "a-long-name"])]
    assert lines == [
        "task         shots  metric                       value  std. error       n",
        "a-long-name     16  accuracy                    0.1235    0.009877    1200",
        "a-long-name     16  perplexity               1.235e+05                1200",
        "  of 1200 items, 3 had room for fewer than 16 demonstrations, 1 lost the beginning of their context",
        "  of 1200 answers, max_new_tokens cut off 7",
    ]


def test_weights_are_known_by_their_bytes(tmp_path):
    files = {"model.safetensors": b"abc", "config.json": b"{}"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    first = weights_digest(str(tmp_path))
    (tmp_path / "README.md").write_text("not of the weights")
    assert weights_digest(str(tmp_path)) == first
    (tmp_path / "model.safetensors").write_bytes(b"abd")
    assert weights_digest(str(tmp_path)) != first


def test_a_models_folder_is_none_for_results(micro, tmp_path):
    before = {path.name for path in micro.gpt.iterdir()}
    with pytest.raises(UserError, match=r"found a model \(config\.json\), expected a folder for results alone$"):
        Results(micro.gpt, SETTINGS, TASKS)
    assert {path.name for path in micro.gpt.iterdir()} == before
