"""Who is answered: this machine by its own name and from its own page, elsewhere the holder of the key."""

import pytest
from starlette.testclient import TestClient

from gpt_modules.listening import HEADERS
from gpt_modules.serving.server import make_app

KEY = "k" * 20


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "[::1]:1"])
def test_this_machine_by_its_own_names(server, host):
    assert server.client.get("/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/v1/models", "/health", "/metrics"])
def test_another_name_for_it_is_refused(server, path):
    assert server.client.get(path, headers={"Host": "evil.example:8000"}).status_code == 403


@pytest.mark.parametrize("origin", ["null", "http://evil.example", "http://127.0.0.1:1", "x"])
def test_another_site_is_refused(server, origin):
    body = {"model": "tiny", "prompt": "a"}
    assert server.client.post("/v1/completions", json=body, headers={"Origin": origin}).status_code == 403
    own = {"Origin": "http://127.0.0.1:8000"}
    assert server.client.post("/v1/completions", json=body, headers=own).status_code == 200


@pytest.mark.parametrize("given", [None, "", "Bearer ", "Bearer x", f"Bearer {KEY}x", "Bearer é", KEY, f"Basic {KEY}"])
def test_without_the_key_there_is_the_page_alone(server, given):
    client = TestClient(make_app(server.served, KEY, private=False), base_url="http://models.example")
    headers = {} if given is None else {"Authorization": given.encode()}
    for path in ("/v1/models", "/metrics", "/nothing"):
        refused = client.get(path, headers=headers)
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "invalid_api_key"
    assert {client.get(path).status_code for path in ("/", "/page.js", "/health")} == {200}
    for scheme in ("Bearer", "bearer", "BEARER "):
        assert client.get("/v1/models", headers={"Authorization": f"{scheme} {KEY}"}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/page.css", "/nothing", "/v1/models"])
def test_every_answer_carries_the_policy(server, path):
    found = server.client.get(path)
    assert {name: found.headers[name] for name in HEADERS} == HEADERS
