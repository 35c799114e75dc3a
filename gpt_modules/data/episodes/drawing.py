"""Tasks by number: which one an epoch's i-th task is, and the examples that a loader draws."""

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._pytree import tree_map

from gpt_modules.data.batches import EpisodeBatch, EpisodeSet
from gpt_modules.data.episodes.families import Episode
from gpt_modules.data.loader import BatchLoader, Examples
from gpt_modules.data.splits import Split

Points: TypeAlias = tuple[NDArray[np.float32], NDArray[np.float32]]


class PointEpisode(NamedTuple):
    """One task of numbers: (inputs (K, I), targets (K, O)) to adapt on, and such to be judged by."""

    support: Points
    query: Points


AnyEpisode: TypeAlias = Episode | PointEpisode


class EpisodeStream(Examples[EpisodeBatch]):
    """The tasks of an epoch, in order: task i is what `draw(epoch, i)` gives."""

    def __init__(
        self,
        draw: Callable[[int, int], AnyEpisode],
        encode: Callable[[Sequence[AnyEpisode]], EpisodeBatch],
        count: int,
    ) -> None:
        self.draw, self.encode, self.count = draw, encode, count

    def __len__(self) -> int:
        return self.count

    def order(self, epoch: int) -> NDArray[np.int64]:
        return np.arange(self.count)

    def batch(self, epoch: int, indices: NDArray[np.int64]) -> EpisodeBatch:
        if not len(indices):
            nothing: EpisodeBatch = tree_map(lambda tensor: tensor[:0], self.batch(epoch, np.zeros(1, dtype=np.int64)))
            return nothing
        return self.encode([self.draw(epoch, index) for index in indices.tolist()])


class EpisodeLoader(BatchLoader[EpisodeBatch]):
    """An epoch has so many steps, however many tasks each of them has: one that goes on with another number has those
    that are left of it, of tasks that follow on the last.
    """

    examples: EpisodeStream

    def __init__(self, *args: Any, steps: int, **named: Any) -> None:
        super().__init__(*args, **named)
        self.steps = steps

    @property
    def whole(self) -> int:
        return self.steps

    def restore(self, state: dict[str, int]) -> None:
        left = max(0, self.steps - state["batches"])
        if left:
            self.examples.count = state["examples"] + left * self.size
        place = {"examples": state["examples"] if left else len(self.examples), "of": len(self.examples)}
        super().restore(state | place | {"size": self.size})


def draw_from(
    families: Sequence[Any], split: Split, seed: int, support: int, query: int
) -> Callable[[int, int], AnyEpisode]:
    """(epoch, number) to an episode of the families in turn: a pure function."""

    def draw(epoch: int, number: int) -> AnyEpisode:
        family = families[number % len(families)]
        found = family.episode(generator_of(split, seed, epoch, number), split, support, query)
        return found if isinstance(found, Episode) else _point_episode(found, support)

    return draw


def generator_of(split: Split, seed: int, epoch: int, number: int) -> np.random.Generator:
    """Chance of one task. The split is part of it, for families of which every task is a new one anyway."""
    return np.random.default_rng((seed, epoch, number, int(split == "validation")))


def mingled(episode: Episode) -> Episode:
    """All examples in one random order, the same for the same episode: a support set's classes come in balanced
    rounds, whose last class could be learned by counting.
    """
    examples = [*episode.support, *episode.query]
    generator = np.random.default_rng(zlib.crc32("\n".join(example.prompt for example in examples).encode()))
    return Episode([], [examples[place] for place in generator.permutation(len(examples))])


def stacked(points: Sequence[Points]) -> EpisodeSet:
    inputs, targets = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*points, strict=True))
    return EpisodeSet((inputs,), targets)


def _point_episode(points: Points, support: int) -> PointEpisode:
    inputs, targets = points
    return PointEpisode((inputs[:support], targets[:support]), (inputs[support:], targets[support:]))
