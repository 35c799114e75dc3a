"""`summary.json`: what a run reached, before and after; the file that says that a run is complete."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from gpt_modules.storage.documents import Count, Foreign, read_document
from gpt_modules.storage.durable import replace_durably

SUMMARY_FILE = "summary.json"


@dataclass(frozen=True)
class Baseline:
    """What a simple method reaches on the same data."""

    name: str
    value: float | None


@dataclass(frozen=True)
class Summary(Foreign):
    """Validation metrics by name, None where one is not finite; what a later version adds is left alone.

    Args:
        before, after: of the weights that the run began with, and of those that it exported.
        seconds: over all attempts; of a pipeline's command, of the one that finished it.
        steps: of the optimizer.
        baselines: by the metric that they are to be compared with.
    """

    before: Mapping[str, float | None]
    after: Mapping[str, float | None]
    seconds: float
    steps: Count = 0
    baselines: dict[str, Baseline] = field(default_factory=dict)


def read_summary(folder: Path) -> Summary:
    """The summary of a run's folder.

    Raises:
        UserError: there is none, or it is none of ours; with the key.
    """
    return read_document(folder / SUMMARY_FILE, Summary, "the summary of a finished run")


def write_summary(folder: Path, summary: Summary) -> None:
    """Write it durably; numbers that JSON has no word for become null.

    Raises:
        UserError: the disk is full or cannot be written.
    """
    replace_durably(folder / SUMMARY_FILE, json.dumps(_finite(asdict(summary)), indent=2, allow_nan=False) + "\n")


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
