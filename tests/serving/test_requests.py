"""What is taken, what is refused and by which name."""

import json

import pytest

from gpt_modules.errors import UserError
from gpt_modules.serving.bodies import LARGEST_BODY
from gpt_modules.serving.requests import Chat, Completion, read_body
from gpt_modules.storage.documents import typed

TURN = {"role": "user", "content": "hello"}
SAID, LATE = {"role": "assistant", "content": "x"}, {"role": "system", "content": "x"}
FORMS = {"completions": {"prompt": "a"}, "chat/completions": {"messages": [TURN]}}
IDLE = {
    "frequency_penalty": (0, 0.5), "presence_penalty": (0.0, 1), "logit_bias": ({}, {"5": 10}),
    "best_of": (1, 2), "suffix": ("", "x"), "tools": ([], [{}]), "functions": ([], [{}]),
    "response_format": ({"type": "text"}, {"type": "json_object"}), "modalities": (["text"], ["audio"]),
    "tool_choice": ("none", "required"),
}  # fmt: skip
OF_ONE = {"best_of": "completions", "suffix": "completions"}
CHAT_ONLY = {"tools", "functions", "response_format", "modalities", "tool_choice"}


@pytest.mark.parametrize("name", IDLE)
def test_what_would_change_an_answer_and_is_not_computed_is_refused(server, name):
    path = "chat/completions" if name in CHAT_ONLY else "completions"
    idle, asked = IDLE[name]
    for value in (idle, None):
        server.ask(path, **FORMS[path], max_tokens=1, **{name: value})
    error = server.ask(path, 400, **FORMS[path], max_tokens=1, **{name: asked})["error"]
    assert error["param"] == name
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "body", "param", "line"),
    [
        ("completions", {}, "prompt", "prompt: missing"),
        ("completions", {"prompt": "a", "wat": 1}, "wat", "wat: unknown key"),
        ("completions", {"prompt": []}, "prompt", "prompt: found 0 prompts"),
        ("completions", {"prompt": [[]]}, "prompt", "prompt: found no tokens"),
        ("completions", {"prompt": [99999]}, "prompt", "prompt: found token 99999, expected 0 to"),
        ("completions", {"prompt": ["a"] * 65, "n": 2}, "prompt", "prompt: found 65 prompts and n = 2"),
        ("completions", {"prompt": "a", "max_tokens": 0}, "max_tokens", "max_tokens: found 0 without echo"),
        ("completions", {"prompt": "a", "max_tokens": 500}, "prompt", "prompt: found 1 tokens and 500"),
        ("completions", {"prompt": "a", "temperature": 2.1}, "temperature", "temperature: found 2.1, expected"),
        ("completions", {"prompt": "a", "temperature": "hot"}, "temperature", "temperature: found 'hot'"),
        ("completions", {"prompt": "a", "top_p": 0}, "top_p", "top_p: found 0, expected a number above 0"),
        ("completions", {"prompt": "a", "stop": ["a"] * 5}, "stop", "stop: found"),
        ("completions", {"prompt": "a", "stop": [""]}, "stop", "stop[0]: found '', expected a text"),
        ("completions", {"prompt": "a", "logprobs": 6}, "logprobs", "logprobs: found 6, expected a number from 0 to 5"),
        ("completions", {"prompt": "a", "echo": True, "stream": True}, "echo", "echo: found with stream"),
        ("completions", {"prompt": "a", "stream_options": {}}, "stream_options", "stream_options: found without"),
        ("chat/completions", {"messages": []}, "messages", "messages: found an empty list"),
        ("chat/completions", {"messages": [TURN, LATE]}, "messages", "messages[1].role: found the system behind"),
        ("chat/completions", {"messages": [TURN, SAID]}, "messages", "messages[1].role: found the assistant, which is"),
        ("chat/completions", {"messages": [{**TURN, "content": " "}]}, "messages", "messages[0].content: found"),
        ("score", {"messages": [], "responses": ["x"]}, "messages", "messages: found an empty list"),
        ("chat/completions", {"messages": [{"role": "king", "content": "x"}]}, "messages", "messages[0].role: found"),
        ("chat/completions", {"messages": [{"role": "user"}]}, "messages", "messages[0].content: missing"),
        ("chat/completions", {"messages": [TURN], "top_logprobs": 2}, "top_logprobs", "top_logprobs: found without"),
        ("chat/completions", {"messages": [TURN], "max_tokens": 0}, "max_tokens", "max_tokens: found 0"),
        ("chat/completions", {"messages": [{"role": "user", "content": "film " * 99}]}, "messages", "messages: found "),
    ],
)  # fmt: skip
def test_a_mistake_has_its_name(server, path, body, param, line):
    error = server.ask(path, 400, **body)["error"]
    assert error["param"] == param
    assert error["message"].startswith(line)


def test_another_model_is_not_found(server):
    assert server.ask("completions", 404, model="gpt-4", prompt="a")["error"]["code"] == "model_not_found"
    assert server.client.get("/v1/models/gpt-4").status_code == 404


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"\xff", "application/json", 400),
        (b'{"model": "tiny", "model": "x"}', "application/json", 400),
        (b'{"model": "tiny", "prompt": "a"}', "text/plain", 415),
        (b"[" * 100_000, "application/json", 400),
        (b'"' + b"a" * LARGEST_BODY + b'"', "application/json", 413),
    ],
)
def test_rubbish(server, content, kind, status):
    found = server.client.post("/v1/completions", content=content, headers={"Content-Type": kind})
    assert found.status_code == status
    assert found.json()["error"]["type"] == "invalid_request_error"


def test_parts_of_text_are_one_text():
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    asked = typed(Chat, {"model": "m", "messages": [{"role": "developer", "content": parts}, TURN]})
    assert asked.conversation == [{"role": "system", "content": "a b"}, TURN]
    body = json.dumps({"model": "m", "messages": [TURN, {"role": "user", "content": [{"type": "image_url"}]}]}).encode()
    with pytest.raises(UserError, match=r"messages\[1\]\.content\[0\]"):
        read_body(body, Chat)


def test_prompts_are_one_or_several():
    def of(prompt):
        return typed(Completion, {"model": "m", "prompt": prompt}).prompts

    assert of("a") == ["a"]
    assert of(["a", "b"]) == ["a", "b"]
    assert of([1, 2]) == [[1, 2]]
    assert of([[1], [2]]) == [[1], [2]]


def test_an_answer_is_taken_back_as_it_was_sent(server):
    """And as OpenAI's client, which makes objects of answers, writes them: with all that a message may have."""
    told = server.ask("chat/completions", messages=[TURN], max_tokens=4, temperature=0)["choices"][0]["message"]
    plain = {"role": "assistant", "content": told["content"] or "x"}
    whole = {**told, **plain, "audio": None, "function_call": None, "tool_calls": None, "annotations": []}
    kept = {**whole, "tool_calls": [], "name": None}
    asked = {"max_tokens": 4, "temperature": 0}
    texts = [
        server.ask("chat/completions", messages=[TURN, said, TURN], **asked)["choices"][0]["message"]
        for said in (plain, {**told, **plain}, whole, kept)
    ]
    assert texts == texts[:1] * 4
    tool = {"role": "tool", "content": "42", "tool_call_id": "call_1"}
    server.ask("chat/completions", messages=[TURN, plain, tool], **asked)


@pytest.mark.parametrize("name", ["name", "refusal", "tool_calls", "function_call", "audio", "annotations"])
def test_what_a_message_may_not_have(server, name):
    found = {"tool_calls": [{}], "annotations": [{}], "audio": {"id": "x"}, "function_call": {"name": "x"}}
    error = server.ask("chat/completions", 400, messages=[{**TURN, name: found.get(name, "x")}])["error"]
    assert error["message"].startswith(f"messages[0].{name}: found")


def test_a_tools_answer_alone_has_its_id(server):
    error = server.ask("chat/completions", 400, messages=[{**TURN, "tool_call_id": "x"}])["error"]
    assert error["message"].startswith("messages[0].tool_call_id: found with the role user")


def test_the_newer_name_of_the_longest_answer():
    asked = {"model": "m", "messages": [TURN], "max_tokens": 3}
    assert typed(Chat, asked).most == 3
    assert typed(Chat, {**asked, "max_completion_tokens": 3}).most == 3
    with pytest.raises(UserError, match="max_completion_tokens: found 5 beside max_tokens = 3, expected one of them"):
        typed(Chat, {**asked, "max_completion_tokens": 5})
