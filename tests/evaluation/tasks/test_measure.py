"""Tasks measured against brute force through transformers, and on a model whose probabilities are known."""

import json
import math

import numpy as np
import pytest
import tokenizers
import torch
from transformers import GPT2LMHeadModel

from gpt_modules.backbone import GPT, DecoderConfig, load_pretrained
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError
from gpt_modules.evaluation.tasks.definitions import task_from
from gpt_modules.evaluation.tasks.measure import Settings, measure, prepare, read_data, shots_of
from gpt_modules.storage.model_files import END_OF_TEXT


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GPT_MODULES_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def run(micro, tmp_path):
    """The result of rows under a task of these keys; by default of the micro world's model."""
    ours = load_pretrained(str(micro.gpt), kind="gpt").train(), micro.tokenizer

    def run(rows, shots=0, world=ours, settings=Settings(), **keys):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        task, (model, tokenizer) = task_from({"name": "quiz", "source": str(path), **keys}), world
        work = prepare(task, read_data(task, settings, [shots]), tokenizer, model.config.n_positions, shots, settings)
        return measure(work, model, tokenizer, settings)

    return run


@pytest.fixture
def naive(micro):
    """Log-probability of a text after another, and whether it is greedy, one row at a time through transformers."""
    oracle, encode, eos = (
        GPT2LMHeadModel.from_pretrained(micro.gpt).eval(),
        micro.tokenizer.encode,
        micro.tokenizer.eos_id,
    )

    @torch.no_grad()
    def naive(before, after, end_token=True):
        context = ([eos] if end_token or not before else []) + encode(before)
        tokens = torch.tensor([context + encode(after)])
        logprobs = oracle(tokens).logits[0].log_softmax(-1)[len(context) - 1 : -1]
        targets = tokens[0, len(context) :]
        nats = float(logprobs.gather(1, targets[:, None]).sum())
        return nats, len(targets), bool((logprobs.argmax(-1) == targets).all())

    return naive


ROWS = [
    {"query": "the film is", "choices": ["good and lovely", "bad", "so dull."], "gold": 0},
    {"query": "a story", "choices": ["is great.", "is", "fine"], "gold": 1},
    {"query": "its cast is poor and", "choices": ["awful.", "a story"], "gold": 1},
    {"query": "this plot is", "choices": ["the film", "fine", "lovely and great"], "gold": 2},
]


@pytest.mark.parametrize("end_token", [True, False])
@pytest.mark.parametrize("scoring", ["sum", "token", "character", "byte", "ratio"])
def test_choices_by_brute_force(run, naive, scoring, end_token):
    """Each way to make good for length, with one demonstration in front."""
    result = run(ROWS, 1, kind="choice", scoring=scoring, answer_context="A:", separator="\n",
                 settings=Settings(end_token=end_token))  # fmt: skip
    right = []
    for row, record in zip(ROWS, result.records, strict=True):
        values = []
        for choice in row["choices"]:
            nats, count, _ = naive(record["prompt"], f" {choice}", end_token)
            prior, _, _ = naive("A:", f" {choice}", end_token)
            lengths = {"sum": 1, "token": count, "character": len(choice), "byte": len(choice.encode())}
            values.append(nats - prior if scoring == "ratio" else nats / lengths[scoring])
        assert record["scores"] == pytest.approx(values, abs=1e-4)
        assert record["prediction"] == int(np.argmax(values))
        assert record["prompt"].endswith(row["query"])
        assert record["prompt"].count("\n") == 1
        right.append(int(np.argmax(values)) == row["gold"])
    p = np.mean(right)
    assert result.metrics == {"accuracy": (pytest.approx(p), pytest.approx(math.sqrt(p * (1 - p) / 3)))}
    assert (result.n, result.shortened, result.cut) == (4, 0, 0)


def test_partial_by_brute_force(run, naive):
    rows = [
        {"context_options": ["the film", "a story", "its cast"], "continuation": "is good.", "gold": 1},
        {"context_options": ["this plot is so", "the film"], "continuation": "and dull.", "gold": 0},
    ]
    result = run(rows, kind="partial")
    for row, record in zip(rows, result.records, strict=True):
        values = [naive(context, f" {row['continuation']}")[0] for context in row["context_options"]]
        assert record["scores"] == pytest.approx(values, abs=1e-4)
        assert record["right"] == (int(np.argmax(values)) == row["gold"])
        assert record["choices"] == row["context_options"]


def test_cloze_by_brute_force(run, naive):
    texts = ["the film is good and", "a story is", "this plot"]
    rows = [{"text": f"{text} {word}"} for text in texts for word in ("great", "lovely")]
    result = run(rows, kind="cloze", text="{text}")
    found = [naive(*row["text"].rsplit(" ", 1)[:1], f" {row['text'].rsplit(' ', 1)[1]}") for row in rows]
    assert result.metrics["accuracy"].value == np.mean([greedy for _, _, greedy in found])
    perplexity = math.exp(-np.mean([nats for nats, _, _ in found]))
    assert result.metrics["perplexity"].value == pytest.approx(perplexity, rel=1e-4)


class Parrot(GPT):
    """Says after each token another one, whatever stands before it."""

    def __init__(self, successors, n_positions=32):
        words = [*successors, "<unk>", END_OF_TEXT]
        size = len(words)
        super().__init__(DecoderConfig(vocab_size=size, n_positions=n_positions, n_layer=1, n_head=1, n_embd=size))
        ids = {word: i for i, word in enumerate(words)}
        backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
        pattern = tokenizers.Regex(r" ?\w+| ?[^\w\s]|\n")
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(pattern, "removed", invert=True)
        backend.decoder = tokenizers.decoders.Fuse()
        backend.add_special_tokens([END_OF_TEXT])
        self.tokenizer = Tokenizer(backend)
        self.next = torch.tensor([ids[successors.get(word, END_OF_TEXT)] for word in words])
        with torch.no_grad():
            self.decoder.wte.weight.copy_(torch.eye(size))

    def hidden(self, tokens, positions=None, segments=None, attention_mask=None, cache=None):
        super().hidden(tokens, positions, segments, attention_mask, cache)  # keeps the cache's account
        return 9.0 * torch.nn.functional.one_hot(self.next[tokens], self.config.vocab_size).float()


PARROT = {"Q": "a", ":": " one", " one": " two", " two": ".", ".": " three", " three": "\n", "\n": " one", "a": "a"}


def test_free_form_answers_end_where_they_should(run):
    model = Parrot(PARROT)
    world, keys = (model, model.tokenizer), {"kind": "generate", "metrics": ["exact_match", "f1"]}
    rows = [{"context": "Q:", "completion": "one two. three"}, {"context": "Q: one", "completion": "two"}]
    result = run(rows, world=world, max_new_tokens=12, **keys)
    assert [record["prediction"] for record in result.records] == ["one two. three", "two. three"]
    assert result.metrics["exact_match"] == (0.5, 0.5)
    assert result.records[1]["f1"] == pytest.approx(2 / 3)
    cut = run(rows, world=world, max_new_tokens=2, **keys)
    assert [record["prediction"] for record in cut.records] == ["one two", "two."]
    first = run(rows, world=world, max_new_tokens=12, sentences=1, **keys)
    assert [record["prediction"] for record in first.records] == ["one two.", "two."]
    stopped = run(rows, world=world, max_new_tokens=12, stop=[" two.", "thr"], **keys)
    assert [record["prediction"] for record in stopped.records] == ["one", ""], "texts of several tokens too"


def test_answers_do_not_depend_on_the_batch(run, micro):
    rows = [{"context": " ".join(["the film is good and"] * n), "completion": "x"} for n in (3, 1, 2, 1, 3)]
    keys = {"kind": "generate", "max_new_tokens": 6, "stop": []}
    alone = run(rows, settings=Settings(max_tokens_a_batch=1), **keys)
    assert alone.records == run(rows, **keys).records
    sampled = {**keys, "temperature": 1.0, "top_k": 20}
    first, again = (run(rows, **sampled).records for _ in range(2))
    assert first == again
    assert first != run(rows, settings=Settings(seed=1), **sampled).records


@torch.no_grad()
def test_a_beam_as_wide_as_the_vocabulary_misses_nothing(run, micro):
    """The likeliest two tokens of all pairs, found by trying each first one through transformers; the length penalty
    rules out an end at once.
    """
    oracle, size = GPT2LMHeadModel.from_pretrained(micro.gpt).eval(), micro.vocab_size
    context = [micro.tokenizer.eos_id, *micro.tokenizer.encode("the film")]
    first = oracle(torch.tensor([context])).logits[0, -1].log_softmax(-1)
    after = oracle(torch.tensor([[*context, token] for token in range(size)])).logits[:, -1].log_softmax(-1)
    first[micro.tokenizer.eos_id] = -torch.inf
    best = int((first[:, None] + after).argmax())
    rows = [{"context": "the film", "completion": "x"}]
    (record,) = run(rows, kind="generate", max_new_tokens=2, stop=[], beams=size, length_penalty=20).records
    assert record["prediction"] == micro.tokenizer.decode([best // size, best % size]).strip()


def test_bleu_of_a_corpus(run):
    model = Parrot(PARROT)
    rows = [{"context": "Q:", "completion": "one two. three"}] * 3
    result = run(rows, world=(model, model.tokenizer), kind="generate", metrics=["bleu", "rouge"], max_new_tokens=12)
    assert result.metrics["bleu"] == (pytest.approx(100.0), pytest.approx(0.0))
    assert list(result.metrics) == ["bleu", "rouge1", "rouge2", "rougeL", "rouge_average"], "as the task lists them"
    assert result.metrics["rougeL"] == (pytest.approx(1.0), pytest.approx(0.0))


def test_perplexity_by_brute_force(run, naive):
    texts = ["the film is good.", "a story is bad and poor."]
    rows = [{"text": text} for text in texts]
    result = run(rows, kind="perplexity")
    found = [naive("", text) for text in texts]
    nats, tokens = sum(one for one, _, _ in found), sum(count for _, count, _ in found)
    expected = {
        "word_perplexity": math.exp(-nats / 10),
        "bits_per_character": -nats / sum(map(len, texts)) / math.log(2),
        "bits_per_byte": -nats / sum(map(len, texts)) / math.log(2),
        "token_perplexity": math.exp(-nats / tokens),
    }
    assert {name: one.value for name, one in result.metrics.items()} == pytest.approx(expected, rel=1e-4)
    assert all(one.standard_error > 0 for one in result.metrics.values())
    assert shots_of(task_from({"name": "a", "kind": "perplexity", "source": "a"}), [1, 5]) == [0]


def test_items_that_lose_something_to_the_context_are_counted(run):
    rows = [{"query": "the film is", "choices": ["good", "bad"], "gold": 0},
            {"query": "the film is good and " * 5, "choices": ["good", "bad"], "gold": 0},
            {"query": "a story is", "choices": ["good", "bad"], "gold": 0}]  # fmt: skip
    result = run(rows, 2, kind="choice", separator="\n")
    assert (result.shortened, result.cut, result.n) == (3, 1, 3)


def test_what_no_run_can_have():
    for key in ("limit", "max_tokens_a_batch"):
        with pytest.raises(UserError, match=f"{key}: found 0, expected at least 1"):
            Settings(**{key: 0})
    with pytest.raises(UserError, match="seed: found -1, expected at least 0"):
        Settings(seed=-1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_task_gives_the_numbers_of_lm_evaluation_harness(run, micro, tmp_path, monkeypatch):
    """The same rows as its own task on its own model: log-probabilities, acc and acc_norm."""
    import lm_eval
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM

    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # asks pip, which takes seconds
    ours = {scoring: run(ROWS, kind="choice", scoring=scoring, settings=Settings(end_token=False))
            for scoring in ("sum", "character")}  # fmt: skip
    files = {"data_files": {"test": str(tmp_path / "rows.jsonl")}, "cache_dir": str(tmp_path)}
    task = ConfigurableTask(config={
        "task": "quiz", "dataset_path": "json", "dataset_kwargs": files, "test_split": "test",
        "output_type": "multiple_choice", "doc_to_text": "{{query}}", "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    })  # fmt: skip
    model = HFLM(str(micro.gpt), device="cpu", batch_size=1)
    found = lm_eval.simple_evaluate(model, tasks=[task], log_samples=True, bootstrap_iters=0)
    assert ours["sum"].metrics["accuracy"].value == found["results"]["quiz"]["acc,none"]
    assert ours["character"].metrics["accuracy"].value == found["results"]["quiz"]["acc_norm,none"]
    samples = sorted(found["samples"]["quiz"], key=lambda sample: sample["doc_id"])
    for sample, record in zip(samples, ours["sum"].records, strict=True):
        assert record["scores"] == pytest.approx([float(nats) for nats, _ in sample["filtered_resps"]], abs=1e-5)
