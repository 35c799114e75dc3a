"""The labelling page's server under kills and crowds: what it says it has kept is what is in the file.

    python tests/benchmarks/labelling_server.py kills    # SIGKILL 20 times while four labelers vote
    python tests/benchmarks/labelling_server.py crowd    # 8 labelers at two servers, 200 tasks

Each step fails with an assertion, or prints what it counted. The tests run both, `kills` with fewer of them.
"""

import argparse
import http.client
import json
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from gpt_modules.storage.comparisons import Answer, Desk, Source, Wanted

OPENINGS = ("The film", "This story", "A quiet drama", "The whole cast", "Every scene", "The script")
MIDDLES = ("moves with grace through its second act", "never quite decides what it wants to be",
           "has more warmth than its trailer lets on", "is carried by two fine performances",
           "forgets its own jokes halfway through", "earns the tears it asks for")  # fmt: skip
ENDS = (".", ", and that is enough.", ", which is a pity.", " -- a small miracle.", ".\n\nI would see it again.", "!")


def make_store(path: Path, tasks: int, k: Callable[[int], int] = lambda i: 4 + i % 3) -> None:
    """Tasks with invented answers."""
    draw = random.Random(1)
    with Desk.create(path) as store:
        number = store.round_of("benchmark")
        for i in range(tasks):
            texts: dict[str, None] = {}
            while len(texts) < k(i):
                texts[" ".join([draw.choice(OPENINGS), draw.choice(MIDDLES)]) + draw.choice(ENDS)] = None
            answers = [Answer(text, Source(f"model {j % 2}")) for j, text in enumerate(texts)]
            store.add_task(number, f"Write one sentence about film number {i + 1} that somebody might post.", answers)


@contextmanager
def served(path: Path, *words: str, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """(process, address) of `gpt label`."""
    command = [sys.executable, "-m", "gpt_modules", "label", str(path), "--port", str(port), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            yield process, next(word for word in line.split() if word.startswith("http://"))
        finally:
            process.send_signal(signal.SIGINT)


class Client:
    """A labeler without a browser; it asks again until it is answered, as the page does."""

    def __init__(self, port: int, labeler: str) -> None:
        self.port, self.labeler = port, labeler
        self.kept: list[int] = []

    def ask(self, action: str, **body: Any) -> dict[str, Any]:
        """What the server says."""
        while True:
            headers = {"Content-Type": "application/json", "Origin": f"http://127.0.0.1:{self.port}"}
            try:
                with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
                    connection.request("POST", f"/api/{action}", json.dumps({**body, "labeler": self.labeler}), headers)
                    with connection.getresponse() as answer:
                        said = json.loads(answer.read())
            except (OSError, http.client.HTTPException, json.JSONDecodeError):
                time.sleep(0.05)
                continue
            assert answer.status == 200, said
            return said  # type: ignore[no-any-return]

    def work(self, most: int | None = None) -> list[int]:
        """Label up to `most` tasks, or all; the tasks on which the server said that a vote is kept."""
        self.ask("hello")
        while most is None or len(self.kept) < most:
            task = self.ask("task")["task"]
            if task is None:
                break
            judgements = [{"rank": i + 1, "score": 7 - i} for i in range(len(task["answers"]))]
            vote = {"task": task["task"], "key": uuid.uuid4().hex, "judgements": judgements, "seconds": 1}
            assert self.ask("vote", **vote) == {"kept": True}
            self.kept.append(task["task"])
        return self.kept


def kills(path: Path, times: int = 20, most: int = 200) -> None:
    """Four labelers give `most` votes each while the server is killed, again and again, with requests under way."""
    make_store(path, 4 * most, k=lambda i: 4)
    port = free_port()
    clients = [Client(port, name) for name in ("ann", "ben", "cleo", "dan")]
    with ThreadPoolExecutor(4) as pool:
        working = [pool.submit(client.work, most) for client in clients]
        for killed in range(times):
            with served(path, port=port) as (process, _):
                while sum(len(client.kept) for client in clients) < (killed + 1) * 4 * most // (times + 1):
                    time.sleep(0.002)
                process.kill()
        with served(path, port=port):
            kept = [task for done in working for task in done.result()]
    with Desk.open(path, writing=False) as store:
        found = [ranking.task for ranking in store.rankings()]
    with closing(sqlite3.connect(path)) as connection:
        (rows,) = connection.execute("SELECT count(*) FROM votes").fetchone()
    assert sorted(kept) == sorted(found) == list(range(1, 4 * most + 1))
    assert rows == len(found)  # none twice, not even superseded
    print(f"killed {times} times; {len(kept)} votes confirmed, {len(found)} in the file, each of its own task")


def crowd(path: Path) -> None:
    """Eight labelers at two servers finish 200 tasks, a fifth of them twice."""
    make_store(path, 200)
    words = ("--overlap", "0.2")
    with served(path, *words) as (_, address), served(path, *words) as (_, other):
        ports = [int(of.rstrip("/").rpartition(":")[2]) for of in (address, other)]
        with ThreadPoolExecutor(8) as pool:
            done = pool.map(lambda i: Client(ports[i % 2], f"labeler {i}").work(), range(8))
            kept = [task for tasks in done for task in tasks]
    with Desk.open(path, writing=False) as store:
        votes: dict[int, int] = {}
        for ranking in store.rankings():
            votes[ranking.task] = votes.get(ranking.task, 0) + 1
        assert len(votes) == 200
        assert store.standing("late", Wanted(overlap=0.2)).open == 0
    twice = sum(count == 2 for count in votes.values())
    assert set(votes.values()) == {1, 2}
    assert len(kept) == 200 + twice
    print(f"8 labelers at two servers: 200 tasks, {200 - twice} once and {twice} twice ({len(kept)} votes)")


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def main() -> None:
    """One of the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("kills", "crowd"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        {"kills": kills, "crowd": crowd}[options.step](Path(folder) / "c.db")


if __name__ == "__main__":
    main()
