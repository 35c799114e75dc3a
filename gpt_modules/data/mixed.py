"""Pretraining text that another procedure reads beside its own data, so that its model does not forget it: 10 % of the
SFT that begins RL, and PPO-ptx (Ouyang et al. 2022, appendices C.3 and C.4).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from gpt_modules.data.arguments import IdleArgument, expect_whole
from gpt_modules.data.batches import MixedBatch, PackedBatch, TokenBatch
from gpt_modules.data.corpus.mixture import MixedSource
from gpt_modules.data.loader import BatchLoader, Examples, Stream, pinned
from gpt_modules.data.pretraining import PretrainingDataModule
from gpt_modules.data.resumable import ResumableDataModule
from gpt_modules.errors import UserError, expect


@dataclass(frozen=True)
class PretrainingText:
    """Pretraining text beside other data: arguments of `PretrainingDataModule`. Tokenizer, seed and cache are those of
    the data that it stands beside.

    Args:
        train: Source; None: "reviews".
        mixture: Several with weights, in place of `train`.
        validation: Source of the held-out text; None: what `train` or the mixture holds out.
        validation_fraction: See `validation`.
        text_field: The field that holds a row's text.
        streaming: Read the source without storing a copy of it.
        isolate_documents: Let no token see another document.
        context: Tokens a window; None: SFT's own context, 128 beside prompts.
        batch_size: Windows read at a time, counted as the data beside counts its own: of held-out text by each process
            (SFT), of micro-batches by all of them together (PPO). None: SFT's own, 16 beside prompts.
    """

    train: str | list[str] | None = None
    mixture: list[MixedSource] | None = None
    validation: str | list[str] | None = None
    validation_fraction: float = 0.05
    text_field: str = "text"
    streaming: bool = False
    isolate_documents: bool = False
    context: int | None = None
    batch_size: int | None = None

    def open(self, tokenizer: str, seed: int, cache_dir: str | None, context: int, batch_size: int) -> "TextBeside":
        """The text beside data with these settings; no file is touched.

        Raises:
            UserError: An argument is refused; with its name below `pretraining`.
        """
        expect(tokenizer != "train", "tokenizer", tokenizer, "that of the model")
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        own |= {"context": self.context or context, "batch_size": self.batch_size or batch_size}
        with told_below("pretraining"):
            expect_whole(1, context=self.context, batch_size=self.batch_size)
            return TextBeside(PretrainingDataModule(tokenizer=tokenizer, seed=seed, cache_dir=cache_dir, **own))


class TextBeside:
    """The text, opened: an endless stream of training windows, and held-out ones.

    Args:
        data: What reads it.
    """

    def __init__(self, data: PretrainingDataModule) -> None:
        self.data = data
        self._stream: Stream[Any] | None = None

    @property
    def context(self) -> int:
        """Tokens a window."""
        return self.data.context

    @property
    def batch_size(self) -> int:
        """Windows that a process reads at a time."""
        return self.data.batch_size

    def prepare_data(self) -> None:
        """As the DataModule's."""
        with told_below("pretraining"):
            self.data.prepare_data()

    def setup(self, stage: str) -> None:
        """As the DataModule's; afterwards there are windows."""
        with told_below("pretraining"):
            self.data.setup(stage)
            self._stream = Stream(self.data.training_windows(), self.data.seed)

    def windows(self, first: int, last: int, rank: int = 0, world: int = 1) -> TokenBatch | PackedBatch | None:
        """The windows at places `first` to `last` - 1 of a stream without end that fall to this process, all of them
        full; None: there are none, on any process. Where others have some, one of which nothing counts: a model in
        shards reads on all of them or on none. A pure function; the stream has every window once before any twice.
        """
        assert self._stream is not None, "setup comes first"
        places = np.arange(first, last)
        own = places[places % world == rank]
        if not len(places):
            return None
        batch: TokenBatch | PackedBatch = self._stream.batch(own) if len(own) else self._stream.examples.batch(0, own)
        return batch

    def validation_loader(
        self, data: ResumableDataModule, batch_size: int, alone: int | None = None
    ) -> BatchLoader[Any]:
        """All held-out text once, shared by the processes of the data that it stands beside; sizes as theirs."""
        return data.validation_loader(self.data.validation_windows(), batch_size, alone)


class MixedLoader(BatchLoader[MixedBatch]):
    """A loader whose every batch has windows of pretraining text beside its own examples, which stay what they are
    without. After n examples of all processes there have been floor(n * fraction / (1 - fraction)) windows; which ones
    is a function of (seed, n), however the examples are batched and shared out.

    Args:
        examples: As of `BatchLoader`, like all other arguments.
        beside: The text.
        fraction: Windows among all rows, in [0, 1).
    """

    def __init__(self, examples: Examples[Any], *args: Any, beside: TextBeside, fraction: float, **named: Any) -> None:
        super().__init__(examples, *args, **named)
        self.beside, self.ratio = beside, fraction / (1 - fraction)

    def batch_at(self, epoch: int, index: int) -> MixedBatch:
        own: Any = super().batch_at(epoch, index)
        before = epoch * max(len(self.examples), self.size) + self.examples_before(epoch, index)
        first, last = (math.floor(self.ratio * seen) for seen in (before, before + self.size))
        return MixedBatch(own, pinned(self.beside.windows(first, last, self.rank, self.world)))


@contextmanager
def told_below(name: str) -> Iterator[None]:
    """A mistake in an argument of `PretrainingText` is told as one of the argument `name`, which holds them."""
    try:
        yield
    except UserError as error:
        message = str(error)
        if not any(message.startswith((f"{field}:", f"{field}.")) for field in PretrainingText.__annotations__):
            raise
        if isinstance(error, IdleArgument):
            raise error.below(name) from None
        raise UserError(f"{name}.{message}") from None
