"""Documents as a stream of pieces that can be encoded apart, so that neither a long document nor a long corpus is ever
in memory whole.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from gpt_modules.data.rows.lines import text_blocks
from gpt_modules.data.rows.sources import Source, has_own_splits, iter_rows, name_of, parts_of
from gpt_modules.data.splits import Split
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError

PIECE = 1 << 16  # characters from which on a document is cut
CHUNK = 1 << 21  # characters encoded at a time
_CUT = re.compile(r"\n(?=\S)")
_PROBES = (
    ("Ab c. ", "\nd"),
    ("end.", "\nNext"),
    ("it's", "\n'so' (1)"),
    ("a \t", "\n&amp;"),
    ("b\n", "\nC 5"),
    ("9", "\n\u00e9"),
)

Document = Iterable[str]
"""The text of a document in order: a row's in one string, a file's block by block."""


class Chunk(NamedTuple):
    """Some pieces of the stream that are encoded together. ends[i]: whether a document ends with piece i."""

    texts: list[str]
    ends: list[bool]

    @property
    def documents(self) -> int:
        """Documents that end in it."""
        return sum(self.ends)

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes."""
        return sum(len(text) if text.isascii() else len(text.encode()) for text in self.texts)


def source_documents(
    source: Source,
    split: Split,
    *,
    cache_dir: str | Path | None = None,
    streaming: bool = False,
    text_field: str = "text",
) -> Iterator[Document]:
    """The documents of a source (see `sources.load_rows`) in order; a text file's is read while it is used.

    Raises:
        UserError: Nothing there, or a row that does not fit; one line with file, row and field.
    """
    found = False
    for item in _items(source):
        if isinstance(item, Path):
            found = True
            yield text_blocks(item)
            continue
        rows = iter_rows(item, split, "pretraining", cache_dir=cache_dir, streaming=streaming, text_field=text_field)
        for row in rows:
            found = True
            yield [row["text"]]
    if not found:
        raise UserError(f"{name_of(source)}: found no row, expected text")


def beginning_or_end(
    documents: Iterable[Document], lengths: Sequence[int], held_out: int, split: Split
) -> Iterator[Document]:
    """The end of a text in some documents, its last `held_out` characters and what is left of their first word
    (validation), or all before (train); of known lengths.
    """
    cut, start = sum(lengths) - held_out, 0
    for document, length in zip(documents, lengths, strict=False):
        if start < cut < start + length:
            yield (text for text, side in _cut_at(document, cut - start) if side == split)
        elif (start + length <= cut) == (split == "train"):
            yield document
        start += length


def _cut_at(document: Document, place: int) -> Iterator[tuple[str, Split]]:
    """The blocks of a document before a place, moved back to white space in its block, and from there on."""
    for block in document:
        if 0 < place < len(block):
            cut = max(block.rfind(" ", 0, place + 1), block.rfind("\n", 0, place + 1))
            cut = cut if cut > 0 else place
            yield block[:cut], "train"
            yield block[cut:], "validation"
        else:
            yield block, "train" if place > 0 else "validation"
        place -= len(block)


def cut_document(document: Document) -> Iterator[tuple[str, bool]]:
    """(piece, whether it is the last) of a document.

    The cuts are where GPT-2's pre-tokenizer never joins: before a line break that a non-space follows. They do not
    depend on the blocks.
    """
    rest, scanned = "", 0
    for block in document:
        rest, start = rest + block, 0
        while found := _CUT.search(rest, max(start + PIECE, scanned)):
            yield rest[start : found.start()], False
            start = found.start()
        rest = rest[start:]
        scanned = max(0, len(rest) - 1)  # a line break at the very end waits for what follows it
    yield rest, True


def cuts_safely(tokenizer: Tokenizer) -> bool:
    """Whether the cuts of `cut_document` leave this tokenizer's ids as they are, as far as probes show.

    They do for byte-level BPE and for characters. GPT-1's kind mends and strips a text as a whole, and other pre-
    tokenizers join a line break to what stands before it.
    """
    encode = tokenizer.encode
    return all(encode(left + right) == encode(left) + encode(right) for left, right in _PROBES)


def document_chunks(documents: Iterable[Document], tokenizer: Tokenizer) -> Iterator[Chunk]:
    """Pieces in chunks of about `CHUNK` characters, a pure function of the documents. A document that the tokenizer
    does not let cut stays whole, and is in memory.
    """
    safe = cuts_safely(tokenizer)
    chunk, size = Chunk([], []), 0
    for document in documents:
        for text, last in cut_document(document) if safe else [("".join(document), True)]:
            chunk.texts.append(text)
            chunk.ends.append(last)
            size += len(text)
            if size >= CHUNK:
                yield chunk
                chunk, size = Chunk([], []), 0
    if chunk.texts:
        yield chunk


def _items(source: Source) -> Iterator[Path | str]:
    """Text files as paths, everything else by name."""
    if isinstance(source, str) and has_own_splits(source):
        yield source
        return
    for part in parts_of(source):
        yield part if isinstance(part, str) or part.suffix.lower() == ".txt" else str(part)
