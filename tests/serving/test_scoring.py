"""Scores over HTTP: who waits, who is turned away, what is refused."""

import asyncio
import threading

import pytest

from gpt_modules.errors import UserError
from gpt_modules.serving.engine import Busy, Late
from gpt_modules.serving.scoring import Scoring


def test_scores_of_a_prompt_or_a_conversation(rewarding):
    for asked in ({"prompt": "Say"}, {"messages": [{"role": "user", "content": "Say"}]}):
        found = rewarding.post("/v1/score", json={"model": "judge", "responses": ["a", "bcd"], **asked})
        assert found.json() == {"object": "list", "model": "judge", "scores": [1.0, 3.0]}


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ({"responses": ["a"]}, "prompt: expected either"),
        ({"prompt": "a", "messages": [], "responses": ["a"]}, "prompt: expected either"),
        ({"prompt": "a", "responses": []}, "responses: found"),
        ({"prompt": "a", "responses": [3]}, "responses[0]: found 3"),
    ],
)
def test_what_is_no_question(rewarding, body, line):
    found = rewarding.post("/v1/score", json={"model": "judge", **body})
    assert found.status_code == 400
    assert found.json()["error"]["message"].startswith(line)


def test_a_reward_model_does_not_speak_and_a_language_model_does_not_score(rewarding, server):
    refused = rewarding.post("/v1/completions", json={"model": "judge", "prompt": "a"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (404, "model")
    server.ask("score", 404, prompt="a", responses=["b"])
    assert rewarding.get("/health").json() == {"status": "ok"}
    assert "gpt_rows 0" in rewarding.get("/metrics").text


def test_one_at_a_time_and_no_more_than_may_wait():
    go, order = threading.Event(), []

    def scores(prompts, answers):
        go.wait(10)
        order.append(prompts[0])
        return [0.0] * len(answers)

    async def ask():
        scoring = Scoring(scores, queue=1, deadline=10)
        asked = [asyncio.ensure_future(scoring.scores(prompt, ["x"])) for prompt in "ab"]
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await scoring.scores("c", ["x"])
        go.set()
        await asyncio.gather(*asked)
        scoring.close()

    asyncio.run(ask())
    assert order == ["a", "b"]


def test_time_that_is_up_and_what_a_model_cannot_read():
    go = threading.Event()

    async def late():
        scoring = Scoring(lambda prompts, answers: [float(go.wait(10))], 1, deadline=0.02)
        with pytest.raises(Late):
            await scoring.scores("a", ["x"])
        go.set()
        scoring.close()

    def refuses(prompts, answers):
        raise UserError("too long")

    async def refused():
        scoring = Scoring(refuses, 1, 5.0)
        with pytest.raises(UserError, match="too long"):
            await scoring.scores("a", ["x"])
        scoring.close()

    asyncio.run(late())
    asyncio.run(refused())
