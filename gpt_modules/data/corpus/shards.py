"""Token shards: a corpus encoded once, kept on disk, mapped into memory by every process that trains on it.

A folder with `manifest.json` (how many tokens, of which type, by which tokenizer, and each shard's SHA-256) and files
of raw little-endian ids that are one stream: eos, document, eos, document, eos. The leading eos makes even the first
token one that can be predicted. `shard_writer` makes such folders.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError, expect
from gpt_modules.storage.digests import sha256_of
from gpt_modules.storage.documents import Count, FileName, Positive, Sha256, read_document

FORMAT_VERSION: Literal[2] = 2
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class ShardRecord:
    """A file of a folder, and how far the source had been read when it was full: there a writer can go on.

    chunks: Chunks of the source that are all in this shard and those before it; documents, text_bytes: the same.
    offset: Tokens of the next chunk that are in it, too.
    """

    file: FileName
    count: Positive
    sha256: Sha256
    chunks: Count
    offset: Count
    documents: Count
    text_bytes: Count


@dataclass(frozen=True)
class ShardManifest:
    """What `manifest.json` holds.

    text_bytes: UTF-8 bytes of the documents, to turn a loss into bits a byte. tokenizer: its fingerprint. made_from:
    what else the tokens depend on. complete: whether the source's end was reached.
    manifest_sha256: of this file, see `manifest_digest`.
    """

    format_version: Literal[2]
    dtype: Literal["<u2", "<u4"]
    count: Count
    documents: Count
    text_bytes: Count
    vocab_size: Positive
    tokenizer: str
    complete: bool
    made_from: dict[str, Any] = field(default_factory=dict)
    shards: list[ShardRecord] = field(default_factory=list)
    manifest_sha256: Sha256 | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        held = sum(record.count for record in self.shards)
        expect(self.count == held, "count", self.count, f"the sum of the shards' counts, {held}")


class TokenStream:
    """Arrays of tokens as if they were one; a slice is copied where it spans several of them, else it is a view."""

    def __init__(self, parts: Sequence[NDArray[Any]]) -> None:
        self.parts = [part for part in parts if len(part)]
        self._starts = [0, *accumulate(len(part) for part in self.parts)]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, place: slice) -> NDArray[Any]:
        start, stop, _ = place.indices(len(self))
        found = self.between(start, stop).parts
        return found[0] if len(found) == 1 else np.concatenate(found or [np.empty(0, dtype=np.int64)])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype=dtype)

    def tolist(self) -> list[int]:
        """All of them, in memory."""
        return [token for part in self.parts for token in part.tolist()]

    def between(self, start: int, stop: int) -> "TokenStream":
        """A part of the stream, still on disk."""
        if stop <= start:
            return TokenStream([])
        first, last = bisect_right(self._starts, start) - 1, bisect_right(self._starts, stop - 1) - 1
        cuts = [part[max(0, start - at) : stop - at] for part, at in zip(self.parts, self._starts, strict=False)]
        return TokenStream(cuts[first : last + 1])


Tokens = NDArray[Any] | TokenStream


def between(tokens: Tokens, start: int, stop: int) -> Tokens:
    """Tokens from `start` to before `stop`, still on disk."""
    return tokens.between(start, stop) if isinstance(tokens, TokenStream) else tokens[start:stop]


def join_tokens(parts: Iterable[Tokens]) -> Tokens:
    """Several streams, one after the other; one is itself."""
    flat = [a for part in parts for a in (part.parts if isinstance(part, TokenStream) else [part])]
    return flat[0] if len(flat) == 1 else TokenStream(flat)


def is_shard_folder(folder: Path) -> bool:
    """Whether `gpt prepare` made, or began, this folder."""
    return (folder / MANIFEST).is_file()


def open_shards(folder: Path, tokenizer: Tokenizer, stamps: Path | None = None) -> tuple[Tokens, ShardManifest]:
    """Maps a folder of shards into memory.

    Args:
        folder: Where it was written.
        tokenizer: Must be the one it was written with.
        stamps: A folder that remembers which files were once compared with their SHA-256 (about a second a gigabyte),
            so that it is done at the first opening only; None: now. The size is always compared.

    Raises:
        UserError: Missing, unfinished, cut short, altered, or written by another tokenizer.
    """
    manifest = read_manifest(folder)
    if manifest.tokenizer != tokenizer.fingerprint:
        raise UserError(f"{folder / MANIFEST}: tokenizer: found another tokenizer's tokens, expected this one's")
    if not manifest.complete:
        raise UserError(
            f"{folder / MANIFEST}: complete: found {len(manifest.shards)} shards of an unfinished run, expected "
            "all; the same gpt prepare goes on"
        )
    parts = [_open_shard(folder, record, manifest.dtype, stamps) for record in manifest.shards]
    return join_tokens(parts), manifest


def check_shard(folder: Path, record: ShardRecord, dtype: str, stamps: Path | None = None) -> None:
    """Compares a shard with its record, see `open_shards`.

    Raises:
        UserError: Missing, cut short or altered.
    """
    path = folder / record.file
    size = path.stat().st_size if path.is_file() else 0
    expected = record.count * np.dtype(dtype).itemsize
    if size != expected:  # reading past the end of a mapped file would kill the process without a word
        raise UserError(f"{path}: found {size} bytes, expected {expected}")
    stamp = None if stamps is None else Stamp(stamps, path, record.sha256)
    if stamp is not None and stamp.known():
        return
    if sha256_of(path) != record.sha256:
        raise UserError(f"{path}: found altered tokens, expected SHA-256 {record.sha256[:12]}...")
    if stamp is not None:
        stamp.remember()


class Stamp:
    """A mark that a file, as it is now, has passed a check. It is known by its size and both its times: that of the
    last change of the content can be set by hand (`cp -p` does), that of the last change of anything cannot.
    """

    def __init__(self, stamps: Path, path: Path, check: str) -> None:
        status = path.stat()
        key = json.dumps([str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns, check])
        self.path = stamps / hashlib.sha256(key.encode()).hexdigest()[:32]

    def known(self) -> bool:
        """Whether it has."""
        return self.path.exists()

    def remember(self) -> None:
        """It has; where that cannot be written down, the check is only made again."""
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()


def read_manifest(folder: Path) -> ShardManifest:
    """The manifest of a folder, finished or not.

    Raises:
        UserError: There is none, it is none of ours, or it was altered: the shards would fit other settings as well,
            and be read as other text. One without a digest has nothing to tell.
    """
    manifest = read_document(folder / MANIFEST, ShardManifest, "the manifest of token shards")
    if manifest.manifest_sha256 not in (None, manifest_digest(manifest)):
        raise UserError(f"{folder / MANIFEST}: found altered since it was written, expected it as it was; the same gpt "
                        "prepare into an empty folder writes it anew")  # fmt: skip
    return manifest


def manifest_text(manifest: ShardManifest) -> str:
    """The content of `manifest.json`."""
    return json.dumps({**asdict(manifest), "manifest_sha256": manifest_digest(manifest)}, indent=2) + "\n"


def manifest_digest(manifest: ShardManifest) -> str:
    """SHA-256 of all else that a manifest says: of the values, however they are laid out."""
    fields = {key: value for key, value in asdict(manifest).items() if key != "manifest_sha256"}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _open_shard(folder: Path, record: ShardRecord, dtype: str, stamps: Path | None) -> NDArray[Any]:
    check_shard(folder, record, dtype, stamps)
    return np.memmap(folder / record.file, dtype=dtype, mode="r", shape=(record.count,))
