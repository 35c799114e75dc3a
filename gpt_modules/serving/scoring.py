"""`/v1/score`: a reward model's scores, computed one request after another in a thread of their own."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gpt_modules.serving.engine import Busy, Late
from gpt_modules.storage.comparisons import Prompt

Scores = Callable[[Sequence[Any], Sequence[str]], Sequence[float]]
"""(prompts, answers) -> one score each."""


class Scoring:
    """Scores of answers.

    Args:
        queue: requests that may wait.
        deadline: seconds that one may take, waiting among them.
    """

    def __init__(self, scores: Scores, queue: int, deadline: float) -> None:
        self._scores, self._queue, self._deadline = scores, queue, deadline
        self._pool = ThreadPoolExecutor(1, "scoring")
        self.waiting = 0

    async def scores(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        """One number each. Raises `Busy`, `Late`, and `UserError` for what the model cannot read."""
        if self.waiting > self._queue:
            raise Busy
        self.waiting += 1
        found = asyncio.get_running_loop().run_in_executor(
            self._pool, self._scores, [prompt] * len(responses), responses
        )
        try:
            return list(await asyncio.wait_for(found, self._deadline))
        except TimeoutError as error:
            raise Late from error
        finally:
            self.waiting -= 1

    def close(self) -> None:
        """What waits is dropped, what is computed is finished."""
        self._pool.shutdown(cancel_futures=True)
