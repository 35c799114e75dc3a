"""PPO data: prompts to answer. The answers come from the policy, so the training batches come from the
LightningModule.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gpt_modules.data.arguments import expect_parted, expect_whole
from gpt_modules.data.batches import PromptBatch
from gpt_modules.data.collate import collate_prompts
from gpt_modules.data.loader import BatchLoader, Examples
from gpt_modules.data.mixed import PretrainingText
from gpt_modules.data.resumable import ResumableDataModule
from gpt_modules.data.rows.chat import encode_asked, naming_rows, shorten
from gpt_modules.data.rows.messages import prompt_of
from gpt_modules.data.rows.sources import PARTED, REVIEWS, load_splits
from gpt_modules.data.splits import Row
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError, expect
from gpt_modules.storage.documents import settings_of

log = logging.getLogger(__name__)


class Prompts(Examples[PromptBatch]):
    """Encoded prompts, and the further columns of their rows.

    Args:
        first: what the rows are counted from.
    """

    def __init__(self, tokens: Sequence[NDArray[np.int64]], columns: Sequence[Row], first: int = 0) -> None:
        self.tokens, self.columns, self.first = tokens, columns, first

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, epoch: int, indices: NDArray[np.int64]) -> PromptBatch:
        batch = collate_prompts([self.tokens[i] for i in indices.tolist()], indices.tolist())
        return batch._replace(rows=batch.numbers + self.first)


def encode_prompts(
    rows: Sequence[Row], tokenizer: Tokenizer, max_tokens: int | None, source: str, first: int = 0
) -> Prompts:
    """Rows as prompts of at most `max_tokens` tokens; longer ones are left out and counted in the log: half a
    question is another. A conversation loses its oldest turns first, which is counted too. `first` as of `Prompts`.

    Raises:
        UserError: None is left, or the tokenizer makes nothing of one (GPT-1's mends control characters away); or texts
            stand beside conversations, which end otherwise.
    """
    if 0 < (texts := sum("messages" not in row for row in rows)) < len(rows):
        found = f"{texts} prompts beside {len(rows) - texts} conversations"
        raise UserError(f"{source}: found {found}, expected one kind: their answers end with different tokens")
    with naming_rows(rows):
        rows = rows if max_tokens is None else _shortened(rows, tokenizer, max_tokens, source)
        encoded = encode_asked([prompt_of(row) for row in rows], tokenizer)
    empty = next((prompt_of(row) for row, ids in zip(rows, encoded, strict=True) if not ids), None)
    if empty is not None:
        raise UserError(f"{source}: prompt: found {empty!r:.60}, which has no tokens, expected text to continue")
    kept = [i for i, ids in enumerate(encoded) if max_tokens is None or len(ids) <= max_tokens]
    if len(kept) < len(rows):
        message = "%s: of %d prompts, %d longer than %s tokens are left out"
        log.warning(message, source, len(rows), len(rows) - len(kept), max_tokens)
    if not kept:
        raise UserError(
            f"max_prompt_tokens: found {max_tokens} and no prompt of {source} as short, expected at least one"
        )
    tokens = [np.array(encoded[i], dtype=np.int64) for i in kept]
    return Prompts(tokens, [rows[i].get("columns", {}) for i in kept], first)


def _shortened(rows: Sequence[Row], tokenizer: Tokenizer, max_tokens: int, source: str) -> list[Row]:
    """The rows with as many turns of each conversation as fit."""
    kept, shortened = [], 0
    for row in rows:
        if "messages" in row:
            messages, dropped = shorten(row["messages"], tokenizer, max_tokens)
            row = {"messages": messages, "columns": {**row["columns"], "messages": messages}}
            shortened += dropped > 0
        kept.append(row)
    if shortened:
        log.warning("%s: %d conversations lose their oldest turns to fit %d tokens", source, shortened, max_tokens)
    return kept


class PPODataModule(ResumableDataModule):
    """Prompts for reinforcement learning from human feedback (Ouyang et al. 2022, section 3.5).

    Args:
        train: "reviews" (embedded; the openings of sentences), "brackets" (made; to be closed), "recall" (made; in two
            turns), files, folders or globs of {"prompt"} or {"messages"} rows, or .txt with one prompt a line, or a
            data set's name on the hub. Further columns, such as a reference answer, and messages are for reward
            functions that ask for them by name.
        validation: The same; None: the source's own split, else `validation_fraction` of the prompts by hash.
        tokenizer: The folder of the policy, a tokenizer file, "gpt2", or a name on the hub.
        episodes: Answers a rollout, over all processes: one device and eight take the same steps.
        answers: Of them to each prompt, every one with its own noise; RLOO and GRPO measure them by one another.
        val_batch_size: Prompts a validation batch of one process; None: its share of `episodes`.
        max_prompt_tokens: Longer prompts are left out; None: all are kept.
        seed: Seed of the order.
        cache_dir: None: $GPT_MODULES_CACHE or ~/.cache/gpt_modules.
        validation_fraction: See `validation`.
        pretraining: Text that the policy goes on learning (PPO-ptx, `ptx` of the module), and on which is measured what
            is left of it.
    """

    def __init__(
        self,
        train: str | list[str] = REVIEWS,
        validation: str | list[str] | None = None,
        tokenizer: str = "gpt2",
        episodes: int = 64,
        answers: int = 1,
        val_batch_size: int | None = None,
        max_prompt_tokens: int | None = None,
        seed: int = 0,
        cache_dir: str | None = None,
        validation_fraction: float = 0.05,
        pretraining: PretrainingText | None = None,
    ) -> None:
        super().__init__(tokenizer)
        sizes = {"episodes": episodes, "answers": answers, "val_batch_size": val_batch_size}
        expect_whole(1, **sizes, max_prompt_tokens=max_prompt_tokens)
        expect_whole(0, None, seed=seed)
        expect_parted(PPODataModule, train, validation, train in PARTED, validation_fraction)
        self.train_source, self.validation_source = train, validation
        expect(episodes % answers == 0, "episodes", episodes, f"a multiple of answers: {answers}")
        self.episodes, self.answers = episodes, answers
        self.val_batch_size, self.max_prompt_tokens = val_batch_size, max_prompt_tokens
        self.seed, self.cache_dir, self.validation_fraction = seed, cache_dir, validation_fraction
        self.train_examples: Prompts | None = None
        self.validation_examples: Prompts | None = None
        self.pretraining = None
        if pretraining is not None:
            self.pretraining = settings_of(PretrainingText, pretraining, "pretraining").open(
                tokenizer, seed, cache_dir, context=128, batch_size=16
            )
            self.beside = {"pretraining": self.pretraining.data}
        self._loader: BatchLoader[PromptBatch] | None = None

    def prepare_data(self) -> None:
        """Fills the cache of downloads, once for all processes of a machine."""
        self._rows()
        if self.pretraining is not None:
            self.pretraining.prepare_data()

    def setup(self, stage: str) -> None:
        """Encodes."""
        if self.train_examples is None:
            train, validation = self.read_whole(self._rows)
            self.expect_agreement()
            most = self.max_prompt_tokens
            self.train_examples = encode_prompts(train, self.tokenizer, most, "train")
            first = len(self.train_examples)
            self.validation_examples = encode_prompts(validation, self.tokenizer, most, "validation", first)
            if self.pretraining is not None:
                self.pretraining.setup(stage)

    def prompts(self, iteration: int, rank: int = 0, world: int = 1) -> PromptBatch:
        """The prompts of one rollout on one rank, a pure function: all prompts once in random order, then in another
        order. A prompt stands there once for each of its answers, and a row's number tells its place among all of them:
        those of one prompt follow one another.

        Args:
            iteration: From 0.
            rank: This process.
            world: Processes; together they give the answers that one would give alone.
        """
        assert self.train_examples is not None, "setup comes first"
        self._share(world)
        if self._loader is None:
            self._loader = BatchLoader(self.train_examples, self.episodes // self.answers, self.seed)
        asked = self._loader.batch_at(*divmod(iteration, len(self._loader)))
        numbers = torch.arange(rank, self.episodes, world)
        rows = numbers // self.answers
        tokens, lengths = asked.tokens[rows], asked.lengths[rows]
        return PromptBatch(tokens[:, : int(lengths.max())], lengths, numbers, asked.rows[rows])

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt that is answered in training or validation."""
        return max(len(tokens) for examples in self._examples() for tokens in examples.tokens)

    def prompt_tokens(self) -> list[list[int]]:
        """Those of each prompt that is answered in training or validation."""
        return [tokens.tolist() for examples in self._examples() for tokens in examples.tokens]

    def columns(self) -> dict[str, int]:
        """What rows of training and validation say beside their prompts: each name with the number of rows that lack
        it.
        """
        rows = [row for examples in self._examples() for row in examples.columns]
        had = Counter(name for row in rows for name in row)
        return {name: len(rows) - had[name] for name in sorted(had)}

    def column(self, name: str, rows: Sequence[int]) -> list[Any]:
        """What the column of this name holds in each of these rows, as `PromptBatch.rows` counts them."""
        train, validation = self._examples()
        first = validation.first
        return [train.columns[i][name] if i < first else validation.columns[i - first][name] for i in rows]

    def _examples(self) -> tuple[Prompts, Prompts]:
        assert self.train_examples is not None, "setup comes first"
        assert self.validation_examples is not None
        return self.train_examples, self.validation_examples

    def _share(self, world: int) -> int:
        if self.episodes % world:
            raise UserError(f"data.episodes: found {self.episodes}, expected a multiple of {world} processes")
        return self.episodes // world

    def train_dataloader(self) -> Any:
        """The module's own loader over the answers it has collected."""
        assert self.trainer is not None, "only a Trainer asks for it"
        self._share(self.sharding()[1])  # refused before the first answer
        module: Any = self.trainer.lightning_module
        return module.experience_loader()

    def val_dataloader(self) -> BatchLoader[PromptBatch] | list[BatchLoader[Any]]:
        """The validation prompts, each once; then the held-out pretraining text, if there is some."""
        assert self.validation_examples is not None, "setup comes first"
        _, world = self.sharding()
        size, alone = self.val_batch_size or self._share(world), self.val_batch_size or self._share(1)
        loader, text = self.validation_loader(self.validation_examples, size, alone), self.pretraining
        if text is None:
            return loader
        return [loader, text.validation_loader(self, -(-text.batch_size // world), text.batch_size)]

    def _rows(self) -> tuple[list[Row], list[Row]]:
        return load_splits(
            self.train_source,
            self.validation_source,
            "ppo",
            cache_dir=self.cache_dir,
            fraction=self.validation_fraction,
        )
