"""Numbers of held-out answers, batch after batch and by each model."""

import pytest
import torch

from gpt_modules.training.rl.held_out import MEASURED, HeldOutAnswers
from gpt_modules.training.rl.rollout import Scored
from gpt_modules.training.rl.sequences import Sequences


def answers(*rows):
    """Answers of these tokens, of which nothing else is known."""
    width = max(map(len, rows))
    responses = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    mask = torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]
    none = torch.zeros(len(rows))
    sequences = Sequences(responses, none.long(), mask.sum(1), none.bool(), none.long())
    cells = torch.zeros_like(mask, dtype=torch.float32)
    return Scored(sequences, responses, mask, cells, cells, cells, none, none[:, None], cells, none[:, None])


def numbers(*scores):
    return {name: torch.zeros(len(scores)) for name in MEASURED} | {"score": torch.tensor(scores)}


def test_means_are_over_answers_of_all_batches_and_each_model_has_its_own():
    held_out = HeldOutAnswers(["", "ema/"], ["rules"], False)
    held_out.add("", answers([5, 6], [5, 7, 8]), **numbers(1.0, 2.0), rules=torch.tensor([3.0, 3.0]))
    held_out.add("", answers([9]), **numbers(6.0), rules=torch.tensor([0.0]))
    held_out.add("ema/", answers([4, 4, 4]), **numbers(-1.0), rules=torch.tensor([8.0]))
    assert len(held_out) == 4
    found = held_out.take()
    assert len(held_out) == 0
    expected = {"score": 3.0, "score_std": (14 / 3) ** 0.5, "rules": 2.0, "length_p50": 2.0, "distinct_1": 5 / 6}
    expected |= {"ema/score": -1.0, "ema/score_std": 0.0, "ema/rules": 8.0, "ema/distinct_1": 1 / 3}
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_what_is_taken_is_not_counted_again():
    held_out = HeldOutAnswers([""], [], True)
    for score in (1.0, 5.0):
        held_out.add("", answers([5, 6]), **numbers(score), reward_spread=torch.tensor([score]))
        found = held_out.take()
        assert (found["score"], found["reward_spread"], found["length_p90"]) == (score, score, 2.0)
