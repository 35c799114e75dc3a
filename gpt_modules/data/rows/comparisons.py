"""Rows of a store of comparisons: a ranking for each vote that counts; and which votes rows are."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from gpt_modules.data.splits import Row
from gpt_modules.errors import UserError
from gpt_modules.storage.comparisons import ComparisonStore, prompt_field

SHOWN = 9


def store_rows(path: Path) -> Iterator[tuple[str, object]]:
    """(where, record) of each vote: file and task, for an error message. Several labelers of a task are several rows.

    Raises:
        UserError: the store cannot be read.
    """
    with ComparisonStore.open(path, writing=False) as store:
        store.check()
        for found in store.rankings():
            answers = [answer.text for answer in found.answers]
            judged = {"ranking": [*found.ranks], "scores": [*found.scores]}
            told = {"labeler": found.labeler, "round": found.round}
            yield f"{path}: task {found.task}", {**prompt_field(found.prompt), "responses": answers, **judged, **told}


def chosen_votes(rows: Sequence[Row], labelers: Sequence[str] | None, rounds: Sequence[int] | None) -> list[Row]:
    """The rows of these labelers in these rounds; None: of all.

    Raises:
        UserError: no row has one of them, or none is left.
    """
    for column, wanted in (("labeler", labelers), ("round", rounds)):
        known = {row[column] for row in rows if column in row}
        for value in wanted or ():
            if value not in known:
                expected = _listed(sorted(known)) if known else f"rows that say their {column}"
                raise UserError(f"data.{column}s: found {value!r:.60}, expected {expected}")
    kept = [
        row
        for row in rows
        if (labelers is None or row.get("labeler") in labelers) and (rounds is None or row.get("round") in rounds)
    ]
    if not kept:
        found = f"no vote of {_listed(labelers or ())} in the rounds {_listed(rounds or ())}"
        raise UserError(f"data.labelers: found {found}, expected some that have voted there")
    return kept


def _listed(values: Sequence[object]) -> str:
    more = f" and {len(values) - SHOWN} more" if len(values) > SHOWN else ""
    return ", ".join(f"{value!r:.60}" for value in values[:SHOWN]) + more
