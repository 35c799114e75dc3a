"""Writing of token shards that survives a kill at any moment.

A shard is written under a temporary name, flushed to the disk and renamed; then the manifest is replaced, which says
how far the source had been read. So a second run goes on after the last shard of the manifest, and, as chunks and their
tokens are a function of the source, ends with the same bytes as a run that was never cut off.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from gpt_modules.data.corpus.documents import Chunk, Document, document_chunks
from gpt_modules.data.corpus.encoding import encode_chunks, token_type
from gpt_modules.data.corpus.shards import (
    FORMAT_VERSION,
    MANIFEST,
    ShardManifest,
    ShardRecord,
    Tokens,
    check_shard,
    is_shard_folder,
    manifest_text,
    open_shards,
    read_manifest,
)
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError
from gpt_modules.storage.documents import at
from gpt_modules.storage.durable import replace_durably, room_for, temporary_for
from gpt_modules.storage.json_files import shown

log = logging.getLogger(__name__)

SHARD = "shard"
"""What a shard is called until its digest is known."""

Report = Callable[[int, int, int], None]
"""Called with the documents, bytes of text and tokens so far."""


def open_or_write_shards(folder: Path, documents: Iterable[Document], tokenizer: Tokenizer) -> Tokens:
    """Opens the one shard in `folder` if it is there and whole, else writes it; `documents` is read only then.

    Several processes may do so at once: what each writes has a name of its own until it is whole.
    """
    if is_shard_folder(folder):
        try:
            return open_shards(folder, tokenizer)[0]
        except UserError as error:
            log.warning("%s; writing it anew", error)
            with suppress(OSError):
                (folder / MANIFEST).unlink()
    write_shards(folder, documents, tokenizer)
    return open_shards(folder, tokenizer)[0]


def write_shards(
    folder: Path,
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    *,
    shard_tokens: int | None = None,
    made_from: dict[str, Any] | None = None,
    workers: int = 1,
    report: Report = lambda documents, text_bytes, tokens: None,
) -> ShardManifest:
    """Encodes documents into a folder of shards, or what a run before this one has left to do.

    Args:
        folder: Is made.
        documents: The source, always from its beginning.
        tokenizer: What encodes it.
        shard_tokens: Tokens a shard; the last one has what is left. None: one shard.
        made_from: What else the tokens depend on, for the manifest.
        workers: Processes that encode, see `encoding.encode_chunks`.
        report: Called after each chunk.

    Raises:
        UserError: There is no document, the disk is full or read-only, or the folder holds the beginning of something
            else.
    """
    begun = _begin(folder, tokenizer, made_from or {})
    if begun.complete:
        return begun
    with room_for(folder, "what is whole stays, and the same command goes on from there"):
        folder.mkdir(parents=True, exist_ok=True)
        with _Writer(folder, begun, shard_tokens) as writer:
            chunks = islice(document_chunks(documents, tokenizer), writer.chunks, None)
            return _write(writer, chunks, tokenizer, workers, report)


def _write(
    writer: "_Writer", chunks: Iterator[Chunk], tokenizer: Tokenizer, workers: int, report: Report
) -> ShardManifest:
    opening = np.array([tokenizer.start_id], dtype=token_type(tokenizer))
    for encoded in encode_chunks(chunks, tokenizer, workers):
        tokens = encoded.tokens if writer.chunks else np.concatenate([opening, encoded.tokens])
        writer.add(tokens, encoded.documents, encoded.text_bytes)
        report(writer.documents, writer.text_bytes, writer.count)
    if writer.chunks == 0:
        raise UserError(f"{writer.folder}: found no document to encode, expected at least one")
    return writer.finish()


def _begin(folder: Path, tokenizer: Tokenizer, made_from: dict[str, Any]) -> ShardManifest:
    """The manifest to go on from: without shards, or with those of a run before that are still whole."""
    fresh = ShardManifest(
        FORMAT_VERSION, token_type(tokenizer), 0, 0, 0, tokenizer.vocab_size, tokenizer.fingerprint, False, made_from
    )
    if not is_shard_folder(folder):
        return fresh
    refuse_other(folder, tokenizer, made_from)
    found = read_manifest(folder)
    whole: list[ShardRecord] = []
    for record in found.shards:
        try:
            check_shard(folder, record, found.dtype)
        except UserError as error:
            log.warning("%s; writing it and what follows anew", error)
            break
        whole.append(record)
    return found if len(whole) == len(found.shards) else _with_shards(fresh, whole)


def refuse_other(folder: Path, tokenizer: Tokenizer, made_from: dict[str, Any]) -> None:
    """Nothing, where a run with these settings may begin or go on.

    Raises:
        UserError: The folder has shards, of something else.
    """
    if not is_shard_folder(folder):
        return
    path, found = folder / MANIFEST, read_manifest(folder)
    if found.tokenizer != tokenizer.fingerprint:
        raise UserError(f"{path}: tokenizer: found another one's tokens, expected the same, or an empty folder")
    for key in sorted({*found.made_from, *made_from}):
        before, now = found.made_from.get(key), made_from.get(key)
        if before != now:
            expected = f"expected this run's {shown(now)}, or an empty folder"
            raise UserError(f"{path}: {at('', key)}: found {shown(before)}, {expected}")


def _with_shards(manifest: ShardManifest, shards: list[ShardRecord], complete: bool = False) -> ShardManifest:
    documents, text_bytes = (shards[-1].documents, shards[-1].text_bytes) if shards else (0, 0)
    count = sum(record.count for record in shards)
    return replace(
        manifest, count=count, documents=documents, text_bytes=text_bytes, complete=complete, shards=list(shards)
    )


class _Writer:
    """The shards of a folder, one open at a time. chunks, documents, text_bytes, count: what is written of the source
    so far.
    """

    def __init__(self, folder: Path, begun: ShardManifest, shard_tokens: int | None) -> None:
        self.folder, self.manifest, self.shard_tokens = folder, begun, shard_tokens
        self.shards = list(begun.shards)
        last = self.shards[-1] if self.shards else None
        self.chunks, self._offset = (last.chunks, last.offset) if last else (0, 0)
        self.documents, self.text_bytes, self.count = begun.documents, begun.text_bytes, begun.count
        self._temporary = temporary_for(folder / SHARD)
        self._file: BinaryIO | None = None
        self._digest, self._filled = hashlib.sha256(), 0

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with suppress(OSError):  # of a full disk, which has been told
                self._file.close()
        with suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    def add(self, tokens: NDArray[Any], documents: int, text_bytes: int) -> None:
        """A chunk, whole; what a shard before already has of it is left out."""
        start = self._offset
        while self.shard_tokens is not None and len(tokens) - start > self.shard_tokens - self._filled:
            stop = start + self.shard_tokens - self._filled
            self._append(tokens[start:stop])
            self._offset = start = stop
            self._close_shard()
        self._append(tokens[start:])
        self.chunks, self._offset = self.chunks + 1, 0
        self.documents, self.text_bytes = self.documents + documents, self.text_bytes + text_bytes

    def finish(self) -> ShardManifest:
        """The last shard, and the manifest that says so."""
        if self._filled:
            self._close_shard(complete=True)
        else:
            self._replace_manifest(complete=True)
        return self.manifest

    def _append(self, tokens: NDArray[Any]) -> None:
        if self._file is None:
            self._file = self._temporary.open("wb")
        data = tokens.tobytes()
        self._digest.update(data)
        self._file.write(data)
        self._filled, self.count = self._filled + len(tokens), self.count + len(tokens)

    def _close_shard(self, complete: bool = False) -> None:
        assert self._file is not None
        _flush(self._file)
        self._file.close()
        sha256 = self._digest.hexdigest()
        name = f"{len(self.shards):05d}-{sha256[:16]}.bin"
        self._temporary.replace(self.folder / name)
        place = (self.chunks, self._offset, self.documents, self.text_bytes)
        self.shards.append(ShardRecord(name, self._filled, sha256, *place))
        self._file, self._digest, self._filled = None, hashlib.sha256(), 0
        self._replace_manifest(complete)

    def _replace_manifest(self, complete: bool) -> None:
        self.manifest = _with_shards(self.manifest, self.shards, complete)
        replace_durably(self.folder / MANIFEST, manifest_text(self.manifest))


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
