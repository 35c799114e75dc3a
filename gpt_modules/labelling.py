"""What a labelled task is: how its texts become rows of tokens, and what its labels are. The data, the model and the
procedure share it.

Source: Radford et al. 2018, section 3.3 and figure 1.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from gpt_modules.errors import UserError
from gpt_modules.storage.documents import typed

LabellingKind = Literal["classification", "entailment", "similarity", "multiple_choice", "regression"]


@dataclass(frozen=True)
class Labelling:
    """A kind of task and its labels.

    Raises `UserError`, one line naming the field, for what no task can be.
    """

    kind: LabellingKind = "classification"
    """classification: [start] text [extract], or [start] text [delimiter] pair [extract]. entailment: the latter.
    similarity: both orders of a pair, their hidden states added. multiple_choice: one row an answer. regression: as
    classification, with a number for a label."""
    labels: tuple[str, ...] = ()
    """Names of the classes, in the order of the outputs; none for multiple choice and for numbers."""
    levels: tuple[int, int] | None = None
    """Lowest and highest whole score: labels are numbers between them, learned as a distribution over the whole ones
    (Tai et al. 2015, section 4.2), as the original code does for STS-B."""
    mean: float = 0.0
    std: float = 1.0
    """regression: label = output * std + mean, so that the output is of the order of 1."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        object.__setattr__(self, "levels", None if self.levels is None else tuple(self.levels))
        if self.kind not in get_args(LabellingKind):
            raise UserError(f"task: found {self.kind!r}, expected one of {', '.join(get_args(LabellingKind))}")
        if self.levels is not None and self.kind in ("multiple_choice", "regression"):
            raise UserError(f"levels: found {list(self.levels)} for {self.kind}, which has none, expected them for "
                            "similarity, entailment or classification")  # fmt: skip
        if self.levels is not None and self._span() < 1:
            raise UserError(f"levels: found {list(self.levels)} for {self.kind}, expected two rising whole numbers")
        if len(set(self.labels)) < len(self.labels):
            raise UserError(f"labels: found {list(self.labels)}, expected each name once")
        if not self.std > 0.0:
            raise UserError(f"std: found {self.std}, expected a number above 0")

    @property
    def numeric(self) -> bool:
        """Whether a label is a number, and not one of some classes or answers."""
        return self.kind == "regression" or self.levels is not None

    @property
    def n_outputs(self) -> int:
        """Outputs of the head for each row of tokens (for similarity: for each pair of rows)."""
        if self.levels is not None:
            return self._span() + 1
        return 1 if self.kind in ("multiple_choice", "regression") else len(self.labels)

    @property
    def unnamed(self) -> bool:
        """Whether the classes are just "0", "1", ...: those of a meta-learned classifier mean what each task says."""
        return bool(self.labels) and self.labels == tuple(map(str, range(len(self.labels))))

    def is_named_by(self, other: "Labelling") -> bool:
        """Whether these are unnamed classes that can stand for those of `other`."""
        alike = dataclasses.replace(self, labels=other.labels) == other
        return self.unnamed and len(self.labels) == len(other.labels) and alike

    def _span(self) -> int:
        return 0 if self.levels is None else self.levels[1] - self.levels[0]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for checkpoints and folders."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Labelling":
        """The inverse of `to_dict`; raises `UserError` for what does not fit, with its key."""
        return typed(cls, dict(values), "task")  # type: ignore[no-any-return]
