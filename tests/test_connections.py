"""A head that is sent by part is waited for as long as it has, and a request at work as long as it takes."""

import asyncio

import pytest
import uvicorn
from uvicorn.server import ServerState

from gpt_modules import connections
from gpt_modules.connections import Connection

HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Wire(asyncio.Transport):
    """What a client hears."""

    def __init__(self) -> None:
        super().__init__()
        self.heard, self.closed = b"", False

    def write(self, data) -> None:
        self.heard += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def ends(*pieces: bytes, answers: bool) -> tuple[bytes, bool]:
    """(what it heard, whether it was closed), of a client that sent these pieces one by one."""

    async def app(scope, receive, send):
        if not answers:
            await asyncio.Event().wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def talk():
        wire = Wire()
        one = Connection(uvicorn.Config(app, lifespan="off", log_level="critical"), ServerState(), {})
        one.connection_made(wire)
        for piece in pieces:
            one.data_received(piece)
            for _ in range(9):
                await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        found = wire.heard, wire.closed
        one.connection_lost(None)
        return found

    return asyncio.run(talk())


@pytest.mark.parametrize("pieces", [(), (HEAD[:20],), (HEAD[:20], HEAD[20:22])])
def test_a_part_of_a_head_is_not_waited_for_any_longer(monkeypatch, pieces):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.001)
    heard, closed = ends(*pieces, answers=True)
    assert closed
    assert heard.startswith(b"HTTP/1.1 408 ")


def test_nor_behind_a_request_that_was_answered(monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.001)
    heard, closed = ends(HEAD, HEAD[:20], answers=True)
    first, second = heard.split(b"HTTP/1.1 ")[1:]
    assert (first[:3], second[:3], closed) == (b"204", b"408", True)


def test_a_request_at_work_has_all_time(monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.001)
    assert ends(HEAD, answers=False) == (b"", False)
