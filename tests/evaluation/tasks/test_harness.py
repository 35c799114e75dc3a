"""The adapter against lm-evaluation-harness's own model `hf`, on the same folder and the same local tasks."""

import json
import random
import sys
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from conftest import shaken, write_rows

from gpt_modules.backbone import GPT, DecoderConfig, save_pretrained
from gpt_modules.errors import UserError

TASKS = {
    "letters": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_target": "{{gold}}",
        "doc_to_choice": "{{choices}}",
        "num_fewshot": 2,
        "fewshot_split": "test",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "cloze": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{query}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
    },
    "said": {
        "output_type": "generate_until",
        "doc_to_text": "{{query}}",
        "doc_to_target": "{{spoken}}",
        "generation_kwargs": {"until": ["e", "."], "max_gen_toks": 40},
        "metric_list": [{"metric": "exact_match"}],
    },
    "page": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{page}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}, {"metric": "bits_per_byte"}],
    },
}
WORDS = ["the film", "a story", " is", " good", "bad", " and", "plot ", "it", "!", "12 "]
POSITIONS = 64


@pytest.fixture(scope="module")
def folder(micro, tmp_path_factory):
    """A model of 64 positions, so that few-shot prompts and pages are longer than it can read."""
    folder = tmp_path_factory.mktemp("harness")
    torch.manual_seed(0)
    sizes = {"vocab_size": micro.vocab_size, "n_positions": POSITIONS, "n_layer": 2, "n_head": 2, "n_embd": 16}
    model = shaken(GPT(DecoderConfig(**sizes)), 3)
    save_pretrained(folder / "model", model, tokenizer_json=micro.tokenizer.to_json())
    return folder


@pytest.fixture(scope="module")
def results(folder):
    """What the harness says with its own model and with ours: samples and metrics of every task."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from gpt_modules.evaluation.tasks.harness import HarnessModel

    model = str(folder / "model")
    ours = HarnessModel(model, device="cpu", dtype="float64")
    theirs = HFLM(model, device="cpu", dtype="float64", batch_size=4)
    write_tasks(folder, ours)
    tasks = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    run = {"tasks": list(TASKS), "task_manager": tasks, "bootstrap_iters": 0, "log_samples": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # asks pip, which takes seconds
        return [lm_eval.simple_evaluate(model=system, **run) for system in (ours, theirs)]


def write_tasks(folder, model):
    """Rows of unequal lengths; half of the answers to say are what the model says."""
    rng = random.Random(0)
    draw = lambda most: "".join(rng.choice(WORDS) for _ in range(rng.randint(1, most)))  # noqa: E731
    queries = [draw(12) for _ in range(16)]
    spoken = model._answers([model._prompt(query, 40) for query in queries], 40, ("e", "."))
    rows = [
        {
            "query": query,
            "choices": [" good", draw(3), " bad and dull"],
            "gold": rng.randrange(3),
            "answer": f" {draw(3)}",
            "spoken": said if rng.random() < 0.5 and said.strip() else "no",
            "page": draw(80),
        }
        for query, said in zip(queries, spoken, strict=True)
    ]
    data = write_rows(folder / "rows.jsonl", rows)
    (folder / "tasks").mkdir()
    for name, task in TASKS.items():
        files = {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")}
        whole = {"task": name, "dataset_path": "json", "dataset_kwargs": files, "test_split": "test", **task}
        (folder / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump(whole))


def test_log_probabilities_are_those_of_the_harness(results):
    ours, theirs = (result["samples"] for result in results)
    for name in ("letters", "cloze", "page"):
        for mine, other in zip(ours[name], theirs[name], strict=True):
            assert mine["arguments"] == other["arguments"]
            for answers in zip(mine["resps"], other["resps"], strict=True):
                nats, *greedy = zip(*(np.atleast_1d(answer) for (answer,) in answers), strict=True)
                assert float(nats[0]) == pytest.approx(float(nats[1]), rel=1e-9)
                assert all(one == two for one, two in greedy)


PAIRS = [("the film", " is good"), ("the film ", "is good"), ("the film", "is"), ("the fi", "lm is bad and poor"),
         ("", "a"), ("a story is g", "ood and poor"), ("its", "  cast \n"), ("the film is\n", "good")]  # fmt: skip


@pytest.fixture(scope="module")
def systems(folder):
    from lm_eval.models.huggingface import HFLM

    from gpt_modules.evaluation.tasks.harness import HarnessModel

    model = str(folder / "model")
    ours = HarnessModel(model, device="cpu", dtype="float64")
    return ours, HFLM(model, device="cpu", dtype="float64", batch_size=4)


def likelihoods(system, pairs):
    from lm_eval.api.instance import Instance

    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    return system.loglikelihood(requests, disable_tqdm=True)


def test_the_border_of_context_and_continuation_is_that_of_the_harness(systems):
    ours, theirs = (likelihoods(system, PAIRS) for system in systems)
    for pair, mine, other in zip(PAIRS, ours, theirs, strict=True):
        assert mine[0] == pytest.approx(other[0], rel=1e-9), pair
        assert mine[1] == other[1]


def test_a_pair_that_the_harness_cannot_part(systems, micro):
    """Where its `hf` fails an assertion. A context of white space alone is, moved over, none: the end token predicts
    all of the continuation. A token across the border belongs to the continuation.
    """
    ours, theirs = systems
    encode = micro.tokenizer.encode
    crossing = next((word[:cut], word[cut:]) for word in (" good", " film", " story") for cut in range(2, len(word))
                    if len(encode(word)) <= len(encode(word[:cut])))  # fmt: skip
    for pair in ((" ", " good"), ("\n", "bad"), crossing, ("the film" + crossing[0], crossing[1])):
        with pytest.raises(AssertionError):
            likelihoods(theirs, [pair])
    spaced, lines = likelihoods(ours, [(" ", "good"), ("\n", "bad")])
    assert [spaced, lines] == likelihoods(ours, [("", " good"), ("", "\nbad")])
    whole, part = likelihoods(ours, [("", "".join(crossing)), crossing])
    assert part == whole, "nothing stands before the token that reaches across"
    later = likelihoods(ours, [("the film" + crossing[0], crossing[1]), ("the film", "".join(crossing))])
    assert later[0] == later[1]
    with pytest.raises(UserError, match=r"continuation of 'the film': found no token in '', expected some"):
        likelihoods(ours, [("the film", "")])


def test_what_is_said_is_what_the_harness_hears(results):
    ours, theirs = ([sample["resps"] for sample in result["samples"]["said"]] for result in results)
    assert ours == theirs
    assert len({str(answer) for answer in ours}) > 5, "answers that differ"


def test_metrics_are_exactly_equal(results):
    ours, theirs = (result["results"] for result in results)
    for name, task in TASKS.items():
        for metric in (f"{entry['metric']},none" for entry in task["metric_list"]):
            exact = metric.startswith(("acc", "exact_match"))
            assert ours[name][metric] == (theirs[name][metric] if exact else pytest.approx(theirs[name][metric]))
    assert 0.0 < ours["said"]["exact_match,none"] < 1.0
    assert 0.0 < ours["letters"]["acc,none"] < 1.0


def test_the_command(folder, results, monkeypatch, capsys):
    from lm_eval.tasks import TaskManager

    from gpt_modules.evaluation.tasks import harness

    words = ["run", "--model", "gpt_modules", "--model_args", f"model={folder / 'model'}", "--tasks", "page"]
    words += ["--include_path", str(folder / "tasks"), "--output_path", str(folder / "out")]
    monkeypatch.setattr(sys, "argv", ["harness", *words, "--device", "cpu"])
    # Reading the thousands of tasks that ship with it takes ten seconds.
    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))
    harness.main()
    (file,) = (folder / "out").rglob("results_*.json")
    found = json.loads(file.read_text())["results"]["page"]["bits_per_byte,none"]
    assert found == pytest.approx(results[0]["results"]["page"]["bits_per_byte,none"], rel=1e-4)
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--model_args", "model=/nowhere"])
    with pytest.raises(SystemExit, match="2"):
        harness.main()
    assert "error: /nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"until": [], "do_sample": True, "temperature": 0.5}, "do_sample = true"),
        ({"until": [], "num_beams": 4}, "num_beams"),
        ({"until": [], "max_gen_toks": POSITIONS}, "max_gen_toks: found 64, expected less than n_positions = 64"),
    ],
)  # fmt: skip
def test_what_it_cannot_do(folder, given, message):
    from types import SimpleNamespace

    from gpt_modules.evaluation.tasks.harness import HarnessModel

    with pytest.raises(UserError, match=message):
        HarnessModel(str(folder / "model"), device="cpu").generate_until([SimpleNamespace(args=("a", given))])
    with pytest.raises(UserError, match="dtype: found 'int8'"):
        HarnessModel(str(folder / "model"), device="cpu", dtype="int8")


def test_without_the_package_it_is_one_line(monkeypatch):
    monkeypatch.delitem(sys.modules, "gpt_modules.evaluation.tasks.harness", raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(UserError, match=r"pip install 'gpt-modules\[eval\]'"):
        __import__("gpt_modules.evaluation.tasks.harness")
