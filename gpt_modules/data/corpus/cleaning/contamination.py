"""Test sets taken out of training text, by runs of 13 words that both have.

Brown et al. 2020, appendix C. The paper's: words lower-cased, without punctuation, parted by white space; runs of 13;
each run that collides is cut out with a window of 200 characters around it; pieces of less than 200 characters are
dropped; a document in more than 10 pieces is dropped whole; a run that more than 10 training documents have is left
alone, as most are phrases that everybody quotes. Choices made here: the window is 200 characters on either side, and
the pieces that are counted are those that are kept.

A test text of fewer than 13 words has no run and is not found.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_modules.data.corpus.cleaning.ngrams import gram_hashes, split_words
from gpt_modules.data.rows.files import find_files, is_local
from gpt_modules.data.rows.sources import iter_rows

GRAM = 13
WINDOW = 200  # characters on either side
SHORTEST = 200  # characters of a piece that is kept
MOST_PIECES = 10
MOST_DOCUMENTS = 10


def collisions(text: str, grams: NDArray[np.uint64]) -> NDArray[np.int64]:
    """(n, 2) spans in characters of the runs of a text that are among `grams`, which are sorted."""
    words = split_words(text)
    found = np.flatnonzero(_among(gram_hashes(words.hashes, GRAM), grams))
    return np.stack([words.spans[found, 0], words.spans[found + GRAM - 1, 1]], axis=1)


def colliding_grams(words: NDArray[np.uint64], grams: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Which of `grams`, sorted, are runs of these words, each once."""
    found = np.unique(gram_hashes(words, GRAM))
    return found[_among(found, grams)]


def distinct_grams(texts: Iterable[str]) -> tuple[NDArray[np.uint64], int]:
    """The runs of test sets, sorted, and how many texts are too short to have one. Memory: 8 bytes a run."""
    parts = [gram_hashes(split_words(text).hashes, GRAM) for text in texts]
    return np.unique(np.concatenate([np.empty(0, dtype=np.uint64), *parts])), sum(not len(part) for part in parts)


def clean_pieces(text: str, spans: NDArray[np.int64]) -> list[str]:
    """What is left of a text without these spans and what surrounds them: itself where there is none, else its pieces,
    or nothing.
    """
    if not len(spans):
        return [text]
    pieces, start = [], 0
    for first, last in spans.tolist():
        pieces.append(text[start : max(start, first - WINDOW)])
        start = max(start, last + WINDOW)
    pieces = [piece for piece in (*pieces, text[start:]) if len(piece) >= SHORTEST]
    return pieces if len(pieces) <= MOST_PIECES else []


def texts_of_tests(sources: Iterable[str], cache_dir: str | Path | None = None) -> Iterator[str]:
    """Every text in the rows of test sets, in whatever field; a text file is one text.

    Raises:
        UserError: A file is not there, or not readable.
    """
    for source in sources:
        for item in map(str, find_files(source)) if is_local(source) else [source]:
            if item.lower().endswith(".txt"):
                yield from (row["text"] for row in iter_rows(item, "validation", "pretraining", cache_dir=cache_dir))
                continue
            for row in iter_rows(item, "validation", _any_row, cache_dir=cache_dir):
                yield from _strings(row)


def _any_row(record: object) -> dict[str, Any]:
    return dict(record) if isinstance(record, Mapping) else {"row": record}


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for inner in value.values() for text in _strings(inner))
    elif isinstance(value, list | tuple):
        yield from (text for inner in value for text in _strings(inner))


def _among(numbers: NDArray[np.uint64], grams: NDArray[np.uint64]) -> NDArray[np.bool_]:
    if not len(grams):
        return np.zeros(len(numbers), dtype=np.bool_)
    places = np.minimum(np.searchsorted(grams, numbers), len(grams) - 1)
    return np.asarray(grams[places] == numbers)
