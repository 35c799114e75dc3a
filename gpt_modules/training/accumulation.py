"""Optimizer steps that are those of one big batch: a loss that is the mean over all that a step counts (tokens,
examples, prompts, tasks), and batches counted in tokens, which grow.

Lightning averages the means of micro-batches and of ranks, which weighs a token of a short one more, and divides by
`accumulate_grad_batches` where an epoch's last step has fewer; here a step of k micro-batches on n devices is the step
of one big batch. How many micro-batches make a step follows from its tokens and the devices, so a recipe means the same
schedule on 1 device and on 8.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import lightning.pytorch as L
import torch
from torch import Tensor

from gpt_modules.errors import UserError
from gpt_modules.training.sharding.tensors import local


@dataclass(frozen=True)
class BatchConfig:
    """Tokens of one optimizer step over all devices (Brown et al. 2020, table 2.1 and appendix B).

    Args:
        tokens: of a step, once the ramp is over; reached to the nearest whole number of micro-batches.
        start: of the first step; left out: `tokens` from the beginning.
        ramp: tokens of training over which a step grows linearly from `start` to `tokens`; 4 to 12 billion in GPT-3,
            by size.

    Raises `UserError`, one line naming the field, for values that make no schedule.
    """

    tokens: float
    start: float | None = None
    ramp: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.tokens < math.inf:
            raise UserError(f"batch: tokens: found {self.tokens:g}, expected at least 1")
        if self.start is not None and not 1 <= self.start <= self.tokens:
            raise UserError(f"batch: start: found {self.start:g}, expected 1 to tokens = {self.tokens:g}")
        if (self.start is None) == (0 < self.ramp < math.inf) or not self.ramp >= 0:
            raise UserError(f"batch: ramp: found {self.ramp:g}, expected more than 0 with a start, none without")

    def at(self, seen: float) -> float:
        """Tokens of the step that begins after `seen` tokens: on the ramp a multiple of `start`, so that any number of
        devices whose micro-batches divide `start` takes the same steps.
        """
        if self.start is None or seen >= self.ramp:
            return self.tokens
        return self.start * round((self.start + (self.tokens - self.start) * seen / self.ramp) / self.start)


@dataclass(frozen=True)
class TokenClock:
    """How many tokens steps take.

    Args:
        micro_batch: tokens of one micro-batch on all devices together.
        accumulate: micro-batches of every step where there is no `batch`.
        epoch: micro-batches of an epoch, whose last step takes what is left.
        batch: tokens of a step.
        made: steps that were made, by whatever micro-batches, and `seen`: their tokens.
        left: micro-batches that are left of the epoch at hand; None: all.
    """

    micro_batch: int
    accumulate: int
    epoch: float
    batch: BatchConfig | None = None
    made: int = 0
    seen: int = 0
    left: float | None = None

    def micro_batches(self, seen: int) -> int:
        """Of the step that begins after `seen` tokens."""
        if self.batch is None:
            return self.accumulate
        return max(1, round(self.batch.at(seen) / self.micro_batch))

    def after_next(self, seen: int) -> int:
        """Tokens seen once that step is done."""
        return seen + self.micro_batches(seen) * self.micro_batch

    def steps(self, total: float) -> int:
        """Steps until `total` tokens are seen; no more than were made where an epoch is empty."""
        if self.epoch < 1:
            return self.made
        return next(step for step, seen in enumerate(self._seen(), self.made) if seen >= total)

    def tokens(self, steps: float) -> float:
        """Tokens seen after so many steps; of a run without a last step (`inf`, or Lightning's -1) `inf`."""
        if not 0 <= steps < math.inf:
            return math.inf
        return float(next(islice(self._seen(), max(0, int(steps) - self.made), None)))

    def _seen(self) -> Iterator[int]:
        """Tokens seen after the steps that were made, and after one, two, ... more."""
        seen, left = self.seen, self.left or self.epoch
        while True:
            yield seen
            taken = min(self.micro_batches(seen), left)
            left = left - taken or self.epoch
            seen += int(taken) * self.micro_batch


def begin_step(trainer: L.Trainer, micro_batches: int) -> None:
    """Called before the first micro-batch of a step: let Lightning step after so many of them.

    It steps when the count of the epoch's batches divides by `accumulate_grad_batches`, and clears gradients by a rule
    that holds for a constant one only: so that number is set to the count at which this step ends, and gradients are
    cleared here.
    """
    read = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    trainer.accumulate_grad_batches = read + micro_batches - 1
    for optimizer in trainer.optimizers:
        optimizer.zero_grad()


class StepMean:
    """The mean loss over what an optimizer step counts, from sums over micro-batches.

    `add` gives what `training_step` returns; `close`, called before the optimizer's step, turns the gradients of these
    into the gradient of the mean.
    """

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.count: Tensor | None = None
        self.unit = 0

    @property
    def empty(self) -> bool:
        """Whether the next micro-batch is the first of a step."""
        return self.count is None

    def add(self, total: Tensor, count: Tensor, cells: int) -> Tensor:
        """A loss to differentiate: the micro-batch's sum by the cells that the step's first one has.

        Args:
            total: sum of the micro-batch's losses.
            count: tokens, examples, prompts or tasks it is over.
            cells: those it has room for, counted or not: keeps gradients in a range that half precision can hold. The
                same on all processes, whose gradients are averaged before they are rescaled.
        """
        if self.total is None or self.count is None:
            self.total, self.count, self.unit = total.detach(), count, cells
        else:
            self.total, self.count = self.total + total.detach(), self.count + count
        return total / self.unit

    @torch.no_grad()
    def close(self, module: L.LightningModule) -> Tensor:
        """Rescale the module's gradients; returns the mean loss, of all ranks. Nothing waits for the device."""
        assert self.total is not None
        assert self.count is not None
        trainer = module.trainer
        sums = torch.stack([self.total.double(), self.count.double()])
        if trainer.world_size > 1:
            sums = trainer.strategy.reduce(sums, reduce_op="sum")
        total, count = sums[0], sums[1].clamp(min=1)
        # Lightning has divided by its number of micro-batches, and ranks are averaged.
        divided = float(self.unit * trainer.accumulate_grad_batches * trainer.world_size)
        gradients = [local(parameter.grad) for parameter in module.parameters() if parameter.grad is not None]
        torch._foreach_mul_(gradients, (divided / count).float())
        self.total = self.count = None
        return (total / count).float()
