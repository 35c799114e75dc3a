"""What learns in PPO, without a Trainer. (In a run: `test_ppo`.)"""

import pytest
import torch

from gpt_modules.backbone import LoRAConfig, add_lora
from gpt_modules.backbone.folders.card import Facts
from gpt_modules.training import PPOModule
from gpt_modules.training.optimizers import OptimizerConfig
from gpt_modules.training.rl.estimators import EstimatorConfig
from gpt_modules.training.rl.learners import Learners
from gpt_modules.training.rl.rewards import RewardSource
from gpt_modules.training.rl.scores import Moments
from gpt_modules.training.rl.settings import CriticConfig, EMAConfig
from gpt_modules.training.rl.shaping import Rollout

LORA = LoRAConfig(2)
ROLLOUT = Rollout(
    tokens=torch.tensor([[5, 6, 7, 8, 0], [9, 3, 4, 5, 6]]),
    prompt_lengths=torch.tensor([2, 1]),
    responses=torch.tensor([[7, 8, 0, 0], [3, 4, 5, 6]]),
    mask=torch.tensor([[True, True, False, False], [True, True, True, True]]),
    logprobs=torch.zeros(2, 4),
    advantages=torch.zeros(2, 4),
)


@pytest.fixture
def learners(micro):
    """learners(**module arguments)"""
    return lambda **given: Learners(PPOModule(str(micro.gpt), **{"rewards": str(micro.reward), **given}).recipe)


@pytest.mark.parametrize("shared", [True, False])
def test_policy_and_critic_say_what_each_says_of_the_whole_text(learners, shared):
    """An oracle that reads every cell: the state before a token has its log-probability, its entropy and its value."""
    model = learners(critic=CriticConfig(shared_trunk=shared))
    torch.nn.init.normal_(model.critic.head.linear.weight)
    found = model.outputs(ROLLOUT, temperature=0.5)
    logprobs = torch.log_softmax(model.policy(ROLLOUT.tokens) / 0.5, -1)
    values = model.critic.token_values(ROLLOUT.tokens)
    for row, (start, length) in enumerate([(2, 2), (1, 4)]):
        for i in range(4):
            of = torch.stack([each[row, i] for each in found])
            if i >= length:
                assert not of.any()
                continue
            there = logprobs[row, start + i - 1]
            expected = [there[ROLLOUT.tokens[row, start + i]], -(there.exp() * there).sum(), values[row, start + i - 1]]
            torch.testing.assert_close(of, torch.stack(expected))
    assert (model.critic.decoder is model.policy.decoder) == shared


@pytest.mark.parametrize("shared", [True, False])
def test_where_the_policy_rests_the_critic_says_and_learns_the_same(learners, shared):
    """All of it, or its head alone on the policy's trunk; and the policy has no backward pass."""
    model = learners(critic=CriticConfig(shared_trunk=shared))
    torch.nn.init.normal_(model.critic.head.linear.weight)
    learning = list((model.critic.head if shared else model.critic).parameters())
    (at_work, expected), (at_rest, found) = (
        (outputs, torch.autograd.grad(outputs.values.square().sum(), learning))
        for outputs in (model.outputs(ROLLOUT, 0.5), model.outputs(ROLLOUT, 0.5, policy_rests=True))
    )
    assert all(map(torch.equal, at_work, at_rest))
    assert all(map(torch.equal, expected, found))
    assert at_work.logprobs.requires_grad
    assert not at_rest.logprobs.requires_grad


def test_every_weight_learns_in_one_group_at_the_rate_of_its_name(learners):
    for shared in (True, False):
        model = learners(critic=CriticConfig(shared_trunk=shared, lr=0.5), optimizer=OptimizerConfig(lr=0.1))
        rates = {"policy": 0.1, "value": 0.5}
        assert all(group["lr"] == rates[group["name"]] for group in model.groups())
        learning = [id(parameter) for group in model.groups() for parameter in group["params"]]
        of_both = {id(p) for one in (model.policy, model.critic) for p in one.parameters()}
        assert len(learning) == len(set(learning))
        assert set(learning) == of_both
    bare = learners(estimator=EstimatorConfig("rloo"))
    assert {group["name"] for group in bare.groups()} == {"policy"}
    assert bare.critics() == {}


def test_the_base_of_updates_is_the_reference_unless_another_is_named(learners, micro):
    model = learners(lora=LORA, critic=CriticConfig(lora=LORA))
    assert learners().base() is None
    assert learners().trunks() == {}
    for decoder in model.decoders():
        add_lora(decoder, LORA)
    ours = {parameter.data_ptr() for parameter in model.policy.parameters()}
    assert all(parameter.data_ptr() in ours for parameter in model.base().parameters())
    assert model.trunks().keys() == {str(micro.reward)}
    assert learners(lora=LORA, reference_from=str(micro.reward)).base() is None


def test_who_answers_is_named_the_exported_one_first(learners):
    assert list(learners().answering()) == ["policy"]
    assert list(learners(ema=EMAConfig(export="beside")).answering()) == ["policy", "average"]
    assert list(learners(ema=EMAConfig(export="instead")).answering()) == ["average"]


def no_part(folder):
    raise AssertionError(folder)


def test_a_critic_follows_the_first_moments_and_learns_the_rest(learners):
    """One that began as the policy has nothing to follow: it says 0, which is the mean."""
    none, first, later = Moments("running"), Moments("running", 4, 2.0, 36.0), Moments("running", 8, 9.0, 36.0)
    model, began = learners(), learners()
    model.follow(none, first, False, no_part)
    changed = model.critic.token_values(ROLLOUT.tokens)
    torch.testing.assert_close(changed, (began.critic.token_values(ROLLOUT.tokens) - 2.0) / 3.0)
    model.follow(first, later, True, no_part)
    assert torch.equal(model.critic.token_values(ROLLOUT.tokens), changed)
    zero = learners(critic=CriticConfig(shared_trunk=True))
    zero.follow(none, first, False, no_part)
    assert not zero.critic.token_values(ROLLOUT.tokens).any()
    zero.follow(none, first, True, no_part)
    torch.testing.assert_close(zero.critic.token_values(ROLLOUT.tokens), torch.full((2, 5), -2.0 / 3.0))


@pytest.mark.parametrize("kind", ["sum", "ensemble"])
def test_a_critic_that_began_as_a_part_follows_the_parts_own_mean(learners, micro, kind):
    """The whole's mean, 2, is nothing to it; once it has learnt the whole, that one is."""
    folder, other = str(micro.reward), RewardSource(function="a.b:c")
    summed = [other, RewardSource(folder=folder, weight=3.0)]
    ensemble = RewardSource(ensemble=[folder, "elsewhere"], combine="worst", weight=3.0)
    model = learners(rewards=summed if kind == "sum" else ensemble)
    raw = model.critic.token_values(ROLLOUT.tokens)
    none, first, other = Moments("reference"), Moments("reference", 4, 2.0, 36.0), Moments("running", 8, -1.0, 8.0)
    model.follow(none, first, False, {folder: 5.0}.get)
    torch.testing.assert_close(model.critic.token_values(ROLLOUT.tokens), (raw - 3.0 * 5.0) / 3.0)
    was = model.critic.token_values(ROLLOUT.tokens)
    model.follow(first, other, True, no_part)
    torch.testing.assert_close(model.critic.token_values(ROLLOUT.tokens), was * 3.0 + 3.0)


def test_every_folder_has_facts_of_its_own(learners, micro):
    """A critic began where it did, and no metric is of it; an average says so, and has its own."""
    metrics = {"val/score": 1.0, "val/ema/score": 2.0}
    facts = Facts("PPO", base=str(micro.gpt), before=metrics, metrics=metrics)
    model = learners(ema=EMAConfig(0.9))
    policy, critic, average = (model.tell(name, facts) for name in (None, "critic", "ema"))
    assert (policy.base, policy.weights, policy.kind) == (str(micro.gpt), None, None)
    assert policy.models == {"Reference": [str(micro.gpt)], "Rewards": [str(micro.reward)]} == average.models
    assert (policy.metrics, policy.before) == ({"val/score": 1.0},) * 2
    assert average.metrics == {"val/ema/score": 2.0}
    assert "average" in average.weights
    assert "0.9" in average.weights
    assert (critic.base, critic.metrics, critic.before) == (str(micro.reward), {}, {})
    assert critic.kind.startswith("critic")
    shared = learners(critic=CriticConfig(shared_trunk=True), ema=EMAConfig(0.9, "instead"))
    assert shared.tell("critic", facts).base == str(micro.gpt)
    assert "average" in shared.tell(None, facts).weights
