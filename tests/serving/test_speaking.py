"""Answers whole and streamed, in company and alone; clients that leave."""

import json
from concurrent.futures import ThreadPoolExecutor

import anyio
import pytest
import torch

TURN = {"role": "user", "content": "hello"}


def test_a_chat_streamed_is_the_chat_whole(server):
    asked = {"messages": [TURN], "n": 2, "seed": 3, "max_tokens": 20, "logprobs": True, "top_logprobs": 2}
    whole = server.ask("chat/completions", **asked)
    events = server.stream("chat/completions", **asked, stream_options={"include_usage": True})
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == whole["usage"]
    for choice in whole["choices"]:
        parts = [part for event in events for part in event["choices"] if part["index"] == choice["index"]]
        assert parts[0]["delta"]["role"] == "assistant"
        assert "".join(part["delta"].get("content", "") for part in parts) == choice["message"]["content"]
        likely = [of for part in parts if part["logprobs"] for of in part["logprobs"]["content"]]
        assert likely == choice["logprobs"]["content"]
        assert parts[-1]["finish_reason"] == choice["finish_reason"]
        assert not choice["message"]["content"][:1].isspace()


def test_a_completion_streamed_is_the_completion_whole(server):
    asked = {"prompt": ["the film", "a story"], "seed": 3, "max_tokens": 20, "logprobs": 1, "stop": "i"}
    whole = server.ask("completions", **asked)
    events = server.stream("completions", **asked)
    for choice in whole["choices"]:
        parts = [part for event in events for part in event["choices"] if part["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"]
        assert "i" not in choice["text"]
        told = [part["logprobs"] for part in parts if part["logprobs"]]
        assert [token for of in told for token in of["tokens"]] == choice["logprobs"]["tokens"]


def test_an_echo_has_the_prompts_log_probabilities(server):
    """As lm-evaluation-harness reads them: one of each token but the first, then those of the answer."""
    asked = {"max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0}
    ids = server.tokenizer.encode("the film is good")
    of_ids, of_text = (
        server.ask("completions", prompt=prompt, **asked)["choices"][0] for prompt in (ids, "the film is good")
    )
    assert of_ids == of_text
    logprobs = of_ids["logprobs"]
    assert of_ids["text"].startswith("the film is good")
    assert len(logprobs["tokens"]) == len(ids) + 1
    assert logprobs["token_logprobs"][0] is None
    expected = server.model(torch.tensor([ids]))[0].detach().log_softmax(-1)
    for place, found in enumerate(logprobs["token_logprobs"][1:-1]):
        assert found == pytest.approx(float(expected[place, ids[place + 1]]), abs=1e-5)
        assert max(logprobs["top_logprobs"][place + 1].values()) == pytest.approx(
            float(expected[place].max()), abs=1e-5
        )
    assert [of_ids["text"][at:].encode()[:1] for at in logprobs["text_offset"][:-1]] == [
        name.encode()[:1] for name in logprobs["tokens"][:-1]
    ]


def test_a_prompt_may_be_scored_alone(server):
    found = server.ask("completions", prompt="the film", max_tokens=0, echo=True, logprobs=0)
    assert found["choices"][0]["text"] == "the film"
    assert found["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize("prompt", ["", [0, 5, 6], [5, 0, 0, 6]])
def test_control_tokens_of_an_echo_are_in_its_text(server, prompt):
    """As OpenAI has them: each token stands in the text where its offset says."""
    prompt = [server.tokenizer.eos_id if token == 0 else token for token in prompt] if prompt else prompt
    found = server.ask("completions", prompt=prompt, max_tokens=0, echo=True, logprobs=0)["choices"][0]
    told = found["logprobs"]
    assert found["text"] == "".join(told["tokens"])
    assert server.tokenizer.eos in told["tokens"]
    for token, at in zip(told["tokens"], told["text_offset"], strict=True):
        assert found["text"][at:].startswith(token)


def test_usage_counts_a_prompt_once(server):
    found = server.ask("completions", prompt=["the film", "a"], n=2, max_tokens=4, temperature=1.0, seed=0)
    prompts = len(server.tokenizer.encode("the film")) + len(server.tokenizer.encode("a"))
    assert found["usage"]["prompt_tokens"] == prompts
    assert found["usage"]["total_tokens"] == prompts + found["usage"]["completion_tokens"]
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2, 3]


def test_company_changes_no_answer(server):
    def ask(number):
        return server.ask("completions", prompt="the film " * (number % 7), seed=number, max_tokens=30, logprobs=2,
                          top_p=0.9 if number % 2 else 1.0)["choices"]  # fmt: skip

    alone = [ask(number) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == alone


def scope(body):
    headers = [(b"host", b"127.0.0.1:8000"), (b"content-type", b"application/json")]
    found = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
             "path": "/v1/completions", "raw_path": b"/v1/completions", "query_string": b"", "headers": headers,
             "scheme": "http", "server": ("127.0.0.1", 8000), "client": ("127.0.0.1", 5)}  # fmt: skip
    return found, json.dumps(body).encode()


@pytest.mark.parametrize("streams", [False, True])
def test_a_client_that_leaves_frees_its_rows(server, streams):
    """It sends, hears a little, and goes away, while its answers could be long."""

    async def leave():
        asked = {
            "model": "tiny",
            "prompt": "a",
            "max_tokens": 90,
            "n": 8,
            "stream": streams,
            "temperature": 2,
            "top_p": 1,
        }
        of, body = scope(asked)
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])
        began = anyio.Event()

        async def receive():
            if (message := next(messages, None)) is not None:
                return message
            if streams:
                await began.wait()
            else:
                while server.engine.counts.rows == 0:
                    await anyio.sleep(0.001)
            return {"type": "http.disconnect"}

        async def send(message):
            if message.get("body"):
                began.set()

        await server.app(of, receive, send)

    before = server.engine.counts.spoken_tokens
    anyio.run(leave)

    async def idle():
        while server.engine.counts.rows or server.engine.counts.waiting:
            await anyio.sleep(0.001)

    anyio.run(idle)
    assert server.engine.counts.spoken_tokens - before < 8 * 90
    assert "gpt_clients_left_total 1\n" in server.client.get("/metrics").text
