"""What learns in PPO, without a Trainer and in a run."""

import json

import lightning.pytorch as L
import pytest
import torch
from conftest import shaken
from ppo_variants import FLAT, AtStart, adam, distance, weights

from gpt_modules.backbone import LoRAConfig, add_lora, load_pretrained, save_pretrained
from gpt_modules.backbone.folders.card import Facts
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError
from gpt_modules.training import PPOModule
from gpt_modules.training.callbacks.checkpointing import ExactCheckpoint
from gpt_modules.training.callbacks.export import ExportBest
from gpt_modules.training.callbacks.resuming import Resumption
from gpt_modules.training.optimizers import OptimizerConfig
from gpt_modules.training.ppo import VALIDATION
from gpt_modules.training.rl.estimators import EstimatorConfig
from gpt_modules.training.rl.gradients import named_groups
from gpt_modules.training.rl.learners import Learners
from gpt_modules.training.rl.rewards import RewardSource
from gpt_modules.training.rl.scores import Moments, ScoresConfig
from gpt_modules.training.rl.settings import CriticConfig, EMAConfig, KLConfig, SamplingConfig
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


# --- in a run ---


def test_the_critic_begins_as_the_reward(fit, ppo):
    module, data = ppo()
    module.configure_model()
    fit(module, data, num_sanity_val_steps=-1, limit_train_batches=0)
    batch = data.prompts(0)
    scored = module._score(batch, VALIDATION)
    ends = scored.sequences.lengths[:, None] - 1
    with torch.no_grad():
        last = module.critic.eval().token_values(scored.sequences.tokens).gather(1, ends)[:, 0]
    assert torch.allclose(last, scored.scores, atol=1e-4)
    assert scored.scores.std() > 0


def test_without_a_reward_folder_the_critic_begins_at_zero(fit, ppo, functions):
    """The SFT model's trunk under a head of zeros: it explains nothing yet, and not less than nothing."""
    module, data = ppo(rewards="toy_rewards:length", missing_eos_score=None)
    start = AtStart()
    trainer = fit(module, data, callbacks=[start])
    trunk = {name: value for name, value in start.critic.items() if name.startswith("decoder.")}
    reference = weights(module.frozen.reference)
    assert all(torch.equal(value, reference[name]) for name, value in trunk.items())
    assert not start.critic["head.linear.weight"].any()
    assert trainer.logger.values("value/explained_variance") == [0.0]


def test_the_critics_folder_may_be_named(ppo, functions, micro):
    module, _ = ppo(rewards="toy_rewards:length", critic=CriticConfig(init_from=str(micro.reward)))
    module.configure_model()
    other, _ = ppo()
    other.configure_model()
    assert distance(weights(module.critic), weights(other.critic)) == 0.0


def test_two_critic_rates(fit, ppo):
    """Matrices decay, in both models, and vectors do not."""
    decaying = OptimizerConfig(lr=1e-3, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.25)
    module, data = ppo(optimizer=decaying, critic=CriticConfig(lr=2e-3), schedule=FLAT)
    groups = fit(module, data).optimizers[0].param_groups
    rates = {(group["name"], group["params"][0].ndim): (group["lr"], group["weight_decay"]) for group in groups}
    assert rates == {
        ("policy", 2): (1e-3, 0.25), ("policy", 1): (1e-3, 0.0), ("value", 2): (2e-3, 0.25), ("value", 1): (2e-3, 0.0)
    }  # fmt: skip


def test_a_shared_trunk_is_trained_once_and_its_head_at_its_own_rate(fit, ppo, tmp_path):
    """Of the value loss alone the trunk moves too (Ziegler et al. 2019, code); a checkpoint holds the trunk once."""
    shared = CriticConfig(shared_trunk=True, lr=1e-2)
    module, data = ppo(critic=shared, optimizer=adam(1e-3), schedule=FLAT)
    trainer = fit(module, data)
    groups = named_groups(trainer.optimizers[0])
    assert {id(p) for p in groups["policy"]} == {id(p) for p in module.policy.parameters()}
    assert {id(p) for p in groups["value"]} == {id(p) for p in module.critic.head.parameters()}
    rates = {group["name"]: group["lr"] for group in trainer.optimizers[0].param_groups}
    assert rates == {"policy": 1e-3, "value": 1e-2}
    assert module.critic.head.linear.weight.abs().max() > 0
    trainer.save_checkpoint(tmp_path / "shared.ckpt")
    fit(*ppo(), default_root_dir=tmp_path / "apart").save_checkpoint(tmp_path / "apart.ckpt")
    sizes = [(tmp_path / f"{name}.ckpt").stat().st_size for name in ("shared", "apart")]
    assert sizes[0] < 0.6 * sizes[1]


def test_the_cards_of_a_run_tell_of_each_folder_what_is_in_it(fit, ppo, micro, tmp_path):
    module, data = ppo(ema=EMAConfig(0.9), sampling=SamplingConfig(stop=["o", 7], truncate_after=2))
    fit(module, data, callbacks=[ExportBest()])
    stops = json.loads((tmp_path / "export" / "generation_config.json").read_text())["eos_token_id"]
    assert stops == [*module.sampling.ends] == [*micro.tokenizer.encode("o"), 7]
    assert {*stops} < {*Tokenizer.load(tmp_path / "export").end_ids}  # where the project's own commands end
    policy, critic, average = (
        (tmp_path / f"export{name}" / "README.md").read_text() for name in ("", "-critic", "-ema")
    )
    assert "| Answers end | at `'o'`, `7`; not within the first 2 tokens, which no file here says |" in policy
    assert "Answers end" not in critic
    assert "| Reference |" in policy
    assert "| val/score |" in policy
    assert "val/ema/" not in policy
    assert "| Kind | critic" in critic
    assert f"| Began from | `{module.learners.critic_folder}` |" in critic
    assert "val/" not in critic
    assert "| Weights | exponential moving average" in average
    assert "| val/ema/score |" in average


def test_a_shared_trunk_goes_on_in_a_later_run(fit, ppo, tmp_path):
    """Its head begins as it ended, on the policy that was exported with it; on another it is refused."""
    shared = CriticConfig(shared_trunk=True, lr=1e-2)
    module, data = ppo(critic=shared, optimizer=adam(1e-2))
    fit(module, data)
    module.export(tmp_path / "export")
    export, beside = str(tmp_path / "export"), str(tmp_path / "export-critic")
    later = CriticConfig(shared_trunk=True, init_from=beside)
    start = AtStart()
    fit(*ppo(init_from=export, critic=later), callbacks=[start])
    assert torch.equal(start.critic["head.linear.weight"], weights(load_pretrained(beside))["head.linear.weight"])
    assert distance(start.policy, weights(module.policy)) == 0.0
    start = AtStart()
    fit(*ppo(critic=CriticConfig(init_from=beside)), callbacks=[start])  # and as a critic of its own
    assert distance(start.critic, weights(load_pretrained(beside, kind="reward"))) == 0.0
    with pytest.raises(UserError, match=r"critic\.init_from: .*export-critic: found a head on another trunk"):
        fit(*ppo(critic=later))


@pytest.mark.parametrize("shared", [False, True])
def test_while_it_warms_up_the_critic_learns_alone(fit, ppo, shared):
    """The policy keeps every bit, though matrices would decay, and its Adam and its schedule begin with the iteration
    after; a coefficient that follows the KL waits.
    """
    decaying = OptimizerConfig(lr=1e-2, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.25)
    kl = KLConfig(coef=0.1, target=1.0, horizon=100)

    class Ends(L.Callback):
        def __init__(self):
            self.policies, self.critics, self.rates = [], [], []

        def on_train_epoch_end(self, trainer, module):
            self.policies.append(weights(module.policy))
            self.critics.append(weights(module.critic.head))
            self.rates.append({group["name"]: group["lr"] for group in trainer.optimizers[0].param_groups})

    ends = Ends()
    module, data = ppo(critic=CriticConfig(warmup=2, shared_trunk=shared), optimizer=decaying, minibatches=2, kl=kl)
    trainer = fit(module, data, max_epochs=3, callbacks=[ends], limit_val_batches=0)
    start = weights(module.frozen.reference)
    assert [distance(policy, start) == 0.0 for policy in ends.policies] == [True, True, False]
    assert distance(ends.critics[0], ends.critics[1]) > 0
    assert [rates["value"] for rates in ends.rates] == pytest.approx([1e-2 * (1 - done / 6) for done in (2, 4, 6)])
    assert [rates["policy"] for rates in ends.rates] == pytest.approx([0.0, 1e-2, 0.0])
    assert trainer.logger.values("objective/kl_coef") == pytest.approx([0.1, 0.1, 0.1])
    assert module.kl_coef == pytest.approx(0.1 * (1 - 0.2 * 8 / 100))
    norms = trainer.logger.values("policy/grad_norm")
    assert norms[:4] == [0.0] * 4
    assert min(norms[4:]) > 0
    assert min(trainer.logger.values("value/grad_norm")) > 0
    steps = {group["name"]: trainer.optimizers[0].state[group["params"][0]]["step"].item()
             for group in trainer.optimizers[0].param_groups}  # fmt: skip
    assert steps == {"policy": 2.0, "value": 6.0}


@pytest.mark.parametrize(
    ("saved_at", "minibatches", "expected"),
    [
        (2, 1, [0.0, 1.0, 1 / 2]),  # an iteration of the warm-up is left, of one step
        (6, 1, [1 / 3]),  # four of the steps before were the warm-up's, whatever it would have now
        (4, 8, [1 - step / 16 for step in range(16)]),  # a warm-up of such iterations would have more than the run
    ],
)
def test_what_a_warm_up_has_taken_counts_by_the_steps_that_it_had(fit, ppo, tmp_path, saved_at, minibatches, expected):
    """Each run has four iterations, two of them the critic's alone."""

    class Rates(L.Callback):
        def __init__(self):
            self.taken = []

        def on_before_optimizer_step(self, trainer, module, optimizer):
            self.taken.append(next(one["lr"] for one in optimizer.param_groups if one["name"] == "policy"))

    def run(minibatches, **settings):
        module, data = ppo(critic=CriticConfig(warmup=2), optimizer=adam(1.0), minibatches=minibatches)
        callbacks = [Resumption(), ExactCheckpoint(1, keep=9), rates := Rates()]
        fit(module, data, max_epochs=4, callbacks=callbacks, limit_val_batches=0, enable_checkpointing=True,
            default_root_dir=tmp_path, **settings)  # fmt: skip
        return rates.taken

    assert run(2) == pytest.approx([0.0] * 4 + [1.0, 3 / 4, 1 / 2, 1 / 4])
    checkpoint = tmp_path / "checkpoints" / f"step={saved_at:08d}.ckpt"
    assert run(minibatches, ckpt_path=checkpoint) == pytest.approx(expected)


def test_the_export_is_the_policy_and_the_critic_lies_beside_it(fit, ppo, tmp_path):
    module, data = ppo(optimizer=adam(1e-2))
    fit(module, data)
    module.export(tmp_path / "export")
    policy = load_pretrained(tmp_path / "export", kind="gpt")
    (beside,) = module.also_exports
    critic = load_pretrained(tmp_path / f"export-{beside}", kind="reward")
    assert distance(weights(policy), weights(module.policy)) == 0.0
    assert distance(weights(critic), weights(module.critic)) == 0.0


@pytest.mark.parametrize("normalise", ["reference", "running"])
@pytest.mark.parametrize("kind", ["sum", "ensemble"])
def test_a_critic_of_a_part_of_the_reward_begins_at_a_mean_of_nought(
    fit, ppo, micro, tmp_path, functions, kind, normalise
):
    """Of the answers by which the whole is normalised, as the whole does: it explains what the part explains."""
    other = shaken(load_pretrained(micro.reward, kind="reward"), 5)
    save_pretrained(tmp_path / "other", other, tokenizer_json=micro.tokenizer.to_json())
    folders = [str(micro.reward), str(tmp_path / "other")]
    summed = [RewardSource(folder=folders[0], weight=2.0), RewardSource(function="toy_rewards:length")]
    rewards = summed if kind == "sum" else RewardSource(ensemble=folders, combine="worst")
    scores = ScoresConfig(normalise, **({"samples": 8} if normalise == "reference" else {}))
    module, data = ppo(rewards=rewards, scores=scores, missing_eos_score=None, optimizer=adam(0.0))
    fit(module, data, limit_val_batches=0)
    reference = normalise == "reference"
    drawn = module._score(data.prompts(0), 2**31 if reference else 1, module.frozen.reference if reference else None)
    assert drawn.scores.mean().item() == pytest.approx(module.shaping.moments.mean, rel=1e-4)
    ends = drawn.sequences.lengths[:, None] - 1
    with torch.no_grad():
        last = module.critic.eval().token_values(drawn.sequences.tokens).gather(1, ends)[:, 0]
        of_part = module.frozen.reward.models()[folders[0]](*drawn.sequences[::2][:2])
    assert last.mean().item() == pytest.approx(0.0, abs=1e-4)
    gain = (2.0 if kind == "sum" else 1.0) / module.shaping.moments.deviation
    torch.testing.assert_close(last, gain * (of_part - of_part.mean()), atol=1e-3, rtol=1e-3)
