"""Tokenizers that others made: found by path or by name on the hub, read by the `tokenizers` library, and checked for
what it reads without a word.
"""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from gpt_modules.data.text.edges import reason_of, set_begin
from gpt_modules.data.text.gpt1_bpe import NEWLINE, WORD_END, build
from gpt_modules.data.text.gpt2_bpe import byte_level, with_end
from gpt_modules.data.text.vocabularies import find_vocabulary, read_vocabulary
from gpt_modules.errors import UserError
from gpt_modules.storage.digests import sha256_of
from gpt_modules.storage.hub import fetch, is_hub_name
from gpt_modules.storage.json_files import read_json
from gpt_modules.storage.model_files import (
    ADAPTER_CONFIG_FILE,
    CONFIG_FILE,
    END_OF_TEXT,
    GENERATION_FILE,
    TEMPLATE_FILE,
    TOKENIZER_FILE,
)
from gpt_modules.storage.paths import LIKENESS, is_there, path_of
from gpt_modules.storage.recipes import writer_of
from gpt_modules.storage.run_parts import expect_model

SETTINGS_FILE, SPECIALS_FILE = "tokenizer_config.json", "special_tokens_map.json"
_NAMED = ("eos_token", "bos_token", "unk_token", "pad_token")
MOST_IDS = 1 << 24


def find_tokenizer(name: str) -> Path:
    """A file or folder here, or the folder of a download."""
    if not name.strip():  # as a path it would be the folder that the command runs in
        raise UserError(f"tokenizer: found {name!r}, expected a folder's or file's path, or a name")
    path = path_of(name)
    if is_there(path):
        if not has_tokenizer(path):
            expect_model(path)
        return path
    if name == "train":
        raise UserError("tokenizer: found train, which pretraining and meta-learning do, expected a tokenizer that is")
    if not is_hub_name(name):
        found = f"found {name[:200]!r}, no such file or folder"
        raise UserError(f"tokenizer: {found}, expected one with a tokenizer{writer_of(name)}")
    if get_close_matches(name, ["gpt2"], 1, LIKENESS):
        raise UserError(f"{name}: found no such file or folder; did you mean gpt2?")
    beside = [SETTINGS_FILE, SPECIALS_FILE, CONFIG_FILE, GENERATION_FILE, TEMPLATE_FILE]
    return fetch(name, [TOKENIZER_FILE, *beside, "vocab.json", "merges.txt"])


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder of weights has a tokenizer beside them."""
    return (folder / TOKENIZER_FILE).is_file() or find_vocabulary(folder) is not None


def build_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a vocabulary in two files; special tokens and the begin token are what the settings say."""
    found = find_vocabulary(folder)
    if found is None and (folder / ADAPTER_CONFIG_FILE).is_file():
        raise UserError(f"{folder}: found an adapter, expected a model: the export beside it has its updates merged")
    if found is None:
        raise UserError(f"{folder}: found no {TOKENIZER_FILE} in this folder, expected one beside the weights")
    model = read_vocabulary(*found)
    backend = build(model) if model.end_of_word_suffix == WORD_END else byte_level(model)
    # Marked, never added: the weights would have no row for a new id.
    if backend.token_to_id(END_OF_TEXT) is not None:
        backend = with_end(backend)
    settings = settings_of(folder)
    named = {name: token for name in _NAMED if (token := content_of(settings.get(name))) is not None}
    specials = [token for token in named.values() if backend.token_to_id(token) is not None]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    if settings.get("add_bos_token") is True and named.get("bos_token") in specials:
        set_begin(backend, named["bos_token"])
    return backend


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
    """The end token of a vocabulary: what the settings beside its file call so, else an added token whose id the
    model's configuration gives for it, else `<|endoftext|>`, else, in GPT-1's kind, the newline.

    Raises:
        UserError: There is none, or the settings name one that the vocabulary lacks.
    """
    folder = path.parent
    eos = content_of(settings_of(folder).get("eos_token"))
    if eos is not None and backend.token_to_id(eos) is None:
        raise UserError(f"{folder / SETTINGS_FILE}: eos_token: found {eos!r:.60}, expected a token of the vocabulary")
    usual = [end for end in (END_OF_TEXT, NEWLINE) if backend.token_to_id(end) is not None]
    found = next((end for end in (eos, _configured_end(folder, backend), *usual) if end is not None), None)
    if found is None:
        where = path if path.is_file() else folder
        raise UserError(f"{where}: found no {END_OF_TEXT} and no eos_token, expected a vocabulary with an end token")
    return found


def _configured_end(folder: Path, backend: tokenizers.Tokenizer) -> str | None:
    """The first end token in generation_config.json or config.json that is an added one: their defaults may be any."""
    added = {i: token.content for i, token in backend.get_added_tokens_decoder().items()}
    for name in (GENERATION_FILE, CONFIG_FILE):
        ids = _read(folder / name).get("eos_token_id")
        for i in ids if isinstance(ids, list) else [ids]:
            if type(i) is int and i in added:
                return added[i]
    return None


def settings_of(folder: Path) -> dict[str, Any]:
    """What `transformers` keeps of a tokenizer beside its vocabulary."""
    return {**_read(folder / SPECIALS_FILE), **_read(folder / SETTINGS_FILE)}


def _read(path: Path) -> dict[str, Any]:
    found: Any = read_json(path, "settings that transformers wrote") if path.is_file() else {}
    return found if isinstance(found, dict) else {}


def content_of(token: Any) -> str | None:
    """The characters of a token in the settings, which is a string or has them as `content`."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def ids_beside(folder: Path, backend: tokenizers.Tokenizer) -> dict[str, tuple[int, ...]]:
    """The tokens that a model's files call end (one or several), begin and padding, by the name of their field.

    As `transformers` has it: `generation_config.json` says so, and where there is none, `config.json`; of that only
    added tokens are taken, for its defaults may be any.

    Raises:
        UserError: They are no ids.
    """
    path = next((folder / name for name in (GENERATION_FILE, CONFIG_FILE) if (folder / name).is_file()), None)
    if path is None:
        return {}
    settings, added = _read(path), backend.get_added_tokens_decoder()
    found = {}
    for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
        value = settings.get(name)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if path.name == CONFIG_FILE:
            ids = [i for i in ids if type(i) is int and i in added]
        elif not all(type(i) is int and 0 <= i < MOST_IDS for i in ids):
            raise UserError(f"{path}: {name}: found {value!r:.60}, expected the id of a token, or a list of them")
        found[name] = tuple(i for i in ids if backend.id_to_token(i) is not None)
    return found
