"""The loader over an iteration's rollout: epochs of minibatches in a seeded order, resumable in the middle."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import lightning.pytorch as L
import torch
from jaxtyping import Int
from torch import Tensor

from gpt_modules.data.loader import pinned
from gpt_modules.errors import UserError, expect
from gpt_modules.storage.documents import Count, Positive, typed
from gpt_modules.training.rl.ptx import PtxBatch, PtxSteps
from gpt_modules.training.rl.shaping import Cut, Rollout


class Experience(NamedTuple):
    """A micro-batch, named by its rows: half-precision plugins round every float tensor of a batch, and an old
    log-probability in bf16 would make ratios of anything.

    cut: of the owner's rollout, this process's share.
    normaliser: what a sum over the micro-batch's tokens is divided by, so that the micro-batches of all processes
        average to the mean over the whole minibatch's tokens.
    sequences: the same of a sum over its rows.
    """

    cut: Cut
    normaliser: float
    sequences: float

    @property
    def rows(self) -> Tensor:
        """(N,) of the owner's rollout."""
        return self.cut.rows


@runtime_checkable
class Owner(Protocol):
    """What the loader asks of the procedure."""

    rollout: Rollout | None
    iteration: int

    @property
    def device(self) -> torch.device:
        """Where the update runs."""

    @property
    def policy_rests(self) -> bool:
        """Whether the next step leaves the policy as it is, so that it reads no text to learn."""

    def collect(self) -> Rollout:
        """The next iteration's rollout, of the episodes of all processes."""


class Parts(NamedTuple):
    """How a rollout is cut: passes over it, optimizer steps of a pass, micro-batches of a step on each process; and
    micro-batches of pretraining text before those.
    """

    epochs: int
    minibatches: int
    accumulate: int
    ptx: int = 0

    @property
    def micro_batches(self) -> int:
        """Of a step, of either kind."""
        return self.accumulate + self.ptx


class Place(NamedTuple):
    """What a checkpoint says of the loader, see `ExperienceLoader.state`."""

    position: Count
    parts: tuple[Positive, Positive, Positive, Count]
    rollout: dict[str, Any] | None


class ExperienceLoader:
    """Yields `epochs x minibatches` optimizer steps of the owner's current rollout, each in its micro-batches: first
    those of pretraining text, if there is some, then those of experience. The last one brings the processes' gradients
    together, and only experience has a gradient for all that learns.

    Which episodes make a minibatch is a function of (seed, iteration), the same for any number of processes: each takes
    every `world`-th of them.

    It is a plain iterable with a length: a DataLoader would be given a distributed sampler that drops experience, and
    an iterable without a length is prefetched, which takes a batch of the rollout before the update that should precede
    it. Iteration is lazy, as Lightning calls `iter` before the rollout exists.
    """

    def __init__(
        self, owner: Owner, parts: Parts, episodes: int, seed: int, rank: int, world: int, ptx: PtxSteps | None = None
    ) -> None:
        least = parts.minibatches * parts.accumulate * world
        if episodes < least:
            raise UserError(
                f"data.episodes: found {episodes}, expected at least minibatches x accumulate_grad_batches x "
                f"processes = {least}"
            )
        self.owner, self.seed, self.rank, self.world = owner, seed, rank, world
        self.ptx, self.parts = ptx, parts._replace(ptx=0 if ptx is None else ptx.micro_batches)
        self.position = 0
        self.minibatch = Cut(torch.zeros(0, dtype=torch.long), 0, 0)
        """The rows of the optimizer step that the latest micro-batch is of, those of all processes."""
        self._resumed = False

    def __len__(self) -> int:
        return self.parts.epochs * self.parts.minibatches * self.parts.micro_batches

    @property
    def over(self) -> bool:
        """Whether nothing is left of an iteration: the next `iter` begins with a rollout of its own."""
        return not 0 < self.position < len(self)

    def __iter__(self) -> Iterator[Experience | PtxBatch]:
        resumed, self._resumed = self._resumed, False
        start, rollout = (self.position, self.owner.rollout) if resumed else (0, self.owner.collect())
        assert rollout is not None
        tokens = rollout.mask.sum(1).cpu()
        lengths = tokens + rollout.prompt_lengths.cpu()
        plan = self._plan(lengths)

        def cut(rows: Tensor) -> Cut:
            return Cut(rows, int(lengths[rows].max()), int(tokens[rows].max()), int(tokens[rows].sum()))

        for index in range(start, len(self)):
            self.position = index + 1
            step, part = divmod(index, self.parts.micro_batches)
            if self.ptx is not None and part < self.parts.ptx:
                number = self.owner.iteration * self.parts.epochs * self.parts.minibatches + step
                windows = None if self.owner.policy_rests else self.ptx.batch(number, part)
                yield PtxBatch(pinned(windows), self._share(self.ptx.tokens))
            else:
                self.minibatch = pinned(cut(torch.cat(plan[step])))
                assert self.minibatch.tokens is not None
                rows = plan[step][part - self.parts.ptx][self.rank :: self.world]
                shares = self._share(self.minibatch.tokens), self._share(len(self.minibatch.rows))
                yield Experience(pinned(cut(rows)), *shares)

    def _share(self, counted: int) -> float:
        """The normaliser of a step's tokens: Lightning divides by micro-batches, and averages over processes."""
        return counted / (self.parts.micro_batches * self.world)

    def _plan(self, lengths: Int[Tensor, "E"]) -> list[tuple[Tensor, ...]]:
        """Row numbers of all processes together, by step and micro-batch. Within a step, which is the same however its
        rows are cut, those of like length are together: no row is padded to one that is much longer.
        """
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.owner.iteration)
        orders = [torch.randperm(len(lengths), generator=generator) for _ in range(self.parts.epochs)]
        minibatches = [rows for order in orders for rows in order.tensor_split(self.parts.minibatches)]
        sorted_ = [rows[lengths[rows].argsort(stable=True)] for rows in minibatches]
        return [minibatch.tensor_split(self.parts.accumulate) for minibatch in sorted_]

    def state(self) -> dict[str, Any]:
        """The place and, inside an iteration, its rollout."""
        if self.over or self.owner.rollout is None:
            return {"position": 0, "parts": list(self.parts), "rollout": None}
        rollout = {name: field.cpu() for name, field in self.owner.rollout.present().items()}
        return {"position": self.position, "parts": list(self.parts), "rollout": rollout}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where the iteration was cut off, on any number of processes.

        Raises:
            UserError: it was cut into other parts, or it is no place in a rollout.
        """
        found = read_place(state)
        if found.rollout is None:
            return
        if found.parts != self.parts:
            then, now = (" x ".join(map(str, parts[:3])) + f" + {parts[3]}" for parts in (found.parts, self.parts))
            raise UserError(
                f"--ckpt_path: found ppo_epochs x minibatches x accumulate_grad_batches + ptx's = {now}, expected "
                f"{then} as the checkpoint was written inside an iteration; change them from one between iterations"
            )
        self.owner.rollout = Rollout(**{name: field.to(self.owner.device) for name, field in found.rollout.items()})
        self.position, self._resumed = found.position, True

    def state_dict(self) -> dict[str, Any]:
        """Empty: the place travels with the module. Lightning would store it here but not load it, as the length of the
        run was asked for, and the loader made, before the checkpoint is read. Without this pair of names it warns.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Does nothing; see `state_dict`."""


def expect_whole_iterations(trainer: L.Trainer) -> None:
    """An epoch is an iteration: what ends an epoch early leaves a rollout that a resumed run would take for the next
    epoch's, and what loads its data anew in the middle throws one away. Where a run ends (`max_steps`, `max_time`) and
    where it validates is free: it goes on in the same rollout.

    Raises:
        UserError: a key of the Trainer does either.
    """
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return  # which is never resumed
    limit = trainer.limit_train_batches
    cuts = {
        "overfit_batches": bool(trainer.overfit_batches),  # type: ignore[attr-defined]  # sets the limit
        "limit_train_batches": repr(limit) != "1.0" and bool(limit),  # 1 is one batch, 1.0 is all
        "reload_dataloaders_every_n_epochs": bool(trainer.reload_dataloaders_every_n_epochs),  # type: ignore[attr-defined]
    }
    for key in (key for key, cut in cuts.items() if cut):
        raise UserError(
            f"trainer.{key}: found {getattr(trainer, key)}, expected it left alone with PPO, whose epoch is one "
            "iteration over its own answers; data.episodes and trainer.max_epochs make a run shorter"
        )


def read_place(state: object) -> Place:
    """What `ExperienceLoader.state` gave.

    Raises:
        UserError: it did not; with the key.
    """
    place: Place = typed(Place, state, "ppo: experience")
    epochs, minibatches, *micro_batches = place.parts
    last = epochs * minibatches * sum(micro_batches) - 1 if place.rollout is not None else 0
    fits = (place.rollout is not None) <= place.position <= last
    expect(fits, "ppo: experience.position", place.position, f"1 to {last}" if last else "0 where there is no rollout")
    if place.rollout is not None:
        _check_rollout(place.rollout)
    return place


def _check_rollout(fields: dict[str, Any]) -> None:
    needed = set(Rollout._fields) - set(Rollout._field_defaults)
    named = needed <= fields.keys() <= set(Rollout._fields)
    expect(named, "ppo: experience.rollout", sorted(fields), f"at least {', '.join(sorted(needed))}")
    shapes = {name: tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for name, x in fields.items()}
    fits = all(isinstance(shape, tuple) and shape for shape in shapes.values())
    fits = fits and len({shape[0] for shape in shapes.values()}) == 1
    fits = fits and len({shape for name, shape in shapes.items() if name not in ("tokens", "prompt_lengths")}) == 1
    expect(fits, "ppo: experience.rollout", shapes, "tensors of as many episodes, and of as many response tokens")
    for name, field in fields.items():
        expect(bool(field.isfinite().all()), f"ppo: experience.rollout.{name}", "NaN or infinity", "finite numbers")
