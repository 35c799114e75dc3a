"""Tokenizers that others made: found by path or by name on the hub, read by the `tokenizers` library, and checked for
what it reads without a word.
"""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import tokenizers

from gpt_modules.data.text.gpt1_bpe import NEWLINE, WORD_END, build
from gpt_modules.data.text.gpt2_bpe import byte_level, with_end
from gpt_modules.data.text.vocabularies import find_vocabulary, read_vocabulary
from gpt_modules.errors import UserError
from gpt_modules.storage.digests import sha256_of
from gpt_modules.storage.hub import fetch, is_hub_name
from gpt_modules.storage.json_files import read_json
from gpt_modules.storage.model_files import CONFIG_FILE, END_OF_TEXT, TOKENIZER_FILE
from gpt_modules.storage.paths import LIKENESS, is_there, path_of

SETTINGS_FILE = "tokenizer_config.json"
MOST_IDS = 1 << 24


def find_tokenizer(name: str) -> Path:
    """A file or folder here, or the folder of a download."""
    if not name.strip():  # as a path it would be the folder that the command runs in
        raise UserError(f"tokenizer: found {name!r}, expected a folder's or file's path, or a name")
    path = path_of(name)
    if is_there(path):
        return path
    if name == "train":
        raise UserError("tokenizer: found train, which pretraining and meta-learning do, expected a tokenizer that is")
    if not is_hub_name(name):
        raise UserError(f"{name[:200]!r}: found no such file or folder, expected a tokenizer")
    if get_close_matches(name, ["gpt2"], 1, LIKENESS):
        raise UserError(f"{name}: found no such file or folder; did you mean gpt2?")
    return fetch(name, [TOKENIZER_FILE, SETTINGS_FILE, "vocab.json", "merges.txt"])


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder of weights has a tokenizer beside them."""
    return (folder / TOKENIZER_FILE).is_file() or find_vocabulary(folder) is not None


def build_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a vocabulary in two files."""
    found = find_vocabulary(folder)
    if found is None:
        raise UserError(f"{folder}: found no {TOKENIZER_FILE} in this folder, expected one beside the weights")
    model = read_vocabulary(*found)
    backend = build(model) if model.end_of_word_suffix == WORD_END else byte_level(model)
    # Marked, never added: the weights would have no row for a new id.
    return backend if backend.token_to_id(END_OF_TEXT) is None else with_end(backend)


def read_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a `tokenizer.json`.

    Raises:
        UserError: The library cannot read it, or reads what no model should learn from; or the model's config.json
            beside it knows another file.
    """
    _check_unaltered(path)
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except BaseException as error:
        reason = reason_of(error)
        raise UserError(
            f"{path}: found no readable tokenizer ({reason}), expected the JSON of the tokenizers library"
        ) from error
    _check_vocabulary(path, backend)
    return backend


def _check_unaltered(path: Path) -> None:
    beside = path.with_name(CONFIG_FILE)
    config: Any = read_json(beside, "the configuration of a model") if beside.is_file() else {}
    if not isinstance(config, dict) or "transformers_version" in config:  # then they may have written the tokenizer
        return
    ours = config.get("gpt_modules")
    expected = ours.get("tokenizer_sha256") if isinstance(ours, dict) else None
    if path.name == TOKENIZER_FILE and expected is not None and sha256_of(path) != expected:
        raise UserError(f"{path}: found altered since it was exported, expected the tokenizer that the model beside it "
                        "learnt with")  # fmt: skip


def reason_of(error: BaseException) -> str:
    """What the library says, in a line; a panic in its Rust code is no `Exception`."""
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit | MemoryError):
        raise error
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__


def _check_vocabulary(path: Path, backend: tokenizers.Tokenizer) -> None:
    """What the library reads without a word, and a model would learn from."""
    names = dict[int, str]()
    for symbol, i in backend.get_vocab(with_added_tokens=True).items():
        if i >= MOST_IDS:
            raise UserError(f"{path}: {symbol!r:.40}: found id {i}, expected ids below {MOST_IDS:,}")
        if i in names:
            raise UserError(f"{path}: found id {i} for both {names[i]!r:.40} and {symbol!r:.40}, expected one each")
        names[i] = symbol
    if len(names) <= len(backend.get_added_tokens_decoder()):
        raise UserError(f"{path}: found no symbols in its vocabulary, expected those that text is made of")
    if dropout := getattr(backend.model, "dropout", None):
        raise UserError(f"{path}: dropout: found {dropout:g}, expected none: a text has the same ids every time")


def end_token_of(path: Path, backend: tokenizers.Tokenizer) -> str:
    """The end token of a vocabulary, or what the settings beside its file call so.

    Raises:
        UserError: There is none.
    """
    if backend.token_to_id(END_OF_TEXT) is not None:
        return END_OF_TEXT
    beside = path.with_name(SETTINGS_FILE)
    config: Any = read_json(beside, "transformers' tokenizer settings") if beside.is_file() else {}
    eos = config.get("eos_token") if isinstance(config, dict) else None
    eos = eos.get("content") if isinstance(eos, dict) else eos
    if eos is None and backend.token_to_id(NEWLINE) is not None:
        return NEWLINE
    if not isinstance(eos, str) or backend.token_to_id(eos) is None:
        where = path if path.is_file() else path.parent
        raise UserError(f"{where}: found no {END_OF_TEXT} and no eos_token, expected a vocabulary with an end token")
    return eos
