"""The agreement of labelers as a table to read, and as JSON."""

import dataclasses
import json
import math
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from gpt_modules.feedback.agreement import Agreement, Statistics

MOST = 20  # labelers with a row of their own


def table_of(found: Statistics) -> Table:
    """Labelers, those with the most votes first and beyond `MOST` in one row; then the flags that were given."""
    table = Table(title=_title(found), title_justify="left")
    for column in ("labeler", "votes", "agrees with the others"):
        table.add_column(column, justify="left" if column == "labeler" else "right")
    names = sorted(found.labelers, key=lambda name: -found.labelers[name][0])
    shown = names if len(names) <= MOST + 1 else names[:MOST]
    for name in shown:
        votes, agreement = found.labelers[name]
        table.add_row(Text(name), str(votes), _shown(agreement))
    if others := names[len(shown) :]:
        votes = sum(found.labelers[name][0] for name in others)
        table.add_row(f"and {len(others)} others", str(votes), _range(found, others))
        table.caption = "--statistics FILE has them all"
    for flag, (given, alpha) in found.flags.items():
        if given:
            table.add_row(Text(f"flag: {flag}"), str(given), f"alpha {_number(alpha)}")
    return table


def json_of(found: Statistics) -> str:
    """All of it; what could not be measured is null: NaN is no JSON."""
    return json.dumps(_plain(dataclasses.asdict(found)), indent=1, allow_nan=False) + "\n"


def _title(found: Statistics) -> str:
    if not found.agreement.pairs:
        return "No two labelers ordered the same answers"
    return f"Agreement {_shown(found.agreement)}, Krippendorff's alpha {_number(found.alpha)} (ordinal)"


def _range(found: Statistics, names: Sequence[str]) -> str:
    parts = [found.labelers[name][1].part for name in names if found.labelers[name][1].pairs]
    return f"{min(parts):.1%} to {max(parts):.1%}" if parts else "-"


def _shown(agreement: Agreement) -> str:
    if not agreement.pairs:
        return "-"
    error = "" if math.isnan(agreement.error) else f" +- {agreement.error:.1%}"
    return f"{agreement.part:.1%}{error} of {agreement.pairs} pairs that both order"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
