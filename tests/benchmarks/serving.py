"""`gpt serve` under load: many clients, one in ten of whom vanishes or sends what is none; and what a batch gains.

    python tests/benchmarks/serving.py --model runs/demo/ppo/export --clients 32 --seconds 60

Every answer is compared, text for text, with the one that its request gets alone, computed in this process. Memory is
the server's own, once a second. Then one client and sixteen take turns, and tokens are counted by the server's clock
and by its processor time.
"""

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2

SAMPLING: list[dict[str, Any]] = [
    {"temperature": 0}, {"temperature": 1}, {"temperature": 0.7, "top_p": 0.9}, {"temperature": 1.2, "top_k": 40},
]  # fmt: skip
PROMPTS = ["The film is", "A story", "", "Its cast and its plot are", "One wonders whether the film, which"]
STOPS: list[Any] = [None, ".", [" and", ","]]
PAGE = os.sysconf("SC_PAGE_SIZE")


def requests(model: str) -> list[dict[str, Any]]:
    """Different in all that changes an answer."""
    return [
        {"model": model, "prompt": PROMPTS[i % len(PROMPTS)] * (1 + i % 3), "seed": i, "max_tokens": 8 + 7 * (i % 9),
         "stop": STOPS[i % len(STOPS)], **SAMPLING[i % len(SAMPLING)]}
        for i in range(60)
    ]  # fmt: skip


def alone(folder: str, asked: list[dict[str, Any]]) -> list[str]:
    """What each gets by itself."""
    import torch

    from gpt_modules.backbone.decoding.batching import Batch, fitting_rows
    from gpt_modules.commands.opening import open_language_model
    from gpt_modules.serving.planning import Speaker
    from gpt_modules.serving.requests import Completion
    from gpt_modules.storage.documents import typed

    speaker = Speaker(*open_language_model(folder, torch.device("cpu")))
    multiple, found = fitting_rows(speaker.model, 16), []
    for body in asked:
        given = {key: value for key, value in body.items() if value is not None}
        (choice,) = speaker.completion(typed(Completion, given))
        batch, text = Batch(speaker.model, 16, multiple=multiple), ""
        batch.join(choice.row)
        while len(batch):
            for said in batch.turn():
                text += choice.hear(said)[0]
                if choice.text.stopped:
                    batch.leave(choice.row)
        found.append(text)
    return found


class Server:
    """The command in a process of its own."""

    def __init__(self, folder: str) -> None:
        words = ["serve", "--model", folder, "--name", "m", "--port", "0", "--device", "cpu", "--queue", "64"]
        command = [sys.executable, "-m", "gpt_modules", *words]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.address = re.search(r"http://\S+?/", line)[0]  # type: ignore[index]

    def memory(self) -> float:
        """MB that it holds."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text("ascii").split()[1]) * PAGE / 1e6

    def cpu(self) -> float:
        """Seconds of processor time."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text("ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def metric(self, name: str) -> float:
        """A number that it counts."""
        return float(re.search(rf"^{name} (\S+)$", httpx2.get(f"{self.address}metrics").text, re.M)[1])  # type: ignore[index]


async def well(client: httpx2.AsyncClient, body: dict[str, Any], streams: bool) -> tuple[int, str]:
    if not streams:
        found = await client.post("v1/completions", json=body)
        return found.status_code, found.json()["choices"][0]["text"] if found.status_code == 200 else ""
    text = ""
    async with client.stream("POST", "v1/completions", json={**body, "stream": True}) as found:
        if found.status_code != 200:
            await found.aread()
            return found.status_code, ""
        async for line in found.aiter_lines():
            if line.startswith("data: {"):
                text += "".join(choice["text"] for choice in json.loads(line[6:])["choices"])
    return 200, text


async def badly(client: httpx2.AsyncClient, body: dict[str, Any], draw: random.Random) -> int:
    way = draw.randrange(4)
    headers = {"Content-Type": "application/json"}
    if way == 0:  # vanishes while it is answered
        asked = {**body, "stream": True, "n": 4, "stop": None}
        async with client.stream("POST", "v1/completions", json=asked) as found:
            async for _ in found.aiter_bytes():
                break
        return -1
    if way == 1:  # vanishes before
        try:
            await client.post("v1/completions", json={**body, "n": 8, "stop": None}, timeout=0.05)
        except httpx2.TimeoutException:
            return -1
        return -1
    content = draw.randbytes(draw.randrange(200)) if way == 2 else b'{"prompt": "' + b"a" * (1 << 20) + b'"}'
    found = await client.post("v1/completions", content=content, headers=headers)
    return found.status_code


async def load(server: Server, options: argparse.Namespace, asked: list[dict[str, Any]], expected: list[str]) -> None:
    seen: Counter[str] = Counter()
    memory: list[float] = []
    end = time.monotonic() + options.seconds

    async def client(number: int) -> None:
        draw = random.Random(number)
        async with httpx2.AsyncClient(base_url=server.address, timeout=120) as http:
            while time.monotonic() < end:
                i = draw.randrange(len(asked))
                if draw.random() < 0.1:
                    status = await badly(http, asked[i], draw)
                    seen["vanished" if status == -1 else f"rubbish {status}"] += 1
                    assert status == -1 or 400 <= status < 500, status
                    continue
                status, text = await well(http, asked[i], draw.random() < 0.5)
                seen[f"asked {status}"] += 1
                assert status in (200, 429), status
                if status == 200 and text != expected[i]:
                    seen["DIFFERENT"] += 1

    async def watch() -> None:
        while time.monotonic() < end:
            memory.append(server.memory())
            await asyncio.sleep(1)

    await asyncio.gather(watch(), *(client(number) for number in range(options.clients)))
    print(f"{options.clients} clients, {options.seconds} s: {dict(sorted(seen.items()))}")
    third = len(memory) // 3
    print(f"memory, MB: {statistics.median(memory[third : 2 * third]):.0f} in the second third, "
          f"{statistics.median(memory[2 * third :]):.0f} in the last, {max(memory):.0f} at most")  # fmt: skip


async def burst(server: Server, clients: int, seconds: float) -> tuple[float, float, float]:
    """(tokens a second, tokens a CPU second of the server, tokens a step: rows that were at work)."""
    body = {"model": "m", "prompt": "The film is", "max_tokens": 100, "temperature": 1.5, "logprobs": None}
    end = time.monotonic() + seconds
    tokens, turns = server.metric("gpt_spoken_tokens_total"), server.metric("gpt_turns_total")
    cpu, began = server.cpu(), time.monotonic()

    async def client(number: int) -> None:
        async with httpx2.AsyncClient(base_url=server.address, timeout=120) as http:
            seed = number
            while time.monotonic() < end:
                await http.post("v1/completions", json={**body, "seed": seed})
                seed += 1000

    await asyncio.gather(*(client(number) for number in range(clients)))
    spoken = server.metric("gpt_spoken_tokens_total") - tokens
    seconds, cpu = time.monotonic() - began, server.cpu() - cpu
    return spoken / seconds, spoken / cpu, spoken / (server.metric("gpt_turns_total") - turns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--burst", type=float, default=6)
    options = parser.parse_args()
    asked = requests("m")
    expected = alone(options.model, asked)
    server = Server(options.model)
    try:
        asyncio.run(load(server, options, asked, expected))
        found = {clients: [] for clients in (1, 16)}
        for _ in range(options.rounds):
            for clients, each in found.items():
                each.append(asyncio.run(burst(server, clients, options.burst)))
        for clients, each in found.items():
            wall, cpu, rows = (statistics.median(of) for of in zip(*each, strict=True))
            print(f"{clients} clients: {wall:.0f} tokens/s, {cpu:.0f} tokens a CPU second, {rows:.1f} tokens a step")
        ratios = [[b / a for a, b in zip(one, many, strict=True)] for one, many in zip(*found.values(), strict=True)]
        rounded = [[round(ratio, 2) for ratio in each] for each in ratios]
        print("sixteen against one, round by round, by the clock, by CPU seconds and by steps:", rounded)
        idle = {name: server.metric(name) for name in ("gpt_rows", "gpt_rows_waiting", "gpt_cache_bytes")}
        print(f"left behind: {idle}; load {os.getloadavg()}")
    finally:
        server.process.terminate()
        server.process.wait()


if __name__ == "__main__":
    main()
