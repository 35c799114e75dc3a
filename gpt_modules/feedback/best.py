"""Each prompt with the best of its answers: rejection sampling (Touvron et al. 2023, Llama 2, section 3.2.3)."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from gpt_modules.data.splits import Row
from gpt_modules.errors import UserError
from gpt_modules.storage.comparisons import Prompt, Ranking, prompt_field

SHOWN = 3  # labelers in a message


def of_one_labeler(rankings: Iterable[Ranking], labeler: str | None, store: Path) -> list[Ranking]:
    """The votes by which the best is chosen: this labeler's, or all where there is but one.

    Raises:
        UserError: there is none, or several labelers' votes and no name.
    """
    found = list(rankings)
    names = sorted({ranking.labeler for ranking in found})
    if not names:
        raise UserError(f"{store}: found no vote, expected at least one")
    shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} others" if len(names) > SHOWN else "")
    if labeler is None and len(names) > 1:
        raise UserError(f"--name: found none, expected one of the labelers {shown}: they may think another answer best")
    if labeler is not None and labeler not in names:
        raise UserError(f"--name: found {labeler!r}, expected a labeler with votes: {shown}")
    return [ranking for ranking in found if labeler in (None, ranking.labeler)]


def best_answers(rankings: Sequence[Ranking]) -> Iterator[Row]:
    """A demonstration of each vote that has an answer which was not cut off: the best of those, and of equals the one
    that was drawn first. What was cut off would teach to stop there. Of a conversation nothing else is learned: nobody
    has ranked what its assistant said before.
    """
    for ranking in rankings:
        judged = zip(ranking.ranks, ranking.answers, strict=True)
        whole = [(rank, answer.text) for rank, answer in judged if answer.ended is not False]
        if whole:
            _, response = min(whole, key=lambda one: one[0])
            yield _demonstration(ranking.prompt, response)


def _demonstration(prompt: Prompt, response: str) -> Row:
    row: Row = prompt_field(prompt)
    if "messages" not in row:
        return {**row, "response": response}
    before = [{**turn, "weight": 0} if turn["role"] == "assistant" else turn for turn in row["messages"]]
    return {"messages": [*before, {"role": "assistant", "content": response}]}
