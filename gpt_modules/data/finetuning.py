"""Labelled data for fine-tuning, as rows of tokens between a start and an extract token (Radford et al. 2018, section
3.3 and figure 1).
"""

import logging
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from gpt_modules.data.arguments import expect_one_of, expect_parted, expect_whole
from gpt_modules.data.batches import LabelledBatch
from gpt_modules.data.collate import TaskExample, collate_tasks, cut_answer, cut_pair, join_row
from gpt_modules.data.loader import BatchLoader, Examples
from gpt_modules.data.resumable import ResumableDataModule
from gpt_modules.data.rows.classes import agreed, check_names, measured, named_by, saved_task
from gpt_modules.data.rows.labelled import (
    Columns,
    LabelledRow,
    built_in_rows,
    check_columns,
    is_built_in,
)
from gpt_modules.data.rows.sources import (
    REVIEWS,
    Source,
    load_rows,
    name_of,
    refuse_shared_files,
    split_rows,
    warn_of_shared_rows,
)
from gpt_modules.data.splits import Row, Split
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError
from gpt_modules.labelling import Labelling, LabellingKind
from gpt_modules.storage.documents import settings_of

log = logging.getLogger(__name__)


class TaskExamples(Examples[LabelledBatch]):
    """Labelled rows, encoded: each different text once, an example as one row of tokens or as several. What is longer
    than the context is cut, and how many were is logged once.

    Args:
        rows: Checked rows with labels as numbers.
        tokenizer: With task tokens.
        task: What the rows are labelled for.
        context: Tokens of the longest row, the added ones among them.
        source: The name in messages.

    Raises:
        UserError: The context has no room for a token of each text.
    """

    def __init__(self, rows: Sequence[Row], tokenizer: Tokenizer, task: Labelling, context: int, source: str) -> None:
        self.task, self.context, self.task_ids, self.begin = task, context, tokenizer.task_ids, tokenizer.begin
        texts = list(dict.fromkeys(text for row in rows for text in _texts(row)))
        ids = dict(zip(texts, tokenizer.encode_batch(texts), strict=True))
        self.examples = [self._example(row, ids) for row in rows]
        self._lengths = np.array([max(map(len, example.rows)) for example in self.examples], dtype=np.int64)
        cut = sum(_is_cut(example, row, ids) for example, row in zip(self.examples, rows, strict=True))
        if cut:
            log.warning("%s: of %d rows, %d are cut to the context of %d tokens", source, len(rows), cut, context)

    def __len__(self) -> int:
        return len(self.examples)

    def lengths(self, epoch: int) -> NDArray[np.int64] | None:
        return self._lengths

    def longest_row(self) -> NDArray[np.int64]:
        return max((row for example in self.examples for row in example.rows), key=len)

    def batch(self, epoch: int, indices: NDArray[np.int64]) -> LabelledBatch:
        return collate_tasks([self.examples[i] for i in indices.tolist()], self.task.numeric)

    def _example(self, row: Row, ids: dict[str, list[int]]) -> TaskExample:
        text, second = ids[row["text"]], [ids[other] for other in _texts(row)[1:]]
        room = self.context - len(self.begin) - (3 if second else 2)
        if room < (least := 2 if second else 1):
            raise UserError(f"context: found {self.context}, expected at least {self.context - room + least} tokens")
        parts: list[tuple[Sequence[int], ...]]
        if "choices" in row:
            parts = [cut_answer(text, answer, room) for answer in second]
        else:
            parts = [cut_pair(text, second[0], room)] if second else [(text[:room],)]
        if self.task.kind == "similarity":
            parts.append(parts[0][::-1])
        return TaskExample([join_row(part, self.task_ids, self.begin) for part in parts], row["label"])


class FinetuningDataModule(ResumableDataModule):
    """Labelled texts, pairs of texts, or questions with answers to choose from.

    Args:
        train: "reviews" (embedded: film sentences, positive or negative; for regression their ratings), "products" (the
            same of products), "quantifiers" (generated, for entailment), "possessions" (generated, for
            multiple_choice), files, folders or globs of rows, or a data set's name on the hub.
        validation: The same; None: the built-in data's own split, else `validation_fraction` of the texts by hash.
        tokenizer: The folder of the model that it starts from, a tokenizer file, "gpt2", or a name on the hub. Three
            tokens are added where it lacks them.
        task: What the labels say.
        columns: Names of the columns.
        labels: Names of the classes in the order of their numbers; None: the texts that the training rows hold,
            sorted, or the numbers from 0. For multiple choice: what the answers are called, as ["A", "B", "C", "D"],
            or ["1", "2"] for answers counted from 1.
        levels: Lowest and highest score, where labels are scores between them.
        context: Tokens of a row.
        batch_size: Examples a batch, of each process.
        val_batch_size: The same for validation; None: `batch_size`.
        seed: Seed of the order, and of `train_rows`.
        cache_dir: None: $GPT_MODULES_CACHE or ~/.cache/gpt_modules.
        validation_fraction: See `validation`.
        train_rows: Train on so many rows, drawn at random, as if there were no more; None: all.
    """

    def __init__(
        self,
        train: str | list[str] = REVIEWS,
        validation: str | list[str] | None = None,
        tokenizer: str = "gpt2",
        task: LabellingKind = "classification",
        columns: Columns = Columns(),
        labels: list[str] | None = None,
        levels: list[int] | None = None,
        context: int = 128,
        batch_size: int = 32,
        val_batch_size: int | None = None,
        seed: int = 0,
        cache_dir: str | None = None,
        validation_fraction: float = 0.1,
        train_rows: int | None = None,
    ) -> None:
        super().__init__(tokenizer)
        columns = settings_of(Columns, columns, "columns")
        expect_one_of(get_args(LabellingKind), task=task)
        expect_whole(3, context=context)  # a start, a token and an extract token
        expect_whole(1, batch_size=batch_size, val_batch_size=val_batch_size, train_rows=train_rows)
        expect_whole(0, None, seed=seed)
        expect_parted(FinetuningDataModule, train, validation, is_built_in(train), validation_fraction)
        check_columns(task, columns, train, validation)
        check_names(task, labels, levels)
        self.train_source, self.validation_source = train, validation
        self.task, self.columns, self.labels, self.levels = task, columns, labels, levels
        self.context, self.batch_size, self.val_batch_size = context, batch_size, val_batch_size
        self.seed, self.cache_dir, self.validation_fraction = seed, cache_dir, validation_fraction
        self.train_rows = train_rows
        self.train_examples: TaskExamples | None = None
        self.validation_examples: TaskExamples | None = None
        self.predict_examples: TaskExamples | None = None
        self._task: Labelling | None = None

    @property
    def task_spec(self) -> Labelling:
        """The task with its classes, or mean and spread of its numbers; known after `setup`."""
        assert self._task is not None, "setup comes first"
        return self._task

    def open_tokenizer(self) -> Tokenizer:
        """The tokenizer, with task tokens."""
        return super().open_tokenizer().with_task_tokens()

    def prepare_data(self) -> None:
        """Fills the cache of downloads, once for all processes of a machine."""
        stage = self.trainer.state.fn if self.trainer is not None else None
        self._read("fit" if stage is None else stage.value)

    def setup(self, stage: str) -> None:
        """Reads and encodes what the stage needs. All but "predict" need labels."""
        self.forget_loader()
        if stage == "predict" and self.predict_examples is None:
            _, rows = self._read(stage)
            self.predict_examples = self._examples(rows, "predict")
        missing = self.train_examples if stage == "fit" else self.validation_examples
        if stage != "predict" and missing is None:
            train, validation = self.read_whole(lambda: self._read(stage)) if stage == "fit" else self._read(stage)
            self.expect_agreement()
            self.validation_examples = self._examples(validation, "validation")
            self.train_examples = self._examples(train, "train") if stage == "fit" else None

    def train_dataloader(self) -> BatchLoader[LabelledBatch]:
        """Batches of `batch_size` examples of like length."""
        assert self.train_examples is not None, "setup comes first"
        return self.training_loader(self.train_examples, self.batch_size, self.seed)

    def val_dataloader(self) -> BatchLoader[LabelledBatch]:
        """The same, every example once."""
        assert self.validation_examples is not None, "setup comes first"
        return self.validation_loader(self.validation_examples, self.val_batch_size or self.batch_size)

    def predict_dataloader(self) -> BatchLoader[LabelledBatch]:
        """The validation source in the order of its rows, which need no labels."""
        examples = self.predict_examples or self.validation_examples
        assert examples is not None, "setup comes first"
        loader = self.validation_loader(examples, self.val_batch_size or self.batch_size)
        loader.by_length = False
        return loader

    def rows(self) -> tuple[list[Row], list[Row]]:
        """(training, validation) rows as text, {"text", "pair" or "choices" where the task has them, "label"}, labels
        as numbers: for baselines.

        Raises:
            UserError: They are no longer what `setup` has read.
        """
        found = self._read("fit")
        self.expect_unchanged()
        return found

    def _examples(self, rows: list[Row], name: str) -> TaskExamples:
        return TaskExamples(rows, self.tokenizer, self.task_spec, self.context, name)

    def _read(self, stage: str) -> tuple[list[Row], list[Row]]:
        """(training, validation) rows of a stage; where it neither trains nor learns its task from the training rows,
        there are none of those.
        """
        known, labelled = self._known_task(stage), stage != "predict"
        if stage != "fit" and known is not None and self.validation_source is not None:
            self._task = known
            return [], self._load(self.validation_source, "validation", known, labelled)
        train = self._load(self.train_source, "train", known, labelled or known is None)
        named = known or named_by(train, self.task, self.train_source)
        if self.validation_source is None and not is_built_in(self.train_source):
            check, fraction = self._check(named, labelled), self.validation_fraction
            train, validation = split_rows(train, check, fraction, self.train_source)
        else:
            validation = self._load(self.validation_source or self.train_source, "validation", named, labelled)
            if stage == "fit" and self.validation_source is not None:
                refuse_shared_files(self.train_source, self.validation_source)
                warn_of_shared_rows(train, validation, name_of(self.validation_source))
        train = self._drawn(train)
        self._task = known or measured(named, train, self.train_source)
        return train, validation

    def _drawn(self, train: list[Row]) -> list[Row]:
        """`train_rows` of them, in their order."""
        count = self.train_rows
        if count is None:
            return train
        if not 1 <= count <= len(train):
            name = name_of(self.train_source)
            raise UserError(f"train_rows: found {count}, expected 1 to the {len(train)} of {name}")
        drawn = np.random.default_rng(self.seed).choice(len(train), count, replace=False)
        return [train[i] for i in np.sort(drawn).tolist()]

    def _known_task(self, stage: str) -> Labelling | None:
        """The task, where it is clear without the training rows; `setup` of an earlier stage may have found it."""
        if self._task is not None:
            return self._task
        names = self.labels if self.task != "multiple_choice" else None
        given = Labelling(self.task, tuple(names or ()), self._levels())
        folder = self._model_folder(stage)
        saved = None if folder is None else saved_task(folder)
        if folder is not None and saved is not None and saved.kind == self.task and not saved.unnamed:
            return agreed(given, saved, folder)
        clear = names is not None or self.task == "multiple_choice" or self.levels is not None
        return given if clear else None

    def _levels(self) -> tuple[int, int] | None:
        return None if self.levels is None else (self.levels[0], self.levels[1])

    def _model_folder(self, stage: str) -> str | None:
        """What the run's model begins from: its class numbers are the ones that count. Without a Trainer, to predict,
        the folder of the tokenizer.
        """
        module: Any = None if self.trainer is None else self.trainer.lightning_module
        if module is None or "init_from" not in module.hparams:
            return self.tokenizer_name if stage == "predict" else None
        folder: str | None = module.hparams["init_from"]
        return folder

    def _check(self, task: Labelling | None, labelled: bool, columns: Columns | None = None) -> LabelledRow:
        names = self.labels if self.task == "multiple_choice" or task is None else task.labels or None
        levels = self.levels if task is None else task.levels
        return LabelledRow(self.task, columns or self.columns, names, levels, labelled, "data.columns")

    def _load(self, source: Source, split: Split, task: Labelling | None, labelled: bool) -> list[Row]:
        if not is_built_in(source):
            return load_rows(source, split, self._check(task, labelled), cache_dir=self.cache_dir)
        return built_in_rows(str(source), split, self._check(task, labelled, Columns()))


def _texts(row: Row) -> list[str]:
    return [row["text"], *([row["pair"]] if "pair" in row else row.get("choices", []))]


def _is_cut(example: TaskExample, row: Row, ids: dict[str, list[int]]) -> bool:
    """Whether a row of tokens is shorter than its texts and the tokens around them."""
    text, *second = (len(ids[other]) for other in _texts(row))
    whole = [text + other + 3 for other in second] or [text + 2]
    return any(len(tokens) < full for tokens, full in zip(example.rows, whole, strict=False))
