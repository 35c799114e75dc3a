"""A task as a labeler sees it: answers in an order of its own, and nothing that tells who gave them.

The order is a function of labeler and task, so that nobody has to keep it; what is said of the answers goes by their
place in it. No id of an answer is sent: ids follow the order in which the models answered.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from gpt_modules.errors import UserError
from gpt_modules.feedback.page.messages import Voting
from gpt_modules.storage.comparisons import Answer, Judgement, Task, Vote, spelled


def in_order(task: Task, labeler: str) -> list[Answer]:
    """The answers as this labeler sees them."""
    asked = spelled(task.prompt).letters

    def place(answer: Answer) -> str:
        return hashlib.sha256(f"{labeler}\0{asked}\0{answer.text}".encode()).hexdigest()

    return sorted(task.answers, key=place)


def shown(task: Task, labeler: str, form: Sequence[str], draft: Vote | None = None) -> dict[str, Any]:
    """A task for the page, with an earlier vote to begin from."""
    answers = in_order(task, labeler)
    return {
        "task": task.id,
        "prompt": task.prompt,
        "answers": [answer.text for answer in answers],
        "form": list(form),
        "draft": None if draft is None else _drafted(draft, answers, form),
    }


def _drafted(draft: Vote, answers: Sequence[Answer], form: Sequence[str]) -> dict[str, Any]:
    of = [draft.judgements[answer.id] for answer in answers] if draft.judgements else []
    return {
        "judgements": [{"rank": j.rank, "score": j.score, "flags": sorted(j.flags & set(form))} for j in of],
        "note": draft.note,
    }


def vote_of(voting: Voting, task: Task, labeler: str) -> Vote:
    """A vote as the store keeps it.

    Raises:
        UserError: it does not judge each answer that was shown.
    """
    answers, given = in_order(task, labeler), voting.judgements
    if given and len(given) != len(answers):
        raise UserError(f"judgements: found {len(given)}, expected {len(answers)}, one of each answer, or none")
    judgements: Mapping[int, Judgement] = {
        answer.id: Judgement(judged.rank, judged.score, frozenset(judged.flags))
        for answer, judged in zip(answers, given, strict=bool(given))
    }
    return Vote(task.id, labeler, dict(judgements), voting.key, voting.seconds, voting.note)
