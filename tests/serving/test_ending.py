"""A server that is told to end: nothing that is not there holds it, and what it cuts off is told."""

import asyncio
import json
import threading

import pytest
import uvicorn

from gpt_modules.listening import listen
from gpt_modules.serving.bodies import Bodies
from gpt_modules.serving.ending import Ending, Uvicorn

SCOPE = {"type": "http", "method": "GET", "path": "/", "headers": []}
PARTS = [
    {"type": "http.response.start", "status": 200, "headers": []},
    {"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True},
    {"type": "http.response.body", "body": b"", "more_body": False},
]


def cut_off(sends):
    """What is sent where the application is cancelled after the first parts of its answer."""
    sent = []

    async def app(scope, receive, send):
        for part in PARTS[:sends]:
            await send(part)
        await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    async def run():
        task = asyncio.ensure_future(Ending(app, Bodies(1))(SCOPE, None, send))
        await asyncio.sleep(0)
        task.cancel()
        await task

    asyncio.run(run())
    return sent


def test_an_answer_that_was_not_begun_is_a_503():
    start, body = cut_off(0)
    assert (start["status"], json.loads(body["body"])["error"]["type"]) == (503, "server_error")
    assert (b"connection", b"close") in start["headers"]


@pytest.mark.parametrize("sends", [1, 2])
def test_a_stream_ends_with_an_error(sends):
    last = cut_off(sends)[-1]
    assert not last["more_body"]
    assert json.loads(last["body"].removeprefix(b"data: "))["error"]["type"] == "server_error"


def test_what_is_answered_stays_so():
    assert cut_off(3) == PARTS


def test_a_body_that_is_not_there_does_not_hold_the_end(server):
    """As a client that sends a part of it and goes on the connection: the drain would last longer than this test."""
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        config = uvicorn.Config(server.app, log_level="error", lifespan="off", timeout_graceful_shutdown=600)
        running = Uvicorn(server.app, config)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        told = asyncio.run(_ask_a_part(port, running))
        thread.join(60)
    assert not thread.is_alive()
    assert told.startswith(b"HTTP/1.1 503")


async def _ask_a_part(port, running):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: 99\r\n\r\n{{".encode())
    while not running.server_state.tasks:
        await asyncio.sleep(0.01)
    running.should_exit = True
    told = await reader.read()
    writer.close()
    return told
