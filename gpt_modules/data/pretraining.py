"""Pretraining data: a corpus as one stream of tokens, cut into windows."""

import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from gpt_modules.data.batches import TokenBatch
from gpt_modules.data.collate import collate_windows, isolate_documents
from gpt_modules.data.loader import BatchLoader, Examples, ResumableDataModule
from gpt_modules.data.reviews import Split, hash_fraction
from gpt_modules.data.shards import FORMAT_VERSION, open_or_write_shard
from gpt_modules.data.sources import REVIEWS, cache_folder, fingerprint, iter_rows, name_of
from gpt_modules.data.tokenizers import TOKENIZER_FILE, Tokenizer, TokenizerKind
from gpt_modules.errors import UserError

FEW_DOCUMENTS = 100  # with fewer, a split by document is a lottery: the end of the stream validates instead


class TrainingWindows(Examples[TokenBatch]):
    """Windows of `context` tokens, side by side from an offset that is drawn anew every epoch from (seed, epoch).

    So no token is seen twice in an epoch, and no border stays where it was. `tokens` is (N,) of any integer type.

    Raises:
        UserError: The stream is shorter than one window.
    """

    def __init__(self, tokens: NDArray[Any], context: int, seed: int) -> None:
        if len(tokens) <= context:
            raise UserError(
                f"context: found {context}, expected less than the {len(tokens)} tokens of the training text"
            )
        self.tokens, self.context, self.seed = tokens, context, seed

    def __len__(self) -> int:
        return max(1, (len(self.tokens) - self.context) // self.context)

    def offset(self, epoch: int) -> int:
        """Where the first window of an epoch begins."""
        spare = len(self.tokens) - 1 - len(self) * self.context
        return int(np.random.default_rng((self.seed, epoch, 1)).integers(min(self.context, spare + 1)))

    def batch(self, epoch: int, indices: NDArray[np.int64]) -> TokenBatch:
        offset = self.offset(epoch)
        return _windows(self.tokens, offset + indices * self.context, indices >= 0, self.context)


class ValidationWindows(Examples[TokenBatch]):
    """Windows that predict every token but the stream's first exactly once, in order; the last one is padded."""

    def __init__(self, tokens: NDArray[Any], context: int) -> None:
        self.tokens, self.context = tokens, context

    def __len__(self) -> int:
        return -(-(len(self.tokens) - 1) // self.context)

    def batch(self, epoch: int, indices: NDArray[np.int64]) -> TokenBatch:
        return _windows(self.tokens, indices * self.context, indices >= 0, self.context)


def _windows(tokens: NDArray[Any], starts: NDArray[np.int64], real: NDArray[np.bool_], context: int) -> TokenBatch:
    rows = zip(starts.tolist(), real.tolist(), strict=True)
    windows = [tokens[i : i + context + 1] if counts else tokens[:1] for i, counts in rows]
    return collate_windows([np.asarray(window, dtype=np.int64) for window in windows], context)


class PretrainingDataModule(ResumableDataModule):
    """Text to train a language model on, encoded once into a memory-mapped file in the cache.

    Documents are joined by `<|endoftext|>`; a window may hold the end of one and the start of the next, as in GPT-2
    and GPT-3 (Brown et al. 2020, appendix B).

    Args:
        train: "reviews" (embedded), files, folders or globs (.jsonl, .json, .csv, .parquet with a text field, .txt as
            one document each), or a data set's name on the hub ("owner/name" or "owner/name:config").
        validation: The same; None: the reviews' own split, else `validation_fraction` of the documents by hash of
            their text, or, of fewer than 100 documents, the end of the stream.
        tokenizer: "gpt2", "train" (one of the training text), a folder or file with a tokenizer, or a name on the hub.
        vocab_size: For "train": ids in all, the end token among them.
        tokenizer_kind: For "train": byte-level BPE like GPT-2's, or lower-cased BPE of words like GPT-1's.
        context: Tokens a window, T of the batches.
        batch_size: Windows a batch, of each process.
        val_batch_size: The same for validation; None: `batch_size`.
        seed: Seed of the order and the offsets.
        cache_dir: None: $GPT_MODULES_CACHE or ~/.cache/gpt_modules.
        streaming: Read the source without storing a copy of it (only its tokens).
        text_field: The field that holds a row's text.
        validation_fraction: See `validation`.
        isolate_documents: Let no token see another document, and restart positions with each: better for short
            documents. False is GPT-2's and GPT-3's way.
    """

    def __init__(
        self,
        train: str | list[str] = REVIEWS,
        validation: str | list[str] | None = None,
        tokenizer: str = "gpt2",
        vocab_size: int | None = None,
        tokenizer_kind: TokenizerKind = "gpt2",
        context: int = 128,
        batch_size: int = 16,
        val_batch_size: int | None = None,
        seed: int = 0,
        cache_dir: str | None = None,
        streaming: bool = False,
        text_field: str = "text",
        validation_fraction: float = 0.05,
        isolate_documents: bool = False,
    ) -> None:
        super().__init__(tokenizer)
        self.isolate_documents = isolate_documents
        self.train_source, self.validation_source = train, validation
        self.trained_vocab_size, self.trained_kind = vocab_size, tokenizer_kind
        self.context, self.batch_size, self.val_batch_size, self.seed = context, batch_size, val_batch_size, seed
        self.cache_dir, self.streaming, self.text_field = cache_dir, streaming, text_field
        self.validation_fraction = validation_fraction
        self.train_tokens: NDArray[Any] | None = None
        self.validation_tokens: NDArray[Any] | None = None
        self._few: bool | None = None
        self._content: list[str] | None = None

    def open_tokenizer(self) -> Tokenizer:
        if self.tokenizer_name != "train":
            return super().open_tokenizer()
        if self.trained_vocab_size is None:
            raise UserError("vocab_size: found none, expected a number of ids for tokenizer: train")
        kind = self.trained_kind
        key = self._key("tokenizer", kind, str(self.trained_vocab_size), tokenizers.__version__)
        folder = cache_folder(self.cache_dir) / "tokenizers" / key
        if not (folder / TOKENIZER_FILE).exists():
            Tokenizer.train(self._documents("train"), self.trained_vocab_size, kind).save(folder)
        return Tokenizer.load(folder)

    def prepare_data(self) -> None:
        """Trains the tokenizer and writes the tokens, unless the cache has them; checks what it has."""
        self._open()

    def setup(self, stage: str) -> None:
        """Maps the tokens into memory."""
        self.forget_loader()
        if self.train_tokens is None:
            self._open()

    def train_dataloader(self) -> BatchLoader[TokenBatch]:
        """Batches (B, context), windows without replacement."""
        assert self.train_tokens is not None, "setup comes first"
        return self.training_loader(
            TrainingWindows(self.train_tokens, self.context, self.seed), self.batch_size, self.seed
        )

    def val_dataloader(self) -> BatchLoader[TokenBatch]:
        """Batches (B, context) that cover the validation text once."""
        assert self.validation_tokens is not None, "setup comes first"
        return self.validation_loader(
            ValidationWindows(self.validation_tokens, self.context), self.val_batch_size or self.batch_size
        )

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Documents side by side, or shut off from one another."""
        if self.isolate_documents and isinstance(batch, TokenBatch):
            return isolate_documents(batch, self.tokenizer.eos_id)
        return batch

    def _open(self) -> None:
        train = open_or_write_shard(self._shard("train"), self._documents("train"), self.tokenizer).tokens
        if self._cuts_stream():
            cut = len(train) - max(1, round(self.validation_fraction * len(train)))
            self.train_tokens, self.validation_tokens = train[:cut], train[cut - 1 :]
            return
        validation = open_or_write_shard(self._shard("validation"), self._documents("validation"), self.tokenizer)
        self.train_tokens, self.validation_tokens = train, validation.tokens

    def _shard(self, split: Split) -> Path:
        key = self._key(split, self.tokenizer.fingerprint, str(FORMAT_VERSION))
        return cache_folder(self.cache_dir) / "shards" / key

    def _key(self, *parts: str) -> str:
        """A folder name that changes with the content and with all that decides what is made of it."""
        if self._content is None:
            own = self.validation_source is None and self.train_source != REVIEWS
            held_out = None if own else fingerprint(self.validation_source or REVIEWS, "validation")
            self._content = [fingerprint(self.train_source, "train"), held_out or str(self.validation_fraction)]
        parts = (*self._content, self.text_field, *parts)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]

    def _splits_by_hash(self) -> bool:
        return self.validation_source is None and self.train_source != REVIEWS and not self._cuts_stream()

    def _cuts_stream(self) -> bool:
        if self.validation_source is not None or self.train_source == REVIEWS:
            return False
        if self._few is None:
            self._few = sum(1 for _ in islice(self._texts("train"), FEW_DOCUMENTS)) < FEW_DOCUMENTS
        return self._few

    def _documents(self, split: Split) -> Iterator[str]:
        if not self._splits_by_hash():
            yield from self._texts(split)
            return
        for text in self._texts("train"):
            if (hash_fraction(text) < self.validation_fraction) == (split == "validation"):
                yield text

    def _texts(self, split: Split) -> Iterator[str]:
        source = self.train_source if split == "train" else self.validation_source or REVIEWS
        rows = iter_rows(
            source,
            split,
            "pretraining",
            cache_dir=self.cache_dir,
            streaming=self.streaming,
            text_field=self.text_field,
        )
        found = False
        for row in rows:
            found = True
            yield row["text"]
        if not found:
            raise UserError(f"{name_of(source)}: found no row, expected text")
