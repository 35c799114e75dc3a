"""Text to token ids and back: GPT-2's byte-level BPE, one trained on your text, or one that travels with saved weights.

Byte-level BPE: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2. The merging
itself is done by the `tokenizers` library; this file fixes what a language model in this package may rely on (one end
token, no surprises in data).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from gpt_modules.errors import UserError

END_OF_TEXT = "<|endoftext|>"
TOKENIZER_FILE = "tokenizer.json"


class Tokenizer:
    """A `tokenizers.Tokenizer` with a known end token.

    Text is data: a text that happens to contain the characters `<|endoftext|>` is encoded as those characters, never
    as the end token. No token is added before or after a text, and nothing is padded or truncated here.

    Args:
        backend: The library's tokenizer.
        eos: The token that ends a document or an answer; it must be in the vocabulary.

    Raises:
        UserError: The vocabulary lacks `eos`.
    """

    def __init__(self, backend: tokenizers.Tokenizer, eos: str = END_OF_TEXT) -> None:
        eos_id = backend.token_to_id(eos)
        if eos_id is None:
            raise UserError(f"tokenizer: found no token {eos!r} in its vocabulary, expected the end token")
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True  # as text; not stored in the JSON, so set at every construction
        self._backend = backend
        self.eos = eos
        self.eos_id: int = eos_id

    def encode(self, text: str) -> list[int]:
        """The ids of one text, without special tokens."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of many texts, on all cores; equal to `[encode(text) for text in texts]`."""
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of ids; bytes that are no valid UTF-8 become U+FFFD. `skip_special` leaves out the end token."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id: the rows that an embedding needs."""
        return 1 + max(self._backend.get_vocab(with_added_tokens=True).values())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the tokenizer's JSON and its end token: equal for tokenizers that behave alike."""
        return hashlib.sha256(f"{self.eos}\n{self.to_json()}".encode()).hexdigest()

    def to_json(self) -> str:
        """The library's JSON, the content of `tokenizer.json`."""
        return self._backend.to_str()

    def save(self, folder: str | Path) -> Path:
        """Writes `tokenizer.json` and `tokenizer_config.json` (for `transformers`) into a folder; returns the
        former's path.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self.eos,
            "bos_token": self.eos,
            "unk_token": self.eos,
        }
        _replace(folder / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")
        _replace(folder / TOKENIZER_FILE, self.to_json())
        return folder / TOKENIZER_FILE

    @classmethod
    def gpt2(cls) -> Tokenizer:
        """GPT-2's and GPT-3's tokenizer, ids as OpenAI's (50,257 of them), rebuilt from the merges that ship with
        this package.
        """
        return _gpt2()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Byte-level BPE of your own text, `<|endoftext|>` as the last id like GPT-2's.

        Args:
            texts: Read once.
            vocab_size: Ids in all; fewer come out where the text is too small to have that many merges.

        Raises:
            UserError: `vocab_size` is below 257 (256 bytes and the end token).
        """
        if vocab_size < 257:
            raise UserError(f"vocab_size: found {vocab_size}, expected at least 257 (256 bytes and {END_OF_TEXT})")
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 1,
            min_frequency=2,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        backend.train_from_iterator(texts, trainer=trainer)
        return cls(_byte_level(backend.model))

    @classmethod
    def load(cls, name: str | Path) -> Tokenizer:
        """Opens "gpt2" (embedded), a folder with `tokenizer.json`, such a file, or a model's name on the hub.

        Raises:
            UserError: Nothing there, not a tokenizer, or no end token in it.
        """
        if name == "gpt2" and not Path("gpt2").exists():
            return cls.gpt2()
        path = _find_file(str(name))
        backend = _read(path)
        return cls(backend, _end_token(path, backend))


def _byte_level(model: models.Model) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return backend


@cache
def _gpt2() -> Tokenizer:
    """Built once a process: it takes half a second, and nothing changes a tokenizer."""
    merges = _gpt2_merges()
    symbols = _gpt2_alphabet() + [left + right for left, right in merges]
    vocabulary = {symbol: i for i, symbol in enumerate(symbols)}
    return Tokenizer(_byte_level(models.BPE(vocab=vocabulary, merges=merges)))


def _gpt2_alphabet() -> list[str]:
    """The 256 symbols that stand for bytes, in the order of their ids: bytes that print first, then the rest, renamed
    from 256 on.
    """
    printable = [chr(b) for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
    return printable + [chr(256 + i) for i in range(256 - len(printable))]


def _gpt2_merges() -> list[tuple[str, str]]:
    text = (files("gpt_modules.data") / "embedded" / "vocab.bpe").read_text(encoding="utf-8")
    pairs = [line.split(" ") for line in text.split("\n")[1:] if line]
    return [(left, right) for left, right in pairs]


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _find_file(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        if (path / TOKENIZER_FILE).is_file():
            return path / TOKENIZER_FILE
        raise UserError(f"{path}: found no {TOKENIZER_FILE} in this folder, expected one beside the weights")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith(".json"):
        raise UserError(f"{name}: found no such file or folder, expected a tokenizer")
    return _download(name)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(name, allow_patterns=[TOKENIZER_FILE, "tokenizer_config.json"])
    except Exception as error:  # the hub's client raises a dozen kinds, all meaning: not to be had
        raise UserError(
            f"{name}: found no such folder and no such model on the hub ({type(error).__name__})"
        ) from error
    return _find_file(folder)


def _read(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except BaseException as error:  # a panic in the library's Rust code is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise UserError(
            f"{path}: found no readable tokenizer ({reason}), expected the JSON of the tokenizers library"
        ) from error


def _end_token(path: Path, backend: tokenizers.Tokenizer) -> str:
    if backend.token_to_id(END_OF_TEXT) is not None:
        return END_OF_TEXT
    config: Any = {}
    beside = path.with_name("tokenizer_config.json")
    if beside.is_file():
        try:
            config = json.loads(beside.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{beside}: found broken JSON, expected transformers' tokenizer settings") from error
    eos = config.get("eos_token") if isinstance(config, dict) else None
    eos = eos.get("content") if isinstance(eos, dict) else eos
    if not isinstance(eos, str) or backend.token_to_id(eos) is None:
        raise UserError(f"{path}: found no {END_OF_TEXT} and no eos_token, expected a vocabulary with an end token")
    return eos
