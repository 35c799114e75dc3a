"""A source of text as two streams of tokens, one to train on and one to validate with."""

import glob
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Literal

from gpt_modules.data.arguments import expect_default
from gpt_modules.data.corpus.documents import PIECE, Document, beginning_or_end, source_documents
from gpt_modules.data.corpus.llmc import SUFFIX, open_llmc
from gpt_modules.data.corpus.shard_writer import open_or_write_shards
from gpt_modules.data.corpus.shards import (
    FORMAT_VERSION,
    MANIFEST,
    Tokens,
    between,
    is_shard_folder,
    join_tokens,
    open_shards,
)
from gpt_modules.data.rows.files import find_files, is_local, refuse_twice
from gpt_modules.data.rows.sources import (
    Source,
    cache_folder,
    fingerprint,
    has_own_splits,
    name_of,
    refuse_shared_files,
)
from gpt_modules.data.splits import Split, split_of
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError
from gpt_modules.storage.digests import sha256_of
from gpt_modules.storage.paths import path_of

FEW_DOCUMENTS = 100  # with fewer, a split by document is a lottery: the end of the text validates instead
READING = 2  # raised when the same bytes are read as other text than before: tokens are kept by it


@dataclass(frozen=True)
class Corpus:
    """A source of text, or of tokens that `gpt prepare` or llm.c have written.

    Args:
        source: See `PretrainingDataModule`.
        validation: The source that validates; None: a part of this one.
        validation_fraction: Of the documents by hash of their text; of tokens, and of the text of fewer than 100
            documents, the end. That end moves when the source grows, and what has validated may then be trained on:
            parts by hash would stay, but with what stands before and after them trained on. Who adds to a small source
            names a validation source. Embedded and generated sources have a part of their own.
        whole: Keep all of the source to train on; nothing of it validates.
        text_field, cache_dir, streaming: See `PretrainingDataModule`.
    """

    source: Source
    validation: Source | None = None
    validation_fraction: float = 0.05
    whole: bool = False
    text_field: str = "text"
    cache_dir: str | None = None
    streaming: bool = False

    @cached_property
    def has_tokens(self) -> bool:
        """Whether the source is tokens already.

        Raises:
            UserError: Some of it is.
        """
        kinds = {_is_tokens(item) for item in _listed(self.source)}
        if len(kinds) > 1:
            raise UserError(f"{name_of(self.source)}: found text and tokens in one source, expected either")
        return kinds == {True}

    @property
    def is_fetched_anew(self) -> bool:
        """Whether every reading fetches it from the hub."""
        own = has_own_splits(self.source)
        return self.streaming and not own and not all(map(is_local, _listed(self.source)))

    def open(self, tokenizer: Tokenizer) -> tuple[Tokens, Tokens | None]:
        """(training, validation) tokens; text is encoded unless the cache has its tokens.

        Raises:
            UserError: The source or its tokens are not as they should be.
        """
        train = self._open_part("train", tokenizer)
        if self.whole:
            return train, None
        if self.validation is not None:
            return train, replace(self, source=self.validation, validation=None, whole=True).open_validation(tokenizer)
        if not self.has_tokens:
            return train, self._open_part("validation", tokenizer)
        cut = len(train) - max(1, round(self.validation_fraction * len(train)))
        if cut < 1:
            raise UserError(f"{name_of(self.source)}: found {len(train)} tokens, expected enough to hold some out")
        return between(train, 0, cut), between(train, cut - 1, len(train))

    def open_validation(self, tokenizer: Tokenizer) -> Tokens:
        """Of a source that only validates: the tokens of its part for that, where it has one, else all of them."""
        return self._open_part("validation", tokenizer)

    def refuse_shared(self, validation: Source) -> None:
        """What is trained on may not validate.

        Raises:
            UserError: The other source has one of this one's files, or of its folders of tokens.
        """
        ours, theirs = ([item for item in _listed(source) if _is_tokens(item)] for source in (self.source, validation))
        for item in theirs:
            if path_of(item).resolve() in [path_of(known).resolve() for known in ours]:
                raise UserError(f"validation: found {item}, which is trained on, expected other text")
        refuse_shared_files(*(_without(source, ours + theirs) for source in (self.source, validation)))

    def check_field(self) -> None:
        """A field where there are rows that have fields.

        Raises:
            UserError: `text_field` is named, and all is tokens, built in, or text files.
        """
        sources = [self.source] if self.validation is None else [self.source, self.validation]
        if not any(_has_fields(source) for source in sources):
            names = " and ".join(map(name_of, sources))
            expect_default(Corpus, "train", f"{names:.100}, without fields", text_field=self.text_field)

    def documents(self, split: Split) -> Iterator[Document]:
        """The documents of one part, if the source is text.

        Raises:
            UserError: It is tokens, the part is empty, or a file changes while it is read.
        """
        if self.has_tokens:
            raise UserError(f"{name_of(self.source)}: found tokens, expected text to train a tokenizer on")
        content, found = self._content, False
        for document in self._part(split):
            found = True
            yield document
        if not found:
            fraction = f"validation_fraction {self.validation_fraction:g}"
            raise UserError(
                f"{name_of(self.source)}: found no document for {split} by hash with {fraction}, expected another "
                "fraction, or a validation source"
            )
        if all(map(is_local, _listed(self.source))) and fingerprint(self.source, "train") != content:
            raise UserError(f"{name_of(self.source)}: found it changed while it was read, expected files that stay")

    def key(self, split: Split, *parts: str) -> str:
        """A folder name that changes with a part's content and with all that decides what is made of it."""
        content = self._content if not has_own_splits(self.source) else fingerprint(self.source, split)
        fields = (READING, content, split, self._parting, self.validation_fraction, self.text_field, *parts)
        return hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:24]

    def _part(self, split: Split) -> Iterator[Document]:
        if self._parting == "none":
            yield from self._texts(split)
            return
        texts = self._texts("train")
        if self._parting == "end":
            yield from beginning_or_end(texts, self._lengths, self._held_out, split)
            return
        for document in texts:
            blocks = iter(document)
            opening = next(blocks, "")  # of a long text, its beginning decides
            if split_of(opening[:PIECE], self.validation_fraction) == split:
                yield chain([opening], blocks)

    @cached_property
    def _parting(self) -> Literal["none", "hash", "end"]:
        """How text is parted: not here, or by document, or where its end begins."""
        if self.has_tokens or self.whole or self.validation is not None or has_own_splits(self.source):
            return "none"
        few = sum(1 for _ in islice(self._texts("train"), FEW_DOCUMENTS)) < FEW_DOCUMENTS
        return "end" if few else "hash"

    @cached_property
    def _lengths(self) -> list[int]:
        """Characters of each document, where there are few."""
        return [sum(map(len, document)) for document in self._texts("train")]

    @property
    def _held_out(self) -> int:
        """Characters that validate, where the end does."""
        total = sum(self._lengths)
        held_out = max(1, round(self.validation_fraction * total))
        if held_out >= total:
            raise UserError(f"{name_of(self.source)}: found {total} characters, expected enough to hold some out")
        return held_out

    @cached_property
    def _content(self) -> str:
        return fingerprint(self.source, "train")

    def _open_part(self, split: Split, tokenizer: Tokenizer) -> Tokens:
        if self.has_tokens:
            stamps = cache_folder(self.cache_dir) / "checked"
            refuse_twice(_token_files(self.source))
            return join_tokens(open_tokens(item, tokenizer, stamps) for item in _listed(self.source))
        key = self.key(split, tokenizer.fingerprint, str(FORMAT_VERSION))
        folder = cache_folder(self.cache_dir) / "shards" / key
        return open_or_write_shards(folder, self.documents(split), tokenizer)

    def _texts(self, split: Split) -> Iterator[Document]:
        return source_documents(
            self.source, split, cache_dir=self.cache_dir, streaming=self.streaming, text_field=self.text_field
        )


def open_tokens(item: str, tokenizer: Tokenizer, stamps: Path | None = None) -> Tokens:
    """The tokens of a folder that `gpt prepare` wrote, or of llm.c's files by name or glob.

    Raises:
        UserError: They are not whole or not this tokenizer's.
    """
    if is_shard_folder(path_of(item)):
        return open_shards(path_of(item), tokenizer, stamps)[0]
    return join_tokens(open_llmc(file, tokenizer.vocab_size, stamps) for file in _llmc_files(item))


def tokens_fingerprint(source: Source) -> str | None:
    """SHA-256 of the content of a source of tokens; a folder's manifest has those of its files. None: it is text.

    Raises:
        UserError: There is no file.
    """
    if not all(map(_is_tokens, _listed(source))):
        return None
    return hashlib.sha256(" ".join(map(sha256_of, _token_files(source))).encode()).hexdigest()


def _token_files(source: Source) -> list[Path]:
    """What knows the content of a source of tokens: the manifest of a folder, llm.c's files themselves."""
    items = _listed(source)
    found = [[path_of(item) / MANIFEST] if is_shard_folder(path_of(item)) else _llmc_files(item) for item in items]
    return list(chain(*found))


def _llmc_files(item: str) -> list[Path]:
    path = path_of(item)
    files = [path] if path.exists() or not glob.has_magic(item) else sorted(_glob(path))
    if not files:
        raise UserError(f"{item}: found no file, expected llm.c's token files")
    return files


def _is_tokens(item: str) -> bool:
    return item.endswith(SUFFIX) or is_shard_folder(path_of(item))


def _has_fields(source: Source) -> bool:
    """Whether some of it is rows with fields, not text or tokens."""
    if isinstance(source, str) and has_own_splits(source):
        return False
    items = [item for item in _listed(source) if not _is_tokens(item)]
    return any(not is_local(item) or any(f.suffix.lower() != ".txt" for f in find_files(item)) for item in items)


def _glob(path: Path) -> Iterator[Path]:
    return (Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207


def _listed(source: Source) -> list[str]:
    return [source] if isinstance(source, str) else list(source)


def _without(source: Source, items: list[str]) -> Source:
    return source if isinstance(source, str) and source not in items else [x for x in _listed(source) if x not in items]
