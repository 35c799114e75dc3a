"""Token files of llm.c (Karpathy 2024): a header of 256 little-endian int32, then the ids.

The header's first three numbers are a magic, a version and the count of tokens: 20240520, version 1, two bytes an id
for GPT-2's vocabulary; 20240801, version 7, four bytes for Llama 3's. A document begins with the end-of-text token.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_modules.data.corpus.shards import Stamp
from gpt_modules.errors import UserError

SUFFIX = ".bin"
HEADER = 256 * 4  # bytes
KINDS = {(20240520, 1): "<u2", (20240801, 7): "<u4"}
BLOCK = 1 << 24  # tokens looked at together


def open_llmc(path: Path, vocab_size: int, stamps: Path | None = None) -> NDArray[Any]:
    """Maps a file's tokens into memory, (count,) read-only.

    Args:
        path: The file.
        vocab_size: Ids must be below.
        stamps: A folder that remembers which files' ids were once looked at (about a second a gigabyte); None: now.

    Raises:
        UserError: Another magic or version, another size than the header says, or an id beyond the vocabulary.
    """
    size = path.stat().st_size if path.is_file() else 0
    if size < HEADER:
        raise UserError(f"{path}: found {size} bytes, expected a token file with a header of {HEADER}")
    magic, version, count = (int(number) for number in np.fromfile(path, dtype="<i4", count=3))
    dtype = KINDS.get((magic, version))
    if dtype is None:
        known = " or ".join(f"{magic} version {version}" for magic, version in KINDS)
        raise UserError(f"{path}: found magic {magic} version {version}, expected {known}")
    expected = HEADER + count * np.dtype(dtype).itemsize
    if count < 1 or size != expected:
        raise UserError(f"{path}: found {size} bytes, expected {expected} for the {count} tokens of its header")
    tokens = np.memmap(path, dtype=dtype, mode="r", offset=HEADER, shape=(count,))
    stamp = None if stamps is None else Stamp(stamps, path, f"ids below {vocab_size}")
    if stamp is None or not stamp.known():
        _check_ids(path, tokens, vocab_size)
        if stamp is not None:
            stamp.remember()
    return tokens


def _check_ids(path: Path, tokens: NDArray[Any], vocab_size: int) -> None:
    for start in range(0, len(tokens), BLOCK):
        block = tokens[start : start + BLOCK]
        if int(block.max()) >= vocab_size:
            place = start + int(np.argmax(block >= vocab_size))
            raise UserError(
                f"{path}: token {place}: found id {int(tokens[place])}, expected ids below the tokenizer's {vocab_size}"
            )
