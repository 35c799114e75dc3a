"""`gpt serve`: who may be reached by whom, and what is opened before anything is said."""

import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from starlette.testclient import TestClient

from gpt_modules.backbone import load_pretrained
from gpt_modules.commands import serve
from gpt_modules.errors import UserError
from gpt_modules.feedback.labelers import model_scorer
from gpt_modules.listening import listen
from gpt_modules.serving import server

KEY = "k" * 20


@pytest.fixture
def served(monkeypatch):
    """served(words): (application's answers, the line that says where), with the server asked from outside."""
    found = {}

    def answer(app, listener, drain, started):
        started()
        found.update(app=app, address=listener.getsockname(), drain=drain)

    monkeypatch.setattr(server, "serve", answer)
    monkeypatch.delenv("GPT_API_KEY", raising=False)
    return lambda *words: serve.main(["--port", "0", "--device", "cpu", *words]) or found


def client(found):
    return TestClient(found["app"], base_url=f"http://127.0.0.1:{found['address'][1]}")


def test_a_language_model_speaks(served, micro, capsys):
    found = served("--model", str(micro.gpt), "--name", "tiny", "--drain", "5")
    said = capsys.readouterr()
    assert said.out == f"tiny speaks at http://127.0.0.1:{found['address'][1]}/v1 (Ctrl-C ends it)\n"
    assert "chat template: ours (User: ... Assistant:), as the folder has no other" in said.err
    assert found["drain"] == 5
    assert client(found).get("/v1/models").json()["data"][0]["id"] == "tiny"
    assert client(found).get("/health").status_code == 503  # its thread ends with the command


def test_a_reward_model_scores(served, micro, capsys, monkeypatch):
    scored = {}
    monkeypatch.setattr(server, "serve", lambda app, listener, drain, started: scored.update(started() or ask(app)))
    served("--model", str(micro.reward), "--name", "judge")
    assert "judge scores at http://127.0.0.1:" in capsys.readouterr().out
    model = load_pretrained(str(micro.reward), kind="reward").eval()
    assert scored["scores"] == model_scorer("x", model, micro.tokenizer).scores(
        ["the film"] * 2, [" is good", " is bad"]
    )
    assert scored["error"]["message"].startswith("responses[1]: found 201 tokens of an answer to 'the film', its")
    assert scored["told"]["message"].startswith("responses[0]: found ")
    assert len(scored["told"]["message"]) < 150
    for error in (scored["error"], scored["told"]):
        assert (error["param"], error["code"]) == ("responses", "context_length_exceeded")


def ask(app):
    asking = TestClient(app, base_url="http://127.0.0.1")
    asked = {"model": "judge", "prompt": "the film"}
    found = asking.post("/v1/score", json={**asked, "responses": [" is good", " is bad"]}).json()
    refused = asking.post("/v1/score", json={**asked, "responses": [" is", " is good" * 99]}).json()
    turns = [{"role": "user", "content": "the film " * 50}, {"role": "assistant", "content": "good"}] * 20
    told = asking.post("/v1/score", json={"model": "judge", "messages": turns[:-1], "responses": ["x"]}).json()
    return {**found, "error": refused["error"], "told": told["error"]}


def test_others_need_the_key(served, micro, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"--host: found 0\.0\.0\.0, which others can reach, expected an API key"):
        served("--model", str(micro.gpt), "--host", "0.0.0.0")
    (tmp_path / "key").write_text(KEY + "\n")
    found = served("--model", str(micro.gpt), "--host", "0.0.0.0", "--api-key-file", str(tmp_path / "key"))
    assert client(found).get("/v1/models").status_code == 401
    monkeypatch.setenv("GPT_API_KEY", KEY)
    found = served("--model", str(micro.gpt))
    assert client(found).get("/v1/models", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200


@pytest.mark.parametrize("key", ["", "short", "with space in it...", "ключ" * 9])
def test_what_is_no_key(served, micro, tmp_path, key):
    (tmp_path / "key").write_text(key, encoding="utf-8")
    with pytest.raises(UserError, match=r"--api-key-file: .*/key: found \d+ characters, expected a key of at least 16"):
        served("--model", str(micro.gpt), "--api-key-file", str(tmp_path / "key"))


def test_a_port_that_is_taken_is_told_before_the_model_is_opened(served):
    with listen("127.0.0.1", 0) as taken, pytest.raises(UserError, match=r"--port: found .* not free"):
        served("--model", "nothing/there", "--port", str(taken.getsockname()[1]))


@pytest.mark.slow
def test_it_drains_when_it_is_told_to_end(micro, gpt):
    """What is at work when SIGTERM comes is answered, and nothing else is begun."""
    process = gpt.start("serve", "--model", micro.gpt, "--name", "tiny", "--port", 0, "--rows", 1, "--device", "cpu")
    told = False
    try:
        said = gpt.folder / "stdout"
        address = until(lambda: said.exists() and re.search(r"http://\S+(?= \(Ctrl-C)", said.read_text()))[0]
        body = {"model": "tiny", "prompt": "the film", "n": 64, "max_tokens": 28, "temperature": 2, "seed": 1}
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(httpx2.post, f"{address}/completions", json=body, timeout=60)
            until(lambda: "gpt_rows 1\n" in httpx2.get(f"{address.removesuffix('v1')}metrics").text)
            os.kill(process, signal.SIGTERM)
            told = True
            assert len(answer.result().json()["choices"]) == 64
    finally:
        if not told:
            os.kill(process, signal.SIGTERM)
        ended = gpt.wait()
    assert ended.status == 128 + signal.SIGTERM
    opening, template, end = ended.stderr.splitlines()
    assert (opening, template[:15], end) == (f"opening {micro.gpt}", "chat template: ", "stopped by SIGTERM")


def until(found):
    end = time.monotonic() + 60
    while not (value := found()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return value
