"""Paths, and the page: its own files alone, and no markup of what anybody wrote."""

import asyncio
import dataclasses
import re
import threading
from importlib.resources import files

import httpx2
import pytest

from gpt_modules.serving.engine import Busy
from gpt_modules.serving.planning import Speaker
from gpt_modules.serving.requests import Chat

STATIC = files("gpt_modules.serving") / "static"
SCRIPTS = {file.name: file.read_text() for file in STATIC.iterdir() if file.name.endswith(".js")}
MARKUP = (
    "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "DOMParser", "setHTML",
    "createContextualFragment", "srcdoc", "href",
)  # fmt: skip


def test_models(server):
    (found,) = server.client.get("/v1/models").json()["data"]
    assert found["id"] == "tiny"
    assert server.client.get("/v1/models/tiny").json() == found


def test_health_is_that_of_the_engine(server):
    assert server.client.get("/health").json() == {"status": "ok"}
    server.engine.close()
    found = server.client.get("/health")
    assert (found.status_code, found.json()) == (503, {"status": "stopping"})
    assert server.ask("completions", 503, prompt="a")["error"]["type"] == "server_error"


def test_requests_are_counted_by_their_status(server):
    server.ask("completions", prompt="a", max_tokens=2)
    server.ask("completions", 400, prompt="a", max_tokens=-2)
    text = server.client.get("/metrics").text
    assert 'gpt_requests_total{path="/v1/completions",status="200"} 1' in text
    assert 'gpt_requests_total{path="/v1/completions",status="400"} 1' in text
    assert "gpt_spoken_tokens_total 2" in text
    assert "gpt_request_seconds_count 1" in text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/completions", 405),
        ("POST", "/health", 405),
        ("GET", "/server.py", 404),
    ],
)
def test_elsewhere(server, method, path, status):
    found = server.client.request(method, path)
    assert found.status_code == status
    assert found.json()["error"]["type"] == "invalid_request_error"


def test_a_full_queue_says_when_to_come_again(server, monkeypatch):
    def full(job):
        raise Busy

    monkeypatch.setattr(server.engine, "submit", full)
    found = server.client.post("/v1/completions", json={"model": "tiny", "prompt": "a"})
    assert (found.status_code, found.headers["retry-after"]) == (429, "1")
    assert found.json()["error"]["code"] == "queue_full"


def test_more_answers_than_may_ever_wait_are_a_mistake(server):
    error = server.ask("completions", 400, prompt="a", n=9, max_tokens=1)["error"]
    assert (error["param"], error["code"]) == ("n", None)
    assert error["message"].startswith("n: found 9 answers in one request, expected at most the 8 that")
    server.ask("completions", prompt="a", n=8, max_tokens=1)


@pytest.mark.parametrize(
    ("path", "asked"),
    [("completions", {"prompt": "a"}), ("chat/completions", {"messages": [{"role": "user", "content": "a"}]})],
)
def test_a_request_that_takes_long_to_read_holds_no_other(server, monkeypatch, path, asked):
    """Its template and its tokens are worked out while the event loop answers others."""
    began, others, heard = threading.Event(), threading.Event(), []
    name = "chat" if "messages" in asked else "completion"
    plan = getattr(Speaker, name)

    def slow(speaker, asked):
        began.set()
        heard.append(others.wait(10))
        return plan(speaker, asked)

    monkeypatch.setattr(Speaker, name, slow)

    async def ask():
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(server.app), base_url="http://127.0.0.1") as one:
            first = asyncio.ensure_future(one.post(f"/v1/{path}", json={"model": "tiny", "max_tokens": 1, **asked}))
            while not began.is_set():
                await asyncio.sleep(0.001)
            assert (await one.get("/health")).status_code == 200
            others.set()
            return (await first).status_code

    assert (asyncio.run(ask()), heard) == (200, [True])


def test_the_page_has_no_script_style_or_handler_of_its_own():
    page = (STATIC / "page.html").read_text()
    assert re.findall(r"<script([^>]*)>(.*?)</script>", page, re.S) == [(' type="module" src="page.js"', "")]
    assert not re.search(r"\son\w+=|\sstyle=|<style|https?:|javascript:", page)


def test_the_page_asks_for_what_the_api_gives_by_default():
    page = (STATIC / "page.html").read_text()
    given = dict(re.findall(r'<input id="(\w+)"[^>]*value="([^"]*)"', page))
    defaults = {field.name: field.default for field in dataclasses.fields(Chat)}
    assert {name: float(value) for name, value in given.items()} == {name: defaults[name] for name in given}
    assert set(given) == {"temperature", "top_p"}


def test_a_reward_model_has_no_page_to_chat_at(rewarding):
    found = rewarding.get("/")
    assert found.headers["content-type"].startswith("text/plain")
    assert "POST /v1/score" in found.text
    assert rewarding.get("/page.js").status_code == 404


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_script_makes_markup_of_a_text(name):
    assert not [way for way in MARKUP if way in SCRIPTS[name]]


def test_the_pages_files_are_served_as_what_they_are(server):
    kinds = {"/": "text/html", "/page.js": "text/javascript", "/stream.js": "text/javascript", "/page.css": "text/css",
             "/icon.svg": "image/svg+xml"}  # fmt: skip
    for path, kind in kinds.items():
        assert server.client.get(path).headers["content-type"].startswith(kind)
