"""A small server in this process, and a client."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from gpt_modules.backbone import GPT, DecoderConfig
from gpt_modules.backbone.decoding.batching import Batch
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.serving.engine import Engine
from gpt_modules.serving.planning import Speaker
from gpt_modules.serving.scoring import Scoring
from gpt_modules.serving.server import Served, make_app

ADDRESS = "http://127.0.0.1:8000"


class Server:
    """The application and what is behind it. What it says is arbitrary, in words of its vocabulary."""

    def __init__(self, rows: int = 4, queue: int = 8, deadline: float = 60.0) -> None:
        import torch

        torch.manual_seed(0)
        self.tokenizer = Tokenizer.train(["the film is good and bad, 日本語 a story\n"] * 9, 300)
        sizes = {"n_positions": 96, "n_layer": 1, "n_head": 2, "n_embd": 16}
        self.model = GPT(DecoderConfig(vocab_size=self.tokenizer.vocab_size, **sizes)).eval()
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
        self.speaker = Speaker(self.model, self.tokenizer)
        self.engine = Engine(Batch(self.model, rows, multiple=4), queue)
        self.served = Served("tiny", "d" * 64, self.speaker, self.engine, deadline=deadline)
        self.app = make_app(self.served)
        self.client = TestClient(self.app, base_url=ADDRESS)

    def ask(self, path: str, status: int = 200, **body: Any) -> Any:
        """The answer's JSON, which has this status."""
        found = self.client.post(f"/v1/{path}", json={"model": "tiny", **body})
        assert found.status_code == status, found.text
        return found.json()

    def stream(self, path: str, **body: Any) -> list[dict[str, Any]]:
        """The events of a streamed answer, less the last, which says that it is done."""
        found = self.client.post(f"/v1/{path}", json={"model": "tiny", "stream": True, **body})
        assert found.headers["content-type"] == "text/event-stream; charset=utf-8"
        events = found.text.removesuffix("\n\n").split("\n\n")
        assert events[-1] == "data: [DONE]"
        return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]


@pytest.fixture
def server() -> Iterator[Server]:
    """A language model."""
    server = Server()
    yield server
    server.engine.close()


@pytest.fixture
def rewarding() -> Iterator[TestClient]:
    """A reward model, which is not asked: a score is the length of an answer."""
    scoring = Scoring(lambda prompts, answers: [float(len(answer)) for answer in answers], 2, 5.0)
    yield TestClient(make_app(Served("judge", "d" * 64, scoring=scoring)), base_url=ADDRESS)
    scoring.close()
