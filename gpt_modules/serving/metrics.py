"""What the server counts, in Prometheus' text form (exposition format 0.0.4)."""

from bisect import bisect_left
from collections import Counter
from itertools import accumulate

from gpt_modules.serving.engine import Counts

BOUNDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)  # seconds


class Histogram:
    """Seconds, in buckets."""

    def __init__(self) -> None:
        self._buckets, self._sum = [0] * (len(BOUNDS) + 1), 0.0

    def add(self, seconds: float) -> None:
        """One more."""
        self._buckets[bisect_left(BOUNDS, seconds)] += 1
        self._sum += seconds

    def lines(self, name: str, what: str) -> list[str]:
        """As Prometheus reads it."""
        found = [f"# HELP {name} {what}", f"# TYPE {name} histogram"]
        sums = list(accumulate(self._buckets))
        found += [f'{name}_bucket{{le="{bound:g}"}} {sum}' for bound, sum in zip(BOUNDS, sums, strict=False)]
        return [*found, f'{name}_bucket{{le="+Inf"}} {sums[-1]}', f"{name}_sum {self._sum:.6f}",
                f"{name}_count {sums[-1]}"]  # fmt: skip


class Metrics:
    """Of requests; those of the engine are read when asked for. Written by the thread of the event loop alone."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, int]] = Counter()
        self.seconds, self.first_token = Histogram(), Histogram()
        self.left = 0

    def answered(self, path: str, status: int) -> None:
        """A request has its status."""
        self._requests[path, status] += 1

    def text(self, counts: Counts) -> str:
        """The whole page."""
        lines = ["# HELP gpt_requests_total Answers by path and status.", "# TYPE gpt_requests_total counter"]
        lines += [f'gpt_requests_total{{path="{path}",status="{status}"}} {number}'
                  for (path, status), number in sorted(self._requests.items())]  # fmt: skip
        plain = [
            ("gpt_clients_left_total", "counter", "Clients that left before their answer.", self.left),
            ("gpt_prompt_tokens_total", "counter", "Tokens of prompts.", counts.prompt_tokens),
            ("gpt_spoken_tokens_total", "counter", "Tokens of answers.", counts.spoken_tokens),
            ("gpt_turns_total", "counter", "Steps of the running batch.", counts.turns),
            ("gpt_rows", "gauge", "Rows at work.", counts.rows),
            ("gpt_rows_waiting", "gauge", "Rows in the queue.", counts.waiting),
            ("gpt_cache_bytes", "gauge", "Keys and values held.", counts.cache_bytes),
        ]
        for name, kind, what, value in plain:
            lines += [f"# HELP {name} {what}", f"# TYPE {name} {kind}", f"{name} {value}"]
        lines += self.seconds.lines("gpt_request_seconds", "From a request to the end of its answer.")
        lines += self.first_token.lines("gpt_first_token_seconds", "From a request to its first token.")
        return "\n".join(lines) + "\n"
