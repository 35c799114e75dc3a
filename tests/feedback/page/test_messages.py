"""What does not fit is refused in one line, and nothing of it is kept."""

import asyncio
import json

import pytest
from starlette.requests import Request

from gpt_modules.connections import TooSlow
from gpt_modules.feedback.page import messages
from gpt_modules.feedback.page.messages import LARGEST_BODY, Message, read_message

KEY = "0" * 32
JUDGED = [{"rank": 1, "score": 7}, {"rank": 2, "score": 4}, {"rank": 2, "score": 4}]
VOTE = {"labeler": "ann", "task": 1, "key": KEY, "judgements": JUDGED, "seconds": 1.0, "note": ""}
ORIGIN = {"Origin": "http://127.0.0.1:7861"}


def judged(**changes):
    return {"judgements": [{**JUDGED[0], **changes}, *JUDGED[1:]]}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"task": 0}, "task: found 0, expected a whole number from 1"),
        ({"task": True}, "task: found True, expected a whole number"),
        ({"task": 2**63}, "task: found"),
        ({"task": 2**70}, "task: found"),
        ({"task": 99}, "c.db: found no task 99"),
        ({"key": "k"}, "key: found 'k', expected 32 hexadecimal digits"),
        ({"seconds": -1}, "seconds: found -1, expected a number from 0 to a million"),
        ({"note": "x" * 10_001}, "note: found"),
        ({"note": "a\0b"}, "note: found"),
        ({"labeler": ""}, "labeler: found '', expected a name of 1 to 60 printable characters"),
        ({"labeler": " ann"}, "labeler: found ' ann', expected a name"),
        ({"labeler": "a\u202eb"}, "labeler: found"),
        ({"labeler": "x" * 61}, "labeler: found"),
        ({"labeler": None}, "labeler: missing, expected a name"),
        ({"labeler": "nobody"}, "labeler: found 'nobody', whom c.db does not know as a person"),
        ({"more": 1}, "more: unknown key, expected one of"),
        ({"judgements": JUDGED[:2]}, "judgements: found 2, expected 3, one of each answer, or none"),
        ({"judgements": "all"}, "judgements: found 'all', expected a list"),
        (judged(rank=0), "judgements[1].rank: found 0, expected a whole number from 1"),
        (judged(rank=None), "judgements[1].rank: found None, expected a whole number from 1"),
        (judged(score=8), "judgements[1].score: found 8, expected 1 to 7"),
        (judged(score=3.5), "judgements[1].score: found 3.5, expected 1 to 7"),
        (judged(flags=["dull"]), "c.db: task 1: answer"),
        (judged(flags=[["harmful"]]), "judgements[1].flags[1]: found ['harmful'], expected text"),
        (judged(answer=3), "judgements[1].answer: unknown key"),
    ],
)
def test_a_vote_that_does_not_fit(world, changes, line):
    ann = world.labeler()
    refused = ann.client.post("/api/vote", json={**VOTE, **changes}, headers=ORIGIN)
    assert refused.status_code == 400
    assert refused.json()["error"].replace(f"{world.path.parent}/", "").startswith(line)
    assert world.store.own_votes("ann") == []
    ann.ask("vote", **VOTE)


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (b"", "body: found no JSON"),
        (b"{", "body: found no JSON"),
        (b"\xff{}", "body: found no JSON"),
        (b"{} {}", "body: found no JSON (more than one value)"),
        (b'{"labeler": "ann", "labeler": "ben"}', "body: found no JSON"),
        (b'{"labeler": "\\ud800"}', "body: found no JSON"),
        (b"[" * 50_000, "body: found no JSON"),
        (b"[]", "found [], expected a mapping of keys"),
        (b'{"labeler": 1}', "labeler: found 1, expected a name"),
    ],
)
def test_a_body_that_is_none(world, body, line):
    headers = {**ORIGIN, "Content-Type": "application/json"}
    refused = world.client().post("/api/hello", content=body, headers=headers)
    assert refused.status_code == 400
    assert refused.json()["error"].startswith(line)


def test_what_a_form_of_another_site_could_send(world):
    headers = {**ORIGIN, "Content-Type": "text/plain"}
    refused = world.client().post("/api/hello", content=json.dumps({"labeler": "ann"}), headers=headers)
    assert (refused.status_code, refused.json()["error"]) == (400, "content-type: found 'text/plain', expected JSON")


def test_too_much_is_not_read(world):
    sent = 0

    def endless():
        nonlocal sent
        while sent < 1000:
            sent += 1
            yield b" " * (LARGEST_BODY // 2)

    headers = {**ORIGIN, "Content-Type": "application/json"}
    refused = world.client().post("/api/hello", content=endless(), headers=headers)
    assert refused.status_code == 413
    assert refused.json() == {"error": f"body: found more than {LARGEST_BODY:,} bytes, expected fewer"}


def test_a_part_of_a_body_is_not_waited_for_for_ever(monkeypatch):
    async def read():
        pieces = [{"type": "http.request", "body": b"{", "more_body": True}]

        async def receive():
            return pieces.pop() if pieces else await asyncio.Event().wait()

        scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-type", b"application/json")]}
        await read_message(Request(scope, receive), Message)

    monkeypatch.setattr(messages, "BODY_SECONDS", 0.01)
    with pytest.raises(TooSlow, match=r"body: found a part of it after 0.01 s, expected the whole"):
        asyncio.run(read())
