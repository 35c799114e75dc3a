"""What the page sends, read by type and bounded in size."""

import asyncio
import re
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

from starlette.requests import Request

from gpt_modules.connections import late, whole_body
from gpt_modules.errors import UserError
from gpt_modules.storage.comparisons import LONGEST_NAME, SCORES
from gpt_modules.storage.documents import Positive, Rule, typed
from gpt_modules.storage.strict_json import only_value

LARGEST_BODY = 100_000  # bytes: a note, and a judgement of each of many answers
BODY_SECONDS = 20.0  # that one may take
LONGEST_NOTE = 10_000

Name = Annotated[
    str,
    Rule(
        lambda name: 0 < len(name) <= LONGEST_NAME and name == name.strip() and name.isprintable(),
        f"a name of 1 to {LONGEST_NAME} printable characters",
    ),
]
Key = Annotated[str, Rule(re.compile("[0-9a-f]{32}").fullmatch, "32 hexadecimal digits")]
Seconds = Annotated[float, Rule(lambda value: 0 <= value <= 1e6, "a number from 0 to a million")]
Note = Annotated[str, Rule(lambda note: len(note) <= LONGEST_NOTE, f"at most {LONGEST_NOTE} characters")]
Id = Annotated[int, Rule(lambda number: 1 <= number < 2**63, "a whole number from 1, of a task")]
Score = Annotated[int, Rule(lambda score: score in SCORES, f"{SCORES[0]} to {SCORES[-1]}")]
MessageT = TypeVar("MessageT", bound="Message")


@dataclass(frozen=True, kw_only=True)
class Message:
    """Any request. labeler: who asks; left out where the link says so."""

    labeler: Name | None = None


@dataclass(frozen=True, kw_only=True)
class OfTask(Message):
    """A request about a task."""

    task: Id


@dataclass(frozen=True)
class Judged:
    """Of one answer; see `storage.comparisons.Judgement`."""

    rank: Positive
    score: Score | None = None
    flags: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Voting(OfTask):
    """A vote.

    Args:
        key: made by the page when the task is shown, so that a vote sent twice is one.
        judgements: parallel to the answers as the labeler sees them; empty: skipped.
    """

    key: Key
    judgements: list[Judged]
    seconds: Seconds
    note: Note = ""


async def read_message(request: Request, kind: type[MessageT]) -> MessageT:
    """The body of a request.

    Raises:
        TooLarge, TooSlow: it is beyond `LARGEST_BODY`, or not there after `BODY_SECONDS`.
        UserError: it is no JSON, or not of this kind.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise UserError(f"content-type: found {request.headers.get('content-type', '')[:40]!r}, expected JSON")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await whole_body(request, LARGEST_BODY)
    except TimeoutError as error:
        raise late(BODY_SECONDS) from error
    return typed(kind, only_value(body))  # type: ignore[no-any-return]
