"""Documents that nearly repeat an earlier one, by MinHash and locality-sensitive hashing (library `datasketch`).

Brown et al. 2020, appendix A, removed them with Spark's MinHashLSH and 10 hashes, from each source and WebText from
CommonCrawl, which made the data 10 % smaller. Here a document is the set of its runs of 5 words, its MinHash has 128
permutations, and bands are chosen for the threshold; a candidate counts if the MinHashes agree to the threshold, which
estimates the Jaccard similarity to within 0.04 (standard error at 0.8). The first of several stays.

Memory: a document that is kept takes about 4.3 kB (measured at a threshold of 0.8).
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpt_modules.data.corpus.cleaning.ngrams import gram_hashes
from gpt_modules.errors import UserError
from gpt_modules.storage.documents import Count

GRAM = 5
PERMUTATIONS = 128


class Duplicate(NamedTuple):
    """Document `document` nearly repeats `of`; both are numbered from 0 as the source has them."""

    document: Count
    of: Count
    similarity: float


class Signature(NamedTuple):
    """What is compared of a document. minhash: (128,) uint32; None where it has too few words for a run, and `key` is
    all of it.
    """

    minhash: NDArray[np.uint32] | None
    key: bytes


class Signer:
    """Signatures of documents, from their words.

    Raises:
        UserError: `datasketch` is not installed.
    """

    def __init__(self) -> None:
        self._empty = new_minhash()

    def __call__(self, words: NDArray[np.uint64]) -> Signature:
        """A function of the words alone (`ngrams.Words.hashes`)."""
        runs = gram_hashes(words, GRAM)
        if not len(runs):
            return Signature(None, words.tobytes())
        minhash = self._empty.copy()
        minhash.update_batch((np.unique(runs) >> np.uint64(32)).tolist())
        return Signature(np.asarray(minhash.hashvalues, dtype=np.uint32), b"")


class NearDuplicates:
    """The documents that were kept so far, each asked whether it nearly repeats one of them.

    Args:
        threshold: Estimated Jaccard similarity, above 0 to 1, from which on it does.

    Raises:
        UserError: `datasketch` is not installed, or the threshold is out of range.
    """

    def __init__(self, threshold: float) -> None:
        if not 0 < threshold <= 1:
            raise UserError(f"near-duplicates: found {threshold}, expected a similarity above 0 to 1")
        self.threshold = threshold
        self._asked = new_minhash()
        self._index: Any = datasketch_library().MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS)
        self._kept: dict[int, NDArray[np.uint32]] = {}
        self._short: dict[bytes, int] = {}
        self._count = 0

    def add(self, signature: Signature) -> Duplicate | None:
        """The next document: what it repeats, or None; then later ones are compared with it, too."""
        number, self._count = self._count, self._count + 1
        if signature.minhash is None:  # equal words only
            first = self._short.setdefault(signature.key, number)
            return Duplicate(number, first, 1.0) if first != number else None
        self._asked.hashvalues = signature.minhash.astype(self._asked.hashvalues.dtype)
        found = self._nearest(signature.minhash)
        if found is not None and found[1] >= self.threshold:
            return Duplicate(number, *found)
        self._index.insert(number, self._asked, check_duplication=False)
        self._kept[number] = signature.minhash
        return None

    def _nearest(self, minhash: NDArray[np.uint32]) -> tuple[int, float] | None:
        """The most similar candidate, the earliest of equals."""
        candidates = sorted(self._index.query(self._asked))
        alike = [float(np.mean(self._kept[number] == minhash)) for number in candidates]
        return max(zip(candidates, alike, strict=True), key=lambda pair: pair[1], default=None)


def datasketch_library() -> Any:
    """The library, imported only now.

    Raises:
        UserError: It is not installed.
    """
    try:
        import datasketch
    except ImportError as error:
        raise UserError(
            "near-duplicates: found no datasketch, expected it: pip install 'gpt-modules[prepare]'"
        ) from error
    return datasketch


def new_minhash() -> Any:
    """A MinHash of nothing; what it is given are hashes already."""
    return datasketch_library().MinHash(num_perm=PERMUTATIONS, hashfunc=int)
