"""What is to be left out of a corpus, found by one pass over it before it is encoded: near-duplicates, and what test
sets hold.

The result is kept in `survey.json`, so that a run that is cut off later need not look again.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpt_modules.data.corpus.cleaning.contamination import (
    MOST_DOCUMENTS,
    clean_pieces,
    colliding_grams,
    collisions,
    distinct_grams,
    texts_of_tests,
)
from gpt_modules.data.corpus.cleaning.duplicates import Duplicate, NearDuplicates, Signature, Signer
from gpt_modules.data.corpus.cleaning.ngrams import split_words
from gpt_modules.data.corpus.documents import CHUNK, Document
from gpt_modules.data.corpus.processes import map_in_order
from gpt_modules.errors import UserError
from gpt_modules.storage.documents import Count, read_document
from gpt_modules.storage.durable import replace_durably

SURVEY = "survey.json"
LARGEST = 1 << 32  # bytes of it: near-duplicates take about 60 each


@dataclass
class Survey:
    """Near-duplicates by their number in the source, and the test sets' runs of words that many documents have.

    documents: how many there are. test_grams: different runs in the test sets. short_tests: texts without one.
    """

    made_from: dict[str, Any]
    documents: Count = 0
    test_grams: Count = 0
    short_tests: Count = 0
    common_grams: list[Count] = field(default_factory=list)
    duplicates: list[Duplicate] = field(default_factory=list)


class Findings(NamedTuple):
    """What a process sees in a document."""

    signature: Signature | None
    grams: NDArray[np.uint64]


class Filter:
    """Documents without what a survey found. Each is held in memory whole.

    Args:
        survey: Of the same documents.
        grams: Of the test sets, see `grams_of_tests`.
    """

    def __init__(self, survey: Survey, grams: NDArray[np.uint64]) -> None:
        self.removed = {duplicate.document for duplicate in survey.duplicates}
        self.grams = np.setdiff1d(grams, np.array(survey.common_grams, dtype=np.uint64))
        self.cut = self.dropped = 0

    def __call__(self, documents: Iterable[Document]) -> Iterator[Document]:
        """What is left of each document; of one that was cut, its pieces as documents of their own."""
        for number, document in enumerate(documents):
            if number in self.removed:
                continue
            text = "".join(document)
            pieces = clean_pieces(text, collisions(text, self.grams)) if len(self.grams) else [text]
            self.cut += pieces not in ([text], [])
            self.dropped += not pieces
            yield from ([piece] for piece in pieces)


def grams_of_tests(tests: list[str], cache_dir: str | Path | None) -> tuple[NDArray[np.uint64], int]:
    """The different runs of 13 words in test files, and how many of their texts have none."""
    return distinct_grams(texts_of_tests(tests, cache_dir))


def open_or_make_survey(
    folder: Path,
    documents: Iterable[Document],
    made_from: dict[str, Any],
    threshold: float | None,
    grams: NDArray[np.uint64],
    short_tests: int,
    workers: int = 1,
    report: Callable[[int, int], None] = lambda documents, characters: None,
) -> Survey:
    """The survey in a folder, or a new one.

    Args:
        folder: Of the shards.
        documents: The source; read only where there is no survey.
        made_from: What the survey depends on, as in the shards' manifest.
        threshold: Of near-duplicates; None: do not look for them.
        grams, short_tests: See `grams_of_tests`.
        workers: Processes.
        report: Called with the documents and characters so far.

    Raises:
        UserError: The folder has the survey of something else, or nothing can be written there.
    """
    path = folder / SURVEY
    if path.exists():
        return _read(path, made_from)
    survey = Survey(made_from, test_grams=len(grams), short_tests=short_tests)
    seen, counts, size = (NearDuplicates(threshold) if threshold is not None else None), Counter[int](), 0
    for found, characters in map_in_order(_Surveyor, (threshold is not None, grams), _texts(documents), workers):
        for findings in found:
            survey.documents += 1
            counts.update(findings.grams.tolist())
            if seen is not None and findings.signature is not None and (twin := seen.add(findings.signature)):
                survey.duplicates.append(twin)
        report(survey.documents, size := size + characters)
    survey.common_grams = sorted(gram for gram, count in counts.items() if count > MOST_DOCUMENTS)
    folder.mkdir(parents=True, exist_ok=True)
    replace_durably(path, json.dumps(asdict(survey) | {"duplicates": [twin._asdict() for twin in survey.duplicates]}))
    return survey


class _Surveyor:
    """Looks at lists of documents, in a process of its own."""

    def __init__(self, signs: bool, grams: NDArray[np.uint64]) -> None:
        self.sign, self.grams = (Signer() if signs else None), grams

    def __call__(self, texts: list[str]) -> tuple[list[Findings], int]:
        return [self._look(text) for text in texts], sum(map(len, texts))

    def _look(self, text: str) -> Findings:
        words = split_words(text).hashes
        return Findings(self.sign(words) if self.sign is not None else None, colliding_grams(words, self.grams))


def _texts(documents: Iterable[Document]) -> Iterator[list[str]]:
    texts, size = list[str](), 0
    for document in documents:
        texts.append("".join(document))
        size += len(texts[-1])
        if size >= CHUNK:
            yield texts
            texts, size = [], 0
    if texts:
        yield texts


def _read(path: Path, made_from: dict[str, Any]) -> Survey:
    survey = read_document(path, Survey, "the survey of a corpus", LARGEST)
    if survey.made_from != made_from:
        raise UserError(f"{path}: found a survey of another source or with other settings, expected an empty folder")
    return survey
