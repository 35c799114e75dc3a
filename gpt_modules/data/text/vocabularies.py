"""Vocabularies as two files: a JSON of symbols and their ids, and a list of merges, the way OpenAI and `transformers`
give them out.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import models

from gpt_modules.data.text.gpt1_bpe import UNKNOWN, WORD_END
from gpt_modules.errors import UserError
from gpt_modules.storage.json_files import read_json
from gpt_modules.storage.text_files import read_text

VOCABULARY_FILES = (
    ("encoder_bpe_40000.json", "vocab_40000.bpe"),  # GPT-1's release
    ("encoder.json", "vocab.bpe"),  # GPT-2's release
    ("vocab.json", "merges.txt"),  # transformers, either kind
)


def find_vocabulary(folder: Path) -> tuple[Path, Path] | None:
    """The two files of a vocabulary in a folder; None where it has neither.

    Raises:
        UserError: One of the two is missing.
    """
    for names in VOCABULARY_FILES:
        found = [(folder / name).is_file() for name in names]
        if all(found):
            return folder / names[0], folder / names[1]
        if any(found):
            raise UserError(f"{folder / names[found.index(False)]}: no such file, expected the other half of "
                            f"{names[found.index(True)]}")  # fmt: skip
    return None


def read_vocabulary(symbols: Path, merges: Path) -> models.BPE:
    """The model of the `tokenizers` library; words end in `</w>` where symbols of the vocabulary do.

    Raises:
        UserError: Not a JSON of ids, no list of pairs, or a merge of symbols that the vocabulary lacks.
    """
    vocabulary = _read_symbols(symbols)
    pairs = _read_merges(merges, vocabulary)
    if not any(symbol.endswith(WORD_END) for symbol in vocabulary):
        return models.BPE(vocab=vocabulary, merges=pairs)
    unknown = UNKNOWN if UNKNOWN in vocabulary else None
    return models.BPE(vocab=vocabulary, merges=pairs, unk_token=unknown, end_of_word_suffix=WORD_END)


def _read_symbols(path: Path) -> dict[str, int]:
    vocabulary = read_json(path, "a vocabulary: symbols and their ids")
    if not isinstance(vocabulary, dict) or not vocabulary:
        raise UserError(f"{path}: found no JSON object, expected a vocabulary: symbols and their ids")
    seen: set[int] = set()
    for symbol, i in vocabulary.items():
        if type(i) is not int or i < 0 or i in seen:
            raise UserError(f"{path}: {symbol!r}: found id {i!r}, expected a whole number of its own")
        seen.add(i)
    return vocabulary


def _read_merges(path: Path, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    lines = read_text(path, "a list of merges").split("\n")  # symbols may hold what splitlines takes for an end
    pairs = []
    for number, line in enumerate(lines, start=1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, space, right = line.partition(" ")
        for symbol in (left, right, left + right):
            if not space or symbol not in vocabulary:
                raise UserError(f"{path}:{number}: found {line[:60]!r}, expected two symbols of the vocabulary that "
                                "make a third")  # fmt: skip
        pairs.append((left, right))
    return pairs
