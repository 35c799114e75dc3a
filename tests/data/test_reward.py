import json
from itertools import pairwise

import numpy as np
import pytest

from gpt_modules.data.builtin.reviews import load_reviews
from gpt_modules.data.reward import Comparisons, RewardDataModule
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError


@pytest.fixture(scope="module")
def reviews():
    data = RewardDataModule(k=3, batch_size=8, context=64)
    data.setup("fit")
    return data


def answers(data, batch):
    """The answers' texts per prompt, best first."""
    rows = [batch.tokens[i, :n].tolist() for i, n in enumerate(batch.lengths.tolist())]
    assert all(row[-1] == data.tokenizer.eos_id for row in rows)
    texts = [data.tokenizer.decode(row).split("\n", 1)[1] for row in rows]
    found = []
    for index, ranks, mask in zip(batch[2].tolist(), batch.ranks.tolist(), batch.mask.tolist(), strict=True):
        triples = sorted((r, i) for r, i, m in zip(ranks, index, mask, strict=True) if m)
        found.append([texts[i] for _, i in triples])
    return found


def test_ranks_follow_peoples_ratings(reviews):
    ratings = {}
    for review in load_reviews():
        ratings.setdefault(review.text, set()).add(review.rating)
    for row in answers(reviews, next(iter(reviews.train_dataloader()))):
        for better, worse in pairwise(ratings[text] for text in row):
            assert max(better) >= min(worse) + 1


def test_groups_are_drawn_anew_every_epoch_and_again_alike(reviews):
    loader = reviews.train_dataloader()
    epochs = [
        {frozenset(row) for i in range(len(loader)) for row in answers(reviews, loader.batch_at(e, i))} for e in (0, 1)
    ]
    assert not epochs[0] & epochs[1]
    again = {frozenset(row) for i in range(len(loader)) for row in answers(reviews, loader.batch_at(0, i))}
    assert again == epochs[0]


def test_validation_is_the_same_in_every_pass_and_for_every_seed(reviews):
    other = RewardDataModule(k=3, batch_size=8, context=64, seed=5)
    other.setup("fit")
    passes = [
        [answers(reviews, batch) for batch in loader] for loader in (reviews.val_dataloader(), other.val_dataloader())
    ]
    assert passes[0] == passes[1]


def test_demonstrations_are_good_and_closed(reviews):
    batches = reviews.demonstrations()
    assert sum(len(batch.tokens) for batch in batches) > 400
    tokens = batches[0].tokens[0, : batches[0].lengths[0]].tolist()
    assert tokens[-1] == reviews.tokenizer.eos_id
    assert reviews.tokenizer.decode(tokens).startswith("Write a positive sentence about a film.\n")


def test_rows_of_unequal_width_and_the_best_as_demonstrations(tmp_path):
    rows = [
        {"prompt": "p\n", "responses": ["a", "b", "c"], "ranking": [2, 1, 2]},
        {"prompt": "q\n", "chosen": "d", "rejected": "e"},
    ]
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    again = tmp_path / "b.jsonl"
    again.write_text(source.read_text() + "\n")
    data = RewardDataModule(str(source), str(again), cache_dir=str(tmp_path), batch_size=2)
    data.setup("fit")
    (batch,) = data.val_dataloader()
    assert sorted(map(tuple, answers(data, batch))) == [("b", "a", "c"), ("d", "e")]
    assert sorted(batch.mask.sum(1).tolist()) == [2, 3]
    (good,) = data.demonstrations()
    assert sorted(data.tokenizer.decode(row[:3].tolist()) for row in good.tokens) == ["p\nb", "q\nd"]


def test_answers_that_do_not_fit_are_left_out(caplog):
    tokenizer = Tokenizer.gpt2()
    rows = [
        {"prompt": "p", "responses": [" a", " b" * 20, " c"], "ranking": [1, 2, 3]},
        {"prompt": "p", "responses": [" a", " b" * 20, " c"], "ranking": [1, 2, 1]},
    ]
    examples = Comparisons(lambda epoch: rows, tokenizer, 10, "train")
    assert len(examples) == 1
    assert examples.batch(0, np.array([0])).ranks.tolist() == [[1, 3]]
    assert "of 2 rows, 1 are left out" in caplog.text
    with pytest.raises(UserError, match="train: found no row that fits a context of 3"):
        Comparisons(lambda epoch: rows[1:], tokenizer, 3, "train")


def test_a_batch_of_nothing_has_no_prompt(reviews):
    batch = reviews.validation_examples.batch(0, np.array([], dtype=np.int64))
    assert (len(batch.mask), batch.tokens.shape, batch.lengths.tolist()) == (0, (1, 1), [1])


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_same_answers_ranked_the_other_way_are_counted_as_shared(tmp_path, caplog):
    """Labels are ignored, and for comparisons the order of the answers is one."""
    answers = [{"prompt": f"p{i}", "chosen": "good", "rejected": "bad"} for i in range(3)]
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in answers[:2]]
    fresh = [{"prompt": "p0", "chosen": "good", "rejected": "other"}]
    train, validation = write(tmp_path / "a.jsonl", answers), write(tmp_path / "b.jsonl", swapped + fresh)
    data = RewardDataModule(train, validation)
    data.prepare_data()
    data.setup("fit")
    assert [record.getMessage() for record in caplog.records] == [
        f"{validation}: 2 of 3 validation rows are in the training rows too"
    ]


def test_predictions_come_in_the_order_of_the_rows(tmp_path):
    rows = [{"prompt": "p", "chosen": "a" + " a" * n, "rejected": "b"} for n in (9, 1, 5, 3, 7)]
    data = RewardDataModule("reviews", write(tmp_path / "a.jsonl", rows), batch_size=2)
    data.setup("predict")
    found = [int(batch.lengths[index[0]]) - 3 for batch in data.predict_dataloader() for index in batch[2]]
    assert found == [9, 1, 5, 3, 7]
    assert sorted(found) == [int(b.lengths[i[0]]) - 3 for b in data.val_dataloader() for i in b[2]]


def test_the_reviews_validate_in_pairs_however_they_are_named():
    named, unnamed = (RewardDataModule(validation=source, k=4).rows()[1] for source in ("reviews", None))
    assert named == unnamed
    assert {len(row["responses"]) for row in named} == {2}
