"""The loader over an iteration's rollout: epochs of minibatches in a seeded order, resumable in the middle."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor

from gpt_modules.errors import UserError
from gpt_modules.training.rl.rollout import Rollout


class Experience(NamedTuple):
    """A micro-batch of a rollout.

    rollout: its rows.
    normaliser: scalar, what a sum over the micro-batch's tokens is divided by, so that the micro-batches of all ranks
        average to the
        mean over the whole minibatch's tokens.
    """

    rollout: Rollout
    normaliser: Tensor


@runtime_checkable
class Owner(Protocol):
    """What the loader asks of the procedure."""

    rollout: Rollout | None
    iteration: Tensor

    @property
    def device(self) -> torch.device:
        """Where the update runs."""

    def collect(self) -> Rollout:
        """The next iteration's rollout."""


class ExperienceLoader:
    """Yields `epochs x minibatches x accumulate` micro-batches of the owner's current rollout.

    It is a plain iterable with a length: a DataLoader would be given a distributed sampler that drops experience, and
    an iterable
    without a length is prefetched, which takes a batch of the rollout before the update that should precede it.
    Iteration is lazy, as
    Lightning calls `iter` before the rollout exists.
    """

    def __init__(self, owner: Owner, epochs: int, minibatches: int, accumulate: int, seed: int) -> None:
        self.owner = owner
        self.epochs, self.minibatches, self.accumulate = epochs, minibatches, accumulate
        self.seed = seed
        self.position = 0
        self._resumed = False

    def __len__(self) -> int:
        return self.epochs * self.minibatches * self.accumulate

    def __iter__(self) -> Iterator[Experience]:
        resumed, self._resumed = self._resumed, False
        start, rollout = (self.position, self.owner.rollout) if resumed else (0, self.owner.collect())
        assert rollout is not None
        self._check_size(len(rollout.tokens))
        plan = self._plan(len(rollout.tokens))
        normalisers = self._normalisers(rollout, plan)
        for index in range(start, len(self)):
            self.position = index + 1
            rows = plan[index].to(rollout.tokens.device)
            yield Experience(Rollout(*(field[rows] for field in rollout)), normalisers[index // self.accumulate])

    def _check_size(self, episodes: int) -> None:
        parts = self.minibatches * self.accumulate
        if episodes < parts:
            raise UserError(
                f"data.init_args.batch_size: found {episodes} prompts a rollout, expected at least "
                f"minibatches x accumulate_grad_batches = {parts}"
            )

    def _plan(self, episodes: int) -> list[Tensor]:
        """Row numbers of each micro-batch, a function of (seed, iteration)."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + int(self.owner.iteration))
        orders = [torch.randperm(episodes, generator=generator) for _ in range(self.epochs)]
        return [part for order in orders for part in order.tensor_split(self.minibatches * self.accumulate)]

    def _normalisers(self, rollout: Rollout, plan: list[Tensor]) -> Tensor:
        tokens = rollout.mask.sum(1)
        counts = torch.stack([tokens[rows.to(tokens.device)].sum() for rows in plan]).float()
        counts = counts.view(-1, self.accumulate).sum(1)
        world = 1
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
            world = dist.get_world_size()
        return counts / (self.accumulate * world)

    def state(self) -> dict[str, Any]:
        """Position and, inside an iteration, every rank's rollout: a checkpoint holds what rank 0 gives."""
        inside = 0 < self.position < len(self)
        if not inside or self.owner.rollout is None:
            return {"position": 0, "rollouts": None}
        own: Any = [field.cpu() for field in self.owner.rollout]
        rollouts = [own]
        if dist.is_available() and dist.is_initialized():
            rollouts = [None] * dist.get_world_size()
            dist.all_gather_object(rollouts, own)
        return {"position": self.position, "rollouts": rollouts}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where the iteration was cut off."""
        if state["rollouts"] is None:
            return
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        self.owner.rollout = Rollout(*(field.to(self.owner.device) for field in state["rollouts"][rank]))
        self.position, self._resumed = state["position"], True

    def state_dict(self) -> dict[str, Any]:
        """Empty: the place travels with the module. Lightning would store it here but not load it, as the length of the
        run was asked for, and the loader made, before the checkpoint is read. Without this pair of names it warns.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Does nothing; see `state_dict`."""
