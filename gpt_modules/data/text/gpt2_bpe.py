"""Byte-level BPE as GPT-2 has it, and GPT-2's own, rebuilt from the merges that ship with this package.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2.
"""

from importlib.resources import files

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from gpt_modules.storage.model_files import END_OF_TEXT


def gpt2_bpe() -> tokenizers.Tokenizer:
    """The released tokenizer, its ids as OpenAI's (50,257 of them)."""
    merges = _merges()
    symbols = _alphabet() + [left + right for left, right in merges]
    vocabulary = {symbol: i for i, symbol in enumerate(symbols)}
    return with_end(byte_level(models.BPE(vocab=vocabulary, merges=merges)))


def byte_level(model: models.Model) -> tokenizers.Tokenizer:
    """A model of symbols that stand for bytes, with GPT-2's way to split a text into words before."""
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def with_end(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same with `<|endoftext|>` as a special token, by the next id where the vocabulary lacks it."""
    backend.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return backend


def _alphabet() -> list[str]:
    """The 256 symbols that stand for bytes, in the order of their ids: bytes that print first, then the rest, renamed
    from 256 on.
    """
    printable = [chr(b) for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
    return printable + [chr(256 + i) for i in range(256 - len(printable))]


def symbols_of_bytes() -> dict[str, int]:
    """The byte that each symbol stands for."""
    plain = {symbol: ord(symbol) for symbol in _alphabet() if ord(symbol) < 256}
    rest = [byte for byte in range(256) if byte not in plain.values()]
    return plain | {chr(256 + i): byte for i, byte in enumerate(rest)}


def _merges() -> list[tuple[str, str]]:
    text = (files("gpt_modules.data.builtin") / "embedded" / "vocab.bpe").read_text(encoding="utf-8")
    pairs = [line.split(" ") for line in text.split("\n")[1:] if line]
    return [(left, right) for left, right in pairs]
