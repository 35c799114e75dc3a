"""Shakespeare's works as embedded text: 42 plays and poems, 5.06 million characters of 84 kinds, public domain.

The text is that of the `shakespeare` 0.6 source package, unchanged. The last tenth validates, as in the character-level
exercises that this text is known from; being one author's other works, it is a harder and a fairer test than scattered
lines.
"""

import hashlib
import lzma
import re
from collections import Counter
from functools import lru_cache
from importlib.resources import files

from gpt_modules.data.splits import VALIDATION_FRACTION, Split


@lru_cache(maxsize=1)
def load_shakespeare() -> str:
    """The whole text."""
    packed = (files("gpt_modules.data.builtin") / "embedded" / "shakespeare.txt.xz").read_bytes()
    return lzma.decompress(packed).decode("utf-8")


def shakespeare_text(split: Split) -> str:
    """One part of it: `train` the first nine tenths, to the end of a line, `validation` the rest."""
    text = load_shakespeare()
    cut = text.index("\n", round((1.0 - VALIDATION_FRACTION) * len(text))) + 1
    return text[:cut] if split == "train" else text[cut:]


def fingerprint() -> str:
    """SHA-256 of the text, for caches that are built from it."""
    return hashlib.sha256(load_shakespeare().encode()).hexdigest()


@lru_cache(maxsize=1)
def frequent_words() -> tuple[str, ...]:
    """Its 10,000 most frequent words of 5 to 15 lower-case letters, the most frequent first."""
    counts = Counter(re.findall(r"(?<![\w'])[a-z]{5,15}(?![\w'])", load_shakespeare()))
    return tuple(sorted(counts, key=lambda word: (-counts[word], word))[:10_000])
