"""Supervised finetuning data: prompts to read and answers to learn.

Prompt and response are joined verbatim: no template, no separator; the end token closes the response. Conversations go
by the chat template of the model's folder. What closes an answer is learned too: it is how the model says that it is
done.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from gpt_modules.data.arguments import expect_default, expect_one_of, expect_part, expect_parted, expect_whole
from gpt_modules.data.batches import PackedBatch, TokenBatch
from gpt_modules.data.collate import TokenExample, collate_packed, collate_tokens, pack_examples
from gpt_modules.data.demonstrations import Learned, encode_demonstrations
from gpt_modules.data.loader import BatchLoader, Examples
from gpt_modules.data.mixed import MixedLoader, PretrainingText
from gpt_modules.data.resumable import ResumableDataModule
from gpt_modules.data.rows.sources import PARTED, REVIEWS, load_splits
from gpt_modules.data.splits import Row
from gpt_modules.storage.documents import settings_of


class PackedRows(Examples[PackedBatch]):
    """Rows of `context` cells, each filled with as many whole examples as fit; an epoch shuffles rows, not what is in
    them.
    """

    def __init__(self, examples: Sequence[TokenExample], context: int) -> None:
        self.examples, self.context = examples, context
        self.rows = pack_examples([example.cells for example in examples], context)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, epoch: int, indices: NDArray[np.int64]) -> PackedBatch:
        return collate_packed([[self.examples[j] for j in self.rows[i]] for i in indices.tolist()], self.context)


class SingleRows(Examples[TokenBatch]):
    """One example a row, padded to the longest of its batch; alike lengths meet in a batch."""

    def __init__(self, examples: Sequence[TokenExample]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def lengths(self, epoch: int) -> NDArray[np.int64]:
        return np.array([example.cells for example in self.examples])

    def longest_row(self) -> NDArray[np.int64]:
        return max((example.tokens[:-1] for example in self.examples), key=len)

    def batch(self, epoch: int, indices: NDArray[np.int64]) -> TokenBatch:
        return collate_tokens([self.examples[i] for i in indices.tolist()])


class SFTDataModule(ResumableDataModule):
    """Demonstrations (Ouyang et al. 2022, section 3.2: the labelers' answers).

    Args:
        train: "reviews" (embedded), "recall" (made; in two turns), files, folders or globs of {"prompt", "response"} or
            {"messages"} rows, or a data set's name on the hub.
        validation: The same; None: the reviews' own split, else `validation_fraction` of the rows by hash.
        tokenizer: The folder of the pretrained model, a tokenizer file, "gpt2", or a name on the hub.
        context: Tokens a row.
        batch_size: Rows a batch, of each process.
        val_batch_size: The same for validation; None: `batch_size`.
        turns: Of a conversation, learn "all" answers of the assistant but those whose `weight` is 0, or the "last" one.
        packing: True: several examples a row (`PackedBatch`); False: one (`TokenBatch`).
        seed: Seed of the order.
        cache_dir: None: $GPT_MODULES_CACHE or ~/.cache/gpt_modules.
        validation_fraction: See `validation`.
        pretraining: Text to learn beside the demonstrations, and to measure what is left of it. An epoch is still that
            of the demonstrations, and so is validation, which reads the held-out text after them.
        pretraining_fraction: Windows of it among all rows, InstructGPT 0.1 (appendix C.3): with `packing` and windows
            of `context` tokens also its share of the tokens read. All of a window's tokens are learnt, so its share in
            the loss, the mean over all learnt tokens, is larger. 0: the text is measured only.
    """

    def __init__(
        self,
        train: str | list[str] = REVIEWS,
        validation: str | list[str] | None = None,
        tokenizer: str = "gpt2",
        context: int = 128,
        batch_size: int = 16,
        val_batch_size: int | None = None,
        packing: bool = True,
        seed: int = 0,
        cache_dir: str | None = None,
        validation_fraction: float = 0.05,
        pretraining: PretrainingText | None = None,
        pretraining_fraction: float = 0.1,
        turns: Learned = "all",
    ) -> None:
        super().__init__(tokenizer)
        expect_whole(1, context=context, batch_size=batch_size, val_batch_size=val_batch_size)
        expect_whole(0, None, seed=seed)
        expect_parted(SFTDataModule, train, validation, train in PARTED, validation_fraction)
        self.train_source, self.validation_source = train, validation
        self.context, self.batch_size, self.val_batch_size = context, batch_size, val_batch_size
        self.packing, self.seed, self.cache_dir, self.turns = packing, seed, cache_dir, turns
        expect_one_of(get_args(Learned), turns=turns)
        self.validation_fraction, self.pretraining_fraction = validation_fraction, pretraining_fraction
        if pretraining_fraction:
            expect_part(pretraining_fraction=pretraining_fraction)
        self.pretraining = None
        if pretraining is None:
            beside = "no pretraining text"
            expect_default(SFTDataModule, "pretraining", beside, pretraining_fraction=pretraining_fraction)
        else:
            self.pretraining = settings_of(PretrainingText, pretraining, "pretraining").open(
                tokenizer, seed, cache_dir, context, val_batch_size or batch_size
            )
            self.beside = {"pretraining": self.pretraining.data}
        self.in_turns = False
        """Whether all that is learned stands in conversations; known once the rows are read."""
        self.train_examples: Examples[Any] | None = None
        self.validation_examples: Examples[Any] | None = None

    def prepare_data(self) -> None:
        """Fills the cache of downloads, once for all processes of a machine."""
        self._rows()
        if self.pretraining is not None:
            self.pretraining.prepare_data()

    def setup(self, stage: str) -> None:
        """Encodes and packs."""
        self.forget_loader()
        if self.train_examples is None:
            train, validation = self.read_whole(self._rows)
            self.expect_agreement()
            self.in_turns = all("messages" in row for row in train)
            self.train_examples = self._examples(train, "train")
            self.validation_examples = self._examples(validation, "validation")
            if self.pretraining is not None:
                self.pretraining.setup(stage)

    def train_dataloader(self) -> BatchLoader[Any]:
        """Batches (B, context) if packed, else (B, longest); `MixedBatch` where pretraining text is mixed in."""
        assert self.train_examples is not None, "setup comes first"
        if self.pretraining is None or not self.pretraining_fraction:
            return self.training_loader(self.train_examples, self.batch_size, self.seed)
        mixed = partial(MixedLoader, beside=self.pretraining, fraction=self.pretraining_fraction)
        return self.training_loader(self.train_examples, self.batch_size, self.seed, mixed)

    def val_dataloader(self) -> BatchLoader[Any] | list[BatchLoader[Any]]:
        """The demonstrations, every example once; then the held-out pretraining text, if there is some."""
        assert self.validation_examples is not None, "setup comes first"
        loader = self.validation_loader(self.validation_examples, self.val_batch_size or self.batch_size)
        text = self.pretraining
        return loader if text is None else [loader, text.validation_loader(self, text.batch_size)]

    def _rows(self) -> tuple[list[Row], list[Row]]:
        return load_splits(
            self.train_source,
            self.validation_source,
            "sft",
            cache_dir=self.cache_dir,
            fraction=self.validation_fraction,
        )

    def _examples(self, rows: list[Row], name: str) -> Examples[Any]:
        examples = encode_demonstrations(rows, self.tokenizer, self.context, name, self.turns)
        return PackedRows(examples, self.context) if self.packing else SingleRows(examples)
