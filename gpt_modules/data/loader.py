"""Loaders whose every batch is a function of (seed, epoch, index).

A loader here is a plain iterable with a length: Lightning then neither prefetches a batch (the saved place is the
trained place) nor injects a sampler of its own.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._pytree import tree_map

from gpt_modules.storage.documents import Count, Positive

BatchT = TypeVar("BatchT")
T = TypeVar("T")
log = logging.getLogger(__name__)

POOL = 16  # batches that are sorted by length together: enough to save padding, few enough to keep the order random


class Examples(ABC, Generic[BatchT]):
    """What a loader draws from: a fixed number of examples an epoch, and the batch that any of them make."""

    @abstractmethod
    def __len__(self) -> int:
        """Examples an epoch, the same in every epoch."""

    @abstractmethod
    def batch(self, epoch: int, indices: NDArray[np.int64]) -> BatchT:
        """The batch of these examples in this epoch. Of none (a rank that has nothing left to validate) it is one that
        a model can run on, and nothing in it counts.
        """

    def lengths(self, epoch: int) -> NDArray[np.int64] | None:
        """Tokens of every example, to put alike lengths into one batch; None: do not."""
        return None

    def longest_row(self) -> NDArray[np.int64] | None:
        """The tokens of the longest row that a model will read; None: a row may have as many as the context."""
        return None

    def order(self, epoch: int) -> NDArray[np.int64] | None:
        """An order of their own for a shuffled epoch; None: the loader draws one."""
        return None


class Place(NamedTuple):
    """What a checkpoint says of a loader, see `BatchLoader.state`."""

    epoch: Count
    examples: Count
    of: Positive
    size: Positive
    batches: Count


class _Begun(NamedTuple):
    """An epoch that was begun with another global batch, of `size`: so many of its examples, in so many batches."""

    epoch: int
    size: int
    examples: int
    batches: int


class BatchLoader(Generic[BatchT]):
    """Batches of `examples`, epoch after epoch; each pass of `iter` is one epoch.

    Batch i of an epoch is cut from an order drawn from (seed, epoch) alone. `world` ranks share each global batch of
    `batch_size * world` examples and always yield the same number of batches. Training (`drop_last`) leaves out what
    does not fill a global batch, another remainder every epoch; a set smaller than one global batch is repeated to
    fill it. Validation has every example once: its last batch is smaller, and for some of several ranks it may hold
    nothing.

    Args:
        examples: What to draw from.
        batch_size: Examples a batch of one rank.
        seed: Seed of the order.
        shuffle: False: the examples' own order (or by length, where they give lengths), the same every epoch.
        drop_last: See above.
        rank: This process among those that share the data.
        world: Number of those processes.
    """

    def __init__(
        self,
        examples: Examples[BatchT],
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world:
            raise ValueError(
                f"found batch_size {batch_size}, rank {rank}, world {world}, expected 1.., 0..world-1, 1.."
            )
        self.examples = examples
        self.batch_size, self.seed, self.shuffle, self.drop_last = batch_size, seed, shuffle, drop_last
        self.rank, self.world = rank, world
        self.epoch, self.position = 0, 0
        self.limit: int | float = 1.0  # batches that the Trainer reads of an epoch, or a share of them
        self.most: int | None = None  # examples that validation has, over all ranks; None: all
        self.first: Callable[[], int | None] = lambda: None  # of these, those of the next epoch alone; None: all
        self.by_length = True  # False: the examples' own order, though they give lengths
        self._restored = False
        self._begun: _Begun | None = None
        self._plan: tuple[int, NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        """Batches of the epoch that `iter` goes on with or begins."""
        return self.whole if self.over else self._length

    @property
    def _length(self) -> int:
        """Of the epoch at hand; of one that another global batch began, its batches and those that are left."""
        if self._begun is not None and self._begun.epoch == self.epoch:
            return self._begun.batches + (len(self.examples) - self._begun.examples) // self.size
        return self.whole

    @property
    def whole(self) -> int:
        """Batches of an epoch that no other global batch began."""
        count = self._count
        return max(1, count // self.size) if self.drop_last else -(-count // self.size)

    @property
    def _count(self) -> int:
        count = len(self.examples)
        return count if self.most is None else min(self.most, count)

    @property
    def size(self) -> int:
        """Examples of a global batch."""
        return self.batch_size * self.world

    @property
    def goes_on(self) -> bool:
        """Whether this epoch has another length than those after it, as another global batch began it."""
        return self._begun is not None

    @property
    def over(self) -> bool:
        """Whether nothing is left of this epoch: the next `iter` begins another one."""
        return 0 < limited(self._length, self.limit) <= self.position

    def __iter__(self) -> Iterator[BatchT]:
        """One epoch, from where a restored state says. Nothing happens before the first batch is asked for: Lightning
        calls `iter` early.
        """
        self._begin()
        first = self.first()
        while self.position < self._length and (first is None or self.position * self.size < first):
            index = self.position
            self.position += 1  # before the yield: whoever saves while holding this batch has used it
            if first is None:
                yield self.batch_at(self.epoch, index)
            else:
                yield self._batch(self.epoch, index, first - index * self.size)

    def batch_at(self, epoch: int, index: int) -> BatchT:
        """This rank's batch `index` of an epoch: a pure function."""
        return self._batch(epoch, index, self.size)

    def _batch(self, epoch: int, index: int, most: int) -> BatchT:
        """Of the batch, its first examples, over all ranks."""
        if self._plan is None or self._plan[0] != epoch:
            self._plan = (epoch, self._grid(epoch))
        own = self._plan[1][index][:most][self.rank :: self.world]
        batch = self.examples.batch(epoch, own[own >= 0])
        return pinned(batch)

    def examples_before(self, epoch: int, index: int) -> int:
        """Examples of all ranks that come before batch `index` in this epoch."""
        begun = self._begun
        if begun is not None and begun.epoch == epoch:
            return begun.examples + (index - begun.batches) * self.size
        return index * self.size

    def state(self) -> dict[str, int]:
        """The place in the data, counted in examples so that it survives another number of ranks or batch size.

        `size` is the global batch by which the epoch was put in order, `batches` what the Trainer counts.
        """
        size = self.size if self._begun is None else self._begun.size
        examples = self.examples_before(self.epoch, self.position)
        return Place(self.epoch, examples, len(self.examples), size, self.position)._asdict()

    def restore(self, state: dict[str, int]) -> None:
        """The next `iter` goes on at this place; what is left of an epoch that another global batch began is cut anew,
        so that no example comes twice.
        """
        if state["of"] != len(self.examples):
            log.warning(
                "the data has %d examples, the checkpoint's had %d: the order differs", len(self.examples), state["of"]
            )
        done, self._begun, self._plan = state["examples"], None, None
        self.epoch, self._restored = state["epoch"], True
        if done == 0:
            self.position = 0
        elif state["of"] - done < state["size"] or len(self.examples) - done < self.size:
            self.position = self.whole  # nothing was left of the epoch, or nothing is
        elif done == state["batches"] * self.size and state["size"] == self.size:
            self.position = state["batches"]
        else:
            self._begun = _Begun(self.epoch, state["size"], done, state["batches"])
            self.position = state["batches"]

    def state_dict(self) -> dict[str, Any]:
        """Empty: the place travels with the DataModule. Without this pair of names Lightning warns at every resume."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Does nothing; see `state_dict`."""

    def _begin(self) -> None:
        if self.over or (self.position > 0 and not self._restored):
            self.epoch, self.position = self.epoch + int(self.shuffle), 0  # unshuffled, all epochs are the first
            self._begun = None
        self._restored = False

    def _grid(self, epoch: int) -> NDArray[np.int64]:
        """(batches, global batch) of example indices, -1 where the last batch is short."""
        begun = self._begun
        if begun is not None and begun.epoch == epoch:
            left = self._order(epoch, begun.size)[begun.examples :]
            used = np.full((begun.batches, self.size), -1, dtype=np.int64)
            return np.concatenate([used, left[: len(left) // self.size * self.size].reshape(-1, self.size)])
        order = self._order(epoch, self.size)
        if self.drop_last:
            return np.resize(order, (self.whole, self.size))
        grid = np.full(self.whole * self.size, -1, dtype=np.int64)
        grid[: self._count] = order[: self._count]
        return grid.reshape(-1, self.size)

    def _order(self, epoch: int, size: int) -> NDArray[np.int64]:
        """All examples, in batches of `size` where they give lengths."""
        if self.shuffle and (own := self.examples.order(epoch)) is not None:
            return own
        lengths = self.examples.lengths(epoch) if self.by_length else None
        if not self.shuffle:
            return np.arange(len(self.examples)) if lengths is None else np.argsort(lengths, kind="stable")
        generator = np.random.default_rng((self.seed, epoch))
        order = generator.permutation(len(self.examples))
        return order if lengths is None else _bucketed(order, lengths, size, generator)


def limited(batches: float, limit: int | float) -> float:
    """As Lightning counts what is read of an epoch: a whole number of batches, or a share of them."""
    if isinstance(limit, int) or math.isinf(batches):
        return min(batches, limit) if isinstance(limit, int) else batches
    return int(batches * limit)


class Stream(Generic[BatchT]):
    """Examples without end: all of them in a random order, then all in another one. Which one stands at a place is a
    function of (seed, place), in whatever batches and by however many processes it is asked for.
    """

    def __init__(self, examples: Examples[BatchT], seed: int) -> None:
        self.examples = examples
        self._order = lru_cache(maxsize=2)(partial(BatchLoader(examples, 1, seed)._order, size=1))

    def batch(self, places: NDArray[np.int64]) -> BatchT:
        """The batch of the examples at these places, which are at least one and in rising order; examples are of one
        width.
        """
        epochs, within = np.divmod(places, len(self.examples))
        parts: list[Any] = [
            self.examples.batch(epoch, self._order(epoch)[within[epochs == epoch]])
            for epoch in np.unique(epochs).tolist()
        ]
        joined: BatchT = type(parts[0])(*map(torch.cat, zip(*parts, strict=True)))
        return joined


def _bucketed(
    order: NDArray[np.int64], lengths: NDArray[np.int64], size: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Sorts by length inside pools of batches, then shuffles whole batches: random order, little padding."""
    # The remainder is cut off before sorting, or the longest examples would be left out more often than others.
    full = len(order) // size * size
    pools = [order[i : min(i + POOL * size, full)] for i in range(0, full, POOL * size)]
    by_length = [pool[np.argsort(lengths[pool], kind="stable")] for pool in pools]
    batches = generator.permutation(np.concatenate([order[:0], *by_length]).reshape(-1, size))
    return np.concatenate([batches.reshape(-1), order[full:]])


def pinned(batch: T) -> T:
    """The batch in memory that a CUDA device copies from while the host goes on, where there is one: from any other it
    copies when all that it was asked for before is done.
    """
    if not pins():
        return batch
    found: T = tree_map(lambda leaf: leaf.pin_memory() if isinstance(leaf, torch.Tensor) else leaf, batch)
    return found


def pins() -> bool:
    """Whether the process has a CUDA device in use: one that is only there is left alone by a run on the CPU."""
    found: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return found
