"""PPO from end to end on a micro model: what must hold exactly, and that reward rises."""

import dataclasses
import inspect
import itertools
import json
import math
import random
import re
import shutil
import sys
import types

import lightning.pytorch as L
import pytest
import torch
from conftest import shaken

from gpt_modules.backbone import GPT, LoRAConfig, RewardModel, load_pretrained, save_pretrained
from gpt_modules.backbone.decoder import Decoder
from gpt_modules.data.batches import PromptBatch
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError
from gpt_modules.training import PPOModule, processes
from gpt_modules.training import ppo as ppo_module
from gpt_modules.training.callbacks.checkpointing import ExactCheckpoint
from gpt_modules.training.callbacks.dashboard import ppo_layout
from gpt_modules.training.callbacks.export import ExportBest
from gpt_modules.training.callbacks.resuming import Resumption
from gpt_modules.training.hyperparameters import typed
from gpt_modules.training.optimizers import OptimizerConfig, ScheduleConfig
from gpt_modules.training.ppo import VALIDATION
from gpt_modules.training.rl import rollout as rollout_module
from gpt_modules.training.rl.estimators import EstimatorConfig
from gpt_modules.training.rl.experience import Experience
from gpt_modules.training.rl.frozen import REFERENCE
from gpt_modules.training.rl.gradients import grad_norm, named_groups
from gpt_modules.training.rl.rewards import RewardSource
from gpt_modules.training.rl.scores import ScoresConfig
from gpt_modules.training.rl.settings import ClipConfig, CriticConfig, EarlyStop, EMAConfig, KLConfig, SamplingConfig
from gpt_modules.training.rl.shaping import Cut

FLAT = ScheduleConfig(shape="constant")
WITH_A_CRITIC = {
    "plain": {},
    "shared": {"critic": CriticConfig(shared_trunk=True, lr=1e-2)},
    "warmup": {"critic": CriticConfig(warmup=1, max_norm=0.1)},
    "shared-warmup": {"critic": CriticConfig(shared_trunk=True, warmup=1)},
    "average": {"ema": EMAConfig(0.9, "instead")},
    "two": {"ema": EMAConfig(0.9), "early_stop": EarlyStop(kl=0.02, ratio=1.5)},
}
BARE = {
    "rloo": {"estimator": EstimatorConfig("rloo"), "answers": 4},
    "grpo": {"estimator": EstimatorConfig("grpo"), "answers": 2, "kl": KLConfig(loss="k3")},
    "grpo over tokens": {
        "estimator": EstimatorConfig("grpo", False, "tokens"),
        "answers": 2,
        "kl": KLConfig(loss="k2"),
    },
}
# What holds exactly, holds for each of these.
VARIANTS = WITH_A_CRITIC | BARE
each_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


def without_bounds(variant):
    """For an iteration of one step, whose bounds nothing would come near."""
    return {name: value for name, value in variant.items() if name != "early_stop"}


def adam(lr):
    return OptimizerConfig(lr=lr, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.0)


@pytest.fixture
def functions(monkeypatch):
    """Rewards of the user's own, on texts."""
    module = types.ModuleType("toy_rewards")
    module.share_of_g = lambda prompts, responses: [r.count("g") / max(1, len(r)) for r in responses]
    module.length = lambda prompts, responses: [float(len(r)) for r in responses]
    monkeypatch.setitem(sys.modules, "toy_rewards", module)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def distance(one, other):
    return sum((one[name] - other[name]).square().sum().item() for name in one) ** 0.5


class AtStart(L.Callback):
    """What the models are before the first step."""

    def on_train_start(self, trainer, module):
        models = (module.policy, module.critic, module.frozen.reference)
        self.policy, self.critic, self.reference = map(weights, models)
        self.reward = [weights(model) for model in module.frozen.reward.models().values()]


BARE_MATRICES = dict.fromkeys(("qkv_bias", "proj_bias", "mlp_bias", "tied"), False)
TODAY = {
    "gpt_neox": {"positions": "rotary", "rope_fraction": 0.5, "mlp": "gelu", "parallel_residual": True, "tied": False},
    "qwen3": {
        "positions": "rotary",
        "norm_kind": "rms",
        "mlp": "swiglu",
        "n_kv_head": 1,
        "qk_norm": True,
        **BARE_MATRICES,
    },
}


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=2)], ids=["full", "lora"])
@pytest.mark.parametrize("family", TODAY)
def test_a_policy_of_todays_decoders_is_sampled_scored_and_trained_as_one(fit, ppo, micro, tmp_path, family, lora):
    """The sampler, the scoring pass and the minibatches say the same of every token; the reference is the base."""
    torch.manual_seed(0)
    save_pretrained(tmp_path / "m", GPT(micro.config(**TODAY[family])), tokenizer_json=micro.tokenizer.to_json())
    module, data = ppo(episodes=16, minibatches=4, init_from=str(tmp_path / "m"), lora=lora)
    trainer = fit(module, data)
    assert trainer.logger.values("policy/ratio")[0] == pytest.approx(1.0, abs=1e-4)
    assert trainer.logger.values("policy/approx_kl")[0] == pytest.approx(0.0, abs=1e-7)
    assert trainer.logger.values("policy/approx_kl")[-1] > 0


@each_variant
def test_the_first_minibatch_has_ratio_one(fit, ppo, variant):
    """Although the folder stores dropout 0.3, and at a temperature that is not 1."""
    module, data = ppo(episodes=16, minibatches=4, temperature=0.5, **variant)
    trainer = fit(module, data)
    first = {name: trainer.logger.values(f"policy/{name}")[0] for name in ("ratio", "approx_kl", "clip_fraction")}
    assert first["ratio"] == pytest.approx(1.0, abs=1e-4)
    assert first["approx_kl"] == pytest.approx(0.0, abs=1e-7)
    assert first["clip_fraction"] == 0.0
    assert trainer.logger.values("value/clip_fraction")[:1] == ([0.0] if module.recipe.estimator.has_critic else [])
    assert trainer.logger.values("loss/kl")[:1] == ([pytest.approx(0.0, abs=1e-7)] if module.recipe.kl.loss else [])


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


def test_a_checkpoint_with_a_critic_is_none_of_an_estimator_without(fit, ppo, tmp_path):
    for name in ("plain", "rloo"):
        fit(*ppo(**VARIANTS[name])).save_checkpoint(tmp_path / f"{name}.ckpt")
    for name, resumed in (("plain", "rloo"), ("rloo", "plain")):
        with pytest.raises(UserError, match=r"^--ckpt_path: found (a|no) critic in it, expected (a|no) critic for mod"):
            fit(*ppo(**VARIANTS[resumed]), max_epochs=2, ckpt_path=tmp_path / f"{name}.ckpt")
    trainer = fit(*ppo(**VARIANTS["grpo"]), max_epochs=2, ckpt_path=tmp_path / "rloo.ckpt")
    assert trainer.logger.values("loss/kl"), "between iterations a run goes on by another without a critic"


def test_a_group_of_one_is_told_before_the_first_answer(fit, ppo):
    with pytest.raises(UserError, match=r"^data\.init_args\.answers: found 1, expected at least 2 with .*: rloo, by"):
        fit(*ppo(estimator=EstimatorConfig("rloo")))


def test_a_critic_may_value_several_answers_to_a_prompt(fit, ppo):
    """Each is an episode like any other."""
    module, data = ppo(answers=4, minibatches=2)
    fit(module, data, limit_val_batches=0)
    tokens, lengths, responses, mask, *_ = module.rollout
    prompts = [tuple(row[:length]) for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]
    assert prompts == [prompt for prompt in prompts[::4] for _ in range(4)]
    assert len(set(prompts)) == 2
    answers = {tuple(row[kept].tolist()) for row, kept in zip(responses, mask, strict=True)}
    assert len(answers) > 4, "of noise of their own"


@pytest.mark.parametrize("variant", WITH_A_CRITIC.values(), ids=WITH_A_CRITIC)
def test_a_minibatch_of_the_whole_rollout_is_measured_as_the_rollout_is(fit, ppo, variant):
    """At ratio 1 the policy's loss is minus the mean of whitened advantages, 0, and the entropy is the sampler's. The
    critic still says what it said: its loss is half the squared distance to the returns (Schulman et al. 2017).
    """
    module, data = ppo(temperature=0.5, **without_bounds(variant))
    logger = fit(module, data, limit_val_batches=0).logger
    assert logger.values("policy/entropy") == pytest.approx(logger.values("objective/entropy"), abs=1e-5)
    assert logger.values("loss/policy") == pytest.approx([0.0], abs=1e-5)
    rollout = module.rollout
    squares = (rollout.returns - rollout.values)[rollout.mask].square()
    assert logger.values("loss/value") == pytest.approx([0.5 * squares.mean().item()], rel=1e-4)


@each_variant
def test_kl_is_zero_until_the_policy_has_learnt_and_not_afterwards(fit, ppo, variant):
    module, data = ppo(optimizer=adam(1e-2), **without_bounds(variant))
    trainer = fit(module, data, max_epochs=3)
    still = 1 + module.recipe.critic.warmup
    kl = trainer.logger.values("objective/kl")
    assert kl[:still] == [0.0] * still
    assert abs(kl[still]) > 1e-4


@pytest.fixture
def reference(micro, tmp_path):
    """A folder like the policy's, of another model."""
    model = shaken(load_pretrained(micro.gpt, kind="gpt"), 7)
    save_pretrained(tmp_path / "reference", model, tokenizer_json=micro.tokenizer.to_json())
    return str(tmp_path / "reference")


def nats(folder, row, start, temperature):
    """log p of each token of a row from `start` on, one row and one token at a time."""
    model = load_pretrained(folder, kind="gpt").eval()
    with torch.no_grad():
        logits = model(torch.tensor([row]))[0] / temperature
    return [torch.log_softmax(logits[t - 1], -1)[row[t]].item() for t in range(start, len(row))]


def test_the_penalty_is_to_the_reference_that_is_named(fit, ppo, micro, reference):
    """From the first iteration, at the policy that init_from holds, by a sum over each answer worked token by token."""
    module, data = ppo(reference_from=reference, temperature=0.7, optimizer=adam(0.0))
    trainer = fit(module, data, limit_val_batches=0)
    assert distance(weights(module.policy), weights(load_pretrained(micro.gpt, kind="gpt"))) == 0.0
    tokens, starts, _, mask, *_ = module.rollout
    sums = []
    for row, start, length in zip(tokens.tolist(), starts.tolist(), mask.sum(1).tolist(), strict=True):
        own, theirs = (nats(folder, row[: start + length], start, 0.7) for folder in (micro.gpt, reference))
        sums.append(sum(own) - sum(theirs))
    (kl,) = trainer.logger.values("objective/kl")
    assert kl > 0.1
    assert kl == pytest.approx(sum(sums) / len(sums), rel=1e-3)


def test_the_reference_left_out_is_the_policy_that_the_run_begins_with(fit, ppo, micro):
    def run(**given):
        module, data = ppo(**given, optimizer=adam(1e-2), minibatches=2)
        points = fit(module, data, max_epochs=2).logger.points
        return weights(module), [point for point in points if not point[0].startswith("perf/")]

    (left_out, points), (named, same) = run(), run(reference_from=str(micro.gpt))
    assert all(torch.equal(value, named[name]) for name, value in left_out.items())
    assert points == same


def test_each_iteration_draws_anew(fit, ppo, monkeypatch):
    """The same prompts to the same policy: only the noise can differ, and it does not with the same seed."""

    def answers(**settings):
        module, data = ppo(optimizer=adam(0.0), **settings)
        prompts, collect, seen = data.prompts, module.collect, []
        score = module._score
        monkeypatch.setattr(module, "_score", lambda batch, draw: draws.append(draw) or score(batch, draw))
        monkeypatch.setattr(data, "prompts", lambda iteration, *processes: prompts(0, *processes))
        monkeypatch.setattr(module, "collect", lambda: seen.append(collect()) or seen[-1])
        fit(module, data, max_epochs=3, limit_val_batches=0)
        return [rollout.responses.tolist() for rollout in seen]

    draws = []
    first, second, third = answers()
    assert first != second != third != first
    assert len({VALIDATION, *draws}) == 4, "and none is that of validation"
    assert answers() == [first, second, third]
    assert answers(seed=1)[0] != first


def test_before_training_the_policy_is_the_reference(fit, ppo):
    module, data = ppo()
    trainer = fit(module, data, num_sanity_val_steps=-1, limit_train_batches=0)
    assert trainer.global_step == 0
    assert distance(weights(module.policy), weights(module.frozen.reference)) == 0.0
    assert not any(m.p for m in module.modules() if isinstance(m, torch.nn.Dropout))
    assert not any(m.p for m in module.frozen.reference.modules() if isinstance(m, torch.nn.Dropout))


def test_the_frozen_models_neither_change_nor_reach_optimizer_or_checkpoint(fit, ppo, tmp_path):
    module, data = ppo(optimizer=adam(1e-2))
    start = AtStart()
    trainer = fit(module, data, callbacks=[start], max_epochs=2)
    assert distance(weights(module.policy), start.policy) > 0.1
    assert distance(weights(module.critic), start.critic) > 0.1
    assert distance(weights(module.frozen.reference), start.reference) == 0.0
    (reward,) = module.frozen.reward.models().values()
    assert distance(weights(reward), start.reward[0]) == 0.0
    frozen = [*module.frozen.reference.parameters(), *reward.parameters()]
    assert all(p.grad is None and not p.requires_grad for p in frozen)
    trained = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert trained == {id(p) for model in (module.policy, module.critic) for p in model.parameters()}
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    stored = torch.load(tmp_path / "x.ckpt", weights_only=True)
    count = sum(value.numel() for value in stored["state_dict"].values())
    trainable = sum(p.numel() for model in (module.policy, module.critic) for p in model.parameters())
    assert count == trainable + 2, "beyond what is trained: the critic's bias and scale"


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


def test_functions_are_summed_with_models_and_monitors_are_only_watched(fit, ppo, functions):
    twice, once = (RewardSource(function="toy_rewards:length", weight=weight) for weight in (2.0, 1.0))
    trainer = fit(*ppo(rewards=[twice], monitors={"letters": once}, missing_eos_score=None))
    assert trainer.callback_metrics["val/score"].item() == pytest.approx(
        2 * trainer.callback_metrics["val/letters"].item()
    )


def test_an_ensemble_rewards_and_watches_and_its_spread_is_logged(fit, ppo, micro, tmp_path):
    """The score is the least of what the members say alone, as monitors; where the first is the least, it begins the
    critic. The spread is of the same answers, held out and in the rollout.
    """
    model = shaken(load_pretrained(micro.reward, kind="reward"), 5)
    save_pretrained(tmp_path / "other", model, tokenizer_json=micro.tokenizer.to_json())
    folders = [str(micro.reward), str(tmp_path / "other")]
    worst = RewardSource(ensemble=folders, combine="worst")
    monitors = {"first": RewardSource(folder=folders[0]), "second": RewardSource(folder=folders[1]), "worst": worst}
    module, data = ppo(rewards=worst, monitors=monitors, optimizer=adam(1e-2))
    trainer = fit(module, data)
    names = ("score", "worst", "first", "second", "reward_spread")
    scored = [module._score(batch, VALIDATION) for batch in data.val_dataloader()]
    texts = [answers.sequences for answers in scored]
    members = [
        torch.cat([model(text.tokens, text.lengths) for text in texts])
        for model in (module.frozen.reward.models()[folder] for folder in folders)
    ]
    least, apart = torch.minimum(*members), (members[0] - members[1]).abs() / 2
    expected = [least, least, *members, apart]
    found = [trainer.callback_metrics[f"val/{name}"].item() for name in names]
    assert found == pytest.approx([column.mean().item() for column in expected], abs=1e-4)
    assert trainer.logger.values("objective/reward_spread")[0] > 0.1
    assert list(module.frozen.digests) == [REFERENCE, *folders]


def test_without_an_ensemble_no_spread_is_logged(fit, ppo):
    names = {name for name, *_ in fit(*ppo()).logger.points}
    assert not [name for name in names if "spread" in name]


def test_two_critic_rates(fit, ppo):
    """Matrices decay, in both models, and vectors do not."""
    decaying = OptimizerConfig(lr=1e-3, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.25)
    module, data = ppo(optimizer=decaying, critic=CriticConfig(lr=2e-3), schedule=FLAT)
    groups = fit(module, data).optimizers[0].param_groups
    rates = {(group["name"], group["params"][0].ndim): (group["lr"], group["weight_decay"]) for group in groups}
    assert rates == {
        ("policy", 2): (1e-3, 0.25), ("policy", 1): (1e-3, 0.0), ("value", 2): (2e-3, 0.25), ("value", 1): (2e-3, 0.0)
    }  # fmt: skip


@pytest.mark.parametrize(("target", "direction"), [(1e6, -1), (1e-6, 1)])
def test_an_adaptive_coefficient_steers_towards_its_target(fit, ppo, target, direction):
    """At the first iteration the KL is 0, below any target; then the coefficient follows the measured KL."""
    kl = KLConfig(coef=0.1, target=target, horizon=100)
    trainer = fit(*ppo(kl=kl, optimizer=adam(3e-2), schedule=FLAT, episodes=16), max_epochs=3)
    used, measured = (trainer.logger.values(f"objective/{name}") for name in ("kl_coef", "kl"))
    assert used[0] == pytest.approx(0.1)
    assert used[1] == pytest.approx(0.1 * (1 - 0.2 * 16 / 100))
    assert measured[1] > 0.01, "the policy has moved"
    assert used[2] == pytest.approx(used[1] * (1 + direction * 0.2 * 16 / 100))


def test_a_fixed_coefficient_stays(fit, ppo):
    trainer = fit(*ppo(kl=KLConfig(coef=0.07), optimizer=adam(3e-2)), max_epochs=3)
    assert trainer.logger.values("objective/kl_coef") == pytest.approx([0.07] * 3)


def test_the_coefficient_and_the_iteration_are_restored(fit, ppo, tmp_path):
    settings = {"kl": KLConfig(coef=0.1, target=1e6, horizon=100), "schedule": FLAT}
    module, data = ppo(**settings)
    fit(module, data, max_epochs=2).save_checkpoint(tmp_path / "x.ckpt")
    again, data = ppo(**settings)
    trainer = fit(again, data, max_epochs=3, ckpt_path=tmp_path / "x.ckpt")
    assert trainer.logger.values("objective/iteration") == [2.0]
    assert trainer.logger.values("objective/kl_coef") == pytest.approx([0.1 * (1 - 0.2 * 8 / 100) ** 2])


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


def test_the_cards_of_a_run_tell_of_each_folder_what_is_in_it(fit, ppo, tmp_path):
    module, data = ppo(ema=EMAConfig(0.9))
    fit(module, data, callbacks=[ExportBest()])
    policy, critic, average = (
        (tmp_path / f"export{name}" / "README.md").read_text() for name in ("", "-critic", "-ema")
    )
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


def test_a_run_goes_on_with_the_form_of_critic_that_it_began_with(fit, ppo, tmp_path):
    fit(*ppo(), callbacks=[Resumption()]).save_checkpoint(tmp_path / "x.ckpt")
    shared = ppo(critic=CriticConfig(shared_trunk=True))
    with pytest.raises(UserError, match=r"model\.critic\.shared_trunk: found True, expected the checkpoint's False"):
        fit(*shared, callbacks=[Resumption()], max_epochs=2, ckpt_path=tmp_path / "x.ckpt")


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


def test_a_warmup_that_the_run_does_not_end_is_told(fit, ppo, caplog):
    fit(*ppo(critic=CriticConfig(warmup=2)), max_epochs=2)
    (line,) = [message for message in caplog.messages if message.startswith("critic.warmup")]
    assert line.startswith("critic.warmup: 2 iterations in a run of 2: the policy never learns")


@pytest.mark.parametrize(
    ("clip", "expected"),
    [
        ({"gradient_clip_val": 0.01}, {"policy": 0.01, "value": 0.02}),
        ({}, {"policy": None, "value": 0.02}),
        ({"gradient_clip_val": 1e-5, "gradient_clip_algorithm": "value"}, {"policy": "value", "value": 0.02}),
    ],
    ids=str,
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_critics_gradient_has_a_norm_of_its_own(fit, ppo, clip, expected, accumulate):
    """The policy's is clipped to the Trainer's by itself; what is logged is what was before."""
    clipped, before = {}, {}

    class Clipped(L.Callback):
        def on_before_zero_grad(self, trainer, module, optimizer):
            for name, parameters in named_groups(optimizer).items():
                if parameters[0].grad is not None:
                    clipped[name] = grad_norm(parameters).item()
                    clipped[f"{name} largest"] = max(p.grad.abs().max().item() for p in parameters)

        def on_before_optimizer_step(self, trainer, module, optimizer):
            before.update({name: grad_norm(parameters).item() for name, parameters in named_groups(optimizer).items()})

        def on_train_batch_end(self, trainer, module, *_):
            self.on_before_zero_grad(trainer, module, trainer.optimizers[0])

    settings = {"critic": CriticConfig(max_norm=0.02), "missing_eos_score": -30.0, "episodes": 16}
    trainer = fit(*ppo(**settings), callbacks=[Clipped()], accumulate_grad_batches=accumulate, **clip)
    assert min(before.values()) > 0.02
    for name, norm in before.items():
        assert trainer.logger.values(f"{name}/grad_norm") == pytest.approx([norm])
    assert clipped["value"] == pytest.approx(0.02, rel=1e-3)
    if expected["policy"] == "value":
        assert clipped["policy largest"] == pytest.approx(1e-5)
    else:
        assert clipped["policy"] == pytest.approx(expected["policy"] or before["policy"], rel=1e-3)


def test_without_one_both_are_clipped_as_one(fit, ppo):
    class Clipped(L.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            self.norm = grad_norm(module.parameters()).item()

    clipped = Clipped()
    fit(*ppo(missing_eos_score=-30.0), callbacks=[clipped], gradient_clip_val=0.05)
    assert clipped.norm == pytest.approx(0.05, rel=1e-3)


def test_the_average_is_that_of_the_steps_taken(fit, ppo):
    """Against the sum over the weights that the run had, and with a step of weight 1 the policy itself."""
    seen = []

    class Steps(L.Callback):
        def on_train_start(self, trainer, module):
            seen.append(weights(module.policy))

        def on_train_batch_end(self, trainer, module, *_):
            seen.append(weights(module.policy))

    module, data = ppo(ema=EMAConfig(0.5), optimizer=adam(1e-2), minibatches=3, ppo_epochs=2, episodes=12)
    fit(module, data, callbacks=[Steps()])
    expected, *later = seen
    for step in later:
        expected = {name: 0.5 * expected[name] + 0.5 * value for name, value in step.items()}
    assert len(later) == 6
    assert distance(expected, weights(module.learners.answering()["average"])) < 1e-5
    latest, data = ppo(ema=EMAConfig(0.0), optimizer=adam(1e-2))
    fit(latest, data)
    assert distance(weights(latest.policy), weights(latest.learners.answering()["average"])) == 0.0


@pytest.mark.parametrize("shared", [False, True])
def test_the_number_that_is_logged_is_of_the_weights_that_are_exported(fit, ppo, tmp_path, shared):
    """`val/...` of `export`, be it the policy or its average, and `val/ema/...` of `export-ema`: a run that begins from
    the folder says the same before its first step. The table says whose answers it shows.
    """
    found = {}
    names = ("score", "kl", "length", "repetition", "distinct_2", "score_std")
    for way in ("beside", "instead"):
        usual = {"optimizer": adam(3e-2), "schedule": FLAT, "critic": CriticConfig(shared_trunk=shared)}
        module, data = ppo(ema=EMAConfig(0.9, way), **usual)
        trainer = fit(module, data, max_epochs=2)
        metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
        module.export(tmp_path / way)
        folders = {"": tmp_path / way, "ema/": tmp_path / f"{way}-ema"}
        assert [path.exists() for path in folders.values()] == [True, way == "beside"]
        assert module.also_exports == (["critic", "ema"] if way == "beside" else ["critic"])
        for prefix, folder in folders.items():
            if not folder.exists():
                assert not [name for name in metrics if name.startswith(f"val/{prefix or '-'}")]
                continue
            again, prompts = ppo(init_from=str(folder), reference_from=module.hparams["init_from"])
            trainer = fit(again, prompts, limit_train_batches=0)
            (fresh,) = trainer.validate(again, prompts, verbose=False)
            found[way, prefix] = [metrics[f"val/{prefix}{name}"] for name in names]
            assert found[way, prefix] == pytest.approx([fresh[f"val/{name}"] for name in names], abs=1e-5)
        if shared:
            trunk = weights(load_pretrained(tmp_path / f"{way}-critic", kind="reward").decoder)
            assert distance(trunk, weights(load_pretrained(tmp_path / way, kind="gpt").decoder)) == 0.0
        assert [name for name in module.sample_rows()[0] if "score" not in name][2:] == list(
            module.learners.answering()
        )
    assert found["beside", "ema/"] == found["instead", ""] != found["beside", ""]


def test_an_average_in_half_precision_keeps_its_digits(fit, ppo):
    """Steps that bf16 would round away move it."""
    module, data = ppo(ema=EMAConfig(0.999), optimizer=adam(1e-2), minibatches=2)
    start = {name: value.float() for name, value in weights(load_pretrained(module.hparams["init_from"])).items()}
    fit(module, data, precision="bf16-true")
    moved = module.learners.average.state()
    assert {value.dtype for value in moved.values()} == {torch.float32}
    assert distance(moved, {name: value.bfloat16().float() for name, value in start.items()}) > 0
    assert module.learners.answering()["average"].head_weight.dtype == torch.bfloat16


def test_a_run_with_an_average_does_not_go_on_without_one(fit, ppo, tmp_path):
    fit(*ppo()).save_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=r"^model\.init_args\.ema: found 'an average', expected none, as"):
        fit(*ppo(ema=EMAConfig()), max_epochs=2, ckpt_path=tmp_path / "x.ckpt")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_rest_of_an_iteration_is_left_out_in_its_place(fit, ppo, accumulate):
    """Weights, moments and average keep every bit from the step that went too far to the iteration's end; steps,
    schedule, validation and the next rollout come as they would have come.
    """

    class Ends(L.Callback):
        def __init__(self):
            self.models, self.counts, self.rates = [], [], []

        def on_train_batch_end(self, trainer, module, batch, index, *_):
            if trainer.global_step > len(self.rates):
                self.models.append(
                    {**weights(module), **{f"a{n}": v.clone() for n, v in module.learners.average.state().items()}}
                )
                state = trainer.optimizers[0].state
                self.counts.append(state[next(module.policy.parameters())]["step"].item())
                self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    ends, bound = Ends(), EarlyStop(kl=1e-4)
    module, data = ppo(early_stop=bound, ema=EMAConfig(0.9), optimizer=adam(1e-2), minibatches=2, ppo_epochs=2)
    trainer = fit(module, data, callbacks=[ends], max_epochs=2, accumulate_grad_batches=accumulate)
    taken = trainer.logger.values("update/steps")
    assert trainer.global_step == 8 == len(ends.models)
    assert all(1 <= steps < 4 for steps in taken)
    still = [distance(one, other) == 0.0 for one, other in itertools.pairwise(ends.models)]
    first, second = map(int, taken)
    assert still == [False] * (first - 1) + [True] * (4 - first) + [False] * second + [True] * (4 - second)
    assert ends.counts[-1] == first + second
    assert ends.rates == pytest.approx([1e-2 * (1 - done / 8) for done in range(1, 9)])
    assert len(trainer.logger.values("val/score")) == 2
    losses = trainer.logger.values("train/loss")
    assert len(losses) == first + second + 2, "the step that went too far was measured"


def test_without_a_bound_no_steps_are_told(fit, ppo):
    assert not fit(*ppo(optimizer=adam(1e-1), ppo_epochs=4)).logger.values("update/steps")


def test_a_rollout_tells_how_far_its_sampler_is(fit, ppo, caplog):
    logger = fit(*ppo(temperature=0.5, optimizer=adam(1e-2)), max_epochs=2).logger
    assert max(logger.values("sampler/kl")) < 1e-6
    assert max(logger.values("sampler/max_prob_error")) < 1e-4
    assert not [message for message in caplog.messages if "sampler/kl" in message]


def test_a_sampler_of_another_temperature_is_told(fit, ppo, caplog, monkeypatch):
    """Mistakes of this kind are silent elsewhere: the KL is off, and nothing else shows it."""
    draw = rollout_module.generate
    monkeypatch.setattr(
        rollout_module, "generate", lambda *given, **named: draw(*given, **named | {"temperature": 1.3})
    )
    logger = fit(*ppo(), limit_val_batches=0).logger
    assert logger.values("sampler/kl")[0] > 1e-3
    assert [message for message in caplog.messages if message.startswith("sampler/kl: found ")]


def test_neither_a_small_cache_nor_recomputed_activations_change_a_run(fit, ppo):
    """One row at a time, and every block's activations twice: the same answers, and the same weights bit for bit."""

    def run(**memory):
        module, data = ppo(episodes=8, optimizer=adam(1e-2), minibatches=2, **memory)
        fit(module, data, limit_val_batches=0)
        return module.rollout, weights(module)

    (rollout, learnt), (in_turns, same) = run(), run(cache_gb=1e-9, recompute=True)
    assert torch.equal(rollout.responses, in_turns.responses)
    assert all(torch.equal(value, same[name]) for name, value in learnt.items())


def test_more_ppo_epochs_move_the_policy_further(fit, ppo):
    moved = []
    for epochs in (1, 2, 4):
        module, data = ppo(ppo_epochs=epochs, optimizer=adam(1e-3), schedule=FLAT)
        fit(module, data)
        moved.append(distance(weights(module.policy), weights(module.frozen.reference)))
    assert moved[0] < moved[1] < moved[2]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_optimizer_steps_are_iterations_times_epochs_times_minibatches(fit, ppo, accumulate):
    trainer = fit(*ppo(ppo_epochs=2, minibatches=3, episodes=12), max_epochs=2, accumulate_grad_batches=accumulate)
    assert trainer.global_step == 2 * 2 * 3
    assert trainer.estimated_stepping_batches == 2 * 2 * 3
    assert trainer.logger.values("objective/iteration") == [0.0, 1.0]


class Gradients(L.Callback):
    """The gradient of every optimizer step."""

    def __init__(self):
        self.steps = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.steps.append([p.grad.clone() for p in module.parameters()])


@each_variant
def test_accumulated_gradients_are_those_of_the_whole_minibatch(fit, ppo, reference, variant):
    """Answers differ in length, so a mean of micro-batch means is none over tokens; nor are the statistics. Those to
    one prompt are in different minibatches. The reference is another model, or the distance to it would be 0.
    """
    found, logged = [], []
    for accumulate in (1, 2):
        seen = Gradients()
        sizes = {"minibatches": 2, "episodes": 16, "temperature": 2.0, "max_new_tokens": 16}
        module, data = ppo(**sizes, reference_from=reference, **variant)
        trainer = fit(module, data, callbacks=[seen], accumulate_grad_batches=accumulate)
        found.append(seen.steps)
        measured = sorted({key for key, *_ in trainer.logger.points if key.startswith(("loss/", "policy/", "value/"))})
        logged.append([trainer.logger.values(key) for key in ("train/loss", *measured)])
        lengths = module.rollout.mask.sum(1)
        assert trainer.global_step == 2
    assert lengths.min() < lengths.max()
    for whole, parts in zip(found[0][0], found[1][0], strict=True):
        assert torch.allclose(whole, parts, atol=1e-5)
    assert logged[1] == [pytest.approx(steps, abs=1e-4) for steps in logged[0]]


def test_dropout_stays_off_while_training(fit, ppo):
    module, data = ppo()
    states = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            states.append(any(m.p > 0 for m in module.modules() if isinstance(m, torch.nn.Dropout)))

    fit(module, data, callbacks=[Watch()])
    assert states == [False]


@pytest.mark.parametrize("name", ["plain", *BARE])
def test_the_reward_rises_on_a_toy_task(fit, ppo, functions, name):
    module, data = ppo(
        **{**VARIANTS[name], "kl": KLConfig(coef=0.0)},
        episodes=32,
        rewards="toy_rewards:share_of_g",
        missing_eos_score=None,
        minibatches=2,
        ppo_epochs=2,
        optimizer=adam(5e-3),
        schedule=FLAT,
    )
    scores = fit(module, data, max_epochs=25, limit_val_batches=0).logger.values("objective/score")
    assert sum(scores[-3:]) / 3 > 3 * sum(scores[:3]) / 3 + 0.1, scores


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


def test_samples_show_both_models_on_the_same_prompts(fit, ppo):
    module, data = ppo(sample_prompts=3)
    fit(module, data, num_sanity_val_steps=-1, limit_train_batches=0)
    rows = module.sample_rows()
    assert len(rows) == 3
    assert all(row["reference"] == row["policy"] and row["reference score"] == row["policy score"] for row in rows)
    shaken(module.policy, 3)
    later = module.sample_rows()
    assert [row["reference"] for row in later] == [row["reference"] for row in rows]
    assert [row["policy"] for row in later] != [row["policy"] for row in rows]
    module.hparams["sample_prompts"] = 0
    assert module.sample_rows() == []


def test_a_checkpoint_built_in_python_is_plain_data(fit, ppo, tmp_path):
    fit(*ppo(kl=KLConfig(target=6.0))).save_checkpoint(tmp_path / "x.ckpt")
    stored = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert stored["hyper_parameters"]["kl"] == {"coef": 0.05, "target": 6.0, "horizon": 10_000, "loss": None}
    assert typed(KLConfig, stored["hyper_parameters"]["kl"]) == KLConfig(target=6.0)


def test_random_numbers_of_the_process_do_not_matter(fit, ppo):
    """Sampling and the order of minibatches have generators of their own."""
    scores = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        scores.append(fit(*ppo(optimizer=adam(1e-3)), max_epochs=2).logger.values("train/loss"))
    assert scores[0] == scores[1]


def test_logged_statistics_are_over_counted_tokens(fit, ppo):
    module, data = ppo(episodes=16)
    original, seen = module._score, []
    module._score = lambda *arguments: seen.append(original(*arguments)) or seen[-1]
    logged = {name: value for name, _, value in fit(module, data, limit_val_batches=0).logger.points}
    (scored,) = seen
    entropies = [value for row, keep in zip(scored.entropy, scored.mask, strict=True) for value in row[keep].tolist()]
    assert len(entropies) < scored.mask.numel()
    assert logged["objective/entropy"] == pytest.approx(sum(entropies) / len(entropies), abs=1e-4)
    assert logged["response/length"] == pytest.approx(len(entropies) / 16)
    assert logged["response/ended"] == pytest.approx(scored.ended.float().mean().item())
    assert logged["objective/score"] == pytest.approx(scored.scores.mean().item(), abs=1e-4)


def test_score_is_not_what_is_optimised_and_both_are_logged(fit, ppo, functions):
    """Some answers are cut off: the reward is a length, and theirs is replaced by -20. Of the second iteration, whose
    policy has moved.
    """
    settings = {"missing_eos_score": -20.0, "kl": KLConfig(coef=0.5), "optimizer": adam(3e-3), "schedule": FLAT}
    module, data = ppo(episodes=32, rewards="toy_rewards:length", **settings)
    data.validation_fraction = 0.3
    points = {name: value for name, _, value in fit(module, data, max_epochs=2).logger.points}
    names = ("score", "optimised_score", "reward", "kl")
    for stage, room in (("objective", "response"), ("val", "val")):
        score, optimised, reward, kl = (points[f"{stage}/{name}"] for name in names)
        assert 0.1 < points[f"{room}/ended"] < 0.9
        assert optimised < 0 < score
        assert abs(kl) > 0.01
        assert reward == pytest.approx(optimised - 0.5 * kl, abs=1e-4)


def test_that_no_answer_ends_is_told_once(fit, ppo, caplog):
    """Of one token each, hardly any does; the reward is asked for nothing."""
    fit(*ppo(episodes=16, max_new_tokens=1, missing_eos_score=-3.0), max_epochs=3)
    (line,) = [message for message in caplog.messages if message.startswith("missing_eos_score")]
    assert re.match(r"missing_eos_score: 0 of 16 responses ended; the others score -3\.0, whatever .*: 1, a", line)
    caplog.clear()
    fit(*ppo(episodes=16, max_new_tokens=1, missing_eos_score=None), max_epochs=1)
    assert not [message for message in caplog.messages if message.startswith("missing_eos_score")]


def test_the_loss_is_made_of_the_recipes_numbers(fit, ppo):
    """Each coefficient and each clip alone changes what is learnt, and in the way that the formula says."""
    settings = {"episodes": 16, "ppo_epochs": 2, "minibatches": 2, "optimizer": adam(1e-2), "schedule": FLAT}

    def run(**changes):
        module, data = ppo(**settings, **changes)
        trainer = fit(module, data, limit_val_batches=0)
        return {name: trainer.logger.values(name) for name in NAMES}

    NAMES = ("train/loss", "loss/policy", "loss/value", "policy/clip_fraction", "value/clip_fraction")
    for coefficient in (0.0, 0.5):
        found = run(clip=ClipConfig(value_coef=coefficient))
        pairs = zip(found["loss/policy"], found["loss/value"], strict=True)
        sums = [policy + coefficient * value for policy, value in pairs]
        assert found["train/loss"] == pytest.approx(sums, abs=1e-5)
    narrow, wide = (run(clip=ClipConfig(ratio=ratio, value=0.2)) for ratio in (1e-4, 0.999))
    assert narrow["policy/clip_fraction"][-1] > 0.3 > wide["policy/clip_fraction"][-1]
    narrow, wide = (run(clip=ClipConfig(ratio=0.2, value=value)) for value in (1e-4, 1e6))
    assert narrow["value/clip_fraction"][-1] > 0.0
    assert not any(wide["value/clip_fraction"])


def test_the_recipes_numbers_reach_the_rollout(fit, ppo):
    """A reference that is another model: the penalty is there from the first iteration. With lambda 1 a return is the
    discounted sum of what is to come, whatever the critic says: the score at the end, less 0.5 for each nat.
    """
    returns = {}
    for name, changes in {"free": {}, "paid": {"kl": KLConfig(coef=0.5)}, "white": {"whiten_rewards": True}}.items():
        usual = {"kl": KLConfig(coef=0.0), "gamma": 0.5, "lam": 1.0, "missing_eos_score": -3.0}
        module, data = ppo(**{**usual, **changes})
        module.configure_model()
        with torch.no_grad():
            for parameter in module.policy.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        trainer = fit(module, data, max_epochs=1, limit_val_batches=0, callbacks=[Kept()])
        returns[name] = Kept.rollout.returns
        assert abs(trainer.logger.values("objective/kl")[0]) > 1e-3
    scored = Kept.scored
    assert 0 < scored.ended.sum() < len(scored.ended)
    for row, length in enumerate(scored.mask.sum(1).tolist()):
        score = scored.scores[row].item() if scored.ended[row] else -3.0
        nats = (scored.logprobs - scored.ref_logprobs)[row].tolist()
        for t in range(length):
            free = 0.5 ** (length - 1 - t) * score
            penalty = 0.5 * sum(0.5 ** (later - t) * nats[later] for later in range(t, length))
            assert returns["free"][row, t].item() == pytest.approx(free, abs=1e-3)
            assert returns["paid"][row, t].item() == pytest.approx(free - penalty, abs=1e-3)
    assert not torch.allclose(returns["white"], returns["free"])


@pytest.fixture
def alone(fit, ppo):
    """alone(**module arguments): a module on its Trainer, before its first step, and its data."""

    def start(**arguments):
        module, data = ppo(**arguments)
        fit(module, data, num_sanity_val_steps=-1, limit_train_batches=0)
        return module, data

    return start


@pytest.mark.parametrize("name", ["plain", "shared", "rloo", "grpo"])
def test_two_processes_collect_what_one_collects(alone, monkeypatch, name):
    """Each answers every second prompt and takes every second row of a minibatch; together they are the one process:
    its rollout, its KL, its rows, and its normaliser for a mean over both. Their coefficient follows the KL and counts
    the episodes of both: 8 of 80 episodes, at a tenth more than the target. Of a prompt's answers each has some.
    """
    module, _ = alone(minibatches=2, temperature=2.0, seed=5, **VARIANTS[name])
    shaken(module.policy, 3)
    gathered = {}

    def gather(columns):
        gathered[module.global_rank] = columns
        return [processes.joined(parts) for parts in zip(*(gathered[rank] for rank in sorted(gathered)), strict=True)]

    def collect(rank, world):
        monkeypatch.setattr(L.Trainer, "global_rank", rank)
        monkeypatch.setattr(L.Trainer, "world_size", world)
        module.iteration, module.kl_coef = -1, 0.1
        loader = module.experience_loader()
        assert loader.seed == 5
        parts = list(loader)
        return module.rollout, parts, module.logger.values("objective/kl")[-1], module.kl_coef

    rollout, parts, kl, _ = collect(0, 1)
    steered = 1.01 if name != "grpo" else 1.0  # its penalty is in the loss
    if steered > 1:
        module.recipe = dataclasses.replace(module.recipe, kl=KLConfig(coef=0.1, target=kl / 1.1, horizon=80))
    monkeypatch.setattr(processes, "gathered", gather)
    collect(0, 2)
    ranks = [collect(rank, 2) for rank in (1, 0)]
    for found, _, own_kl, coefficient in ranks:
        assert own_kl == pytest.approx(kl, rel=1e-5)
        assert coefficient == pytest.approx(0.1 * steered, rel=1e-5)
        assert found.present().keys() == rollout.present().keys()
        for field, whole in zip(found.present().values(), rollout.present().values(), strict=True):
            torch.testing.assert_close(field, whole, rtol=1e-3, atol=1e-3)
    for whole, *shares in zip(parts, *(parts for _, parts, _, _ in ranks), strict=True):
        assert sorted(row for share in shares for row in share.rows.tolist()) == sorted(whole.rows.tolist())
        assert [2 * share.normaliser for share in shares] == [whole.normaliser] * 2
        assert [2 * share.sequences for share in shares] == [whole.sequences] * 2


@each_variant
@pytest.mark.parametrize("apart", [False, True])
def test_a_run_goes_on_inside_an_iteration(fit, ppo, tmp_path, reference, apart, variant):
    """Rollout, place, coefficient and frontier are those of the run that was not cut off, to the bit; whatever the
    reference is. So are the average, the steps that were left out, and what is exported.
    """
    ends = []
    for checkpoint in (None, tmp_path / "checkpoints" / "step=00000003.ckpt"):
        given = {"kl": KLConfig(coef=0.1, target=1.0, horizon=100), **variant}
        given |= {"reference_from": reference if apart else None}
        module, data = ppo(minibatches=2, ppo_epochs=2, optimizer=adam(1e-2), **given)
        callbacks = [ExactCheckpoint(3, keep=100)]
        trainer = fit(module, data, max_epochs=2, callbacks=callbacks, enable_checkpointing=True, ckpt_path=checkpoint)
        assert trainer.global_step == 8
        exported = [weights(model) for model in module.learners.answering().values()]
        taken = (module.steps.taken, module.steps.stopped)
        ends.append((weights(module), *exported, module.kl_coef, module.iteration, module.frontier, taken))
    models = 1 + len(exported)
    assert [distance(one, other) for one, other in zip(ends[0][:models], ends[1][:models], strict=True)] == [0] * models
    assert ends[0][models:] == ends[1][models:]


def test_a_checkpoint_saved_by_hand_before_any_fit_is_the_beginning(fit, ppo, tmp_path):
    """A validation has made the models, and no fit the loader."""

    def run(checkpoint):
        module, data = ppo(optimizer=adam(1e-2))
        fit(module, data, max_epochs=2, ckpt_path=checkpoint)
        return weights(module)

    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = L.Trainer(accelerator="cpu", devices=1, **quiet)
    module, data = ppo(optimizer=adam(1e-2))
    trainer.validate(module, datamodule=data, verbose=False)
    trainer.save_checkpoint(tmp_path / "by-hand.ckpt")
    begun, resumed = (run(checkpoint) for checkpoint in (None, tmp_path / "by-hand.ckpt"))
    assert all(torch.equal(value, resumed[name]) for name, value in begun.items())


class Writer:
    """TensorBoard's, that remembers."""

    def __init__(self):
        self.figures, self.layouts = [], []

    def add_figure(self, *figure):
        self.figures.append(figure)

    def add_custom_scalars(self, layout):
        self.layouts.append(layout)


def test_a_run_is_seen_as_a_dashboard_and_as_reward_against_kl(fit, ppo, monkeypatch):
    """A point of the frontier for each validation of a fit, and none for its rehearsal or one that is asked for."""
    writer = Writer()
    monkeypatch.setattr(ppo_module, "tensorboard", lambda trainer: writer)
    monkeypatch.setattr(ppo_module, "frontier_figure", lambda kl, score: list(zip(kl, score, strict=True)))
    module, data = ppo(optimizer=adam(1e-2), minibatches=2)
    trainer = fit(module, data, max_epochs=2, num_sanity_val_steps=2)
    pairs = list(zip(*(trainer.logger.values(f"val/{name}") for name in ("kl", "score")), strict=True))
    assert len(set(pairs)) == 2
    assert writer.layouts == [ppo_layout(True)]
    assert [(tag, step) for tag, _, step in writer.figures] == [("val/score_against_kl", step) for step in (2, 4)]
    assert writer.figures[1][1] == [pytest.approx(pair) for pair in pairs]
    trainer.validate(module, data, verbose=False)
    assert module.frontier == [pytest.approx(list(pair)) for pair in pairs]


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


def test_no_prompts_of_this_process_are_no_answers(ppo):
    module, _ = ppo()
    nothing = PromptBatch(torch.zeros(0, 1, dtype=torch.long), *torch.zeros(3, 0, dtype=torch.long))
    module.validation_step(nothing, 0)
    assert module.predict_step(nothing, 0) == []
    assert len(module.held_out) == 0


def test_a_rollout_is_logged_at_the_step_that_it_precedes_and_shown_beside_the_progress(fit, ppo, monkeypatch):
    """With the seconds that it took. The second one answers the next prompts."""
    clock = iter([10.0, 12.5, 20.0, 21.0])
    monkeypatch.setattr(ppo_module, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
    module, data = ppo(optimizer=adam(1e-2), minibatches=3)
    trainer = fit(module, data, max_epochs=2, limit_val_batches=0)
    asked = [tokens[:length].tolist() for tokens, length, *_ in zip(*data.prompts(1), strict=True)]
    tokens, lengths, *_ = module.rollout
    assert [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)] == asked
    points = trainer.logger.points
    assert [(step, value) for name, step, value in points if name == "perf/rollout_seconds"] == [(0, 2.5), (3, 1.0)]
    for name in ("score", "kl"):
        assert trainer.progress_bar_metrics[name] == pytest.approx(trainer.logger.values(f"objective/{name}")[-1])
        assert not trainer.logger.values(name)


def test_work_is_in_episodes_each_of_which_counts_once_an_iteration(ppo):
    module, _ = ppo(ppo_epochs=4)
    assert module.work(Experience(Cut(torch.arange(6), 0, 0), 1.0, 1.0)) == (1.5, "episodes")


@pytest.mark.parametrize("compiled", [False, True])
def test_the_models_that_read_text_are_compiled_if_told(ppo, monkeypatch, compiled):
    found = []
    monkeypatch.setattr(Decoder, "compile_blocks", lambda decoder: found.append(decoder))
    module, _ = ppo(compile=compiled)
    module.configure_model()
    models = (module.policy, module.critic, module.frozen.reference)
    assert found == [model.decoder for model in models] * compiled


def test_only_an_adapted_coefficient_is_learnt(ppo):
    assert ppo(kl=KLConfig(target=6.0))[0].learned_settings == {"kl.coef"}
    assert ppo(kl=KLConfig())[0].learned_settings == set()


class Kept(L.Callback):
    """The rollout of the first iteration, and what it was shaped from."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        Kept.rollout = module.rollout
        prompts = trainer.datamodule.prompts(0)
        Kept.scored = module._score(prompts, VALIDATION + 1)


def test_the_schedule_is_the_recipes(fit, ppo):
    module, data = ppo(minibatches=4, optimizer=adam(1e-3), schedule=ScheduleConfig(shape="linear", final=0.0))

    class Rates(L.Callback):
        def __init__(self):
            self.seen = []

        def on_train_batch_end(self, trainer, module, *_):
            self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    rates = Rates()
    fit(module, data, callbacks=[rates])
    assert rates.seen == sorted(rates.seen, reverse=True)
    assert len(set(rates.seen)) == 4


def test_the_export_is_the_policy_and_the_critic_lies_beside_it(fit, ppo, tmp_path):
    module, data = ppo(optimizer=adam(1e-2))
    fit(module, data)
    module.export(tmp_path / "export")
    policy = load_pretrained(tmp_path / "export", kind="gpt")
    (beside,) = module.also_exports
    critic = load_pretrained(tmp_path / f"export-{beside}", kind="reward")
    assert distance(weights(policy), weights(module.policy)) == 0.0
    assert distance(weights(critic), weights(module.critic)) == 0.0


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_half_precision(fit, ppo, precision):
    """The reference has the policy's precision, so that nothing lies between them at first; the rollout keeps its
    digits; and what accumulates does so in Python's numbers: bf16 does not have 0.1, and loses a change of 0.1 %.
    """
    kl = KLConfig(coef=0.1, target=1e6, horizon=1600)
    module, data = ppo(kl=kl, minibatches=2, ppo_epochs=1, optimizer=adam(0.0), schedule=FLAT)
    trainer = fit(module, data, precision=precision, max_epochs=2)
    kind = torch.bfloat16 if precision == "bf16-true" else torch.float32
    assert module.policy.head_weight.dtype == module.frozen.reference.head_weight.dtype == kind
    assert trainer.logger.values("objective/kl") == [0.0, 0.0]
    assert trainer.logger.values("policy/approx_kl")[0] == pytest.approx(0.0, abs=1e-4)
    assert module.rollout.logprobs.dtype == module.rollout.values.dtype == torch.float32
    assert trainer.logger.values("objective/kl_coef") == [0.1, 0.1 * (1 - 0.2 * 8 / 1600)]
    values = module.rollout.values[module.rollout.mask]
    assert not torch.equal(values, values.bfloat16().float()), "the critic's head multiplies in float32"


def moved(folder, to, kind):
    """A copy of an exported folder, whose model is another."""
    model = load_pretrained(folder, kind=kind)
    with torch.no_grad():
        next(model.parameters()).add_(0.01)
    save_pretrained(to, model, tokenizer_json=(folder / "tokenizer.json").read_text())


@pytest.mark.parametrize(("which", "told"), [("gpt", REFERENCE), ("reward", r".*/reward")])
def test_a_run_does_not_go_on_with_another_reference_or_reward(fit, ppo, micro, tmp_path, which, told):
    """Exported anew under the same name: the resumed run would be held to, or paid by, another model."""
    folders = {name: shutil.copytree(getattr(micro, name), tmp_path / name) for name in ("gpt", "reward")}
    given = {"init_from": str(folders["gpt"]), "rewards": str(folders["reward"])}
    fit(*ppo(**given)).save_checkpoint(tmp_path / "x.ckpt")
    fit(*ppo(**given), max_epochs=2, ckpt_path=tmp_path / "x.ckpt")
    shutil.rmtree(folders[which])
    moved(getattr(micro, which), folders[which], {"gpt": "gpt", "reward": "reward"}[which])
    with pytest.raises(UserError, match=rf"^{told}: found another model \(SHA-256 .*put it back") as error:
        fit(*ppo(**given), max_epochs=2, ckpt_path=tmp_path / "x.ckpt")
    assert "\n" not in str(error.value)


def test_a_reference_may_lie_elsewhere(fit, ppo, micro, tmp_path):
    fit(*ppo()).save_checkpoint(tmp_path / "x.ckpt")
    there = shutil.copytree(micro.gpt, tmp_path / "there")
    for given in ({"init_from": str(there)}, {"reference_from": str(there)}):
        assert fit(*ppo(**given), max_epochs=2, ckpt_path=tmp_path / "x.ckpt").current_epoch == 2


@pytest.mark.parametrize("first", [False, True])
def test_a_run_goes_on_with_the_reference_that_it_began_with(fit, ppo, tmp_path, reference, first):
    """However it is named: as reference_from, or by leaving that out."""
    one, other = ({"reference_from": given} for given in ((reference, None) if first else (None, reference)))
    fit(*ppo(**one)).save_checkpoint(tmp_path / "x.ckpt")
    fit(*ppo(**one), max_epochs=2, ckpt_path=tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=rf"^{REFERENCE}: found another model \(SHA-256 .*put it back"):
        fit(*ppo(**other), max_epochs=2, ckpt_path=tmp_path / "x.ckpt")


def test_a_fixed_coefficient_is_the_recipes_after_resuming(fit, ppo, tmp_path):
    fit(*ppo(kl=KLConfig(coef=0.1))).save_checkpoint(tmp_path / "x.ckpt")
    trainer = fit(*ppo(kl=KLConfig(coef=0.3)), max_epochs=2, ckpt_path=tmp_path / "x.ckpt")
    assert trainer.logger.values("objective/kl_coef") == [0.3]


def test_a_text_that_a_model_has_no_room_for_is_told_before_the_first_step(fit, ppo, micro, tmp_path):
    """Of the policy, or of the reward model alone; by a bound that is exact."""
    _, data = ppo()
    data.setup("fit")
    room = 32 - data.longest_prompt
    assert fit(*ppo(max_new_tokens=room), limit_train_batches=0, limit_val_batches=0).global_step == 0
    line = rf"^model\.init_args\.max_new_tokens: found {room + 1} after prompts of up to .* n_positions = 32 of "
    with pytest.raises(UserError, match=line):
        fit(*ppo(max_new_tokens=room + 1))
    small = shaken(RewardModel(micro.config(n_positions=data.longest_prompt + 7)), 2)
    save_pretrained(tmp_path / "small", small, tokenizer_json=micro.tokenizer.to_json())
    with pytest.raises(UserError, match=r"max_new_tokens: found 8 .* of .*/small together"):
        fit(*ppo(rewards=str(tmp_path / "small")))


def test_a_reward_model_that_does_not_know_the_policys_tokens_is_told(fit, ppo, micro, tmp_path):
    """The policy's embedding has rows beyond the tokenizer, as padded vocabularies do; it may say them."""
    wide = shaken(GPT(micro.config(vocab_size=micro.vocab_size + 4)), 1)
    save_pretrained(tmp_path / "wide", wide, tokenizer_json=micro.tokenizer.to_json())
    with pytest.raises(
        UserError, match=r"/reward: found a vocabulary of \d+, expected at least the policy's \d+: it reads"
    ):
        fit(*ppo(init_from=str(tmp_path / "wide")))


@pytest.mark.parametrize("kind", [RewardModel, GPT])
def test_a_model_of_another_tokenizer_is_told(fit, ppo, micro, tmp_path, kind):
    other = Tokenizer.train(["entirely other words stand here, again and again"] * 5, 280)
    folder = str(tmp_path / "other")
    save_pretrained(folder, kind(micro.config()), tokenizer_json=other.to_json())
    given = {"reference_from": folder} if kind is GPT else {"critic": CriticConfig(init_from=folder)}
    with pytest.raises(UserError, match=r"other/tokenizer\.json: differs from the policy's tokenizer"):
        fit(*ppo(**given))


def test_a_reference_must_read_what_the_policy_says(fit, ppo, micro, tmp_path):
    """It knows every token, has room for the text, and is a language model."""
    wide = shaken(GPT(micro.config(vocab_size=micro.vocab_size + 4)), 1)
    save_pretrained(tmp_path / "wide", wide, tokenizer_json=micro.tokenizer.to_json())
    wider = {"init_from": str(tmp_path / "wide"), "rewards": "math:hypot"}
    with pytest.raises(UserError, match=rf"^{micro.gpt}: found a vocabulary of {micro.vocab_size}, expected at least"):
        fit(*ppo(**wider, reference_from=str(micro.gpt)))
    save_pretrained(tmp_path / "short", GPT(micro.config(n_positions=10)), tokenizer_json=micro.tokenizer.to_json())
    with pytest.raises(UserError, match=r"max_new_tokens: found 8 .* n_positions = 10 of .*/short together"):
        fit(*ppo(reference_from=str(tmp_path / "short")))
    for wrong, found in ((str(micro.reward), "found .*expected 'gpt'"), ("", "model folder: found ''")):
        with pytest.raises(UserError, match=found):
            fit(*ppo(reference_from=wrong))


NUMBERS = [0, -1, math.nan, math.inf, 1e-38]
TAKEN = {
    "sample_prompts": {0},
    "seed": {0},
    "gamma": {0, 1e-38},
    "lam": {0, 1e-38},
    "missing_eos_score": {0, -1, 1e-38},
    "cache_gb": {1e-38},
}


@pytest.mark.parametrize("value", NUMBERS)
def test_every_number_of_the_constructor_is_checked(ppo, value):
    """By introspection, so that a new argument is asked about too."""
    for name, parameter in inspect.signature(PPOModule).parameters.items():
        numeric = {"int", "float", "int | None", "float | None"}
        kind = str(parameter.annotation)
        if kind not in numeric and parameter.annotation not in (int, float):
            continue
        if isinstance(value, float) and "int" in kind:
            continue  # the parser of recipes refuses it
        if value in TAKEN.get(name, ()):
            assert ppo(**{name: value})
            continue
        with pytest.raises(UserError, match=rf"^{name}: found {re.escape(str(value))}, expected ") as error:
            ppo(**{name: value})
        assert "\n" not in str(error.value)


def test_a_monitor_cannot_take_the_place_of_a_metric(ppo, functions):
    names = ("score_std", "letters", "kl", "distinct_1", "ema/letters")
    monitors = dict.fromkeys(names, RewardSource(function="toy_rewards:length"))
    for name in ("distinct_1", "kl", "score_std"):
        with pytest.raises(
            UserError, match=rf"^monitors\.{name}: found the name of a metric of PPO, expected another$"
        ):
            ppo(monitors={"letters": monitors["letters"], name: monitors[name]})
    assert ppo(monitors={"ema/letters": monitors["ema/letters"]})
    with pytest.raises(UserError, match=r"^monitors\.ema/letters: found the name of a metric of PPO"):
        ppo(monitors={"ema/letters": monitors["ema/letters"]}, ema=EMAConfig())


def test_the_defaults_are_those_of_the_rlhf_codes():
    """Adam's epsilon 1e-5, no decay, a rate that falls linearly to 0, no discount; four passes over a rollout at a
    temperature of 1; rewards as they are.
    """
    module = PPOModule("policy", "reward")
    assert module.recipe.optimizer == OptimizerConfig(lr=1e-5, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.0)
    usual = {"ppo_epochs": 4, "minibatches": 1, "temperature": 1.0, "whiten_rewards": False, "compile": False}
    assert {name: module.hparams[name] for name in usual} == usual
    assert (module.hparams["max_new_tokens"], module.hparams["seed"]) == (24, 0)
    assert (module.recipe.schedule.shape, module.recipe.schedule.final) == ("linear", 0.0)
    assert (module.shaping.gamma, module.shaping.lam, module.shaping.missing_eos_score) == (1.0, 0.95, -1.0)


# --- where a response ends, and what is made of its score ---


def test_a_response_ends_at_the_recipes_stop_and_the_reward_reads_it_to_there(fit, ppo, micro, functions):
    """No answer of 1 to 3 tokens; the last kept token is a stop, or there are eight. The function sees the cut text."""
    stop = micro.tokenizer.encode("o")[0]
    seen = []
    sys.modules["toy_rewards"].watch = lambda _, responses, ended, token_ids: (
        seen.extend(zip(responses, ended, token_ids, strict=True)) or [0.0] * len(responses)
    )
    stops = SamplingConfig(stop=["o", stop + 1, "<|endoftext|>"], truncate_after=3)
    module, data = ppo(episodes=64, rewards="toy_rewards:watch", sampling=stops, optimizer=adam(0.0))
    trainer = fit(module, data, limit_val_batches=0)
    assert module.sampling.ends == (stop, stop + 1, micro.tokenizer.eos_id)
    assert len({ended for _, ended, _ in seen}) == 2
    for text, ended, ids in seen:
        assert ended == (len(ids) > 3 and ids[-1] in module.sampling.ends)
        assert not any(token in module.sampling.ends for token in ids[3:-1])
        assert ended or len(ids) == 8
        assert text == micro.tokenizer.decode(ids)
    assert trainer.logger.values("response/ended") == [sum(ended for _, ended, _ in seen) / 64]
    responses = module.rollout.responses
    padded = [ids + [0] * (responses.shape[1] - len(ids)) for _, _, ids in seen]
    assert sorted(responses.tolist()) == sorted(padded)


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


def test_no_response_is_as_short_as_truncate_after(ppo):
    line = r"^sampling\.truncate_after: found 8, expected less than max_new_tokens: 8$"
    with pytest.raises(UserError, match=line):
        ppo(sampling=SamplingConfig(truncate_after=8))


def test_the_references_answers_score_nought_with_variance_one_and_the_critic_follows(fit, ppo):
    """Ziegler et al. 2019, 2.2. Before the first validation; the score that is logged is the reward's own."""
    config = ScoresConfig(normalise="reference", samples=20)
    module, data = ppo(scores=config, missing_eos_score=None, optimizer=adam(0.0))
    trainer = fit(module, data, max_epochs=1)
    moments, scores = module.shaping.moments, []
    for number in range(3):
        scores.append(module._score(data.prompts(number), 2**31 + number, module.frozen.reference).scores)
    whole = torch.cat(scores)[:20].double()
    assert (moments.of, moments.seen) == ("reference", 20)
    assert moments.mean == pytest.approx(whole.mean().item(), rel=1e-5)
    assert moments.deviation == pytest.approx(whole.std(unbiased=False).item(), rel=1e-4)
    for stage in ("objective", "val"):
        score, optimised = (trainer.logger.values(f"{stage}/{name}")[-1] for name in ("score", "optimised_score"))
        assert optimised == pytest.approx((score - moments.mean) / moments.deviation, abs=1e-4)
        assert abs(score - optimised) > 0.1
    scored = module._score(data.prompts(0), 1)
    ends = scored.sequences.lengths[:, None] - 1
    with torch.no_grad():
        last = module.critic.eval().token_values(scored.sequences.tokens).gather(1, ends)[:, 0]
    torch.testing.assert_close(last, moments.normalised(scored.scores), atol=1e-3, rtol=1e-3)
    assert module.frontier[-1][1] == pytest.approx(trainer.logger.values("val/score")[-1])


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


def test_running_moments_are_of_all_rollouts_so_far(fit, ppo):
    module, data = ppo(scores=ScoresConfig(normalise="running"), missing_eos_score=None, optimizer=adam(1e-2))
    score, seen = module._score, []

    def watched(batch, draw, policy=None):
        found = score(batch, draw, policy)
        seen.extend([found.scores] if draw != VALIDATION else [])
        return found

    module._score = watched
    trainer = fit(module, data, max_epochs=3)
    whole = torch.cat(seen).double()
    moments = module.shaping.moments
    assert (moments.seen, len(seen)) == (24, 3)
    assert moments.mean == pytest.approx(whole.mean().item())
    assert moments.deviation == pytest.approx(whole.std(unbiased=False).item())
    first = trainer.logger.values("objective/optimised_score")[0]
    assert first == pytest.approx(0.0, abs=1e-5), "of its own moments, the present rollout among them"


def test_before_the_first_rollout_running_moments_have_no_scale(fit, ppo):
    """What validation says of optimised scores then would be of other units than all that follows."""
    shaped = {f"val/{prefix}{name}" for prefix in ("", "ema/") for name in ("optimised_score", "reward")}

    class Told(L.Callback):
        def on_validation_end(self, trainer, module):
            self.names = [*getattr(self, "names", []), {"val/score", *shaped} & {*trainer.callback_metrics}]

    for normalise, before in (("running", set()), ("reference", shaped), (None, shaped)):
        module, data = ppo(scores=ScoresConfig(normalise=normalise), ema=EMAConfig())
        fit(module, data, num_sanity_val_steps=-1, callbacks=[told := Told()])
        assert told.names == [{"val/score", *before}, {"val/score", *shaped}]


def test_each_term_of_a_sum_is_logged_and_together_they_are_the_score(fit, ppo, micro, functions):
    terms = [RewardSource(function="toy_rewards:length", weight=-0.5), RewardSource(str(micro.reward))]
    logged = fit(*ppo(rewards=terms)).logger
    for room in ("objective", "val"):
        (length,), (model,) = (logged.values(f"{room}/score/{name}") for name in ("length", micro.reward.name))
        assert length < 0
        assert logged.values(f"{room}/score") == pytest.approx([length + model], rel=1e-5)


def test_a_clip_and_a_length_penalty_reach_what_is_optimised(fit, ppo):
    module, data = ppo(scores=ScoresConfig(clip=0.5, length_penalty=0.25, free_length=2), missing_eos_score=None)
    trainer = fit(module, data, limit_val_batches=0)
    scored = module._score(data.prompts(0), 1)
    expected = scored.scores.clamp(-0.5, 0.5) - 0.25 * (scored.mask.sum(1) - 2).clamp_min(0)
    assert trainer.logger.values("objective/optimised_score") == [pytest.approx(expected.mean().item(), abs=1e-5)]
    assert trainer.logger.values("objective/score") == [pytest.approx(scored.scores.mean().item(), abs=1e-5)]


def test_what_normalises_nothing_is_refused(ppo):
    with pytest.raises(
        UserError, match=r"^scores\.samples: found 9, expected it left at 256: scores\.normalise is not r"
    ):
        ppo(scores=ScoresConfig(samples=9, normalise="running"))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_minibatches_that_are_whitened_by_themselves_have_their_own_mean_advantage(fit, ppo, accumulate):
    """At ratio 1 a policy's loss is minus the mean of its advantages: 0 for each minibatch, whatever its micro-batches,
    and not so where all are whitened together.
    """

    def losses(**how):
        module, data = ppo(episodes=32, minibatches=2, optimizer=adam(0.0), **how)
        return fit(module, data, limit_val_batches=0, accumulate_grad_batches=accumulate).logger.values("loss/policy")

    assert losses(whiten_over="minibatch") == pytest.approx([0.0, 0.0], abs=1e-5)
    assert max(map(abs, losses())) > 1e-3
    with pytest.raises(
        UserError, match=r"^model\.init_args\.whiten_over: found 'minibatch', expected minibatches of at least 8 "
    ):
        fit(*ppo(episodes=8, minibatches=2, whiten_over="minibatch"))


@pytest.mark.parametrize("normalise", ["running", "reference"])
def test_a_run_with_moments_goes_on_inside_an_iteration(fit, ppo, micro, tmp_path, normalise):
    """Moments, critic's units, stop tokens and minibatches of their own: to the bit what was not cut off."""
    ends = []
    for checkpoint in (None, tmp_path / "checkpoints" / "step=00000003.ckpt"):
        module, data = ppo(
            episodes=16, minibatches=2, ppo_epochs=2, optimizer=adam(1e-2),
            scores=ScoresConfig(normalise=normalise, clip=2.0),
            sampling=SamplingConfig(stop=["o", "<|endoftext|>"], truncate_after=2),
            whiten_over="minibatch", whiten_rewards=True,
        )  # fmt: skip
        callbacks = [ExactCheckpoint(3, keep=100)]
        trainer = fit(module, data, max_epochs=2, callbacks=callbacks, enable_checkpointing=True, ckpt_path=checkpoint)
        assert trainer.global_step == 8
        ends.append((weights(module), module.shaping.moments, module.frontier))
    assert distance(ends[0][0], ends[1][0]) == 0.0
    assert ends[0][1:] == ends[1][1:]
    assert ends[0][1].seen == {"running": 32, "reference": 256}[normalise]


def test_a_resumed_run_normalises_as_its_recipe_says_now(fit, ppo, tmp_path):
    """From running moments to the reference's: found anew, and the critic's values keep their meaning."""
    module, data = ppo(scores=ScoresConfig(normalise="running"), optimizer=adam(0.0))
    trainer = fit(module, data, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    other, data = ppo(scores=ScoresConfig(normalise="reference", samples=16), optimizer=adam(0.0))
    fit(other, data, max_epochs=2, ckpt_path=tmp_path / "one.ckpt")
    before, after = module.shaping.moments, other.shaping.moments
    assert (before.of, after.of, after.seen) == ("running", "reference", 16)
    tokens = data.prompts(0).tokens
    with torch.no_grad():
        then, now = (of.critic.eval().token_values(tokens) for of in (module, other))
    torch.testing.assert_close(
        now * after.deviation + after.mean, then * before.deviation + before.mean, atol=1e-3, rtol=1e-3
    )


@pytest.fixture
def asked(tmp_path, micro):
    """A file of prompts, each with the answer that is wanted."""
    rows = [{"prompt": f"the film {i}", "answer": f"{i % 7}"} for i in range(60)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "asked.jsonl")


def test_a_function_gets_the_column_of_each_prompts_own_row(fit, ppo, functions, asked):
    """Through shuffling, training and validation; and prompts of fit, validation and prediction alike."""
    seen = []

    def score(prompts, responses, answer):
        seen.extend(zip(prompts, answer, strict=True))
        return [float(a) for a in answer]

    sys.modules["toy_rewards"].known = score
    module, data = ppo(rewards="toy_rewards:known", monitors={"again": RewardSource(function="toy_rewards:known")})
    data.train_source, data.validation_fraction = asked, 0.3
    trainer = fit(module, data, max_epochs=3)
    found = dict(trainer.callback_metrics)
    rows = trainer.predict(module, data)
    assert len(seen) > 60
    assert len(dict(seen)) > 20
    assert all(answer == str(int(prompt.split()[-1]) % 7) for prompt, answer in seen)
    assert all(row["score"] == int(row["prompt"].split()[-1]) % 7 for batch in rows for row in batch)
    assert found["val/again"] == found["val/score"]


def test_a_column_that_is_not_there_is_refused_before_the_first_answer(fit, ppo, functions, asked):
    sys.modules["toy_rewards"].wrong = lambda prompts, responses, anser: [0.0] * len(prompts)
    module, data = ppo(rewards="toy_rewards:wrong")
    data.train_source = asked
    module._score = None
    line = r"^rewards: toy_rewards:wrong asks for 'anser', expected .*prompt_token_ids, answer; did you mean answer\?$"
    with pytest.raises(UserError, match=line):
        fit(module, data)


def test_a_reward_model_of_another_tokenizer_rewards_through_text(fit, ppo, micro, tmp_path, caplog):
    """The critic begins as the policy, whose tokens it reads; a prompt that leaves no room is refused at the start."""
    other = Tokenizer.train(["the film is good and this plot is bad"] * 5, 290)
    save_pretrained(tmp_path / "foreign", shaken(RewardModel(micro.config()), 3), tokenizer_json=other.to_json())
    module, data = ppo(rewards=str(tmp_path / "foreign"))
    trainer = fit(module, data)
    assert math.isfinite(trainer.callback_metrics["val/score"].item())
    assert module.learners.critic_folder == str(micro.gpt)
    assert sum("its tokenizer is not the policy's" in line for line in caplog.messages) == 1
    module, data = ppo(rewards=str(tmp_path / "foreign"))
    rows = [{"prompt": f"{i}" + " its cast" * 4} for i in range(60)]
    (tmp_path / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data.train_source = str(tmp_path / "odd.jsonl")
    with pytest.raises(UserError, match=r"foreign: found \d\d of its tokens of the prompt '\d+ its cast its cast"):
        fit(module, data)
