"""A training set of several sources, each with its weight.

Brown et al. 2020, table 2.2: "weight in training mix" is the share of a source in what is trained on, whatever its
size, so that a small source is seen several times while a large one is not seen to its end. (The weights printed there
sum to 1.01; only their ratios count here.)
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from gpt_modules.data.batches import TokenBatch
from gpt_modules.data.collate import collate_windows
from gpt_modules.data.corpus.shards import Tokens
from gpt_modules.data.corpus.windows import TrainingWindows, windows_at
from gpt_modules.data.loader import Examples
from gpt_modules.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MixedSource:
    """One source of a mixture."""

    source: str | list[str]
    """As `train` of `PretrainingDataModule`: text, a folder of `gpt prepare`, or llm.c's files."""
    weight: float
    """Its share of the tokens trained on; all weights are divided by their sum."""
    name: str | None = None
    """In logs; None: the source itself."""
    text_field: str = "text"
    """The field that holds a row's text."""

    @property
    def label(self) -> str:
        """Its name in logs."""
        return self.name or (self.source if isinstance(self.source, str) else ", ".join(self.source))


def check_mixture(sources: Sequence[MixedSource]) -> None:
    """Raises:
    UserError: No source, a weight that is not above 0, or a name that is used twice.
    """
    if not sources:
        raise UserError("mixture: found no source, expected at least one")
    labels = [source.label for source in sources]
    for number, source in enumerate(sources):
        if not 0 < source.weight < float("inf"):
            raise UserError(f"mixture.{number}.weight: found {source.weight}, expected a number above 0")
        if source.label in labels[:number]:
            raise UserError(f"mixture.{number}.name: found {source.label!r} a second time, expected different names")


class MixtureWindows(Examples[TokenBatch]):
    """Windows of several streams of tokens, in shares.

    An epoch has as many windows as all streams together, and every epoch has the same number from each. A stream is
    drawn without replacement: each pass over it has all its windows once, in an order and from an offset of its own,
    and goes on in the next epoch where it stopped in the last. All of this is a function of (seed, epoch, index).

    The examples bring their own `order`, in which the streams are interleaved at random but evenly: any beginning of an
    epoch has the shares to within a window a stream, and no window of a pass comes after one of the next pass.

    Args:
        streams: Tokens of each source.
        weights: Share of each, of any sum.
        context: Tokens a window.
        seed: Of offsets and orders.
        names: Of the sources, for messages and logs.

    Raises:
        UserError: A stream is shorter than a window.
    """

    def __init__(
        self, streams: Sequence[Tokens], weights: Sequence[float], context: int, seed: int, names: Sequence[str]
    ) -> None:
        self.names, self.context, self.seed = list(names), context, seed
        self.sources = [
            TrainingWindows(tokens, context, _mixed(seed, i), name)
            for i, (tokens, name) in enumerate(zip(streams, names, strict=True))
        ]
        self.counts = np.array([len(source) for source in self.sources], dtype=np.int64)
        self.quotas = apportion(np.array(weights, dtype=np.float64), int(self.counts.sum()))
        self._firsts = np.concatenate([[0], np.cumsum(self.quotas)])
        self._order: tuple[int, NDArray[np.int64]] | None = None
        self._seen = (-1, 0, np.zeros(len(self.sources), dtype=np.int64))
        self._pass_order = lru_cache(maxsize=2 * len(self.sources))(self._draw_pass)

    def __len__(self) -> int:
        return int(self.quotas.sum())

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The indices of an epoch in the order in which they are to be seen, (N,)."""
        if self._order is None or self._order[0] != epoch:
            times = [self._times(epoch, i) for i in range(len(self.sources))]
            self._order = (epoch, np.argsort(np.concatenate(times), kind="stable"))
        return self._order[1]

    def batch(self, epoch: int, indices: NDArray[np.int64]) -> TokenBatch:
        rows = [self._window(epoch, index) for index in indices.tolist()]
        return collate_windows(rows, self.context)

    def passes(self) -> dict[str, float]:
        """Passes over each source in an epoch."""
        return dict(zip(self.names, (self.quotas / self.counts).tolist(), strict=True))

    def drawn(self, epoch: int, examples: int, an_epoch: int | None = None) -> dict[str, int]:
        """Windows of each source that have been seen once `examples` of an epoch have.

        Args:
            epoch: The epoch, from 0.
            examples: How many of it.
            an_epoch: How many there were of each epoch before, where those were cut short: then right to within a
                window a source and epoch.
        """
        whole = len(self) if an_epoch is None else min(an_epoch, len(self))
        before = np.rint(epoch * self.quotas * (whole / len(self))).astype(np.int64)
        return dict(zip(self.names, (before + self._drawn_in(epoch, examples)).tolist(), strict=True))

    def _drawn_in(self, epoch: int, examples: int) -> NDArray[np.int64]:
        """The same of one epoch. Asked for ever more examples, it counts only those that are new."""
        last, done, counts = self._seen
        if last != epoch or examples < done:
            done, counts = 0, np.zeros_like(counts)
        sources = np.searchsorted(self._firsts, self.order(epoch)[done:examples], side="right") - 1
        counts = counts + np.bincount(sources, minlength=len(self.sources))
        self._seen = (epoch, examples, counts)
        return counts

    def _window(self, epoch: int, index: int) -> NDArray[np.int64]:
        i = int(np.searchsorted(self._firsts, index, side="right")) - 1
        draw = epoch * int(self.quotas[i]) + index - int(self._firsts[i])
        number, place = divmod(draw, int(self.counts[i]))
        source = self.sources[i]
        start = source.offset(number) + int(self._pass_order(i, number)[place]) * self.context
        return windows_at(source.tokens, np.array([start]), self.context)[0]

    def _times(self, epoch: int, i: int) -> NDArray[np.float64]:
        """When each of a source's windows of an epoch comes, rising from 0 to 1: one in each equal part, anywhere in
        it.
        """
        quota = int(self.quotas[i])
        return (np.arange(quota) + np.random.default_rng((self.seed, epoch, i, 2)).random(quota)) / quota

    def _draw_pass(self, i: int, number: int) -> NDArray[np.int64]:
        generator = np.random.default_rng((self.seed, number, i, 3))
        order: NDArray[np.int64] = generator.permutation(int(self.counts[i]))
        return order


def apportion(weights: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """Whole numbers in these ratios that sum to `total`, by largest remainders, but none below 1."""
    exact = weights / weights.sum() * total
    whole = np.floor(exact).astype(np.int64)
    left = total - int(whole.sum())
    whole[np.argsort(whole - exact, kind="stable")[:left]] += 1
    found: NDArray[np.int64] = np.maximum(whole, 1)
    return found


def _mixed(seed: int, i: int) -> int:
    """A seed of its own for source `i`."""
    return int(np.random.default_rng((seed, i)).integers(1 << 62))
