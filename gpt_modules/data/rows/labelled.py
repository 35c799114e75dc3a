"""Labelled rows of any source: which column holds what, and labels as class numbers.

A checked row is {"text", "pair" (where the task has one), "choices" (multiple choice), "label"}; of two texts that are
compared, the first in the alphabet is the text. Its label is the
number of the class or of the right answer, or for tasks with numbers the number itself; None where there is none.
"""

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpt_modules.data.arguments import expect_default
from gpt_modules.data.builtin.puzzles import possession_rows, quantifier_rows
from gpt_modules.data.builtin.reviews import finetuning_rows
from gpt_modules.data.rows.fields import FieldError, describe, mapping_of, no_such_field, text_of, texts_of
from gpt_modules.data.rows.sources import POSSESSIONS, PRODUCTS, QUANTIFIERS, REVIEWS, Source
from gpt_modules.data.splits import Row, Split, normalise
from gpt_modules.errors import UserError
from gpt_modules.labelling import LabellingKind

UNLABELLED = -1  # in place of a class: what GLUE's test rows have
SHOWN_NAMES = 8
BUILT_IN: dict[str, tuple[LabellingKind, ...]] = {
    REVIEWS: ("classification", "regression"),
    PRODUCTS: ("classification", "regression"),
    QUANTIFIERS: ("entailment",),
    POSSESSIONS: ("multiple_choice",),
}
_WHOLE = re.compile(r"0|-?[1-9][0-9]*")


@dataclass(frozen=True)
class Columns:
    """Names of the columns; further ones are ignored."""

    text: str | list[str] = "text"
    """The text, or several columns that a space joins: an article and its question, the sentences of a story."""
    pair: str | None = None
    """The second text; where a task needs one, "pair" unless named. Classification and regression read it if named."""
    choices: str | list[str] = "choices"
    """Multiple choice: the column that lists the answers, or one column an answer."""
    label: str = "label"


class LabelledRow:
    """The check of a labelled row: call it with a record.

    Without class names it accepts labels of any one type and returns them as they are, text or whole numbers: then
    `class_names` and `class_number` make numbers of them.

    Args:
        kind: What the task is.
        columns: Names of the columns.
        names: Names of the classes, or of the answers in order ("A", "B", ...); None: not known yet, or for answers
            counted from 0.
        levels: Lowest and highest number, for labels that are numbers.
        required: Whether a row without a label is refused.
        key: Where a recipe names the columns, for messages; None: nowhere.
    """

    def __init__(
        self,
        kind: LabellingKind,
        columns: Columns,
        names: Sequence[str] | None = None,
        levels: Sequence[int] | None = None,
        required: bool = True,
        key: str | None = None,
    ) -> None:
        self.kind, self.columns, self.levels, self.required, self.key = kind, columns, levels, required, key
        self.names = None if names is None else tuple(names)
        self.numeric = kind == "regression" or levels is not None
        self.pair = columns.pair or ("pair" if kind in ("entailment", "similarity") else None)
        self._first: type | None = None

    def __call__(self, record: object) -> Row:
        """The row.

        Raises:
            FieldError: A column is missing, null, empty or of another type, or the label is none of the task's.
        """
        fields = mapping_of(record)
        row: Row = {"text": " ".join(self._text(fields, column, "text") for column in _listed(self.columns.text))}
        if self.kind == "multiple_choice":
            row["choices"] = self._choices(fields)
        elif self.pair is not None:
            row["pair"] = self._text(fields, self.pair, "pair")
        if self.kind == "similarity":  # has no order: the same two texts are one example, for splits and for twins too
            row["text"], row["pair"] = sorted((row["text"], row["pair"]), key=normalise)
        return {**row, "label": self._label(fields, len(row.get("choices", ())))}

    def _text(self, fields: Mapping[Any, Any], column: str, name: str) -> str:
        if column not in fields:
            raise FieldError(column, no_such_field(fields), f"text{self._renamed(name)}")
        return text_of(fields, column)

    def _renamed(self, name: str) -> str:
        return "" if self.key is None else f", or the name of its column in {self.key}.{name}"

    def _choices(self, fields: Mapping[Any, Any]) -> list[str]:
        columns = self.columns.choices
        if not isinstance(columns, str):
            return [self._text(fields, column, "choices") for column in columns]
        if columns not in fields:
            raise FieldError(columns, no_such_field(fields), f"a list{self._renamed('choices')}")
        choices = texts_of(fields, columns)
        if len(choices) < 2:
            raise FieldError(columns, "a list of 1", "at least 2 to choose from")
        return choices

    def _label(self, fields: Mapping[Any, Any], answers: int) -> int | float | str | None:
        raw = fields.get(self.columns.label)
        raw = raw.strip() if isinstance(raw, str) else raw
        if self._absent(raw):
            if self.required and self.columns.label not in fields:
                raise FieldError(
                    self.columns.label, no_such_field(fields), self._expected(answers) + self._renamed("label")
                )
            if self.required:
                raise self._refuse(raw, answers)
            return None
        if self.numeric:
            return self._number(raw)
        if self.kind != "multiple_choice" and self.names is None:
            return self._unnamed(raw)
        number = class_number(raw, self.names, answers or len(self.names or ()))
        if number is None:
            raise self._refuse(raw, answers)
        return number

    def _absent(self, raw: object) -> bool:
        if raw is None or raw == "" or (isinstance(raw, float) and math.isnan(raw)):
            return True
        low, high = self.levels or (0, 0)
        is_label = self.kind == "regression" or low <= UNLABELLED <= high or str(UNLABELLED) in (self.names or ())
        return _whole(raw) == UNLABELLED and not is_label

    def _number(self, raw: object) -> float:
        try:
            # Of texts, what JSON and tables write: Python also reads 1_000, other scripts' digits, and bytes.
            plain = "_" not in raw and raw.isascii() if isinstance(raw, str) else not isinstance(raw, bool | bytes)
            number = float(raw) if plain else math.nan  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        low, high = self.levels or (-math.inf, math.inf)
        if not (math.isfinite(number) and low <= number <= high):
            raise self._refuse(raw, 0)
        return number

    def _unnamed(self, raw: object) -> int | str:
        """Text or a whole number, of the same type in every row."""
        whole = _whole(raw)
        if not isinstance(raw, bool | int | str) and whole is None:
            raise self._refuse(raw, 0)
        self._first = self._first or _type(raw)
        if _type(raw) is not self._first:
            kinds = {str: "text", bool: "a truth value", float: "a number"}
            raise FieldError(self.columns.label, describe(raw), f"{kinds[self._first]}, as in the rows before")
        if whole is None or isinstance(raw, bool):
            return _spelled(raw)
        if whole < 0:
            raise self._refuse(raw, 0)
        return whole

    def _refuse(self, raw: object, answers: int) -> FieldError:
        """The error that says which label was found and which were expected."""
        found = describe(raw)
        if self.names is not None and not self.numeric and isinstance(raw, str | int) and not self._absent(raw):
            found = f"the unknown {'answer' if answers else 'class'} {raw!r:.50}"
        return FieldError(self.columns.label, found, self._expected(answers))

    def _expected(self, answers: int) -> str:
        if self.numeric:
            return "a finite number" if self.levels is None else f"a number from {self.levels[0]} to {self.levels[1]}"
        if answers and self.names is None:
            return f"a whole number from 0 to {answers - 1}, one of the {answers} answers"
        if self.names is None:
            return "text or a whole number from 0"
        names = self.names[:answers] if answers else self.names
        shown = ", ".join(names[:SHOWN_NAMES]) + (", ..." if len(names) > SHOWN_NAMES else "")
        return f"one of {shown}"


def check_columns(kind: LabellingKind, columns: Columns, source: Source, validation: Source | None) -> None:
    """Columns that a task does not read, and those of rows that are built in.

    Raises:
        UserError: One is named; with its name.
    """
    if kind == "multiple_choice":
        expect_default(Columns, "task", f"the task {kind}", "columns.", pair=columns.pair)
    else:
        expect_default(Columns, "task", f"the task {kind}", "columns.", choices=columns.choices)
    if is_built_in(source) and (validation is None or is_built_in(validation)):
        expect_default(Columns, "train", f"the built-in {source}", "columns.", **vars(columns))


def is_built_in(source: Source) -> bool:
    """Whether rows come with the package or are generated."""
    return isinstance(source, str) and source in BUILT_IN


def built_in_rows(source: str, split: Split, check: LabelledRow) -> list[Row]:
    """The rows of a source that is built in.

    Raises:
        UserError: They are labelled for another task, or with other classes.
    """
    if check.kind not in BUILT_IN[source]:
        raise UserError(f"task: found {check.kind} for {source!r}, expected {' or '.join(BUILT_IN[source])}")
    if source in (REVIEWS, PRODUCTS):
        rows = finetuning_rows(split, check.numeric, "product" if source == PRODUCTS else "film")
    else:
        rows = quantifier_rows(split) if source == QUANTIFIERS else possession_rows(split)
    try:
        return [check(row) for row in rows]
    except FieldError as error:
        raise UserError(f"{source}: {error}") from error


def class_names(labels: Iterable[int | str], source: str) -> tuple[str, ...]:
    """Names of the classes that occur: texts sorted, or "0", "1", ... where all are whole numbers.

    Raises:
        UserError: There is just one, one is spelled in two ways, or a number is left out.
    """
    distinct = set(labels)
    numbers = [_whole(label) for label in distinct]
    if len(distinct) < 2:
        raise UserError(f"{source}: label: found {len(distinct)} class in all rows, expected at least 2")
    if None in numbers:
        _refuse_twins(map(str, distinct), source)
        return tuple(sorted(map(str, distinct)))
    whole = sorted(number for number in numbers if number is not None)
    if whole != list(range(len(whole))):
        shown = ", ".join(str(number)[:20] for number in whole[:SHOWN_NAMES]) + ", ..." * (len(whole) > SHOWN_NAMES)
        expected = f"0 to {len(numbers) - 1}, all of them, or names (labels)"
        raise UserError(f"{source}: label: found {len(numbers)} classes, {shown}, expected {expected}")
    return tuple(str(number) for number in range(len(numbers)))


def _refuse_twins(names: Iterable[str], source: str) -> None:
    """Names that nobody would tell apart are one class spelled in two ways: 1 and 1.0, é in one code point or two."""
    known: dict[float | str, str] = {}
    for name in sorted(names):
        try:
            same: float | str = float(name)
        except ValueError:
            same = " ".join(unicodedata.normalize("NFKC", name).split())
        if same in known:
            raise UserError(f"{source}: label: found {known[same]!r:.60} and {name!r:.60}, expected one spelling")
        known[same] = name


def class_number(raw: object, names: Sequence[str] | None, count: int) -> int | None:
    """The number of a class or an answer among `count`: its place among the names, else the number itself (from 0);
    None if it is neither. Where every name is a number, a number is a name.
    """
    if not isinstance(raw, str | int | float):
        return None
    names = names or ()
    spelled = _spelled(raw)
    if spelled in names:
        number: int | None = names.index(spelled)
    else:
        number = None if names and all(_whole(name) is not None for name in names) else _whole(raw)
    return number if number is not None and 0 <= number < count else None


def _whole(raw: object) -> int | None:
    """A whole number, or one written as text (cells of a CSV file)."""
    if isinstance(raw, str):
        return int(raw) if _WHOLE.fullmatch(raw) else None
    if isinstance(raw, float):
        return int(raw) if raw.is_integer() else None
    return int(raw) if isinstance(raw, int) else None


def _spelled(raw: object) -> str:
    """A label as a name: true and false as JSON writes them."""
    whole = _whole(raw)
    return str(raw).lower() if isinstance(raw, bool) else str(raw if whole is None else whole)


def _type(raw: object) -> type:
    return float if isinstance(raw, int | float) and not isinstance(raw, bool) else type(raw)


def _listed(columns: str | list[str]) -> list[str]:
    return [columns] if isinstance(columns, str) else list(columns)
