"""Who is answered: this machine by its own name, the holder of a link, and the page itself; and how."""

import pytest
from starlette.testclient import TestClient

from gpt_modules.feedback.page.server import make_app
from gpt_modules.listening import HEADERS

TOKENS = {"ann": "a" * 32, "ben": "b" * 32}
BODY = {"labeler": "ann"}


@pytest.mark.parametrize("host", ["127.0.0.1:7861", "localhost:9000", "localhost", "[::1]:7861", "127.0.1.1"])
def test_this_machine_is_answered_by_its_own_names(world, host):
    assert world.client().get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example:7861", "127.0.0.1.evil.example", "10.0.0.1", "", "[::1", "0.0.0.0"])
def test_another_name_for_it_gets_nothing(world, host):
    for path in ("/", "/page.js", "/api/task"):
        refused = world.client().get(path, headers={"Host": host})
        assert (refused.status_code, refused.content) == (403, b"")


@pytest.mark.parametrize(
    "origin",
    [
        None,
        "null",
        "http://evil.example",
        "http://127.0.0.1:1",
        "http://localhost:7861",
        "x",
        "http://[",
        "127.0.0.1:7861",
    ],
)
def test_nobody_posts_but_the_page(world, origin):
    headers = {} if origin is None else {"Origin": origin}
    refused = world.client().post("/api/hello", json=BODY, headers=headers)
    assert (refused.status_code, refused.content) == (403, b"")
    assert world.store.kind_of("ann") is None


@pytest.mark.parametrize(
    "path", ["/", "/page.js", "/api/hello", "/" + "c" * 32 + "/", "/" + "a" * 31 + "/", "/ann/", "//", "/é/", "/%61/"]
)
def test_without_a_link_of_ones_own_there_is_nothing(world, path):
    client = world.client(tokens=TOKENS)
    for found in (client.get(path), client.post(path, json=BODY, headers={"Origin": "http://127.0.0.1:7861"})):
        assert (found.status_code, found.content) == (404, b"")


def test_a_link_says_who_it_is(world):
    client = world.client(tokens=TOKENS)
    headers = {"Origin": "http://127.0.0.1:7861"}
    for name, token in TOKENS.items():
        assert "<title>" in client.get(f"/{token}/").text
        assert client.get(f"/{token}/page.js").headers["content-type"].startswith("text/javascript")
        assert client.post(f"/{token}/api/hello", json={}, headers=headers).json() == {"labeler": name}
    other = client.post(f"/{TOKENS['ben']}/api/hello", json=BODY, headers=headers)
    assert other.json() == {"error": "labeler: found 'ann' on the link of 'ben'"}
    assert client.post(f"/{TOKENS['ben']}/api/hello", json={}, headers={"Origin": "http://evil"}).status_code == 403


def test_a_link_without_its_last_stroke_still_leads_there(world):
    app = make_app(world.path, tokens=TOKENS)
    found = TestClient(app, base_url="http://labels.example", follow_redirects=False).get("/" + "a" * 32)
    assert (found.status_code, found.headers["location"]) == (307, "/" + "a" * 32 + "/")


@pytest.mark.parametrize("path", ["/", "/page.css", "/nothing", "/api/task"])
def test_every_answer_carries_the_policy(world, path):
    found = world.client().get(path)
    assert {name: found.headers[name] for name in HEADERS} == HEADERS
    assert (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'"
        in HEADERS["Content-Security-Policy"]
    )
    assert "unsafe" not in found.headers["Content-Security-Policy"]
    assert "access-control-allow-origin" not in found.headers
