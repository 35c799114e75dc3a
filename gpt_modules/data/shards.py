"""Token shards: a corpus encoded once, kept on disk, mapped into memory by every process that trains on it.

A shard is a folder with `manifest.json` (how many tokens, of which type, by which tokenizer, with which SHA-256) and
one file of raw little-endian ids: eos, document, eos, document, eos. The leading eos makes even the first token one
that can be predicted. The file is named by its content and the manifest is replaced last, so a process that is killed
or races another leaves nothing half-made.
"""

import hashlib
import json
import logging
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_modules.data.tokenizers import Tokenizer
from gpt_modules.errors import UserError

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
PIECE = 1 << 16  # characters of a long document encoded at a time: fills all cores even with one document
CHUNK = 1 << 22  # characters in memory at a time
_CUT = re.compile(r"\n(?=\S)")


@dataclass(frozen=True)
class ShardManifest:
    """What `manifest.json` holds. text_bytes: UTF-8 bytes of the documents, to turn a loss into bits a byte."""

    format_version: int
    file: str
    dtype: str
    count: int
    documents: int
    text_bytes: int
    vocab_size: int
    tokenizer: str
    sha256: str


@dataclass(frozen=True)
class TokenShard:
    """An open shard. tokens: (count,) memory-mapped, read-only."""

    tokens: NDArray[Any]
    manifest: ShardManifest


def open_or_write_shard(folder: Path, documents: Iterable[str], tokenizer: Tokenizer) -> TokenShard:
    """Opens the shard in `folder` if it is there and whole, else writes it; `documents` is read only then."""
    if (folder / MANIFEST).exists():
        try:
            return open_shard(folder, tokenizer)
        except UserError as error:
            log.warning("%s; writing it anew", error)
    return write_shard(folder, documents, tokenizer)


def write_shard(folder: Path, documents: Iterable[str], tokenizer: Tokenizer) -> TokenShard:
    """Encodes documents on all cores and writes them.

    Raises:
        UserError: There is no document, or the disk is full or read-only.
    """
    temporary = folder / f".{uuid.uuid4().hex}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder, temporary, documents, tokenizer)
    except OSError as error:
        raise UserError(f"{folder}: found no way to write token shards ({error.strerror}), expected room") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return open_shard(folder, tokenizer, verify=False)


def open_shard(folder: Path, tokenizer: Tokenizer, verify: bool = True) -> TokenShard:
    """Maps a shard into memory.

    Args:
        folder: Where it was written.
        tokenizer: Must be the one it was written with.
        verify: Compare the SHA-256 of the tokens (about a second a gigabyte); the size is always compared.

    Raises:
        UserError: Missing, cut short, altered, or written by another tokenizer.
    """
    manifest = _read_manifest(folder / MANIFEST)
    path = folder / manifest.file
    if manifest.tokenizer != tokenizer.fingerprint:
        raise UserError(f"{folder / MANIFEST}: tokenizer: found another tokenizer's tokens, expected this one's")
    size = path.stat().st_size if path.is_file() else 0
    expected = manifest.count * np.dtype(manifest.dtype).itemsize
    if size != expected:  # reading past the end of a mapped file would kill the process without a word
        raise UserError(f"{path}: found {size} bytes, expected {expected}")
    if verify and _sha256(path) != manifest.sha256:
        raise UserError(f"{path}: found altered tokens, expected SHA-256 {manifest.sha256[:12]}...")
    tokens = np.memmap(path, dtype=manifest.dtype, mode="r", shape=(manifest.count,))
    return TokenShard(tokens, manifest)


def encode_documents(texts: list[str], tokenizer: Tokenizer) -> list[list[int]]:
    """The ids of each text, on all cores; long texts are cut where the cut does not change the ids.

    That is before a line break that a non-space follows: the pre-tokenizer of GPT-2 never joins across it.
    """
    pieces = [_pieces(text) for text in texts]
    encoded = iter(tokenizer.encode_batch([piece for document in pieces for piece in document]))
    return [[token for _ in document for token in next(encoded)] for document in pieces]


def _pieces(text: str) -> list[str]:
    pieces, start = [], 0
    while len(text) - start > PIECE:
        cut = _CUT.search(text, start + PIECE)
        if cut is None:
            break
        pieces.append(text[start : cut.start()])
        start = cut.start()
    return [*pieces, text[start:]]


def _chunks(documents: Iterable[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    size = 0
    for document in documents:
        chunk.append(document)
        size += len(document)
        if size >= CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _write(folder: Path, temporary: Path, documents: Iterable[str], tokenizer: Tokenizer) -> None:
    dtype = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"
    digest = hashlib.sha256()
    count = n_documents = text_bytes = 0
    with temporary.open("wb") as file:
        for tokens, chunk in _token_chunks(documents, tokenizer):
            data = tokens.astype(dtype).tobytes()
            digest.update(data)
            file.write(data)
            count, n_documents = count + len(tokens), n_documents + len(chunk)
            text_bytes += sum(len(text.encode()) for text in chunk)
        file.flush()
        os.fsync(file.fileno())
    if n_documents == 0:
        raise UserError(f"{folder}: found no document to encode, expected at least one")
    name = f"{digest.hexdigest()[:16]}.bin"
    temporary.replace(folder / name)
    identity = (tokenizer.vocab_size, tokenizer.fingerprint, digest.hexdigest())
    manifest = ShardManifest(FORMAT_VERSION, name, dtype, count, n_documents, text_bytes, *identity)
    temporary.write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
    temporary.replace(folder / MANIFEST)


def _token_chunks(documents: Iterable[str], tokenizer: Tokenizer) -> Iterator[tuple[NDArray[np.int64], list[str]]]:
    opening = [tokenizer.eos_id]
    for chunk in _chunks(documents):
        tokens = opening + [t for ids in encode_documents(chunk, tokenizer) for t in (*ids, tokenizer.eos_id)]
        yield np.array(tokens, dtype=np.int64), chunk
        opening = []


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_manifest(path: Path) -> ShardManifest:
    try:
        manifest = ShardManifest(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path}: found no readable manifest ({type(error).__name__}), expected a token shard"
        ) from error
    if manifest.format_version != FORMAT_VERSION:
        raise UserError(f"{path}: format_version: found {manifest.format_version}, expected {FORMAT_VERSION}")
    if Path(manifest.file).name != manifest.file or manifest.dtype not in ("<u2", "<u4"):
        raise UserError(
            f"{path}: found file {manifest.file!r} of {manifest.dtype!r}, expected a file name and <u2 or <u4"
        )
    return manifest
