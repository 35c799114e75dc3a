"""Advantages of answers to the same prompt, and what a recipe cannot say where there is no critic."""

import pytest
import torch
from ppo_variants import (
    BARE,
    adam,
    distance,
    weights,
)

from gpt_modules.backbone import load_pretrained
from gpt_modules.errors import UserError
from gpt_modules.training import PPOModule
from gpt_modules.training.callbacks.checkpointing import ExactCheckpoint
from gpt_modules.training.hyperparameters import refuse_idle
from gpt_modules.training.rl.estimators import EstimatorConfig, group_advantages
from gpt_modules.training.rl.settings import ClipConfig, CriticConfig

WITHOUT = [EstimatorConfig("rloo"), EstimatorConfig("grpo")]
# Two prompts of two answers; what does not count is not there.
MASK = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]]).bool()
REWARDS = torch.tensor([[-0.5, 2.5, torch.nan], [6.0, 9.0, 9.0], [0.25, 0.25, 0.5], [0.5, 0.5, torch.inf]])


@pytest.mark.parametrize(
    ("config", "first"),
    [
        (EstimatorConfig("rloo"), 4.0),
        (EstimatorConfig("grpo", divide_by_std=False), 2.0),
        (EstimatorConfig("grpo"), 2 / (8**0.5 + 1e-4)),
    ],
)
def test_an_answer_is_one_action_whose_reward_is_the_sum_of_its_tokens(config, first):
    """2 and 6 to the first prompt; 1 and 1 to the second, which teach nothing."""
    found = group_advantages(REWARDS, MASK, config, 2)
    expected = torch.tensor([[-first, -first, 0.0], [first, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("config", WITHOUT)
def test_an_answer_needs_another(config):
    config.expect_answers(2)
    EstimatorConfig().expect_answers(1)
    with pytest.raises(UserError) as refused:
        config.expect_answers(1)
    assert str(refused.value) == (
        "data.answers: found 1, expected at least 2 with model.estimator.name: "
        f"{config.name}, by which an answer is measured by the others to its prompt"
    )


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"lam": 0.9}, "lam: found 0.9, expected it left at 0.95: "),
        ({"gamma": 0.99}, "gamma: found 0.99, expected it left at 1.0: "),
        ({"whiten_rewards": True}, "whiten_rewards: found True, expected it left at False: "),
        ({"clip": ClipConfig(value=0.5)}, "clip.value: found 0.5, expected it left at 0.2: "),
        ({"clip": ClipConfig(value_coef=0.5)}, "clip.value_coef: found 0.5, expected it left at 0.1: "),
        ({"critic": CriticConfig(lr=1e-5)}, "critic.lr: found 1e-05, expected it left at None: "),
        (
            {"critic": CriticConfig(init_from="runs/reward")},
            "critic.init_from: found 'runs/reward', expected it left at None: ",
        ),
    ],
)
@pytest.mark.parametrize("config", WITHOUT)
def test_what_only_a_critic_has_an_effect_by_is_refused_without_one(config, given, line):
    PPOModule("policy", "reward", **given)
    with pytest.raises(UserError) as refused:
        PPOModule("policy", "reward", estimator=config, **given)
    assert str(refused.value) == f"{line}estimator.name is {config.name}, which has no critic"


@pytest.mark.parametrize("config", WITHOUT)
def test_what_a_policy_has_an_effect_by_is_taken_without_a_critic(config):
    PPOModule("policy", "reward", estimator=config, clip=ClipConfig(0.1, ratio_high=0.3))


def test_the_variants_of_grpo_are_its_own():
    for name in ("gae", "rloo"):
        for variant in ({"divide_by_std": False}, {"mean_over": "tokens"}):
            with pytest.raises(UserError, match=rf"^estimator\.{next(iter(variant))}: .*estimator.name is {name}, and"):
                refuse_idle(PPOModule, estimator=EstimatorConfig(name, **variant))
    refuse_idle(PPOModule, estimator=EstimatorConfig("grpo", False, "tokens"))
    averages = [EstimatorConfig(name).averages_answers for name in ("gae", "rloo", "grpo")]
    assert [*averages, EstimatorConfig("grpo", mean_over="tokens").averages_answers] == [False, False, True, False]
    assert [EstimatorConfig(name).has_critic for name in ("gae", "rloo", "grpo")] == [True, False, False]


# --- in a run ---


@pytest.mark.parametrize("name", BARE)
def test_without_a_critic_the_loss_begins_at_the_mean_of_the_advantages(fit, ppo, name):
    """By hand from the answers' scores: over tokens, or over answers, where those of each prompt sum to 0."""
    module, data = ppo(**BARE[name], episodes=16)
    original, seen = module._score, []
    module._score = lambda *arguments: seen.append(original(*arguments)) or seen[-1]
    logged = fit(module, data, limit_val_batches=0).logger
    (scored,) = seen
    scores = torch.where(scored.ended, scored.scores, -1.0).view(-1, data.answers).double()
    mean, deviation = scores.mean(1, keepdim=True), scores.std(1, keepdim=True)
    by_hand = {"rloo": (scores - mean) * 4 / 3, "grpo": (scores - mean) / (deviation + 1e-4)}.get(name, scores - mean)
    lengths = scored.mask.sum(1)
    for row, length in enumerate(lengths.tolist()):
        cells = module.rollout.advantages[row].double()
        torch.testing.assert_close(cells[:length], by_hand.flatten()[row].repeat(length), rtol=1e-4, atol=1e-4)
        assert not cells[length:].any()
    expected = 0.0 if name == "grpo" else -((by_hand.flatten() * lengths).sum() / lengths.sum()).item()
    assert by_hand.abs().max() > 0.5
    assert logged.values("loss/policy") == pytest.approx([expected], abs=1e-4)
    assert logged.values("train/loss") == pytest.approx([expected], abs=1e-4)


@pytest.mark.parametrize("name", BARE)
def test_without_a_critic_nothing_of_one_is_there(fit, ppo, tmp_path, name):
    module, data = ppo(minibatches=2, optimizer=adam(1e-2), **BARE[name])
    trainer = fit(module, data, max_epochs=2, callbacks=[ExactCheckpoint(3, keep=9)], enable_checkpointing=True)
    stored = torch.load(tmp_path / "checkpoints" / "step=00000003.ckpt", weights_only=True)
    assert stored["state_dict"].keys() == {f"policy.{key}" for key in module.policy.state_dict()}
    assert len(stored["optimizer_states"][0]["state"]) == len(list(module.policy.parameters()))
    assert not {"values", "returns"} & stored["ppo"]["experience"]["rollout"].keys()
    assert {group["name"] for group in trainer.optimizers[0].param_groups} == {"policy"}
    assert not [point for point in trainer.logger.points if "value" in point[0]]
    module.export(tmp_path / "export")
    assert module.also_exports == []
    assert not (tmp_path / "export-critic").exists()
    assert distance(weights(load_pretrained(tmp_path / "export", kind="gpt")), weights(module.policy)) == 0.0


def test_a_group_of_one_is_told_before_the_first_answer(fit, ppo):
    with pytest.raises(UserError, match=r"^data\.answers: found 1, expected at least 2 with .*: rloo, by"):
        fit(*ppo(estimator=EstimatorConfig("rloo")))
