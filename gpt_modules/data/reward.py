"""The data of the reward model and of DPO: answers to a prompt, ranked by people."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpt_modules.data.arguments import expect_default, expect_parted, expect_whole
from gpt_modules.data.batches import PromptBatch, RankingBatch
from gpt_modules.data.builtin.reviews import instruction, reward_pool, reward_rows, sft_rows
from gpt_modules.data.collate import RankedAnswers, collate_prompts, collate_rankings
from gpt_modules.data.demonstrations import learned_turns
from gpt_modules.data.loader import BatchLoader, Examples
from gpt_modules.data.resumable import ResumableDataModule
from gpt_modules.data.rows.chat import encode_answers, naming_rows
from gpt_modules.data.rows.comparisons import chosen_votes
from gpt_modules.data.rows.messages import prompt_of
from gpt_modules.data.rows.sources import REVIEWS, load_rows, load_splits
from gpt_modules.data.splits import Row
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError, expect
from gpt_modules.storage.comparisons import competition_ranks

log = logging.getLogger(__name__)

VALIDATION_PAIRINGS = 4


class Answer(NamedTuple):
    """An answer as prompt + answer + eos, and how many of these tokens are the prompt's."""

    tokens: NDArray[np.int64]
    prompt_length: int


class Comparisons(Examples[RankingBatch]):
    """Ranked answers, encoded as prompt + answer + end; `draw(epoch)` gives an epoch's rows, each text is encoded once.

    An answer that does not fit the context is left out, and a row without two answers of different rank with it: a
    cut answer was not what people ranked. An epoch has as many rows as the first one: a later draw of fewer repeats
    some, one of more leaves some out. `pool`: rows with the answers of all draws; None: they are those of the first
    draw. `labelers`: name -> number in the batches. `answers`: each that fits, once, in the order of their numbers.

    Raises:
        UserError: No row is left.
    """

    def __init__(
        self,
        draw: Callable[[int], Sequence[Row]],
        tokenizer: Tokenizer,
        context: int,
        source: str,
        pool: Sequence[Row] | None = None,
    ) -> None:
        self.draw, self.context, self.redrawn = draw, context, pool is not None
        self.labelers: dict[str, int] = {}
        rows = draw(0)
        self.answers: list[Answer] = []
        self._numbers: dict[tuple[str, str], int | None] = {}  # of (question, response); None: it does not fit
        self._encode(rows if pool is None else pool, tokenizer)
        self._epoch, self._rows, self._examples = 0, rows, self._ranked(rows)
        self._count = len(self._examples)
        if not self._count:
            raise UserError(f"{source}: found no row that fits a context of {context} tokens, expected at least one")
        if self._count < len(rows):
            message = "%s: of %d rows, %d are left out: too few of their answers fit a context of %d tokens"
            log.warning(message, source, len(rows), len(rows) - self._count, context)

    def __len__(self) -> int:
        return self._count

    def lengths(self, epoch: int) -> NDArray[np.int64]:
        rows = self._of(epoch)
        longest = [max(len(answer) for answer in row.answers) for row in rows]
        return np.resize(np.array(longest, dtype=np.int64), self._count)

    def longest_row(self) -> NDArray[np.int64] | None:
        if self.redrawn:
            return None
        return max((answer for row in self._examples for answer in row.answers), key=len)

    def batch(self, epoch: int, indices: NDArray[np.int64]) -> RankingBatch:
        rows = self._of(epoch)
        return collate_rankings([rows[i % len(rows)] for i in indices.tolist()])

    def votes(self) -> list[dict[str, Any]]:
        """How many rows of each round and labeler; None where rows name none."""
        names = {number: name for name, number in self.labelers.items()}
        counts = Counter((row.round, row.labeler) for row in self._examples)
        return [
            {"round": None if number < 0 else number, "labeler": names.get(labeler), "votes": count}
            for (number, labeler), count in sorted(counts.items())
        ]

    def _of(self, epoch: int) -> list[RankedAnswers]:
        if epoch != self._epoch:
            rows = self.draw(epoch)
            if rows is not self._rows:
                self._rows, self._examples = rows, self._ranked(rows)
            self._epoch = epoch
        return self._examples

    def _encode(self, rows: Sequence[Row], tokenizer: Tokenizer) -> None:
        asked = {(_key(row), text): (prompt_of(row), text) for row in rows for text in row["responses"]}
        with naming_rows(rows):
            encoded = encode_answers([*asked.values()], tokenizer)
        for key, (prompt, answer) in zip(asked, encoded, strict=True):
            tokens = np.array([*prompt, *answer])
            fits = len(tokens) <= self.context
            self._numbers[key] = len(self.answers) if fits else None
            if fits:
                self.answers.append(Answer(tokens, len(prompt)))

    def _ranked(self, rows: Sequence[Row]) -> list[RankedAnswers]:
        ranked = [self._fitting(row) for row in rows]
        return [row for row in ranked if len(set(row.ranks)) > 1]

    def _fitting(self, row: Row) -> RankedAnswers:
        numbers = [self._numbers[_key(row), text] for text in row["responses"]]
        kept = [i for i, number in enumerate(numbers) if number is not None]
        found = [number for number in numbers if number is not None]
        ranks = competition_ranks(dict(enumerate(row["ranking"])))  # a row may have ranks of any size
        scores, name = row.get("scores") or [None] * len(numbers), row.get("labeler")
        return RankedAnswers(
            [self.answers[number].tokens for number in found],
            [ranks[i] for i in kept],
            [scores[i] or 0 for i in kept],
            -1 if name is None else self.labelers.setdefault(name, len(self.labelers)),
            row.get("round", -1),
            self.answers[found[0]].prompt_length if found else 0,
            found,
        )


def _key(row: Row) -> str:
    """A prompt or a conversation, to look it up by: no prompt is a list of messages."""
    return str(row["prompt"]) if "prompt" in row else f"\0{json.dumps(row['messages'])}"


def _demonstration(row: Row) -> Row:
    """A row of SFT as one answer: of a conversation the last that is learned."""
    if "messages" not in row:
        return row
    (last,) = learned_turns(row["messages"], "last")
    return {"messages": row["messages"][:last], "response": row["messages"][last]["content"]}


class RewardDataModule(ResumableDataModule):
    """Comparisons for a reward model (Ouyang et al. 2022, section 3.5), or for DPO without one: all answers to a prompt
    come in one batch.

    Args:
        train: "reviews" (embedded; sentences that people rated, grouped anew every epoch), files, folders or globs of
            {"prompt", "responses", "ranking"} or {"prompt", "chosen", "rejected"} rows, or of conversations
            (`rows.messages`), stores of comparisons, or a data set's name on the hub. They are read once: votes that
            come later are the next run's.
        validation: The same; None: the reviews' own split, else `validation_fraction` of the prompts by hash.
        tokenizer: The folder of the model that it starts from, a tokenizer file, "gpt2", or a name on the hub.
        context: Tokens of prompt, answer and eos.
        k: For the reviews: most answers a prompt, their ratings 1 point apart; None: 2. Validation has pairs. Rows of
            your own bring as many as they have.
        batch_size: Prompts a batch, of each process.
        val_batch_size: The same for validation; None: `batch_size`.
        seed: Seed of the order, and of the groups of reviews. The validation groups do not depend on it.
        cache_dir: None: $GPT_MODULES_CACHE or ~/.cache/gpt_modules.
        validation_fraction: See `validation`.
        demonstrations: Rows as for SFT that shall score 0 on average; None: for the reviews the positive sentences
            about films, else the best-ranked answers of the training rows.
        max_demonstrations: At most so many of them.
        labelers: Train on the votes of these alone; None: of all. What validates is not chosen from, so that runs on
            other votes are measured on the same.
        rounds: Likewise, of these rounds of comparisons.
    """

    def __init__(
        self,
        train: str | list[str] = REVIEWS,
        validation: str | list[str] | None = None,
        tokenizer: str = "gpt2",
        context: int = 128,
        k: int | None = None,
        batch_size: int = 16,
        val_batch_size: int | None = None,
        seed: int = 0,
        cache_dir: str | None = None,
        validation_fraction: float = 0.05,
        demonstrations: str | list[str] | None = None,
        max_demonstrations: int = 512,
        labelers: str | list[str] | None = None,
        rounds: int | list[int] | None = None,
    ) -> None:
        super().__init__(tokenizer)
        expect_whole(1, context=context, batch_size=batch_size, val_batch_size=val_batch_size)
        expect_whole(1, max_demonstrations=max_demonstrations)
        expect_whole(2, 8, k=k)
        if train != REVIEWS:
            expect_default(RewardDataModule, "train", f"{train!s:.60}, whose rows bring their answers", k=k)
        expect_whole(0, None, seed=seed)
        labelers = [labelers] if isinstance(labelers, str) else labelers
        if not isinstance(rounds, list):
            expect_whole(1, rounds=rounds)
            rounds = None if rounds is None else [rounds]
        for name, wanted in {"labelers": labelers, "rounds": rounds}.items():
            expect(wanted is None or len(wanted) > 0, name, wanted, "at least one, or null for all")
        if train == REVIEWS:
            beside = f"{REVIEWS}, which no labeler of a round has ranked"
            expect_default(RewardDataModule, "train", beside, labelers=labelers, rounds=rounds)
        expect_parted(RewardDataModule, train, validation, train == REVIEWS, validation_fraction)
        self.demonstration_source, self.max_demonstrations = demonstrations, max_demonstrations
        self.train_source, self.validation_source = train, validation
        self.context, self.k, self.batch_size, self.val_batch_size = context, k or 2, batch_size, val_batch_size
        self.seed, self.cache_dir, self.validation_fraction = seed, cache_dir, validation_fraction
        self.labelers, self.rounds = labelers, rounds
        self.in_turns = False
        """Whether all that is asked stands in conversations; known once the rows are read."""
        self.train_examples: Comparisons | None = None
        self.validation_examples: Comparisons | None = None
        self._rows: tuple[list[Row], list[Row]] | None = None
        self._demonstrations: list[PromptBatch] | None = None

    def prepare_data(self) -> None:
        """Fills the cache of downloads, once for all processes of a machine."""
        self.rows()

    def setup(self, stage: str) -> None:
        """Encodes."""
        self.forget_loader()
        if self.train_examples is None:
            train, validation = self.rows()
            self.expect_agreement()
            self.in_turns = all("messages" in row for row in train)
            redrawn = self.train_source == REVIEWS
            draw, pool = (self._regroup, reward_pool("train")) if redrawn else (lambda epoch: train, None)
            self.train_examples = Comparisons(draw, self.tokenizer, self.context, "train", pool)
            held_out = Comparisons(lambda epoch: validation, self.tokenizer, self.context, "validation")
            self.validation_examples = held_out

    def train_dataloader(self) -> BatchLoader[RankingBatch]:
        """Batches of `batch_size` prompts with all their answers."""
        assert self.train_examples is not None, "setup comes first"
        return self.training_loader(self.train_examples, self.batch_size, self.seed)

    def val_dataloader(self) -> BatchLoader[RankingBatch]:
        """The same, every row once."""
        assert self.validation_examples is not None, "setup comes first"
        return self.validation_loader(self.validation_examples, self.val_batch_size or self.batch_size)

    def demonstrations(self) -> list[PromptBatch]:
        """Prompts with good answers and eos, for the reward's zero point (Ouyang et al. 2022, section 3.5): the same
        on every rank, and whenever it is asked.

        Raises:
            UserError: None fits the context.
        """
        if self._demonstrations is None:
            self._demonstrations = self._encoded_demonstrations()
        return self._demonstrations

    def votes(self) -> dict[str, Any]:
        """Which votes a run sees: for "train" and "validation" the digests of the files read, of a store that of its
        votes, and how many rows of each round and labeler are learnt from, or measured on. Known after `setup`.
        """
        assert self.train_examples is not None, "setup comes first"
        assert self.validation_examples is not None, "setup comes first"
        held_out = self.train_source if self.validation_source is None else self.validation_source
        parts = {
            "train": (self.train_source, self.train_examples),
            "validation": (held_out, self.validation_examples),
        }
        return {
            name: {"source": source, "sha256": self.files_of(source), "votes": examples.votes()}
            for name, (source, examples) in parts.items()
        }

    @property
    def held_out_labelers(self) -> dict[str, int]:
        """Labeler -> number in the batches of the validation rows; known after `setup`."""
        return {} if self.validation_examples is None else self.validation_examples.labelers

    def _encoded_demonstrations(self) -> list[PromptBatch]:
        rows = self._demonstration_rows()[: self.max_demonstrations]
        asked = [(prompt_of(row), row["response"]) for row in rows]
        with naming_rows(rows):
            joined = [np.array([*prompt, *answer]) for prompt, answer in encode_answers(asked, self.tokenizer)]
        kept = sorted((tokens for tokens in joined if len(tokens) <= self.context), key=len)
        if not kept:
            raise UserError(f"demonstrations: found none that fits a context of {self.context} tokens, expected some")
        size = self.val_batch_size or self.batch_size
        return [collate_prompts(kept[i : i + size]) for i in range(0, len(kept), size)]

    def _demonstration_rows(self) -> list[Row]:
        if self.demonstration_source is not None:
            rows = load_rows(self.demonstration_source, "train", "sft", cache_dir=self.cache_dir)
            return [_demonstration(row) for row in rows]
        if self.train_source == REVIEWS:
            return [row for row in sft_rows("train") if row["prompt"] == instruction("film")]
        train, _ = self.rows()
        best = [min(range(len(row["ranking"])), key=row["ranking"].__getitem__) for row in train]
        return [{**row, "response": row["responses"][i]} for row, i in zip(train, best, strict=True)]

    def rows(self) -> tuple[list[Row], list[Row]]:
        """The ranked answers as text: what the first epoch trains on, and what validates. They are read once: a store
        may grow while a run goes on.
        """
        if self._rows is None:
            self._rows = self.read_whole(self._read)
        return self._rows

    def _read(self) -> tuple[list[Row], list[Row]]:
        if self.train_source == REVIEWS and self.validation_source in (None, REVIEWS):
            # Plain random pairs, as the published accuracies are counted; several pairings, for a smaller error.
            held_out = [row for seed in range(VALIDATION_PAIRINGS) for row in reward_rows("validation", 2, seed)]
            return reward_rows("train", self.k, self.seed), held_out
        train, validation = load_splits(
            self.train_source,
            self.validation_source,
            "reward",
            cache_dir=self.cache_dir,
            fraction=self.validation_fraction,
            k=self.k,
        )
        return chosen_votes(train, self.labelers, self.rounds), validation

    def _regroup(self, epoch: int) -> list[Row]:
        seed = int(np.random.SeedSequence((self.seed, epoch, 2)).generate_state(1)[0])
        return reward_rows("train", self.k, seed)
