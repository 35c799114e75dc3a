"""Windows over a stream of tokens: what a language model is trained on and measured with."""

import numpy as np
from numpy.typing import NDArray

from gpt_modules.data.batches import PackedBatch, TokenBatch
from gpt_modules.data.collate import collate_windows, isolate_documents
from gpt_modules.data.corpus.shards import Tokens
from gpt_modules.data.loader import Examples
from gpt_modules.errors import UserError


class TrainingWindows(Examples[TokenBatch]):
    """Windows of `context` tokens, side by side from an offset that is drawn anew every epoch from (seed, epoch).

    So no token is seen twice in an epoch, and no border stays where it was. `tokens` is (N,) of any integer type.

    Raises:
        UserError: The stream is shorter than one window.
    """

    def __init__(self, tokens: Tokens, context: int, seed: int, name: str = "the training text") -> None:
        if len(tokens) <= context:
            raise UserError(f"context: found {context}, expected less than the {len(tokens)} tokens of {name}")
        self.tokens, self.context, self.seed = tokens, context, seed

    def __len__(self) -> int:
        return max(1, (len(self.tokens) - self.context) // self.context)

    def offset(self, epoch: int) -> int:
        """Where the first window of an epoch begins."""
        spare = len(self.tokens) - 1 - len(self) * self.context
        return int(np.random.default_rng((self.seed, epoch, 1)).integers(min(self.context, spare + 1)))

    def batch(self, epoch: int, indices: NDArray[np.int64]) -> TokenBatch:
        starts = self.offset(epoch) + indices * self.context
        return collate_windows(windows_at(self.tokens, starts, self.context), self.context)


class ValidationWindows(Examples[TokenBatch]):
    """Windows that predict every token but the stream's first exactly once, in order; the last one is padded."""

    def __init__(self, tokens: Tokens, context: int) -> None:
        self.tokens, self.context = tokens, context

    def __len__(self) -> int:
        return -(-(len(self.tokens) - 1) // self.context)

    def batch(self, epoch: int, indices: NDArray[np.int64]) -> TokenBatch:
        return collate_windows(windows_at(self.tokens, indices * self.context, self.context), self.context)


class IsolatedWindows(Examples[PackedBatch]):
    """Such windows, in which no token sees beyond its own document: see `isolate_documents`."""

    def __init__(self, windows: Examples[TokenBatch], start_id: int) -> None:
        self.windows, self.start_id = windows, start_id

    def __len__(self) -> int:
        return len(self.windows)

    def order(self, epoch: int) -> NDArray[np.int64] | None:
        return self.windows.order(epoch)

    def batch(self, epoch: int, indices: NDArray[np.int64]) -> PackedBatch:
        return isolate_documents(self.windows.batch(epoch, indices), self.start_id)


def windows_at(tokens: Tokens, starts: NDArray[np.int64], context: int) -> list[NDArray[np.int64]]:
    """`context` + 1 tokens from each start, fewer at the stream's end."""
    return [np.asarray(tokens[i : i + context + 1], dtype=np.int64) for i in starts.tolist()]
