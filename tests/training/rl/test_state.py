"""What a PPO run writes down of itself, read again or refused."""

import math

import pytest
import torch

from gpt_modules.errors import UserError
from gpt_modules.training.rl.scores import Moments
from gpt_modules.training.rl.state import expect_same_models, expect_same_penalty, read_state

MOMENTS = {"of": None, "seen": 0, "mean": 0.0, "squares": 0.0}
STATE = {
    "iteration": -1,
    "kl_coef": 0.0,
    "frontier": [],
    "frozen": {},
    "experience": None,
    "steps": [0, False],
    "average": None,
    "moments": MOMENTS,
}


def test_it_is_read_as_it_was_written():
    written = {
        "steps": [3, True],
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
        assert found == (iteration, 0.25, [(0.5, 1.5)], written["frozen"], experience, (3, True), None, seen)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (None, "--ckpt_path: found no state of PPO in it, expected a checkpoint of this procedure"),
        ({"iteration": -2}, "ppo: iteration: found -2, expected a whole number in [-1, inf)"),
        ({"iteration": 0.5}, "ppo.iteration: found 0.5, expected a whole number"),
        ({"kl_coef": -0.1}, "ppo: kl_coef: found -0.1, expected a number in [0, inf)"),
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
            "found a critic in it, expected no critic for model.init_args.estimator.name",
        ),
        (["policy.critic"], True, "found no critic in it, expected a critic for model.init_args.estimator.name"),
    ],
)
def test_a_run_that_had_a_critic_goes_on_with_one(names, has_critic, line):
    expect_same_models(names, not has_critic)
    with pytest.raises(UserError) as error:
        expect_same_models(names, has_critic)
    assert str(error.value).startswith(f"--ckpt_path: {line}; begin a new run")


def test_an_update_goes_on_with_the_penalty_that_its_rollout_was_made_for():
    cells, bare = torch.zeros(2, 3), {"position": 1, "parts": [2, 2, 1, 0]}
    rollout = {"tokens": cells, "prompt_lengths": cells[:, 0]}
    rollout |= dict.fromkeys(("responses", "mask", "logprobs", "advantages"), cells)
    ends = {"position": 0, "parts": [2, 2, 1, 0], "rollout": None}
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
