"""Rows of a store of comparisons: a ranking for each vote that counts."""

from collections.abc import Iterator
from pathlib import Path

from gpt_modules.storage.comparisons import ComparisonStore


def store_rows(path: Path) -> Iterator[tuple[str, object]]:
    """(where, record) of each vote: file and task, for an error message. Several labelers of a task are several rows.

    Raises:
        UserError: the store cannot be read.
    """
    with ComparisonStore.open(path, writing=False) as store:
        store.check()
        for found in store.rankings():
            answers = [answer.text for answer in found.answers]
            yield (
                f"{path}: task {found.task}",
                {"prompt": found.prompt, "responses": answers, "ranking": [*found.ranks]},
            )
