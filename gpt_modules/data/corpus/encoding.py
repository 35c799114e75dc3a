"""Encoding of a whole corpus: GPT-2's kind of tokenizer word by word from a memo, every kind on all cores.

Text repeats its words. Byte-level BPE encodes each pre-token ("word") for itself, so the ids of a word are looked up,
and only a new word goes to the library: about five times as fast, with the same ids. The pre-tokenizer's regular
expression (Radford et al. 2019, section 2.2) is rebuilt for Python; which characters are letters, numbers and spaces
is asked of the tokenizer itself, character by character, so that no two versions of Unicode can disagree.
"""

import json
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import tokenizers
from numpy.typing import NDArray

from gpt_modules.data.corpus.documents import Chunk
from gpt_modules.data.corpus.processes import map_in_order
from gpt_modules.data.text.tokenizers import Tokenizer

WORDS = 1 << 18  # words in the memo, about 50 MB
LONGEST = 64  # characters of a word that is worth remembering
WORTH_IT = 1 << 19  # characters of a chunk for which the memo pays
BLOCK = 256  # characters of Unicode that are asked about together
_SAMPLE = "It's 'twas we'LL\tsee:  3½ naïve cafés,\r\n\n  déjà-vu… 你好 🙂 \u00a0x \u2028\x1c don't!? \n"


class Encoded(NamedTuple):
    """A chunk's tokens; after each document that ends in it, what stands between two."""

    tokens: NDArray[Any]
    documents: int
    text_bytes: int


def token_type(tokenizer: Tokenizer) -> Literal["<u2", "<u4"]:
    """Of the ids on disk: two bytes little-endian where they suffice, else four."""
    return "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"


class WordMemo(dict[str, bytes]):
    """The ids of words as little-endian bytes, asked of the tokenizer when missing."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer, self.dtype = tokenizer, token_type(tokenizer)

    def __missing__(self, word: str) -> bytes:
        ids = np.array(self.tokenizer.encode(word), dtype=self.dtype).tobytes()
        if len(word) <= LONGEST:
            if len(self) >= WORDS:
                self.clear()
            self[word] = ids
        return ids


class WordEncoder:
    """Texts to ids, word by word.

    Args:
        tokenizer: One that `splits_like_gpt2`.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._memo = WordMemo(tokenizer)
        self._split = tokenizers.Tokenizer.from_str(tokenizer.to_json()).pre_tokenizer
        self._known: set[int] = set()
        self._kinds: dict[str, list[str]] = {"letter": [], "number": [], "space": [], "other": []}
        self._learn({0})
        self._ascii = self._pattern

    def encode(self, text: str) -> bytes:
        """The ids as the memo's bytes."""
        if text.isascii():
            words = self._ascii.findall(text)
        else:
            self._learn({ord(character) // BLOCK for character in set(text)} - self._known)
            words = self._pattern.findall(text)
        return b"".join(map(self._memo.__getitem__, words))

    def _learn(self, blocks: set[int]) -> None:
        """Asks about blocks of characters. Half a surrogate pair is none."""
        if not blocks:
            return
        for code in (code for block in blocks for code in range(block * BLOCK, (block + 1) * BLOCK)):
            if code <= 0x10FFFF and not 0xD800 <= code <= 0xDFFF:
                self._kinds[self._kind(chr(code))].append(chr(code))
        self._known |= blocks
        letters, numbers, spaces = (_character_class(self._kinds[kind]) for kind in ("letter", "number", "space"))
        self._pattern = re.compile(
            rf"'(?:[stmd]|re|ve|ll)| ?[{letters}]+| ?[{numbers}]+| ?[^{spaces}{letters}{numbers}]+"
            rf"|[{spaces}]+(?![^{spaces}])|[{spaces}]+"
        )

    def _kind(self, character: str) -> str:
        for kind, neighbour in (("letter", "a"), ("number", "1"), ("other", "!")):
            if len(self._split.pre_tokenize_str(neighbour + character)) == 1:
                return kind
        return "space"


def splits_like_gpt2(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer is byte-level BPE with GPT-2's pre-tokenizer and nothing before it."""
    form = json.loads(tokenizer.to_json())
    split, model = form["pre_tokenizer"] or {}, form["model"]
    plain = form["normalizer"] is None and all(token["special"] for token in form["added_tokens"])
    byte_level = split.get("type") == "ByteLevel" and split.get("use_regex") and not split.get("add_prefix_space")
    return bool(plain and byte_level and model["type"] == "BPE" and not model.get("dropout"))


class ChunkEncoder:
    """Chunks to tokens in this process: word by word where that is sure to give the same ids, else by the library."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.dtype = tokenizer, token_type(tokenizer)
        self._end = self._bytes(tokenizer.between)

    @cached_property
    def words(self) -> WordEncoder | None:
        """The quick way, where there is one. It takes a quarter of a second to make."""
        if not splits_like_gpt2(self.tokenizer):
            return None
        words = WordEncoder(self.tokenizer)
        return words if words.encode(_SAMPLE) == self._bytes(self.tokenizer.encode(_SAMPLE)) else None

    def __call__(self, chunk: Chunk) -> Encoded:
        """The chunk's tokens."""
        if sum(map(len, chunk.texts)) >= WORTH_IT and self.words is not None:
            parts: Iterable[bytes] = map(self.words.encode, chunk.texts)
        else:
            parts = map(self._bytes, self.tokenizer.encode_batch(chunk.texts))
        data = b"".join(part + self._end if last else part for part, last in zip(parts, chunk.ends, strict=True))
        return Encoded(np.frombuffer(data, dtype=self.dtype), chunk.documents, chunk.text_bytes)

    def _bytes(self, ids: list[int]) -> bytes:
        return np.array(ids, dtype=self.dtype).tobytes()


def encode_chunks(chunks: Iterable[Chunk], tokenizer: Tokenizer, workers: int = 1) -> Iterator[Encoded]:
    """The tokens of chunks, in order; for `workers` see `processes.map_in_order`."""
    return map_in_order(_encoder, (tokenizer.to_json(), tokenizer.eos), chunks, workers)


def _encoder(form: str, eos: str) -> ChunkEncoder:
    return ChunkEncoder(Tokenizer(tokenizers.Tokenizer.from_str(form), eos))


def _character_class(characters: list[str]) -> str:
    """The inside of a regular expression's brackets: ranges of code points."""
    codes = np.sort(np.array([ord(character) for character in characters], dtype=np.int64))
    runs = np.split(codes, np.flatnonzero(np.diff(codes) != 1) + 1)
    return "".join(f"\\U{run[0]:08x}-\\U{run[-1]:08x}" for run in runs)
