"""What a store of comparisons holds, as its readers and writers see it."""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from gpt_modules.storage.comparisons.prompts import Prompt

LabelerKind = Literal["person", "scores", "file"]
"""A person at the page; scores of models and functions; votes that were brought in from a file."""
KeyT = TypeVar("KeyT")

SCORES = range(1, 8)  # Ouyang et al. 2022, figure 12: 1 to 7, 7 is best
LONGEST_NAME = 60  # characters, of a person at the page and of a flag
FLAGS = ("fails to follow", "inappropriate", "harmful", "contains opinion", "hallucination")
"""InstructGPT's labelling form, the part that a page of text answers can ask (Ouyang et al. 2022, table 3)."""


def competition_ranks(ranks: Mapping[KeyT, int]) -> dict[KeyT, int]:
    """The same order, as one more than the number of better answers: 2, 9, 9, 30 are 1, 2, 2, 4."""
    ordered = sorted(ranks.values())
    return {key: 1 + bisect_left(ordered, rank) for key, rank in ranks.items()}


@dataclass(frozen=True)
class Source:
    """Who answered.

    Args:
        name: a folder, a name on the hub, or "file" for answers that were brought in.
        digest: SHA-256 of the model's weights; None where there is no model.
        settings: of sampling, as JSON with sorted keys.
    """

    name: str
    digest: str | None = None
    settings: str = "{}"


@dataclass(frozen=True)
class Answer:
    """An answer to a prompt; `ended` says whether it came to its end or was cut off, None where nobody knows."""

    text: str
    source: Source
    ended: bool | None = None
    id: int = 0


@dataclass(frozen=True)
class Task:
    """A prompt of a round with its answers, all different, in the order in which they were drawn."""

    id: int
    round: int
    prompt: Prompt
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Judgement:
    """What a vote says of one answer.

    Args:
        rank: from 1, which is best; equal ranks are ties. What counts is the order: a store keeps ranks as
            `competition_ranks` has them.
        score: 1 to 7, 7 is best; None: not given.
        flags: of the store's form.
    """

    rank: int
    score: int | None = None
    flags: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Vote:
    """A labeler's ranking of a task's answers, or that it was skipped.

    Args:
        task: its id.
        labeler: who; a store knows one vote of each for a task, a later one takes the place of an earlier one.
        judgements: of each answer by its id; empty: skipped.
        key: of this act of voting: the same key twice is one vote, however often a page sends it.
        seconds: spent on it; None: not measured.
    """

    task: int
    labeler: str
    judgements: dict[int, Judgement]
    key: str
    seconds: float | None = None
    note: str = ""
    made: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class Ranking:
    """A vote that counts, as rows of comparisons have it.

    Args:
        ranks: parallel to `answers`.
        scores: likewise, None where not given.
    """

    task: int
    round: int
    prompt: Prompt
    labeler: str
    answers: tuple[Answer, ...]
    ranks: tuple[int, ...]
    scores: tuple[int | None, ...]
    flags: tuple[frozenset[str], ...]
