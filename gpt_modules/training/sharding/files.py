"""A checkpoint of which each process writes its own part: a folder that any number of processes reads.

`rest.ckpt` holds everything but the tensors that lie in shards, and a mark in the place of each;
`shard-*.safetensors`, one a process, its rows of them. `index.json` knows the SHA-256 of all these files, and the
digest beside the folder that of the index. No part is a pickle that could run: torch reads `rest.ckpt` as plain data.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from gpt_modules.errors import UserError, expect
from gpt_modules.storage.digests import sha256_of
from gpt_modules.storage.durable import discard, sync, temporary_for, write_durably
from gpt_modules.storage.json_files import read_json
from gpt_modules.storage.run_parts import SHARD_INDEX

INDEX, REST = SHARD_INDEX, "rest.ckpt"
MARK = "rows in shards"  # key of what stands for a tensor


class Stored(NamedTuple):
    """A tensor whose rows lie in the files of a folder.

    rows: reads those from a first one to before a last one.
    """

    shape: torch.Size
    rows: Callable[[int, int], Tensor]

    def whole(self) -> Tensor:
        """All of it."""
        return self.rows(0, self.shape[0])


def rows_of(rank: int, world: int, count: int) -> tuple[int, int]:
    """First row of a process, and that behind its last, of so many: as `torch.chunk` cuts, and FSDP2 with it."""
    size = -(-count // world)
    return min(rank * size, count), min((rank + 1) * size, count)


def shard_name(rank: int, world: int) -> str:
    """Of a process's file, counted from 1."""
    return f"shard-{rank + 1:05d}-of-{world:05d}.safetensors"


def parted(value: Any, part_of: Callable[[Any], Tensor | None]) -> tuple[Any, dict[str, Tensor]]:
    """Nested dicts and lists with a mark in place of each tensor that lies in shards; and this process's rows of these,
    once each: a trunk that two models share has two names.

    Args:
        part_of: the rows; None for what does not lie in shards.
    """
    parts: dict[str, Tensor] = {}
    names: dict[tuple[int, int], str] = {}

    def marked(item: Any, name: str) -> Any:
        if isinstance(item, Mapping):
            return {key: marked(inner, f"{name}/{key}") for key, inner in item.items()}
        if isinstance(item, list | tuple):
            return type(item)(marked(inner, f"{name}/{i}") for i, inner in enumerate(item))
        if (part := part_of(item)) is None:
            return item
        name = names.setdefault((part.untyped_storage()._cdata, int(part.storage_offset())), name)
        parts[name] = part
        return {MARK: name, "shape": list(item.shape)}

    return marked(value, ""), parts


def joined(value: Any, read: Callable[[str, torch.Size], Any]) -> Any:
    """`parted` undone: with what `read` makes of a name and a shape in place of each mark."""
    if isinstance(value, dict) and MARK in value:
        return read(str(value[MARK]), torch.Size(value["shape"]))
    if isinstance(value, dict):
        return {key: joined(item, read) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(joined(item, read) for item in value)
    return value


def write_part(folder: Path, name: str, parts: Mapping[str, Tensor]) -> str:
    """A process's rows, on disk; returns the SHA-256."""
    path = folder / name
    save_file({key: part.detach().to("cpu", copy=True).contiguous() for key, part in parts.items()}, path)
    path.chmod(folder.stat().st_mode & 0o666)  # as the umask says; safetensors writes for the owner alone
    sync(path)
    return sha256_of(path)


def finish_folder(folder: Path, target: Path, digest: Path, rest: Any, digests: Mapping[str, str]) -> None:
    """Write everything else, the index and, in the file `digest`, its SHA-256; then the folder takes its name.

    Args:
        digests: of the processes' files, by name.
    """
    torch.save(rest, folder / REST)
    files = {REST: sha256_of(folder / REST), **digests}
    (folder / INDEX).write_text(json.dumps({"format": 1, "files": files}, indent=1) + "\n")
    for name in (REST, INDEX):
        sync(folder / name)
    sync(folder)
    known = sha256_of(folder / INDEX)
    write_durably(digest, lambda file: file.write_text(known + "\n"))
    aside = temporary_for(target)
    if target.exists():  # of a run that went on from before it
        target.rename(aside)
    folder.rename(target)
    sync(target.parent)
    discard(aside)


class ShardFolder:
    """Reads a folder; each file is compared with its digest before anything of it is used.

    Raises `UserError`, with the file, for what is missing, damaged or no such folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 by the names of files."""
        expected = "the index of a checkpoint: format 1, and digests of its files"
        document = read_json(self.folder / INDEX, expected)
        files: Any = document.get("files") if isinstance(document, dict) and document.get("format") == 1 else None
        fits = isinstance(files, dict) and REST in files
        fits = fits and all(Path(name).name == name and isinstance(digest, str) for name, digest in files.items())
        expect(fits, str(self.folder / INDEX), "another document", expected)
        found: dict[str, str] = files
        return found

    def verifies(self, rank: int = 0, world: int = 1) -> bool:
        """Whether all files are what was written; of several processes each looks at its part of them."""
        try:
            for name in sorted(self.digests)[rank::world]:
                self._verified(name)
        except UserError:
            return False
        return True

    def load(self, own: Callable[[Stored], Any], mmap: bool) -> dict[str, Any]:
        """What was saved, with what `own` makes of each tensor that lies in shards."""
        rest = torch.load(self._verified(REST), map_location="cpu", weights_only=True, mmap=mmap)
        loaded: dict[str, Any] = joined(rest, lambda name, shape: own(Stored(shape, self._reader(name, shape))))
        return loaded

    def _reader(self, name: str, shape: torch.Size) -> Callable[[int, int], Tensor]:
        def rows(start: int, stop: int) -> Tensor:
            pieces = [
                piece for rank in range(len(self._shards)) for piece in self._rows(rank, name, shape, start, stop)
            ]
            return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

        return rows

    def _rows(self, rank: int, name: str, shape: torch.Size, start: int, stop: int) -> Iterator[Tensor]:
        """Those of one file, if any of them are asked for; of none at all, none of the first file."""
        first, last = rows_of(rank, len(self._shards), shape[0])
        begin, end = max(start, first) - first, min(stop, last) - first
        if begin < end or (rank == 0 and start == stop):
            end = max(begin, end) if start < stop else 0
            yield self._open(self._shards[rank]).get_slice(name)[begin if start < stop else 0 : end]

    @cached_property
    def _shards(self) -> list[str]:
        return sorted(name for name in self.digests if name != REST)

    def _open(self, name: str) -> Any:
        if name not in self._opened:
            self._opened[name] = safe_open(self._verified(name), framework="pt")
        return self._opened[name]

    @cached_property
    def _opened(self) -> dict[str, Any]:
        return {}

    def _verified(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_file():
            raise UserError(f"{path}: no such file, expected a part of the checkpoint")
        if sha256_of(path) != self.digests[name]:
            raise UserError(f"{path}: damaged, its digest does not match {INDEX}")
        return path
