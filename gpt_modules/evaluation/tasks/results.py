"""Results on disk and on the screen: `results.json`, the items of each task, and a table.

A folder holds the results of one model under one set of settings. They are written after every task and number of
demonstrations, so a run that is cut off goes on where it was when it is started again.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt_modules.backbone.folders.replacing import find_folder
from gpt_modules.errors import UserError, expect
from gpt_modules.evaluation.tasks.measure import Result
from gpt_modules.storage.digests import sha256_of
from gpt_modules.storage.documents import Count, FileName, Sha256, at, read_document, typed
from gpt_modules.storage.durable import check_writable, replace_durably
from gpt_modules.storage.json_files import shown
from gpt_modules.storage.model_files import CONFIG_FILE

FILE = "results.json"
_WEIGHTS = (".safetensors", ".bin", ".npy")
_COLUMNS = f"{'shots':>5}  {'metric':<22}  {'value':>10}  {'std. error':>10}  {'n':>6}"


@dataclass(frozen=True)
class Number:
    """A metric; without an error where there is but one item."""

    value: float
    standard_error: float | None


@dataclass(frozen=True)
class Entry:
    """A task at K demonstrations, see `measure.Result`."""

    task: FileName
    shots: Count
    metrics: dict[str, Number]
    n: Count
    shortened: Count
    cut: Count
    seconds: float
    unfinished: Count = 0


@dataclass(frozen=True)
class Document:
    """What `results.json` holds. tasks: their definitions, each with the SHA-256 of its data."""

    settings: dict[str, Any]
    tasks: dict[str, dict[str, Any]]
    results: list[Entry]

    def __post_init__(self) -> None:
        for name, task in self.tasks.items():
            typed(dict[str, Sha256], task.get("sha256"), f"{at('tasks', name)}.sha256")


class Results:
    """The results in a folder, its earlier ones included.

    Args:
        folder: made where there is none; what cannot be written is told before anything is measured.
        settings: plain values; what the earlier results must have been measured with.
        tasks: name -> definition, plain values.

    Raises:
        UserError: The folder holds results of other settings or of another definition of a task, or cannot be written.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], tasks: Mapping[str, Mapping[str, Any]]) -> None:
        self.folder = folder
        self.settings = dict(settings)
        self.tasks: dict[str, Any] = dict(tasks)
        self.entries: list[dict[str, Any]] = []
        if (folder / CONFIG_FILE).exists():  # a model's folder with a foreign file in it can no longer be exported to
            raise UserError(f"{folder}: found a model ({CONFIG_FILE}), expected a folder for results alone")
        if (folder / FILE).exists():
            self._go_on()
        check_writable(folder)

    def has(self, task: str, shots: int, items: bool) -> bool:
        """Whether a task was measured at K demonstrations, its items written too where they are wanted."""
        known = any((entry["task"], entry["shots"]) == (task, shots) for entry in self.entries)
        return known and (not items or self._items(task, shots).exists())

    def entry(self, task: str, shots: int) -> dict[str, Any]:
        """The entry of a result that there is."""
        return next(entry for entry in self.entries if (entry["task"], entry["shots"]) == (task, shots))

    def add(self, task: str, shots: int, result: Result) -> dict[str, Any]:
        """Note a result; its entry."""
        entry = {"task": task, "shots": shots, **_plain(task, result)}
        self.entries = [old for old in self.entries if (old["task"], old["shots"]) != (task, shots)] + [entry]
        return entry

    def write(self, entry: Mapping[str, Any], records: Sequence[Mapping[str, Any]] | None) -> None:
        """Write all entries and, where they are given, the items of one.

        Raises:
            UserError: Nothing can be written.
        """
        document = {"settings": self.settings, "tasks": self.tasks, "results": self.entries}
        replace_durably(self.folder / FILE, json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
        if records is not None:
            path = self._items(entry["task"], entry["shots"])
            check_writable(path.parent)
            replace_durably(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))

    def _items(self, task: str, shots: int) -> Path:
        return self.folder / "items" / f"{task}-{shots}.jsonl"

    def _go_on(self) -> None:
        path = self.folder / FILE
        document = read_document(path, Document, "the results of an earlier run")
        settings, tasks = document.settings, document.tasks
        for key in [*self.settings, *settings]:
            if key != "model" and settings.get(key) != self.settings.get(key):
                found = f"found results of {shown(settings.get(key))}, expected {shown(self.settings.get(key))}"
                raise UserError(f"{path}: {at('', key)}: {found}; choose another --output")
        for name in set(tasks) & set(self.tasks):
            # Zero-shot alone leaves the demonstrations unread, so their checksum may be new or not needed now.
            known, checksums = self.tasks[name], tasks[name]["sha256"] | self.tasks[name]["sha256"]
            if {**tasks[name], "sha256": checksums} != {**known, "sha256": known["sha256"] | tasks[name]["sha256"]}:
                raise UserError(f"{path}: {at('', name)}: found results of another definition or of other data of this "
                                "task, expected the same; choose another --output")  # fmt: skip
            self.tasks[name] = {**known, "sha256": checksums}
        self.tasks = {**tasks, **self.tasks}
        self.entries = [asdict(entry) for entry in document.results]


def weights_digest(model: str) -> str:
    """SHA-256 of the weights and configuration in a model folder."""
    folder, digest = find_folder(model), hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in _WEIGHTS or path.name == CONFIG_FILE:
            digest.update(path.name.encode())
            digest.update(bytes.fromhex(sha256_of(path)))
    return digest.hexdigest()


def table_header(names: Sequence[str]) -> str:
    """The first line of a table of these tasks."""
    return f"{'task':<{_width(names)}}  {_COLUMNS}"


def table_rows(entry: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The lines of one result, one a metric, and one more for what the model's context or `max_new_tokens` cut off."""
    lines = []
    for name, metric in entry["metrics"].items():
        error = "" if metric["standard_error"] is None else f"{metric['standard_error']:.4g}"
        value = f"{metric['value']:.4f}" if metric["value"] < 1e5 else f"{metric['value']:.4g}"
        lines.append(f"{entry['task']:<{_width(names)}}  {entry['shots']:>5}  {name:<22}  {value:>10}  {error:>10}  "
                     f"{entry['n']:>6}")  # fmt: skip
    if entry["shortened"] or entry["cut"]:
        lines.append(f"  of {entry['n']} items, {entry['shortened']} had room for fewer than {entry['shots']} "
                     f"demonstrations, {entry['cut']} lost the beginning of their context")  # fmt: skip
    if entry.get("unfinished"):
        lines.append(f"  of {entry['n']} answers, max_new_tokens cut off {entry['unfinished']}")
    return lines


def _width(names: Sequence[str]) -> int:
    return max(4, *map(len, names))


def _plain(task: str, result: Result) -> dict[str, Any]:
    for name, one in result.metrics.items():
        expect(math.isfinite(one.value), f"{task}: {name}", one.value, "a finite number")
    metrics = {name: {"value": one.value, "standard_error": one.standard_error} for name, one in result.metrics.items()}
    return {"metrics": metrics, "n": result.n, "shortened": result.shortened, "cut": result.cut,
            "unfinished": result.unfinished, "seconds": round(result.seconds, 3)}  # fmt: skip
