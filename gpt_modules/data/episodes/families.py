"""Families of tasks: where the episodes of meta-learning come from.

A task is drawn anew for every episode. Training and validation never share a task, where the family has more than one,
or else an example.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from gpt_modules.data.splits import VALIDATION_FRACTION, Split, hash_fraction

T = TypeVar("T")


class Example(NamedTuple):
    """One example of a task as text. label: number of its class, where the task has classes."""

    prompt: str
    response: str
    label: int | None = None


class Episode(NamedTuple):
    """One task: examples to adapt on and examples to be judged by, none in both unless the family says so."""

    support: list[Example]
    query: list[Example]


class Family(ABC):
    """Related tasks of text.

    The examples of a support set come in an order in which any first k of them are as balanced over the classes as k
    examples can be, so that a smaller support set is the beginning of a larger one.
    """

    classes: int = 0
    """Classes of every task, numbered from 0 in an order drawn per task; 0 where an answer is no class."""

    def texts(self, split: Split) -> Iterable[str]:
        """What the tasks of a split are made of, where the family reads a source."""
        return ()

    @abstractmethod
    def episode(self, generator: np.random.Generator, split: Split, support: int, query: int) -> Episode:
        """A new task with so many examples; all chance comes from `generator`.

        Raises:
            UserError: The family has not as many examples.
        """


class PointFamily(ABC):
    """Related functions from numbers to numbers, for any network."""

    @abstractmethod
    def episode(
        self, generator: np.random.Generator, split: Split, support: int, query: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(inputs (support + query, I), targets (support + query, O)) of a new task; the support comes first."""


def by_hash(tasks: Sequence[T]) -> dict[Split, list[T]]:
    """Splits a family of few tasks: a tenth of them validates, at least one, whatever order they come in. All of them
    are known from the start and none is ever added, so the tenth with the smallest hashes is always the same.

    Raises:
        ValueError: Fewer than two tasks, of which none would be left to train on.
    """
    if len(tasks) < 2:
        raise ValueError(f"found {len(tasks)} tasks, expected at least 2")
    ordered = sorted(tasks, key=lambda task: hash_fraction(repr(task)))
    held_out = max(1, round(VALIDATION_FRACTION * len(ordered)))
    return {"train": ordered[held_out:], "validation": ordered[:held_out]}
