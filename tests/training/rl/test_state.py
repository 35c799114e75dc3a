"""What a PPO run writes down of itself, read again or refused."""

import math

import lightning.pytorch as L
import pytest
import torch
from ppo_variants import FLAT, VARIANTS, adam, distance, weights

from gpt_modules.errors import UserError
from gpt_modules.training.callbacks.checkpointing import ExactCheckpoint
from gpt_modules.training.callbacks.resuming import Resumption
from gpt_modules.training.hyperparameters import typed
from gpt_modules.training.rl.scores import Moments, ScoresConfig
from gpt_modules.training.rl.settings import CriticConfig, EMAConfig, KLConfig, SamplingConfig
from gpt_modules.training.rl.state import (
    expect_rest_before,
    expect_same_models,
    expect_same_penalty,
    expect_same_rollout,
    read_state,
)

MOMENTS = {"of": None, "seen": 0, "mean": 0.0, "squares": 0.0}
STATE = {
    "iteration": -1,
    "rested": 0,
    "kl_coef": 0.0,
    "frontier": [],
    "frozen": {},
    "experience": None,
    "steps": [0, False],
    "average": None,
    "moments": MOMENTS,
}

BETWEEN = {"position": 0, "parts": [2, 2, 1, 0], "rollout": None}
INSIDE = BETWEEN | {"position": 1, "rollout": {"tokens": torch.zeros(2, 3), "prompt_lengths": torch.zeros(2)}}
INSIDE["rollout"] |= dict.fromkeys(("responses", "mask", "logprobs", "advantages"), torch.zeros(2, 3))


def test_it_is_read_as_it_was_written():
    written = {
        "steps": [3, True],
        "rested": 2,
        "average": None,
        "kl_coef": 0.25,
        "frontier": [[0.5, 1.5]],
        "frozen": {"runs/reward": "ab", "f": None},
    }
    place = {"position": 0, "parts": [2, 2, 1, 0], "rollout": None}
    for iteration, experience in ((-1, None), (-1, place), (3, place)):
        moments = {"of": "running", "seen": 8, "mean": -0.5, "squares": 2.0}
        state = {"iteration": iteration, **written, "experience": experience, "moments": moments}
        found = read_state({"ppo": state, "epoch": 4})
        seen = Moments("running", 8, -0.5, 2.0)
        assert found == (iteration, 2, 0.25, [(0.5, 1.5)], written["frozen"], experience, (3, True), None, seen)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (None, "--ckpt_path: found no state of PPO in it, expected a checkpoint of this procedure"),
        ({"iteration": -2}, "ppo: iteration: found -2, expected a whole number in [-1, inf)"),
        ({"iteration": 0.5}, "ppo.iteration: found 0.5, expected a whole number"),
        ({"kl_coef": -0.1}, "ppo: kl_coef: found -0.1, expected a number in [0, inf)"),
        ({"rested": -1}, "ppo.rested: found -1, expected a whole number from 0"),
        ({"steps": [-1, False]}, "ppo.steps[1]: found -1, expected a whole number from 0"),
        ({"average": []}, "ppo.average: found [], expected "),
        ({"moments": {"of": "ever"}}, "ppo.moments.of: found 'ever', expected"),
        ({"moments": MOMENTS | {"mean": math.nan}}, "ppo.moments.mean: found nan, expected"),
        ({"moments": MOMENTS | {"squares": -1.0}}, "ppo: moments.squares: found -1.0, expected a number in [0, inf)"),
        ({"iteration": 0}, "ppo: experience: found None, expected a mapping of keys"),
        (
            {"experience": {"position": 3, "parts": [1, 1, 1, 0], "rollout": None}},
            "ppo: experience.position: found 3, ",
        ),
    ],
)
def test_a_state_that_is_none_of_ppos_is_told(changes, line):
    with pytest.raises(UserError) as error:
        read_state({} if changes is None else {"ppo": STATE | changes})
    assert str(error.value).startswith(line)


@pytest.mark.parametrize(
    ("names", "has_critic", "line"),
    [
        (
            ["policy.a", "critic.a"],
            False,
            "found a critic in it, expected no critic for model.estimator.name",
        ),
        (["policy.critic"], True, "found no critic in it, expected a critic for model.estimator.name"),
    ],
)
def test_a_run_that_had_a_critic_goes_on_with_one(names, has_critic, line):
    expect_same_models(names, not has_critic)
    with pytest.raises(UserError) as error:
        expect_same_models(names, has_critic)
    assert str(error.value).startswith(f"--ckpt_path: {line}; begin a new run")


def test_a_critic_does_not_warm_up_once_the_policy_has_learned():
    """Three iterations of two steps, the first of which was the critic's alone; or all of them."""
    resting, learning = (read_state({"ppo": STATE | {"iteration": 2, "rested": rested, "experience": BETWEEN}})
                         for rested in (6, 2))  # fmt: skip
    for state, warmup in ((resting, 9), (learning, 3), (learning, 0), (read_state({"ppo": STATE}), 5)):
        expect_rest_before(state, warmup, 2 * (state.iteration + 1))
    with pytest.raises(UserError, match=r"^critic\.warmup: found 4, in the middle of a run .* expected at most 3, the"):
        expect_rest_before(learning, 4, 6)


def test_an_update_goes_on_with_the_penalty_that_its_rollout_was_made_for():
    ends, bare = BETWEEN, {"position": 1, "parts": [2, 2, 1, 0]}
    cells, rollout = torch.zeros(2, 3), INSIDE["rollout"]
    for loss in (None, "k2", "k3"):
        expect_same_penalty(None, loss)
        expect_same_penalty(ends, loss)
    expect_same_penalty(bare | {"rollout": rollout}, None)
    expect_same_penalty(bare | {"rollout": rollout | {"ref_logprobs": cells}}, "k2")
    for fields, loss, told in (
        (rollout, "k3", "k3, expected null"),
        ({"ref_logprobs": cells} | rollout, None, "null, exp"),
    ):
        with pytest.raises(UserError, match=rf"^--ckpt_path: found kl\.loss: {told}.* inside an iteration; change it"):
            expect_same_penalty(bare | {"rollout": fields}, loss)


MADE = {"temperature": 1.0, "whiten_over": "rollout", "estimator": {"name": "rloo", "mean_over": "answers"}, "seed": 3}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"temperature": 0.7}, "temperature: 0.7, expected 1.0"),
        ({"whiten_over": "minibatch"}, "whiten_over: minibatch, expected rollout"),
        ({"estimator": {"name": "grpo"}}, "estimator.name: grpo, expected rloo"),
        ({"seed": 4}, "seed: 4, expected 3"),
    ],
)
def test_an_update_goes_on_with_what_its_rollout_was_made_with(change, told):
    with pytest.raises(UserError) as error:
        expect_same_rollout(INSIDE, MADE, MADE | change)
    ends = "as the checkpoint was written inside an iteration; change it from one between iterations"
    assert str(error.value) == f"--ckpt_path: found {told} {ends}"
    for elsewhere in (None, BETWEEN):
        expect_same_rollout(elsewhere, MADE, MADE | change)


def test_what_the_next_rollout_or_the_next_step_alone_follows_may_change_at_once():
    free = {"lam": 0.5, "clip": {"ratio": 0.1}, "estimator": {"name": "rloo", "mean_over": "tokens"}}
    expect_same_rollout(INSIDE, MADE, MADE | free)


def test_a_checkpoint_that_does_not_say_how_its_rollout_was_made_is_refused():
    for unknown in (None, {}, {"temperature": 1.0}):
        with pytest.raises(UserError, match=r"^--ckpt_path: found \w+: [\w.]+, expected None as "):
            expect_same_rollout(INSIDE, unknown, MADE)


# --- in a run ---


def test_another_temperature_begins_with_a_rollout(fit, ppo, tmp_path):
    """The newest checkpoint lies between the steps of one: its log-probabilities are those of 1.0."""
    shape = {"minibatches": 2, "ppo_epochs": 2}
    fit(*ppo(**shape), max_epochs=2, callbacks=[ExactCheckpoint(1, keep=100)], enable_checkpointing=True)
    inside, between = (tmp_path / "checkpoints" / f"step={step:08}.ckpt" for step in (3, 4))
    with pytest.raises(UserError, match=r"^--ckpt_path: found temperature: 0\.7, expected 1\.0 as the checkpoint was"):
        fit(*ppo(**shape, temperature=0.7), max_epochs=2, ckpt_path=inside)
    module, data = ppo(**shape, temperature=0.7)
    trainer = fit(module, data, max_epochs=2, ckpt_path=between)
    # Before any step on it a ratio is 1, which the first minibatch's is at one temperature alone.
    assert trainer.logger.values("policy/ratio")[0] == pytest.approx(1.0, abs=1e-5)
    trainer.validate(*ppo(**shape, temperature=0.7), ckpt_path=inside, verbose=False, weights_only=True)


def test_a_checkpoint_with_a_critic_is_none_of_an_estimator_without(fit, ppo, tmp_path):
    for name in ("plain", "rloo"):
        fit(*ppo(**VARIANTS[name])).save_checkpoint(tmp_path / f"{name}.ckpt")
    for name, resumed in (("plain", "rloo"), ("rloo", "plain")):
        with pytest.raises(UserError, match=r"^--ckpt_path: found (a|no) critic in it, expected (a|no) critic for mod"):
            fit(*ppo(**VARIANTS[resumed]), max_epochs=2, ckpt_path=tmp_path / f"{name}.ckpt")
    trainer = fit(*ppo(**VARIANTS["grpo"]), max_epochs=2, ckpt_path=tmp_path / "rloo.ckpt")
    assert trainer.logger.values("loss/kl"), "between iterations a run goes on by another without a critic"


def test_the_coefficient_and_the_iteration_are_restored(fit, ppo, tmp_path):
    settings = {"kl": KLConfig(coef=0.1, target=1e6, horizon=100), "schedule": FLAT}
    module, data = ppo(**settings)
    fit(module, data, max_epochs=2).save_checkpoint(tmp_path / "x.ckpt")
    again, data = ppo(**settings)
    trainer = fit(again, data, max_epochs=3, ckpt_path=tmp_path / "x.ckpt")
    assert trainer.logger.values("objective/iteration") == [2.0]
    assert trainer.logger.values("objective/kl_coef") == pytest.approx([0.1 * (1 - 0.2 * 8 / 100) ** 2])


def test_a_run_goes_on_with_the_form_of_critic_that_it_began_with(fit, ppo, tmp_path):
    fit(*ppo(), callbacks=[Resumption()]).save_checkpoint(tmp_path / "x.ckpt")
    shared = ppo(critic=CriticConfig(shared_trunk=True))
    with pytest.raises(UserError, match=r"model\.critic\.shared_trunk: found True, expected the checkpoint's False"):
        fit(*shared, callbacks=[Resumption()], max_epochs=2, ckpt_path=tmp_path / "x.ckpt")


def test_a_run_with_an_average_does_not_go_on_without_one(fit, ppo, tmp_path, caplog):
    """Nor does a run that is refused say that it goes on."""
    fit(*ppo(), callbacks=[Resumption()]).save_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=r"model\.ema: found ema in the recipe, expected none, as"):
        fit(*ppo(ema=EMAConfig()), callbacks=[Resumption()], max_epochs=2, ckpt_path=tmp_path / "x.ckpt")
    assert "going on" not in caplog.text


def test_a_checkpoint_built_in_python_is_plain_data(fit, ppo, tmp_path):
    fit(*ppo(kl=KLConfig(target=6.0))).save_checkpoint(tmp_path / "x.ckpt")
    stored = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert stored["hyper_parameters"]["kl"] == {"coef": 0.05, "target": 6.0, "horizon": 10_000, "loss": None}
    assert typed(KLConfig, stored["hyper_parameters"]["kl"]) == KLConfig(target=6.0)


@pytest.mark.parametrize(
    ("variant", "apart"), [({}, False), *((variant, True) for variant in VARIANTS.values())], ids=["same", *VARIANTS]
)
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


def test_a_fixed_coefficient_is_the_recipes_after_resuming(fit, ppo, tmp_path):
    fit(*ppo(kl=KLConfig(coef=0.1))).save_checkpoint(tmp_path / "x.ckpt")
    trainer = fit(*ppo(kl=KLConfig(coef=0.3)), max_epochs=2, ckpt_path=tmp_path / "x.ckpt")
    assert trainer.logger.values("objective/kl_coef") == [0.3]


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
