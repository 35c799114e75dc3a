"""Bodies that are too large, too slow, not there when the server ends, or not what their headers may say."""

import asyncio

import pytest
from starlette.requests import Request

from gpt_modules.connections import DRAINED, TooLarge, TooSlow
from gpt_modules.serving.bodies import LARGEST_BODY, Bodies, Unread
from gpt_modules.serving.engine import Failed

JSON = {"content-type": "application/json"}


def request(chunks, headers=JSON, never=None):
    """One whose body comes in chunks, and whose end never comes where there is `never` to wait for."""
    left = list(chunks)

    async def receive():
        if not left and never is not None:
            await never.wait()
        chunk = left.pop(0)
        return {"type": "http.request", "body": chunk, "more_body": bool(left) or never is not None}

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": raw}, receive)


def read(chunks, headers=JSON):
    return asyncio.run(Bodies(60).read(request(chunks, headers)))


def test_a_body_is_its_chunks():
    assert read([b"{", b"", b"}"]) == b"{}"
    assert read([b"a" * LARGEST_BODY]) == b"a" * LARGEST_BODY


def test_a_large_one_is_read_to_its_end_and_a_huge_one_is_not():
    with pytest.raises(TooLarge):
        read([b"a" * LARGEST_BODY, b"a"])
    with pytest.raises(TooLarge):
        asyncio.run(Bodies(60).read(request([b"a" * DRAINED, b"a"], never=asyncio.Event())))


def test_a_part_alone_is_waited_for_until_the_deadline():
    with pytest.raises(TooSlow, match=r"body: found a part of it after 0.01 s, expected the whole"):
        asyncio.run(Bodies(0.01).read(request([b"{"], never=asyncio.Event())))


def test_none_is_waited_for_once_the_server_ends():
    """Neither one that is on its way nor a later one; what is all there is read."""

    async def end():
        bodies = Bodies(60)
        waits = asyncio.ensure_future(bodies.read(request([b"{"], never=asyncio.Event())))
        await asyncio.sleep(0)
        bodies.stop()
        for reading in (waits, bodies.read(request([], never=asyncio.Event()))):
            with pytest.raises(Failed, match="stopping"):
                await reading
        return await bodies.read(request([b"{}"]))

    assert asyncio.run(end()) == b"{}"


@pytest.mark.parametrize(
    ("headers", "line"),
    [
        ({}, "content-type: found ''"),
        ({"content-type": "text/plain"}, "content-type: found 'text/plain'"),
        ({"content-type": "application/json; charset=utf-16"}, "content-type: found .*, expected no charset but UTF-8"),
        ({**JSON, "content-encoding": "gzip"}, "content-encoding: found 'gzip', expected a body as it is"),
    ],
)
def test_what_its_headers_may_not_say(headers, line):
    with pytest.raises(Unread, match=line):
        read([b"{}"], headers)


@pytest.mark.parametrize("told", ["application/json; charset=utf-8", 'APPLICATION/json;charset="UTF-8"; a=b'])
def test_what_they_may_say(told):
    assert read([b"{}"], {"content-type": told, "content-encoding": "identity"}) == b"{}"
