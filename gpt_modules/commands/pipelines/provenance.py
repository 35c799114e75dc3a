"""What a stage was made from, and whether that is still what the pipeline says.

A stage is the same as long as its parsed recipe is, with the content of every file and folder that it names: data,
tokenizers, weights. So a comment, another way to write the same path or a moved file change nothing, and an edited row
does. Where it runs does not count either (`NOT_COUNTED`): its folder, the devices, what is shown and kept on the way.
"""

import glob
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_modules.data.corpus.shards import MANIFEST
from gpt_modules.data.rows.files import rows_digest
from gpt_modules.data.rows.sources import has_own_splits
from gpt_modules.errors import UserError
from gpt_modules.storage.documents import read_document
from gpt_modules.storage.durable import replace_durably, room_for
from gpt_modules.storage.json_files import shown
from gpt_modules.storage.paths import path_of
from gpt_modules.storage.yaml_files import dotted

ORIGIN_FILE = "stage.json"
NOT_COUNTED = (
    *(f"trainer.{key}" for key in ("default_root_dir", "accelerator", "devices", "num_nodes", "precision")),
    *(f"trainer.{key}" for key in ("strategy", "plugins", "sync_batchnorm", "use_distributed_sampler")),
    *(f"trainer.{key}" for key in ("benchmark", "logger", "profiler", "log_every_n_steps", "model_registry")),
    *(f"trainer.{key}" for key in ("enable_progress_bar", "enable_model_summary", "enable_autolog_hparams")),
    *("config", "checkpoint", "samples", "throughput", "progress", "ckpt_path", "weights_only"),
    *("model.init_args.compile", "model.init_args.recompute", "model.init_args.cache_gb"),
    *("data.init_args.cache_dir", "data.init_args.num_workers"),
)
"""Keys, each with all below it."""

_TOKENIZERS = ("train", "characters")  # words of the key `tokenizer`, whatever files there are
_CONTENT = "SHA-256 "
_ROOT = "ROOT"


@dataclass(frozen=True)
class Origin:
    """What a stage was made from: recipe key -> plain value, or the digest of the files that it names."""

    made_from: dict[str, Any]

    @property
    def unmade(self) -> list[str]:
        """Keys that name something below the root that is not there yet."""
        return [key for key, value in self.made_from.items() if f"{_ROOT}/" in json.dumps(value)]


def origin_of(recipe: Mapping[str, Any], root: Path) -> Origin:
    """The origin of a parsed recipe in the folder `root`, as files are now.

    Raises:
        UserError: a file cannot be read.
    """
    keys = dict(_leaves(recipe, ""))
    counted = {key: value for key, value in keys.items() if not _is_below(key, NOT_COUNTED)}
    words = {key: value for key, value in counted.items() if _is_word(key, value)}
    return Origin({key: _with_content(value, str(root)) for key, value in counted.items()} | words)


def read_origin(folder: Path) -> Origin:
    """What the run in a stage's folder was made from.

    Raises:
        UserError: nobody wrote it down, or it cannot be read.
    """
    return read_document(folder / ORIGIN_FILE, Origin, "what gpt run made this folder from")


def write_origin(folder: Path, origin: Origin) -> None:
    """Write it down, before the stage begins."""
    with room_for(folder):
        folder.mkdir(parents=True, exist_ok=True)
    replace_durably(folder / ORIGIN_FILE, json.dumps({"made_from": origin.made_from}, indent=1, sort_keys=True) + "\n")


def changes(before: Origin, now: Origin, without: Iterable[str] = ()) -> list[str]:
    """What is different, a key each, `without` some keys."""
    found = []
    for key in sorted({*before.made_from, *now.made_from} - {*without}):
        then, here = (origin.made_from.get(key) for origin in (before, now))
        if then != here:
            content = _CONTENT in str(then) and _CONTENT in str(here)
            name = dotted(tuple(key.split(".")))
            changed = f"the content of {name} changed"
            found.append(changed if content else f"{name} was {_short(then)}, is now {_short(here)}")
    return found


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _leaves(item, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def _is_below(key: str, keys: tuple[str, ...]) -> bool:
    return any(key == above or key.startswith(f"{above}.") for above in keys)


def _is_word(key: str, value: Any) -> bool:
    """Whether a value means the same whatever files there are: to other keys `train` or `reviews` may be a folder."""
    if key.rpartition(".")[2] == "tokenizer":
        return value in _TOKENIZERS
    return key.startswith("data.") and isinstance(value, str) and has_own_splits(value)


def _with_content(value: Any, root: str) -> Any:
    """A value as JSON has it, the digest in place of what names files, and the root by that name."""
    if isinstance(value, Mapping):
        return {str(name): _with_content(item, root) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_content(item, root) for item in value]
    if isinstance(value, bool | int | None) or (isinstance(value, float) and math.isfinite(value)):
        return value
    text = str(value)
    if (digest := content_digest(text)) is not None:
        return _CONTENT + digest
    return f"{_ROOT}{text.removeprefix(root)}" if text == root or text.startswith(f"{root}/") else text


def content_digest(name: str) -> str | None:
    """SHA-256 of the content of a file, of a folder's files, or of those of a glob; of a function `module:name`, that
    of its module or package in the current folder. None for what names no files here.

    Raises:
        UserError: one of them cannot be read.
    """
    files = _files(name)
    if not files:
        return None
    digest = hashlib.sha256()
    try:
        for path in files:
            digest.update(f"{path.suffix if len(files) == 1 else path.name}\0{rows_digest(path)}\n".encode())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}), expected a file") from error
    return digest.hexdigest()


def _files(name: str) -> list[Path]:
    if not name or "\0" in name or len(name) > 4096:
        return []
    try:
        path = path_of(name)
        if path.is_dir():  # a folder of shards knows the digests of its files
            return [path / MANIFEST] if (path / MANIFEST).is_file() else _of_folder(path)
        if path.is_file():
            return [path]
        found = glob.glob(str(path), recursive=True) if glob.has_magic(name) else []  # noqa: PTH207
        found += _modules(name) if ":" in name else []
        return sorted(Path(item) for item in found if Path(item).is_file())
    except (OSError, ValueError):  # names that no file can have
        return []


def _modules(name: str) -> list[str]:
    """The files, in the current folder, of a function `module:name`: its module, or all of the package that it is in.
    This package's own count by their names.
    """
    top = name.partition(":")[0].partition(".")[0]
    if top == __package__.partition(".")[0] or not top.isidentifier():
        return []
    return [str(path) for path in (Path(f"{top}.py"), *Path(top).rglob("*.py"))]


def _of_folder(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def _short(value: Any) -> str:
    text = "files" if _CONTENT in str(value) else shown(value)
    return text if len(text) < 40 else f"{text[:39]}…"
