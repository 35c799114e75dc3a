import csv
import json
import logging
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as Backend

from gpt_modules.data.builtin.reviews import load_reviews
from gpt_modules.data.finetuning import FinetuningDataModule, TaskExamples
from gpt_modules.data.loader import BatchLoader
from gpt_modules.data.rows.labelled import Columns
from gpt_modules.data.splits import split_of
from gpt_modules.data.text.edges import set_begin
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError
from gpt_modules.labelling import Labelling

MNLI = [
    {"premise": f"All of it is {word}.", "hypothesis": hypothesis, "label": label}
    for word in ("good", "bad", "new", "old", "red")
    for hypothesis, label in (("It is.", "entailment"), ("It may be blue.", "neutral"), ("No.", "contradiction"))
]
RACE = [
    {"article": f"Story number {i}.", "question": "What?", "options": ["a", "b c", "d", "e f g"][: 2 + i % 3],
     "answer": "AB"[i % 2]}
    for i in range(12)
]  # fmt: skip
NLI_COLUMNS = Columns(text="premise", pair="hypothesis")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.gpt2().with_task_tokens()


@pytest.fixture
def lines(tmp_path):
    def write(rows, name="rows.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    return write


@pytest.fixture
def make(tmp_path):
    def module(*sources, stage="fit", **kwargs):
        data = FinetuningDataModule(*sources, cache_dir=str(tmp_path / "cache"), **kwargs)
        data.setup(stage)
        return data

    return module


def again(source):
    """The same rows in another file: what is trained on may not validate."""
    path = Path(source)
    (other := path.with_name(f"again-{path.name}")).write_text(path.read_text() + "\n")
    return str(other)


def rows_of(batch):
    """Every example's rows of tokens without padding, and its label."""
    tokens = [row[:length].tolist() for row, length in zip(batch.tokens, batch.lengths.tolist(), strict=True)]
    for row, length in zip(batch.tokens, batch.lengths.tolist(), strict=True):
        assert not row[length:].any()
    assert batch.tokens.shape[1] == batch.lengths.max()
    return [
        ([tokens[i] for i in index if i >= 0], label)
        for index, label in zip(batch[2].tolist(), batch.labels.tolist(), strict=True)
    ]


def naive(tokenizer, row, kind):
    """The rows of tokens of one example, as figure 1 of the paper draws them."""
    (start, delimiter, extract), encode = tokenizer.task_ids, tokenizer.encode
    if kind == "multiple_choice":
        return [[start, *encode(row["text"]), delimiter, *encode(choice), extract] for choice in row["choices"]]
    if "pair" not in row:
        return [[start, *encode(row["text"]), extract]]
    orders = [(row["text"], row["pair"]), (row["pair"], row["text"])]
    rows = [[start, *encode(a), delimiter, *encode(b), extract] for a, b in orders]
    return rows if kind == "similarity" else rows[:1]


@pytest.mark.parametrize("kind", ["classification", "entailment", "similarity", "multiple_choice"])
def test_batches_are_the_rows_of_the_paper(lines, make, tokenizer, kind):
    columns = Columns(["article", "question"], choices="options", label="answer")
    source = lines(RACE if kind == "multiple_choice" else MNLI)
    if kind == "multiple_choice":
        data = make(source, again(source), task=kind, columns=columns, labels=["A", "B"], batch_size=4)
    else:
        data = make(source, again(source), task=kind, columns=NLI_COLUMNS, batch_size=4)
    _, rows = data.rows()
    expected = [(naive(tokenizer, row, kind), row["label"]) for row in rows]
    in_order = [example for batch in data.predict_dataloader() for example in rows_of(batch)]
    assert in_order == expected
    validated = [example for batch in data.val_dataloader() for example in rows_of(batch)]
    assert sorted(map(str, validated)) == sorted(map(str, expected))
    for batch in data.train_dataloader():
        assert all(example in expected for example in rows_of(batch))


def test_alike_lengths_meet(make):
    loader = make("reviews", batch_size=32).train_dataloader()
    batches = [loader.batch_at(0, i) for i in range(len(loader))]
    filled = sum(int(batch.lengths.sum()) for batch in batches) / sum(batch.tokens.numel() for batch in batches)
    assert filled > 0.9
    again = BatchLoader(loader.examples, 32, seed=0)
    assert torch.equal(again.batch_at(0, 7).tokens, batches[7].tokens)


def test_reviews_have_two_classes_or_ratings(make):
    data = make("reviews")
    assert data.task_spec == Labelling("classification", ("negative", "positive"))
    assert (len(data.train_examples), len(data.validation_examples)) == (9045, 1027)
    assert make("reviews", labels=["positive", "negative"], stage="predict").task_spec.labels == (
        "positive",
        "negative",
    )
    numbers = make("reviews", task="regression", stage="validate")
    ratings = np.array([r.rating for r in load_reviews() if r.domain == "film" and r.split == "train"])
    assert numbers.task_spec.kind == "regression"
    assert numbers.task_spec.mean == pytest.approx(ratings.mean())
    assert numbers.task_spec.std == pytest.approx(ratings.std())
    batch = next(iter(numbers.val_dataloader()))
    assert batch.labels.dtype == torch.float32
    assert set(batch.labels.tolist()) <= {float(np.float32(r.rating)) for r in load_reviews()}


def test_products_are_reviews_of_their_own(make):
    sentences = {domain: {r.text for r in load_reviews() if r.domain == domain} for domain in ("film", "product")}
    for part in make("products").rows():
        texts = {row["text"] for row in part}
        assert len(texts) > 200
        assert texts <= sentences["product"]
        assert len(texts & sentences["film"]) < 10
        assert {row["label"] for row in part} == {0, 1}


def test_few_rows_are_drawn_by_seed_and_validation_stays(make):
    whole = make("products").rows()
    few = [make("products", train_rows=16, seed=seed).rows() for seed in (0, 0, 1)]
    assert few[0] == few[1]
    assert few[0][0] != few[2][0]
    for train, validation in few:
        assert len(train) == 16
        assert validation == whole[1]
        positions = [whole[0].index(row) for row in train]
        assert positions == sorted(set(positions))
    numbers = make("products", task="regression", train_rows=5)
    assert numbers.task_spec.mean == pytest.approx(np.mean([row["label"] for row in numbers.rows()[0]]))


def test_rows_that_there_are_not(make):
    with pytest.raises(UserError, match=r"train_rows: found 100000, expected 1 to the \d+ of products"):
        make("products", train_rows=100_000)


@pytest.mark.parametrize(("source", "kind"), [("quantifiers", "entailment"), ("possessions", "multiple_choice")])
def test_generated_tasks(make, source, kind):
    data = make(source, task=kind, stage="validate")
    assert len(data.validation_examples) > 1000
    assert data.task_spec == Labelling(
        kind, () if kind == "multiple_choice" else ("contradiction", "entailment", "neutral")
    )
    with pytest.raises(UserError, match=f"^task: found regression for '{source}', expected {kind}$"):
        make(source, task="regression")


def test_class_names_come_from_the_training_rows(lines, make):
    train = lines([{"text": t, "label": label} for t, label in (("a", "x"), ("b", "z"), ("c", "y"))], "train.jsonl")
    good = lines([{"text": "d", "label": "z"}], "good.jsonl")
    bad = lines([{"text": "d", "label": "z"}, {"text": "e", "label": "w"}], "bad.jsonl")
    data = make(train, good)
    assert data.task_spec.labels == ("x", "y", "z")
    assert data.rows()[1] == [{"text": "d", "label": 2}]
    assert [row["label"] for row in data.rows()[0]] == [0, 2, 1]
    with pytest.raises(UserError) as caught:
        make(train, bad)
    assert str(caught.value) == f"{bad}:2: label: found the unknown class 'w', expected one of x, y, z"


def test_numbers_are_classes_and_cells_of_a_csv_too(lines, make, tmp_path):
    rows = [{"text": t, "label": i} for t, i in (("a", 0), ("b", 2), ("c", 1), ("d", 0))]
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(rows)
    for source in (lines(rows), str(tmp_path / "rows.csv")):
        data = make(source, again(source))
        assert data.task_spec.labels == ("0", "1", "2")
        assert data.rows()[0] == rows
        named = make(source, again(source), labels=["low", "middle", "high"])
        assert named.task_spec.labels == ("low", "middle", "high")
        assert named.rows()[0] == rows


def test_truth_values_are_classes(lines, make):
    source = lines([{"text": "a", "label": True}, {"text": "b", "label": False}])
    assert make(source, again(source)).task_spec.labels == ("false", "true")
    data = make(source, again(source), labels=["ham", "spam"])
    assert [row["label"] for row in data.rows()[0]] == [1, 0]


def test_scores_between_levels(lines, make):
    source = lines([{"s1": "a b", "s2": "c", "score": 3.8}, {"s1": "d", "s2": "e", "score": 5}])
    data = make(source, again(source), task="similarity", columns=Columns("s1", "s2", label="score"), levels=[0, 5])
    assert data.task_spec == Labelling("similarity", levels=(0, 5))
    (batch,) = data.val_dataloader()
    assert sorted(batch.labels.tolist()) == [pytest.approx(3.8), 5.0]
    assert batch.index.shape == (2, 2)


def test_both_orders_of_two_compared_texts_are_one_example(lines, make, caplog):
    """They were parted by whichever stood first, and half of the swapped ones validated what was trained on."""
    pairs = [{"text": f"a{i}", "pair": f"b{i}", "label": i % 2} for i in range(200)]
    swapped = [{**row, "text": row["pair"], "pair": row["text"]} for row in pairs]
    data = make(lines(pairs + swapped), task="similarity")
    train, validation = ([(row["text"], row["pair"]) for row in rows] for rows in data.rows())
    assert not set(train) & set(validation)
    assert all(rows.count(row) == 2 for rows in (train, validation) for row in set(rows))
    make(lines(pairs, "a.jsonl"), other := lines([*swapped[:5], {**pairs[0], "pair": "new"}], "b.jsonl"),
         task="similarity")  # fmt: skip
    assert f"{other}: 5 of 6 validation rows are in the training rows too" in caplog.text


def test_without_a_validation_file_texts_are_split_by_hash(lines, make):
    data = make(lines(MNLI), task="entailment", columns=NLI_COLUMNS, validation_fraction=0.4)
    train, validation = data.rows()
    assert len(train) + len(validation) == 15
    assert len(validation) == sum(split_of(row["premise"], 0.4) == "validation" for row in MNLI)
    assert not {row["text"] for row in train} & {row["text"] for row in validation}


@pytest.mark.parametrize(
    ("row", "kwargs", "message"),
    [
        ({"text": "b", "label": ""}, {}, "label: found empty text, expected text or a whole number from 0"),
        (
            {"text": "b"},
            {},
            "label: found no such field among ['text'], expected text or a whole number from 0, or the name of its "
            "column in data.columns.label",
        ),
        ({"text": "", "label": "x"}, {}, "text: found empty text, expected non-empty text"),
        ({"text": "b", "label": 1}, {}, "label: found the number 1, expected text, as in the rows before"),
        (
            {"text": "b", "label": "y"},
            {"columns": Columns(text="body")},
            "body: found no such field among ['label', 'text'], expected text, or the name of its column in "
            "data.columns.text",
        ),
        (
            {"text": "b", "label": "y"},
            {"task": "entailment"},
            "pair: found no such field among ['label', 'text'], expected text, or the name of its column in "
            "data.columns.pair",
        ),
        (
            {"text": "b", "label": "y"},
            {"labels": ["x", "z"]},
            "label: found the unknown class 'y', expected one of x, z",
        ),
        ({"text": "b", "label": "y"}, {"task": "regression"}, "label: found the text 'x', expected a finite number"),
    ],
)
def test_bad_rows_are_one_line_with_file_and_row(lines, make, row, kwargs, message):
    source = lines([{"text": "a", "label": "x"}, row])
    with pytest.raises(UserError) as caught:
        make(source, again(source), **kwargs)
    number = 1 if "columns" in kwargs or "task" in kwargs else 2
    assert str(caught.value) == f"{source}:{number}: {message}"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"labels": ["x"]}, "labels: found ['x'], expected at least 2 names"),
        ({"labels": ["x", "x"]}, "labels: found ['x', 'x'], expected each name once"),
        (
            {"labels": ["x", "y"], "task": "regression"},
            "labels: found ['x', 'y'] for a task with numbers, expected none",
        ),
        ({"levels": [1]}, "levels: found [1], expected the lowest and the highest score"),
        ({"levels": [5, 0]}, "levels: found [5, 0] for classification, expected two rising whole numbers"),
    ],
)  # fmt: skip
def test_a_task_that_cannot_be(lines, make, kwargs, message):
    source = lines([{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
    with pytest.raises(UserError) as caught:
        make(source, again(source), **kwargs)
    assert str(caught.value) == message


def test_labels_that_are_all_alike(lines, make):
    source = lines([{"text": "a", "label": 1}, {"text": "b", "label": 1}])
    with pytest.raises(UserError, match=r"rows\.jsonl: label: found 1 class in all rows, expected at least 2$"):
        make(source, again(source))
    with pytest.raises(UserError, match=r"rows\.jsonl: label: found the same number in all rows, expected others$"):
        make(source, again(source), task="regression")


def examples(tokenizer, kind, context, *rows):
    """A batch of rows, in which every character is a token."""

    class Characters(Tokenizer):
        def encode_batch(self, texts):
            return [[ord(character) for character in text] for text in texts]

    characters = Characters(tokenizer._backend)
    return TaskExamples(rows, characters, Labelling(kind, ("x", "y")), context, "train").batch(0, np.arange(len(rows)))


def spelled(tokenizer, batch):
    """Rows with the added tokens as ^, $, !."""
    signs = dict(zip(tokenizer.task_ids, "^$!", strict=True))
    return ["".join(signs.get(i) or chr(i) for i in row if i) for row in batch.tokens.tolist()]


def test_truncation_keeps_what_matters_and_is_counted(tokenizer, caplog):
    long, short = {"text": "abcdefghij", "label": 0}, {"text": "ab", "label": 1}
    batch = examples(tokenizer, "classification", 6, long, short)
    assert spelled(tokenizer, batch) == ["^abcd!", "^ab!"]
    assert [record.getMessage() for record in caplog.records] == [
        "train: of 2 rows, 1 are cut to the context of 6 tokens"
    ]
    caplog.clear()
    batch = examples(tokenizer, "entailment", 9, {**long, "pair": "xyz"}, {**short, "pair": "rstuvwxyz"})
    assert spelled(tokenizer, batch) == ["^abc$xyz!", "^ab$rstu!"]
    assert "of 2 rows, 2 are cut" in caplog.text
    batch = examples(tokenizer, "similarity", 9, {**long, "pair": "rstuvwxyz"})
    assert spelled(tokenizer, batch) == ["^abc$rst!", "^rst$abc!"]
    batch = examples(
        tokenizer, "multiple_choice", 9, {**long, "choices": ["x", "rstuvwxyz"]}, {**short, "choices": "xy"}
    )
    assert spelled(tokenizer, batch) == ["^fghij$x!", "^hij$rst!", "^ab$x!", "^ab$y!"]


def test_a_row_begins_as_every_sequence_of_its_family(tokenizer):
    """As `transformers` has it by the post-processor; the context has room for one token of text less."""
    backend = Backend.from_str(tokenizer.to_json())
    set_begin(backend, tokenizer.eos)
    begun, text = Tokenizer(backend, tokenizer.eos), {"text": "abcdefghij", "label": 0}
    assert backend.encode("ab").ids == [tokenizer.eos_id, *tokenizer.encode("ab")]
    rows = examples(begun, "classification", 6, text).tokens
    assert rows.tolist() == [[tokenizer.eos_id, *examples(tokenizer, "classification", 5, text).tokens[0].tolist()]]
    with pytest.raises(UserError, match="context: found 3, expected at least 4 tokens"):
        examples(begun, "classification", 3, text)


def test_nothing_is_counted_where_all_fits(tokenizer, caplog):
    with caplog.at_level(logging.INFO):
        examples(tokenizer, "multiple_choice", 8, {"text": "abcd", "choices": ["x", "y"], "label": None})
        examples(tokenizer, "similarity", 7, {"text": "ab", "pair": "cd", "label": None})
    assert not caplog.records


def test_a_context_without_room(tokenizer):
    with pytest.raises(UserError, match=r"^context: found 2, expected at least 3 tokens$"):
        examples(tokenizer, "classification", 2, {"text": "a", "label": 0})
    with pytest.raises(UserError, match=r"^context: found 4, expected at least 5 tokens$"):
        examples(tokenizer, "entailment", 4, {"text": "a", "pair": "b", "label": 0})


def test_the_characters_of_a_task_token_are_text(lines, make):
    source = lines([{"text": "a _classify_ b", "label": "x"}, {"text": "c", "label": "y"}])
    data = make(source, again(source))
    (batch,) = data.val_dataloader()
    assert sum((batch.tokens == special).sum() for special in data.tokenizer.task_ids) == 4


def test_predicting_needs_no_label_and_keeps_the_order(lines, make):
    train = lines([{"text": "a", "label": "x"}, {"text": "b", "label": "y"}], "train.jsonl")
    new = [{"text": " a" * n} for n in (9, 1, 5, 3, 7)]
    source = lines(new, "new.jsonl")
    data = make(train, source, stage="predict", batch_size=2)
    batches = list(data.predict_dataloader())
    assert [int(n) - 2 for batch in batches for n in batch.lengths] == [9, 1, 5, 3, 7]
    assert [label for batch in batches for label in batch.labels.tolist()] == [-100] * 5
    assert data.task_spec.labels == ("x", "y")
    with pytest.raises(
        UserError, match=r"new\.jsonl:1: label: found no such field among \['text'\], expected one of x, y"
    ):
        make(train, source, stage="test")
    numbers = lines([{"text": "a", "label": 1}, {"text": "b", "label": 2}], "numbers.jsonl")
    (batch,) = make(numbers, source, stage="predict", task="regression").predict_dataloader()
    assert batch.labels.isnan().all()


def test_predicting_with_known_classes_does_not_read_the_training_rows(lines, make):
    source = lines([{"text": "a", "label": "y"}, {"text": "b", "label": -1}])
    data = make("gone.jsonl", source, stage="predict", labels=["x", "y"])
    (batch,) = data.predict_dataloader()
    assert batch.labels.tolist() == [1, -100]
    answers = lines([{"text": "a", "choices": ["b", "c"]}], "choices.jsonl")
    assert make("gone.jsonl", answers, stage="predict", task="multiple_choice").task_spec == Labelling(
        "multiple_choice"
    )


def test_a_task_models_folder_knows_its_classes(lines, make, tmp_path):
    task = Labelling("classification", ("z", "y", "x"))
    folder = tmp_path / "model"
    Tokenizer.gpt2().with_task_tokens().save(folder)
    (folder / "config.json").write_text(json.dumps({"gpt_modules": {"kind": "task", "task": task.to_dict()}}))
    source = lines([{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
    data = make("gone.jsonl", source, str(folder), stage="predict")
    assert data.task_spec == task
    (batch,) = data.predict_dataloader()
    assert batch.labels.tolist() == [2, 1]
    with pytest.raises(UserError) as caught:
        make("gone.jsonl", source, str(folder), stage="predict", labels=["x", "y", "z"])
    assert str(caught.value) == f"labels: found ['x', 'y', 'z'], expected those of {folder}, ['z', 'y', 'x']"
    assert make(source, again(source), str(folder)).task_spec.labels == ("x", "y")  # another training, other classes


def test_a_trainer_tells_what_it_is_about_to_do(lines, tmp_path):
    class Nothing(L.LightningModule):
        def predict_step(self, batch):
            return batch.labels.tolist()

    source = lines([{"text": "a"}, {"text": "b", "label": "y"}, {"text": "c", "label": None}])
    data = FinetuningDataModule("gone.jsonl", source, labels=["x", "y"], cache_dir=str(tmp_path))
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
                        max_epochs=1)  # fmt: skip
    assert trainer.predict(Nothing(), data) == [[-100, 1, -100]]
    data.trainer = None
    with pytest.raises(UserError, match=r"^gone\.jsonl: found no such file"):
        data.prepare_data()


def test_a_batch_of_nothing_has_no_example(make):
    data = make("possessions", task="multiple_choice", stage="validate")
    batch = data.validation_examples.batch(0, np.array([], dtype=np.int64))
    assert (len(batch.labels), batch.index.shape, batch.tokens.shape) == (0, (0, 1), (1, 1))


def test_a_baseline_reads_what_the_model_has_read(lines, make):
    """The rows are read again, for they may be many; another content is none of this run's."""
    source = lines([{"text": f"text {i}", "label": "yn"[i % 2]} for i in range(40)], "train.jsonl")
    data = make(source)
    assert len(data.rows()[0]) == len(data.train_examples)
    with Path(source).open("a") as file:
        file.write('{"text": "late", "label": "y"}\n')
    with pytest.raises(UserError, match=r"train\.jsonl: found it changed since the run has read it, expected it left"):
        data.rows()
