"""Numbers of held-out answers, batch after batch and by each model."""

import pytest
import torch

from gpt_modules.data.batches import PromptBatch
from gpt_modules.training.ppo import VALIDATION
from gpt_modules.training.rl.held_out import MEASURED, HeldOutAnswers
from gpt_modules.training.rl.rewards import RewardSource
from gpt_modules.training.rl.rollout import Scored
from gpt_modules.training.rl.sequences import Sequences
from gpt_modules.training.rl.settings import SamplingConfig


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


# --- in a run ---


def test_validation_means_are_over_prompts(fit, ppo, functions):
    """A last batch of another size weighs by its prompts: compare with one batch of all."""
    module, data = ppo(monitors={"letters": RewardSource(function="toy_rewards:length")})
    data.validation_fraction, data.val_batch_size = 0.1, 4
    trainer = fit(module, data)
    names = ("score", "kl", "length", "ended", "letters")
    totals, count = dict.fromkeys(names, 0.0), 0
    for batch in data.val_dataloader():
        scored = module._score(batch, VALIDATION)
        values = (
            scored.scores,
            scored.sequence_kl(),
            scored.mask.sum(1),
            scored.ended,
            module.frozen.monitors["letters"](scored.sequences).totals,
        )
        totals = {name: totals[name] + value.double().sum().item() for name, value in zip(names, values, strict=True)}
        count += len(batch.lengths)
    assert count % 4, "the last batch is smaller"
    for name in names:
        assert trainer.callback_metrics[f"val/{name}"].item() == pytest.approx(totals[name] / count, abs=1e-4)


def test_validation_test_and_prediction_read_the_same_answers(alone):
    """The mean and the spread are of the very scores that `predict` writes beside the texts."""
    module, data = alone()
    rows = [row for batch in module.trainer.predict(module, data) for row in batch]
    scores = torch.tensor([row["score"] for row in rows], dtype=torch.float64)
    (validated,) = module.trainer.validate(module, data, verbose=False)
    (tested,) = module.trainer.test(module, data, verbose=False)
    assert len({row["prompt"] for row in rows}) == len(rows) > 1
    assert validated["val/score"] == pytest.approx(scores.mean().item(), rel=1e-5)
    assert validated["val/score_std"] == pytest.approx(scores.std(unbiased=False).item(), rel=1e-5)
    assert {name.replace("val/", "test/"): value for name, value in validated.items()} == tested


def test_no_prompts_of_this_process_are_no_answers(fit, ppo):
    module, data = ppo()
    fit(module, data, max_epochs=1, limit_val_batches=0)
    nothing = PromptBatch(torch.zeros(0, 1, dtype=torch.long), *torch.zeros(3, 0, dtype=torch.long))
    module.validation_step(nothing, 0)
    assert module.predict_step(nothing, 0) == []
    assert len(module.held_out) == 0


def test_validation_is_at_its_own_temperature_which_is_logged(fit, ppo):
    module, data = ppo(sampling=SamplingConfig(eval_temperature=0.0), temperature=0.7)
    trainer = fit(module, data)
    assert trainer.callback_metrics["val/temperature"].item() == 0.0
    batch = next(iter(data.val_dataloader()))
    held_out, drawn = module._score(batch, VALIDATION), module._score(batch, VALIDATION + 1)
    (tokens, starts, lengths, *_), model = held_out.sequences, module.policy.eval()
    for row, start, length in zip(tokens, starts.tolist(), lengths.tolist(), strict=True):
        with torch.no_grad():
            assert torch.equal(model(row[None, :length])[0, start - 1 : -1].argmax(-1), row[start:length])
    assert not torch.equal(held_out.sequences.tokens, drawn.sequences.tokens)
    plain, data = ppo()
    assert "val/temperature" not in fit(plain, data).callback_metrics
