"""N-way K-shot tasks of text: some classes of a labelled source, their numbers drawn anew for every task, and what all
such families share.

Classes are numbered in an order drawn per task, and where answers are words that mean nothing, they are drawn per task
too: then only the support set says which is which (Vinyals et al. 2016, section 2.2, for the sampling; for words as
labels see `label_words`).
"""

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpt_modules.data.arguments import expect_parted, expect_whole
from gpt_modules.data.episodes.families import Episode, Example, Family
from gpt_modules.data.rows.classes import check_names
from gpt_modules.data.rows.labelled import (
    Columns,
    LabelledRow,
    built_in_rows,
    check_columns,
    class_names,
    class_number,
    is_built_in,
)
from gpt_modules.data.rows.sources import Source, load_rows, name_of, refuse_shared_files
from gpt_modules.data.splits import VALIDATION_FRACTION, Row, Split, hold_out, normalise, split_of
from gpt_modules.errors import UserError
from gpt_modules.storage.documents import settings_of

WORDS: tuple[str, ...] = (
    *("apple", "bag", "ball", "bell", "boat", "bowl", "box", "branch", "brick", "bridge", "cable", "chair", "cloud"),
    *("coat", "coin", "cup", "desk", "door", "fence", "fork", "gate", "glass", "hat", "horse", "lamp", "leaf", "map"),
    *("milk", "moon", "pipe", "plate", "pond", "rice", "river", "rope", "shelf", "spoon", "table", "tree", "window"),
)
"""Label words: nouns without sentiment, one token of GPT-2's each with the space before them."""
MISSES = 1_000  # draws without a set of words for the split, after which there is none
SPARE = 3  # classes are held out where there are so many times `ways`: twice as many are left to train on


def texts_needed(ways: int, support: int, query: int) -> int:
    """Texts that a class needs for so many balanced examples."""
    return -(-support // ways) - (-query // ways)


def draw_labels(generator: np.random.Generator, ways: int, support: int, query: int) -> NDArray[np.int64]:
    """Class numbers of an episode, (support + query,).

    The support's come in rounds, each all classes in a new order, so that any first k are as balanced as k can be. The
    query's are as balanced in all and in random order, so that a label says little about the next one.
    """
    rounds = [np.tile(np.arange(ways), (-(-count // ways), 1)) for count in (support, query)]
    first, second = (generator.permuted(table, axis=1).reshape(-1) for table in rounds)
    return np.concatenate([first[:support], generator.permutation(second[:query])])


def draw_words(generator: np.random.Generator, split: Split, ways: int, words: Sequence[str] = WORDS) -> list[str]:
    """A word for each class. Sets of words that validate never train, whatever their order: a tenth of the sets, by
    hash. Where there are just `ways` words, both splits use them.

    Raises:
        UserError: Too few words for that.
    """
    if len(set(words)) < ways:
        raise UserError(f"words: found {len(set(words))} different ones, expected at least {ways}, one for each class")
    for _ in range(MISSES):
        drawn = [words[i] for i in generator.choice(len(words), ways, replace=False).tolist()]
        ours = len(words) == ways or split_of(" ".join(sorted(drawn))) == split
        if len(set(drawn)) == ways and ours:
            return drawn
    raise UserError(f"words: found {len(words)}, and no {ways} of them are for {split}, expected more words")


def draw_texts(generator: np.random.Generator, texts: Sequence[str], count: int) -> list[str]:
    """So many different ones, in random order."""
    return [texts[i] for i in generator.choice(len(texts), count, replace=False).tolist()]


def compose(
    labels: NDArray[np.int64], texts: Sequence[Sequence[str]], answers: Sequence[str], separator: str, support: int
) -> Episode:
    """The episode of class numbers (support + query,), the texts of each class, as many as it has numbers, and the
    answer that stands for each class.
    """
    rest = [iter(own) for own in texts]
    examples = [Example(next(rest[i]) + separator, f" {answers[i]}", i) for i in labels.tolist()]
    return Episode(examples[:support], examples[support:])


class _Class(NamedTuple):
    name: str
    texts: list[str]


class LabelledClasses(Family):
    """Any labelled source as N-way K-shot tasks: a task is `ways` of its classes.

    Without a validation source, and where there are at least three times `ways` classes, some of them (by the hash of
    their names) are held out, and validation tasks are made of those; with fewer classes, texts are held out.

    Args:
        source: "reviews" (embedded: film sentences, positive or negative), files, folders or globs of rows, or a data
            set's name on the hub.
        validation: The same; None: see above, or the built-in data's own split. Texts that training has are left out.
        ways: Classes of a task.
        columns: Names of the columns; a pair's second text follows the first after a space.
        labels: Names of the classes in the order of their numbers, for labels that are numbers; None: the names or
            numbers that the rows hold.
        random_words: Whether a class is answered with a word drawn per task, not with its name.
        separator: What stands between a text and its answer; the answer begins with a space.
        validation_fraction: How much is held out.
        cache_dir: None: $GPT_MODULES_CACHE or ~/.cache/gpt_modules.
    """

    def __init__(
        self,
        source: str | list[str],
        validation: str | list[str] | None = None,
        ways: int = 2,
        columns: Columns = Columns(),
        labels: list[str] | None = None,
        random_words: bool = False,
        separator: str = " ->",
        validation_fraction: float = VALIDATION_FRACTION,
        cache_dir: str | None = None,
    ) -> None:
        columns = settings_of(Columns, columns, "columns")
        expect_whole(2, ways=ways)
        expect_parted(LabelledClasses, source, validation, is_built_in(source), validation_fraction)
        check_columns("classification", columns, source, validation)
        check_names("classification", labels, None)
        self.source, self.validation = source, validation
        self.classes = self.ways = ways
        self.columns, self.labels, self.random_words, self.separator = columns, labels, random_words, separator
        self.validation_fraction, self.cache_dir = validation_fraction, cache_dir

    def episode(self, generator: np.random.Generator, split: Split, support: int, query: int) -> Episode:
        needed = texts_needed(self.ways, support, query)
        classes = self._checked(split, needed)
        drawn = [classes[i] for i in generator.choice(len(classes), self.ways, replace=False).tolist()]
        names = [one.name for one in drawn]
        answers = draw_words(generator, split, self.ways) if self.random_words else names
        labels = draw_labels(generator, self.ways, support, query)
        counts = np.bincount(labels, minlength=self.ways).tolist()
        texts = [draw_texts(generator, one.texts, count) for one, count in zip(drawn, counts, strict=True)]
        return compose(labels, texts, answers, self.separator, support)

    def texts(self, split: Split) -> Iterable[str]:
        return chain.from_iterable(one.texts for one in self._classes[split])

    def _checked(self, split: Split, needed: int) -> list[_Class]:
        """The classes of a split, all of them large enough: what chance would refuse in mid-training, the first episode
        refuses.
        """
        classes = self._classes[split]
        name = name_of(self.source if split == "train" else self.validation or self.source)
        if len(classes) < self.ways:
            raise UserError(f"{name}: label: found {len(classes)} classes for {split}, expected at least {self.ways}")
        least = min(classes, key=lambda one: len(one.texts))
        if len(least.texts) < needed:
            found = f"{len(least.texts)} different texts of class {least.name!r:.50} for {split}"
            raise UserError(f"{name}: label: found {found}, expected at least {needed} (support and query)")
        return classes

    @cached_property
    def _classes(self) -> dict[Split, list[_Class]]:
        """Read at the first episode: the command line could not say why a constructor failed."""
        if self.validation is not None:
            refuse_shared_files(self.source, self.validation)
        rows, seen = self._rows(self.source, "train"), set[str]()
        has_split = self.validation is not None or is_built_in(self.source)
        held_out = self._rows(self.validation or self.source, "validation") if has_split else []
        names = self.labels
        if names is None:
            names = list(class_names((row["label"] for row in rows + held_out), name_of(self.source)))
            for row in rows + held_out:
                row["label"] = class_number(row["label"], names, len(names))
        train = _grouped(rows, names, seen)
        if has_split:
            return {"train": train, "validation": _grouped(held_out, names, seen)}
        return self._parted(train)

    def _parted(self, classes: list[_Class]) -> dict[Split, list[_Class]]:
        name, fraction = name_of(self.source), self.validation_fraction
        if len(classes) >= SPARE * self.ways:
            train, held_out = hold_out(classes, lambda one: one.name, fraction, f"{name}: classes", self.ways)
            return {"train": train, "validation": held_out}
        parts = [
            (one.name, *hold_out(one.texts, str, fraction, f"{name}: texts of class {one.name!r:.50}"))
            for one in classes
        ]
        return {
            "train": [_Class(name, texts) for name, texts, _ in parts],
            "validation": [_Class(name, texts) for name, _, texts in parts],
        }

    def _rows(self, source: Source, split: Split) -> list[Row]:
        if is_built_in(source):
            return built_in_rows(str(source), split, LabelledRow("classification", Columns(), self.labels))
        check = LabelledRow("classification", self.columns, self.labels)
        return load_rows(source, split, check, cache_dir=self.cache_dir)


def _grouped(rows: Iterable[Row], names: Sequence[str], seen: set[str]) -> list[_Class]:
    """The rows' texts by class, each text once: a text that `seen` has is left out, and what is read joins it."""
    classes: list[list[str]] = [[] for _ in names]
    for row in rows:
        text = f"{row['text']} {row.get('pair', '')}".strip()
        if normalise(text) not in seen:
            seen.add(normalise(text))
            classes[row["label"]].append(text)
    return [_Class(name, texts) for name, texts in zip(names, classes, strict=True) if texts]
