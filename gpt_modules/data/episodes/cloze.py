"""Raw text as few-shot classification: which of a few words is missing from a sentence?

Source: Bansal, Jha, Munkhdalai and McCallum 2020, "Self-Supervised Meta-Learning for Few-Shot Natural Language
Classification Tasks" (SMLMT), section 3: a task draws words, takes sentences that hold them, masks the word, and the
class to predict is the word's, whose number is drawn per task. Unlabelled text gives as many tasks as it has sets of
words.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpt_modules.data.arguments import expect_default, expect_part, expect_positive, expect_whole
from gpt_modules.data.episodes.families import Episode, Family
from gpt_modules.data.episodes.ways import compose, draw_labels, draw_words, texts_needed
from gpt_modules.data.rows.sources import REVIEWS, Source, has_own_splits, iter_rows, name_of, refuse_shared_files
from gpt_modules.data.splits import VALIDATION_FRACTION, Split, hold_out, normalise, split_of
from gpt_modules.errors import UserError

MIN_WORDS = 4  # of a sentence: fewer leave nothing to tell the word by
MIN_LETTERS = 3  # of a word to ask for
MISSES = 100  # draws of words without enough sentences, after which there are none
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"'”’)\]])\s+|\n\s*\n")
_WORD = re.compile(r"[^\W\d_]+(?:['’]t\b)?")  # "don't" is one word and not asked for, "film's" shows the word "film"


class Cloze(Family):
    """The class of a sentence is the word that it lacks, answered by a label word that is drawn per task.

    Words for validation are held out by hash, and so are sentences, where the source does not part itself.

    Args:
        source: Text as for pretraining: "reviews", "shakespeare", files, folders or globs, or a data set's name on the
            hub.
        validation: The same; None: the embedded text's own split, else `validation_fraction` of the sentences. Those
            that training has are left out.
        ways: Words of a task.
        min_count: Least sentences that hold a word to ask for, in its split.
        max_fraction: Most sentences that hold it, of all: more frequent ones say little about theirs.
        max_words: Words of a prompt; a longer sentence is cut around the blank.
        blank: What stands in the word's place.
        separator: What stands between a sentence and its answer; the answer begins with a space.
        text_field: The column that holds the text.
        max_sentences: Different sentences to read, from either source; the rest is left.
        validation_fraction: How many of the words, and of the sentences, are held out.
        cache_dir: None: $GPT_MODULES_CACHE or ~/.cache/gpt_modules.
    """

    def __init__(
        self,
        source: str | list[str] = REVIEWS,
        validation: str | list[str] | None = None,
        ways: int = 2,
        min_count: int = 10,
        max_fraction: float = 0.02,
        max_words: int = 24,
        blank: str = "____",
        separator: str = " ->",
        text_field: str = "text",
        max_sentences: int = 100_000,
        validation_fraction: float = VALIDATION_FRACTION,
        cache_dir: str | None = None,
    ) -> None:
        expect_whole(2, ways=ways)
        expect_whole(MIN_WORDS, max_words=max_words)
        expect_whole(1, None, min_count=min_count, max_sentences=max_sentences)
        expect_positive(max_fraction=max_fraction)
        expect_part(validation_fraction=validation_fraction)
        if has_own_splits(source) and (validation is None or has_own_splits(validation)):
            expect_default(Cloze, "source", f"the built-in {source}", text_field=text_field)
        self.source, self.validation = source, validation
        self.classes = self.ways = ways
        self.min_count, self.max_fraction, self.max_words = min_count, max_fraction, max_words
        self.blank, self.separator, self.text_field = blank, separator, text_field
        self.max_sentences, self.validation_fraction, self.cache_dir = max_sentences, validation_fraction, cache_dir
        self._usable: dict[tuple[Split, int], list[str]] = {}

    def episode(self, generator: np.random.Generator, split: Split, support: int, query: int) -> Episode:
        needed = texts_needed(self.ways, support, query)
        usable = self._words(split, needed)
        answers = draw_words(generator, split, self.ways)
        labels = draw_labels(generator, self.ways, support, query)
        counts = np.bincount(labels, minlength=self.ways).tolist()
        for _ in range(MISSES):
            drawn = [usable[i] for i in generator.choice(len(usable), self.ways, replace=False).tolist()]
            texts = self._texts(generator, self._indices[split], drawn, counts)
            if texts is not None:
                return compose(labels, texts, answers, self.separator, support)
        raise self._refuse(split, f"no {self.ways} words with {needed} sentences of their own", "more text")

    def texts(self, split: Split) -> Iterable[str]:
        return self._indices[split].sentences

    def _words(self, split: Split, needed: int) -> list[str]:
        """The words of a split that enough sentences hold, and not too many."""
        if (split, needed) not in self._usable:
            index = self._indices[split]
            least, most = max(self.min_count, needed), self.max_fraction * len(index.sentences)
            words = sorted(word for word, held in index.holding.items() if least <= len(held) <= most)
            if len(words) < self.ways:
                found = f"{len(words)} words that {least} to {int(most)} of {len(index.sentences)} sentences hold"
                bounds = f"min_count {self.min_count}, max_fraction {self.max_fraction:g}"
                raise self._refuse(split, found, f"at least {self.ways} ({bounds})")
            self._usable[split, needed] = words
        return self._usable[split, needed]

    def _texts(
        self, generator: np.random.Generator, index: "_Index", drawn: Sequence[str], counts: Sequence[int]
    ) -> list[list[str]] | None:
        """So many prompts for each word, no two alike; None if there are fewer."""
        texts, seen = list[list[str]](), set[str]()
        for pool, word, count in zip(_apart([index.holding[word] for word in drawn]), drawn, counts, strict=True):
            own: list[str] = []
            for place in generator.permutation(pool).tolist():
                if len(own) == count:
                    break
                prompt = blank_out(index.sentences[place], word, self.blank, self.max_words)
                if normalise(prompt) not in seen:
                    seen.add(normalise(prompt))
                    own.append(prompt)
            if len(own) < count:
                return None
            texts.append(own)
        return texts

    @cached_property
    def _indices(self) -> dict[Split, "_Index"]:
        """Read at the first episode: the command line could not say why a constructor failed."""
        if self.validation is not None:
            refuse_shared_files(self.source, self.validation)
        read = self._read(self.source, "train")
        train, held_out = list(read.values()), list[str]()
        if self.validation is None and not (isinstance(self.source, str) and has_own_splits(self.source)):
            train, held_out = hold_out(train, str, self.validation_fraction, f"{name_of(self.source)}: sentences")
        else:
            other = self._read(self.validation or self.source, "validation")
            held_out = [sentence for key, sentence in other.items() if key not in read]
        parts: tuple[tuple[Split, list[str]], ...] = (("train", train), ("validation", held_out))
        return {split: _index(sentences, split, self.validation_fraction) for split, sentences in parts}

    def _read(self, source: Source, split: Split) -> dict[str, str]:
        """The sentences of a source under their texts but for case and spaces, each once."""
        found: dict[str, str] = {}
        folder, field = self.cache_dir, self.text_field
        for row in iter_rows(source, split, "pretraining", cache_dir=folder, streaming=True, text_field=field):
            for sentence in split_sentences(row["text"]):
                found.setdefault(normalise(sentence), sentence)
                if len(found) == self.max_sentences:
                    return found
        return found

    def _refuse(self, split: Split, found: str, expected: str) -> UserError:
        name = name_of(self.source if split == "train" else self.validation or self.source)
        return UserError(f"{name}: found {found} for {split}, expected {expected}")


def split_sentences(text: str) -> Iterator[str]:
    """The sentences of a text that have at least four words, their white space made single spaces. A sentence ends
    after . ! or ? and a closing quote or bracket, where white space follows, and at a blank line.
    """
    for part in _SENTENCE_END.split(text):
        words = part.split()
        if len(words) >= MIN_WORDS:
            yield " ".join(words)


def blank_out(sentence: str, word: str, blank: str, max_words: int) -> str:
    """The sentence with a blank wherever the word (lower-case) stood, cut to so many words around the first one.

    Raises:
        ValueError: The sentence does not hold the word.
    """
    chunks = sentence.split()
    place = next((i for i, chunk in enumerate(chunks) if word in _words_of(chunk)), None)
    if place is None:
        raise ValueError(f"word: found no {word!r} in {sentence!r}")
    start = max(0, min(place - max_words // 2, len(chunks) - max_words))
    cut = " ".join(chunks[start : start + max_words])
    return _WORD.sub(lambda match: blank if match.group().lower() == word else match.group(), cut)


class _Index(NamedTuple):
    """sentences: all of a split. holding: by word, the places (n,) of the sentences that hold it."""

    sentences: list[str]
    holding: dict[str, NDArray[np.int64]]


def _index(sentences: list[str], split: Split, fraction: float) -> _Index:
    """Of the words, those of the split only."""
    holding: dict[str, list[int]] = {}
    for place, sentence in enumerate(sentences):
        for word in _words_of(sentence):
            holding.setdefault(word, []).append(place)
    ours = {
        word: np.array(places)
        for word, places in holding.items()
        if len(word) >= MIN_LETTERS and word.isalpha() and split_of(word, fraction) == split
    }
    return _Index(sentences, ours)


def _words_of(text: str) -> set[str]:
    return {word.lower() for word in _WORD.findall(text)}


def _apart(pools: Sequence[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """The pools without what is in more than one of them."""
    places, counts = np.unique(np.concatenate(pools), return_counts=True)
    shared = places[counts > 1]
    return [pool[~np.isin(pool, shared)] for pool in pools]
