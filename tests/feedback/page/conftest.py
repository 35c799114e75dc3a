"""A store with tasks, and a labeler who asks the application as the page does."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from gpt_modules.feedback.page.server import make_app
from gpt_modules.storage.comparisons import Answer, Desk, Source, Wanted

ADDRESS = "http://127.0.0.1:7861"


class Labeler:
    """Someone at the page."""

    def __init__(self, client: TestClient, name: str | None, prefix: str = "") -> None:
        self.client, self.name, self.prefix = client, name, prefix
        self.keys = (f"{number:032x}" for number in itertools.count(id(self) << 16))
        self.ask("hello")

    def post(self, action: str, body: dict[str, Any]) -> Any:
        """The response, whatever it is."""
        if self.name is not None:
            body = {"labeler": self.name, **body}
        return self.client.post(f"{self.prefix}/api/{action}", json=body, headers={"Origin": str(self.client.base_url)})

    def ask(self, action: str, **body: Any) -> Any:
        """What the server says, when it does not refuse."""
        answer = self.post(action, body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def vote(self, task: dict[str, Any], ranks: list[int], **more: Any) -> dict[str, Any]:
        """Rank the answers as they are shown; what was sent."""
        judgements = [{"rank": rank, "score": 8 - rank, "flags": []} for rank in ranks]
        body = {"task": task["task"], "key": next(self.keys), "judgements": judgements, "seconds": 2.5, **more}
        assert self.ask("vote", **body) == {"kept": True}
        return body


class World:
    """A store of tasks with three answers each, whose sources have names that nobody should see."""

    def __init__(self, path: Path, tasks: int = 5) -> None:
        self.path = path
        self.opened: list[Desk] = []
        with Desk.create(path) as store:
            number = store.round_of("first")
            for i in range(tasks):
                answers = [Answer(f" answer {j} to {i}", Source(f"SECRET{j}", "d" * 64)) for j in range(3)]
                store.add_task(number, f"prompt {i}", answers)

    def client(self, wanted: Wanted = Wanted(), tokens: dict[str, str] | None = None) -> TestClient:
        """A browser, say."""
        return TestClient(make_app(self.path, wanted, tokens), base_url=ADDRESS, raise_server_exceptions=True)

    def labeler(self, name: str = "ann", wanted: Wanted = Wanted()) -> Labeler:
        """One of them."""
        return Labeler(self.client(wanted), name)

    @property
    def store(self) -> Desk:
        """To look into."""
        self.opened.append(Desk.open(self.path))
        return self.opened[-1]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Five tasks."""
    world = World(tmp_path / "c.db")
    yield world
    for store in world.opened:
        store.close()
