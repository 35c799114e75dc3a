"""Paths, and the page: its own files alone, and no markup of what anybody wrote."""

import re
from importlib.resources import files

import pytest

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
    monkeypatch.setattr(server.engine, "_queue", 0)
    found = server.client.post("/v1/completions", json={"model": "tiny", "prompt": "a"})
    assert (found.status_code, found.headers["retry-after"]) == (429, "1")
    assert found.json()["error"]["code"] == "queue_full"


def test_the_page_has_no_script_style_or_handler_of_its_own():
    page = (STATIC / "page.html").read_text()
    assert re.findall(r"<script([^>]*)>(.*?)</script>", page, re.S) == [(' type="module" src="page.js"', "")]
    assert not re.search(r"\son\w+=|\sstyle=|<style|https?:|javascript:", page)


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_script_makes_markup_of_a_text(name):
    assert not [way for way in MARKUP if way in SCRIPTS[name]]


def test_the_pages_files_are_served_as_what_they_are(server):
    kinds = {"/": "text/html", "/page.js": "text/javascript", "/stream.js": "text/javascript", "/page.css": "text/css",
             "/icon.svg": "image/svg+xml"}  # fmt: skip
    for path, kind in kinds.items():
        assert server.client.get(path).headers["content-type"].startswith(kind)
