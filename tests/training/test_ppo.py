"""PPO from end to end on a micro model: what must hold exactly, and that reward rises."""

import dataclasses
import types

import lightning.pytorch as L
import pytest
import torch
from conftest import shaken
from ppo_variants import (
    BARE,
    FLAT,
    VARIANTS,
    WITH_A_CRITIC,
    adam,
    distance,
    each_variant,
    one_iteration,
    weights,
    without_bounds,
)

from gpt_modules.backbone import GPT, LoRAConfig, save_pretrained
from gpt_modules.backbone.decoder import Decoder
from gpt_modules.training import ppo as ppo_module
from gpt_modules.training import processes
from gpt_modules.training.callbacks.dashboard import ppo_layout
from gpt_modules.training.optimizers import ScheduleConfig
from gpt_modules.training.rl.experience import Experience
from gpt_modules.training.rl.rewards import RewardSource
from gpt_modules.training.rl.settings import ClipConfig, KLConfig
from gpt_modules.training.rl.shaping import Cut

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


def test_a_module_is_opened_from_a_checkpoint_without_a_trainer(fit, ppo, tmp_path):
    """In the order of Lightning's `load_from_checkpoint`. It measures as the one that wrote it; what is frozen is
    opened then.
    """
    module, data = ppo(episodes=16, minibatches=4)
    trainer = fit(module, data, max_steps=2, limit_val_batches=1)
    trainer.save_checkpoint(tmp_path / "of_lightning.ckpt")
    checkpoint = torch.load(tmp_path / "of_lightning.ckpt", weights_only=True)
    opened, _ = ppo(episodes=16, minibatches=4)
    opened.configure_model()
    opened.on_load_checkpoint(checkpoint)
    opened.load_state_dict(checkpoint["state_dict"])
    assert all(torch.equal(found, own) for found, own in zip(opened.parameters(), module.parameters(), strict=True))
    quiet = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
    opened_says, own = (L.Trainer(**quiet).validate(of, datamodule=data, verbose=False) for of in (opened, module))
    assert opened_says == own


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=2)], ids=["full", "lora"])
@pytest.mark.parametrize("family", TODAY)
def test_a_policy_of_todays_decoders_is_sampled_scored_and_trained_as_one(fit, ppo, micro, tmp_path, family, lora):
    """The sampler, the scoring pass and the minibatches say the same of every token; the reference is the base."""
    torch.manual_seed(0)
    save_pretrained(tmp_path / "m", GPT(micro.config(**TODAY[family])), tokenizer_json=micro.tokenizer.to_json())
    module, data = ppo(episodes=16, minibatches=4, init_from=str(tmp_path / "m"), lora=lora)
    trainer = fit(module, data, limit_val_batches=0)
    assert trainer.logger.values("policy/ratio")[0] == pytest.approx(1.0, abs=1e-4)
    assert trainer.logger.values("policy/approx_kl")[0] == pytest.approx(0.0, abs=1e-7)
    assert trainer.logger.values("policy/approx_kl")[-1] > 0


@each_variant
def test_the_first_minibatch_has_ratio_one(fit, ppo, variant):
    """Although the folder stores dropout 0.3, and at a temperature that is not 1."""
    module, data = ppo(episodes=16, minibatches=4, temperature=0.5, **variant)
    trainer = fit(module, data, limit_val_batches=0, **one_iteration(module))
    first = {name: trainer.logger.values(f"policy/{name}")[0] for name in ("ratio", "approx_kl", "clip_fraction")}
    assert first["ratio"] == pytest.approx(1.0, abs=1e-4)
    assert first["approx_kl"] == pytest.approx(0.0, abs=1e-7)
    assert first["clip_fraction"] == 0.0
    assert trainer.logger.values("value/clip_fraction")[:1] == ([0.0] if module.recipe.estimator.has_critic else [])
    assert trainer.logger.values("loss/kl")[:1] == ([pytest.approx(0.0, abs=1e-7)] if module.recipe.kl.loss else [])


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
    logger = fit(module, data, limit_val_batches=0, **one_iteration(module)).logger
    assert logger.values("policy/entropy") == pytest.approx(logger.values("objective/entropy"), abs=1e-5)
    assert logger.values("loss/policy") == pytest.approx([0.0], abs=1e-5)
    rollout = module.rollout
    squares = (rollout.returns - rollout.values)[rollout.mask].square()
    assert logger.values("loss/value") == pytest.approx([0.5 * squares.mean().item()], rel=1e-4)


@each_variant
def test_kl_is_zero_until_the_policy_has_learnt_and_not_afterwards(fit, ppo, variant):
    module, data = ppo(optimizer=adam(1e-2), **without_bounds(variant))
    trainer = fit(module, data, max_epochs=3, limit_val_batches=0)
    still = 1 + module.recipe.critic.warmup
    kl = trainer.logger.values("objective/kl")
    assert kl[:still] == [0.0] * still
    assert abs(kl[still]) > 1e-4


@pytest.mark.parametrize(("target", "direction"), [(1e6, -1), (1e-6, 1)])
def test_an_adaptive_coefficient_steers_towards_its_target(fit, ppo, target, direction):
    """At the first iteration the KL is 0, below any target; then the coefficient follows the measured KL."""
    kl = KLConfig(coef=0.1, target=target, horizon=100)
    trainer = fit(*ppo(kl=kl, optimizer=adam(3e-2), schedule=FLAT, episodes=16), max_epochs=3, limit_val_batches=0)
    used, measured = (trainer.logger.values(f"objective/{name}") for name in ("kl_coef", "kl"))
    assert used[0] == pytest.approx(0.1)
    assert used[1] == pytest.approx(0.1 * (1 - 0.2 * 16 / 100))
    assert measured[1] > 0.01, "the policy has moved"
    assert used[2] == pytest.approx(used[1] * (1 + direction * 0.2 * 16 / 100))


def test_a_fixed_coefficient_stays(fit, ppo):
    trainer = fit(*ppo(kl=KLConfig(coef=0.07), optimizer=adam(3e-2)), max_epochs=3, limit_val_batches=0)
    assert trainer.logger.values("objective/kl_coef") == pytest.approx([0.07] * 3)


def test_more_ppo_epochs_move_the_policy_further(fit, ppo):
    moved = []
    for epochs in (1, 2, 4):
        module, data = ppo(ppo_epochs=epochs, optimizer=adam(1e-3), schedule=FLAT)
        fit(module, data, limit_val_batches=0)
        moved.append(distance(weights(module.policy), weights(module.frozen.reference)))
    assert moved[0] < moved[1] < moved[2]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_optimizer_steps_are_iterations_times_epochs_times_minibatches(fit, ppo, accumulate):
    trainer = fit(
        *ppo(ppo_epochs=2, minibatches=3, episodes=12),
        max_epochs=2,
        accumulate_grad_batches=accumulate,
        limit_val_batches=0,
    )
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
        settings = {"accumulate_grad_batches": accumulate, "limit_val_batches": 0}
        trainer = fit(module, data, **settings, **one_iteration(module, seen))
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

    fit(module, data, callbacks=[Watch()], limit_val_batches=0)
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


class Writer:
    """TensorBoard's, that remembers."""

    def __init__(self):
        self.figures, self.layouts = [], []

    def add_figure(self, *figure):
        self.figures.append(figure)

    def add_custom_scalars(self, layout):
        self.layouts.append(layout)


def letters(prompts, responses):
    return [float(len(response)) for response in responses]


def test_a_run_is_seen_as_a_dashboard_and_as_reward_against_kl(fit, ppo, micro, monkeypatch):
    """A point of the frontier for each validation of a fit, and none for its rehearsal or one that is asked for."""
    writer = Writer()
    monkeypatch.setattr(ppo_module, "tensorboard", lambda trainer: writer)
    monkeypatch.setattr(ppo_module, "frontier_figure", lambda kl, score: list(zip(kl, score, strict=True)))
    said = RewardSource(function=f"{__name__}:letters")
    sources = {"rewards": [RewardSource(folder=str(micro.reward)), said], "monitors": {"watched": said}}
    module, data = ppo(**sources, optimizer=adam(1e-2), minibatches=2)
    trainer = fit(module, data, max_epochs=2, num_sanity_val_steps=2)
    pairs = list(zip(*(trainer.logger.values(f"val/{name}") for name in ("kl", "score")), strict=True))
    assert len(set(pairs)) == 2
    assert writer.layouts == [ppo_layout(True, ["reward", "letters"], ["watched"])]
    assert [(tag, step) for tag, _, step in writer.figures] == [("val/score_against_kl", step) for step in (2, 4)]
    assert writer.figures[1][1] == [pytest.approx(pair) for pair in pairs]
    trainer.validate(module, data, verbose=False)
    assert module.frontier == [pytest.approx(list(pair)) for pair in pairs]


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
        assert trainer.callback_metrics[name] == pytest.approx(trainer.logger.values(f"objective/{name}")[-1])
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


def test_the_schedule_is_the_recipes(fit, ppo):
    module, data = ppo(minibatches=4, optimizer=adam(1e-3), schedule=ScheduleConfig(shape="linear", final=0.0))

    class Rates(L.Callback):
        def __init__(self):
            self.seen = []

        def on_train_batch_end(self, trainer, module, *_):
            self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    rates = Rates()
    fit(module, data, callbacks=[rates], limit_val_batches=0)
    assert rates.seen == sorted(rates.seen, reverse=True)
    assert len(set(rates.seen)) == 4


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
