"""Probes on models whose probabilities are known by construction, and against brute force through transformers."""

import json
import math

import numpy as np
import pytest
import tokenizers
import torch
from torchmetrics.functional.classification import binary_matthews_corrcoef
from transformers import GPT2LMHeadModel

from gpt_modules.backbone import GPT, DecoderConfig, load_pretrained
from gpt_modules.data.splits import hash_fraction
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError
from gpt_modules.evaluation.probes import Probe, acceptability, best_threshold, read_items, run_probe
from gpt_modules.storage.model_files import END_OF_TEXT


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GPT_MODULES_CACHE", str(tmp_path / "cache"))


def write(folder, rows, name="rows.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def word_tokenizer(words):
    """One token a word; "positive" is two."""
    ids = {word: i for i, word in enumerate([*words, "<unk>", END_OF_TEXT])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    pattern = tokenizers.Regex(r"posi|tive|\w+|[^\w\s]")
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(pattern, "removed", invert=True)
    return Tokenizer(backend)


def unigram(frequencies):
    """(tokenizer, GPT) that gives each word its frequency whatever stands before it: its last layer norm is constant,
    so the logits are a column of the embedding."""
    tokenizer = word_tokenizer(frequencies)
    model = GPT(DecoderConfig(vocab_size=tokenizer.vocab_size, n_positions=16, n_layer=1, n_head=1, n_embd=4))
    with torch.no_grad():
        model.decoder.ln_f.weight.zero_()
        model.decoder.ln_f.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
        model.decoder.wte.weight[:, 0] = torch.tensor([math.log(f) for f in frequencies.values()] + [-50.0, -50.0])
    return tokenizer, model


def measure(probe, tokenizer, model):
    return run_probe(probe, read_items(probe, tokenizer, model.config.n_positions), model)


def test_answers_are_compared_by_the_mean_token(tmp_path):
    """0.4 · 0.4 < 0.3, but the mean token of "a a" is the likelier one."""
    world = unigram({"a": 0.4, "b": 0.3, "c": 0.2, "d": 0.1})
    rows = [
        {"text": "d d", "choices": ["b", "a a"], "label": 1},
        {"text": "d", "choices": ["c", "d", "b"], "label": 2},
        {"text": "d", "choices": ["c", "d"], "label": 1},
    ]
    probe = Probe("choice", write(tmp_path, rows), name="race")
    assert measure(probe, *world) == {"probe/race_accuracy": pytest.approx(2 / 3)}


def test_words_of_sentiment_are_compared_whole(tmp_path):
    """ "positive" is two tokens of 0.2, "negative" one of 0.1: 0.04 < 0.1, though its mean token is the likelier."""
    world = unigram({"posi": 0.2, "tive": 0.2, "negative": 0.1, "very": 0.1, "film": 0.4})
    rows = [{"text": "film", "label": label} for label in (0, 0, 1, 0)]
    assert measure(Probe("sst2", write(tmp_path, rows)), *world) == {"probe/sst2_accuracy": 0.75}


def test_acceptability_by_the_mean_token(tmp_path):
    """Unlikely words make a bad sentence, however short it is."""
    world = unigram({"good": 0.5, "fine": 0.4, "bad": 0.06, "awful": 0.04})
    good, bad = ["good", "fine", "good fine", "fine good good good good"], ["bad", "awful", "bad awful", "awful bad"]
    rows = [{"sentence": text, "label": int(text in good)} for text in good + bad]
    probe = Probe("cola", write(tmp_path, rows), text="sentence")
    halves = {(item.half, item.label) for item in read_items(probe, world[0], 16)}
    assert len(halves) == 4, "both halves have both labels"
    assert measure(probe, *world) == {"probe/cola_matthews": pytest.approx(1.0), "probe/cola_auroc": 1.0}


def test_halves_are_even_among_texts_that_were_held_out_by_hash(micro, tmp_path):
    texts = [f"the film is {number}" for number in range(600)]
    held_out = [text for text in texts if hash_fraction(text) < 0.5]
    rows = [{"text": text, "label": number % 2} for number, text in enumerate(held_out)]
    items = read_items(Probe("cola", write(tmp_path, rows)), micro.tokenizer, 32)
    assert sum(item.half for item in items) / len(items) == pytest.approx(0.5, abs=0.1)


def test_sentences_are_scored_after_the_end_token(micro, tmp_path):
    items = read_items(
        Probe("cola", write(tmp_path, [{"text": t, "label": t == "a"} for t in "ab"])), micro.tokenizer, 8
    )
    assert items[0].answers == [([micro.tokenizer.eos_id], micro.tokenizer.encode("a"))]
    assert [item.label for item in items] == [1, 0]


WINOGRAD = [
    ("the film is not in a story since _ is great and lovely.", ["the film", "a story"]),
    ("its cast is awful to this plot and _ is poor.", ["its cast", "this plot", "the film"]),
    ("_ is so dull.", ["a story", "its cast"]),
]


def test_winograd_by_brute_force(micro, tmp_path):
    """The answer is the candidate after which transformers finds the rest of the text likeliest."""
    oracle, encode = GPT2LMHeadModel.from_pretrained(micro.gpt).eval(), micro.tokenizer.encode

    def rest(text, candidate):
        before, after = text.split("_")
        context = [micro.tokenizer.eos_id, *encode(before + candidate)]
        tokens = torch.tensor([context + encode(after)])
        with torch.no_grad():
            nats = oracle(tokens).logits[0].log_softmax(-1)[:-1].gather(1, tokens[0, 1:, None])
        return float(nats[len(context) - 1 :].mean())

    rows = []
    for text, candidates in WINOGRAD:
        means = [rest(text, candidate) for candidate in candidates]
        rows.append({"text": text.replace("_", "[MASK]"), "choices": candidates, "label": means.index(max(means))})
    model = load_pretrained(str(micro.gpt), kind="gpt").train()
    probe = Probe("winograd", write(tmp_path, rows), placeholder="[MASK]")
    assert measure(probe, micro.tokenizer, model) == {"probe/winograd_accuracy": 1.0}
    wrong = [{**row, "label": (row["label"] + 1) % len(row["choices"])} for row in rows]
    assert measure(Probe("winograd", write(tmp_path, wrong), placeholder="[MASK]"), micro.tokenizer, model) == {
        "probe/winograd_accuracy": 0.0
    }


def correlation(accepted, labels):
    """The oracle: torchmetrics, but 0 and not nearly 0 where all are accepted or none is."""
    both = [torch.from_numpy(side).long() for side in (accepted, labels)]
    return float(binary_matthews_corrcoef(*both)) if len(set(accepted)) == 2 else 0.0


def test_a_threshold_against_literals_and_against_trying_all():
    ordered = np.array([-4.0, -3.0, -2.0, -1.0])
    assert best_threshold(ordered, np.array([False, False, True, True])) == -2.5
    assert best_threshold(ordered, np.array([True, True, False, False])) == -np.inf, "the wrong way round: accept all"
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores, labels = -rng.integers(1, 12, 30) / 4.0, rng.random(30) < 0.6
        tried = [correlation(scores > cut, labels) for cut in np.arange(-3.125, 0.0, 0.25)]
        found = correlation(scores > best_threshold(scores, labels), labels)
        assert found == pytest.approx(max(tried), abs=1e-6)


def test_a_threshold_is_not_judged_on_what_it_was_chosen_by():
    """The halves want different thresholds. Each judged by its own, all 8 decisions would be right; judged by the
    other's, 2 of each kind are right and 2 are wrong.
    """
    scores, halves = -np.array([4.0, 3.0, 2.0, 1.0] * 2), np.arange(8) < 4
    labels = np.array([False, True, True, True, False, False, False, True])
    for half in (halves, ~halves):
        assert ((scores[half] > best_threshold(scores[half], labels[half])) == labels[half]).all()
    assert acceptability(scores, labels, halves)["matthews"] == 0.0


def test_the_correlation_is_that_of_the_decisions():
    """Halves with equal scores and labels choose equal thresholds, so the decisions are known."""
    scores, labels = -np.array([5.0, 4.0, 3.0, 2.0, 1.0]), np.array([False, False, True, False, True])
    found = acceptability(np.tile(scores, 2), np.tile(labels, 2), np.arange(10) < 5)
    assert found["matthews"] == pytest.approx(correlation(scores > -3.5, labels))


def test_the_area_under_the_curve_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    scores, labels = -20 * rng.random(60), rng.random(60) < 0.5
    pairs = [(good > bad) for good in scores[labels] for bad in scores[~labels]]
    assert acceptability(scores, labels, rng.random(60) < 0.5)["auroc"] == pytest.approx(np.mean(pairs), abs=1e-6)


ROWS = [{"article": "the film.", "q": "is a _?", "options": ["good", "bad one"], "answer": answer} for answer in "AB"]


def test_every_kind_of_file_and_column(micro, tmp_path):
    from datasets import Dataset

    Dataset.from_list(ROWS).to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    (tmp_path / "rows.csv").write_text(
        "s1,s2,one,two,right\n" + "".join(f"the film.,is a _?,good,bad one,{n}\n" for n in "12")
    )
    columns = {"text": ["article", "q"], "choices": "options", "label": "answer", "labels": ["A", "B"]}
    flat = {"text": ["s1", "s2"], "choices": ["one", "two"], "label": "right", "labels": ["1", "2"]}
    expected = read_items(Probe("choice", write(tmp_path, ROWS), **columns), micro.tokenizer, 32)
    encode = micro.tokenizer.encode
    assert [item.label for item in expected] == [0, 1]
    assert expected[0].answers[1] == ([micro.tokenizer.eos_id, *encode("the film. is a _?")], encode(" bad one"))
    for name, names in (("rows.json", columns), ("rows.parquet", columns), ("rows.csv", flat)):
        assert read_items(Probe("choice", str(tmp_path / name), **names), micro.tokenizer, 32) == expected
    limited = Probe("choice", str(tmp_path / "rows.csv"), limit=1, **flat)
    assert read_items(limited, micro.tokenizer, 32) == expected[:1]


def test_a_token_across_the_border_belongs_to_the_continuation(micro, tmp_path):
    """A candidate that ends inside a token of the whole text."""
    rows = [{"text": "the _m is good", "choices": ["fil", "fi"], "label": 0}]
    (item,) = read_items(Probe("winograd", write(tmp_path, rows)), micro.tokenizer, 32)
    context, continuation = item.answers[0]
    assert [*context[1:], *continuation] == micro.tokenizer.encode("the film is good")
    assert micro.tokenizer.decode(context[1:]) == "the"


def test_contexts_that_are_cut_are_counted(micro, tmp_path, caplog):
    rows = [
        {"text": "the film " * 20, "choices": ["good", "bad"], "label": 0},
        {"text": "a", "choices": ["b", "c"], "label": 1},
    ]
    read_items(Probe("choice", write(tmp_path, rows)), micro.tokenizer, 16)
    assert "1 of 2 rows lose the beginning of their context to n_positions" in caplog.text


PAIR = {"text": "a", "choices": ["b", "c"], "label": 0}
FAULTS = {
    "missing": ("choice", {"tex": "a"}, r"text: found no such field among \['tex'\], expected text"),
    "empty": ("cola", {"text": " ", "label": 1}, "text: found empty text, expected non-empty text"),
    "no label": ("cola", {"text": "a"}, r"label: found no such field among \['text'\], expected the right answer"),
    "no class": ("sst2", {"text": "a", "label": 2}, "label: found the number 2, expected 0 to 1"),
    "word": ("sst2", {"text": "a", "label": "good"}, "label: found the text 'good', expected 0 to 1"),
    "no choices": ("choice", {"text": "a", "label": 0}, "choices: found no such field among .*, expected a list of at"),
    "one choice": ("choice", {**PAIR, "choices": ["b"]}, "choices: found a list of 1, expected a list of at least 2"),
    "null choice": ("choice", {**PAIR, "choices": ["b", None]}, r"choices\[1\]: found null"),
    "beyond": ("choice", {**PAIR, "label": 2}, "label: found the number 2, expected 0 to 1"),
    "nothing to fill": ("winograd", {**PAIR, "text": "a b"}, "text: found '_' 0 times in the text 'a b', expected it"),
    "two to fill": ("winograd", {**PAIR, "text": "_ a _ b"}, "text: found '_' 2 times in the text"),
    "nothing left": ("winograd", {**PAIR, "text": "a _"}, "text: found '_' 1 times .*, expected it once"),
    "too long": ("cola", {"text": "a b " * 40, "label": 0}, "text: found .* tokens to score in .*, expected 1 to n_p"),
    "surrogate": ("cola", {"text": "\ud800", "label": 0}, r"row: found broken JSON \(half of a surrogate pair\)"),
    "no object": ("cola", ["a"], "row: found a list of 1, expected an object with named fields"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_row_that_does_not_fit_is_told_with_file_row_and_column(micro, tmp_path, fault):
    kind, row, message = FAULTS[fault]
    good = {"text": "the film _ is", "choices": ["b", "c"], "label": 0}
    with pytest.raises(UserError, match=rf"rows\.jsonl:2: {message}") as caught:
        read_items(Probe(kind, write(tmp_path, [good, row])), micro.tokenizer, 32)
    assert "\n" not in str(caught.value)


def test_files_that_do_not_fit(micro, tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.jsonl: found no such file"):
        read_items(Probe("cola", str(tmp_path / "nowhere.jsonl")), micro.tokenizer, 32)
    with pytest.raises(UserError, match=r"rows\.jsonl: label: found only 1, expected both 0 and 1"):
        read_items(Probe("cola", write(tmp_path, [{"text": "a", "label": 1}] * 3)), micro.tokenizer, 32)
    (tmp_path / "rows.txt").write_text("a\n")
    with pytest.raises(UserError, match=r"rows\.txt: found a text file, expected rows with fields"):
        read_items(Probe("cola", str(tmp_path / "rows.txt")), micro.tokenizer, 32)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "cola", "limit": 0}, "limit: found 0, expected at least 1"),
        ({"kind": "choice", "choices": ["one"]}, r"choices: found \['one'\], expected one column or at least 2"),
        ({"kind": "winograd", "placeholder": ""}, "placeholder: found empty text"),
    ],
)
def test_what_no_probe_can_be(values, message):
    with pytest.raises(UserError, match=f"probe: {message}"):
        Probe(file="rows.jsonl", **values)
