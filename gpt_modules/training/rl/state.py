"""What a checkpoint says of a PPO run beside weights and optimizer."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from gpt_modules.errors import UserError
from gpt_modules.storage.documents import Count, typed
from gpt_modules.training.hyperparameters import expect_number
from gpt_modules.training.rl.experience import read_place
from gpt_modules.training.rl.scores import Moments

_OF_ROLLOUT = (
    "temperature",  # its old log-probabilities are those of no other
    "whiten_over",  # whether its advantages are white as they lie there
    "estimator.name",  # what made them, and what the loss is a mean over
    "seed",  # which of its rows the rest of a pass has
)


class State(NamedTuple):
    """The place of a run.

    iteration: of the latest rollout, from 0; -1 before the first.
    rested: optimizer steps of the iterations up to that one in which the critic alone learned.
    kl_coef: weight of the penalty in the next one.
    frontier: KL and score of each validation.
    frozen: SHA-256 of what the run reads and never trains.
    experience: `ExperienceLoader.state`; None before any fit, which makes the loader.
    steps: optimizer steps taken in this iteration, and whether the rest are left out.
    average: `Average.state`; None in a run that keeps none.
    moments: of the scores that were seen, by which they are normalised.
    """

    iteration: int
    rested: Count
    kl_coef: float
    frontier: list[tuple[float, float]]
    frozen: dict[str, str | None]
    experience: dict[str, Any] | None
    steps: tuple[Count, bool]
    average: dict[str, Any] | None
    moments: Moments

    def document(self) -> dict[str, Any]:
        """As plain data."""
        return self._asdict() | {"moments": self.moments._asdict()}


def read_state(checkpoint: Mapping[str, Any]) -> State:
    """The state under `ppo` of a checkpoint, while a line can name its file.

    Raises:
        UserError: there is none, or it is no such state; with the key.
    """
    if "ppo" not in checkpoint:
        raise UserError("--ckpt_path: found no state of PPO in it, expected a checkpoint of this procedure")
    state: State = typed(State, checkpoint["ppo"], "ppo")
    expect_number("ppo: iteration", state.iteration, "[-1, inf)", whole=True)
    expect_number("ppo: kl_coef", state.kl_coef, "[0, inf)")
    expect_number("ppo: moments.squares", state.moments.squares, "[0, inf)")
    if state.iteration != -1 or state.experience is not None:
        read_place(state.experience)
    return state


def expect_same_models(weights: Iterable[str], has_critic: bool) -> None:
    """A run goes on with the models that it has trained.

    Args:
        weights: names in the checkpoint.
        has_critic: whether the recipe's estimator has one.

    Raises:
        UserError: the checkpoint has a critic and the recipe none, or the other way round.
    """
    had = any(name.startswith("critic.") for name in weights)
    if had != has_critic:
        then, now = ("a critic" if one else "no critic" for one in (had, has_critic))
        raise UserError(
            f"--ckpt_path: found {then} in it, expected {now} for model.estimator.name; begin a new run "
            "whose init_from is what this one exported"
        )


def expect_same_penalty(experience: Mapping[str, Any] | None, loss: str | None) -> None:
    """A rollout in the middle of its update has what the loss needs.

    Args:
        experience: of a `State`.
        loss: kl.loss of the recipe.

    Raises:
        UserError: the penalty was in the reward and is now in the loss, or the other way round.
    """
    rollout = None if experience is None else read_place(experience).rollout
    if rollout is not None and ("ref_logprobs" in rollout) != (loss is not None):
        raise UserError(
            f"--ckpt_path: found kl.loss: {loss or 'null'}, expected {'null' if loss else 'k2 or k3'} as the "
            "checkpoint was written inside an iteration; change it from one between iterations"
        )


def expect_same_rollout(
    experience: Mapping[str, Any] | None, before: Mapping[str, Any] | None, now: Mapping[str, Any]
) -> None:
    """The rest of an update reads a rollout as it was made; what else changes holds from the next one, or for steps
    that are still to be taken: a learning rate, a clip.

    Args:
        experience: of a `State`.
        before: the hyper-parameters that the checkpoint was written with.
        now: the recipe's.

    Raises:
        UserError: a setting by which the rollout was made is another, inside an iteration.
    """
    if experience is None or read_place(experience).rollout is None:
        return
    for name in _OF_ROLLOUT:
        found, expected = (_at(values, name) for values in (now, before))
        if found != expected:
            raise UserError(
                f"--ckpt_path: found {name}: {found}, expected {expected} as the checkpoint was written inside an "
                "iteration; change it from one between iterations"
            )


def expect_rest_before(state: State, warmup: int, steps: int) -> None:
    """The critic's warm-up is over once the policy has learned.

    Args:
        steps: optimizer steps that were made.

    Raises:
        UserError: it has, and the recipe's warm-up is not over.
    """
    begun = state.iteration + 1
    if warmup > begun and steps > state.rested:
        found = f"critic.warmup: found {warmup}, in the middle of a run whose policy has learned"
        raise UserError(f"{found}; expected at most {begun}, the iterations that are over")


def _at(value: Any, name: str) -> Any:
    for key in name.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
