"""What the DataModules share: a tokenizer, loaders, and a place in the data that travels in checkpoints."""

import hashlib
import json
import math
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, TypeVar

import lightning as L
import torch.distributed as dist

from gpt_modules.data.loader import BatchLoader, Examples, Place
from gpt_modules.data.rows.files import rows_digest
from gpt_modules.data.rows.labelled import is_built_in
from gpt_modules.data.rows.sources import Source, fingerprint, has_own_splits, local_files
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError, expect
from gpt_modules.storage.documents import typed

BatchT = TypeVar("BatchT")
RowsT = TypeVar("RowsT")
SHOWN_TOKENS = 12
READINGS = 5  # of files that somebody writes at the same time, such as a store that people label


class ResumableDataModule(L.LightningDataModule):
    """A DataModule with a tokenizer, that puts its training loader's place into checkpoints and takes it from them.

    Lightning's own loader state is not restored when a checkpoint was written at the end of an epoch; a DataModule's
    always is.
    """

    def __init__(self, tokenizer: str) -> None:
        super().__init__()
        expect(bool(tokenizer), "tokenizer", tokenizer, "a folder, a file, gpt2, or a name on the hub")
        self.tokenizer_name = tokenizer
        self._tokenizer: Tokenizer | None = None
        self._train_loader: BatchLoader[Any] | None = None
        self._pending: dict[str, int] | None = None
        self.beside: dict[str, ResumableDataModule] = {}  # other data that this one reads, by their keys
        self.files: dict[str, str] = {}  # path -> digest of what was read there

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, opened when first asked for (a constructor must not touch files: the command line could not
        tell why).

        Raises:
            UserError: It cannot be opened.
        """
        if self._tokenizer is None:
            self._tokenizer = self.open_tokenizer()
        return self._tokenizer

    def open_tokenizer(self) -> Tokenizer:
        """Opens or makes the tokenizer; `tokenizer` calls it once."""
        return Tokenizer.load(self.tokenizer_name)

    @cached_property
    def content(self) -> dict[str, str]:
        """A digest of what each source holds when first asked; what has no source of its own to validate with holds a
        part of `train` out.
        """
        sources = self.sources()
        digests = {name: [self.fingerprint(source, name) for source in found] for name, found in sources.items()}
        held_out = [str(getattr(self, "validation_fraction", "")), *digests["train"]]
        digests["validation"] = digests["validation"] or held_out
        own = {name: hashlib.sha256(json.dumps(found).encode()).hexdigest() for name, found in digests.items()}
        for name, data in self.beside.items():
            said = [key for key, sources in data.sources().items() if sources]
            own |= {f"{name}.{key}": data.content[key] for key in said}
        return own

    def sources(self) -> dict[str, list[Source]]:
        """The sources by their keys: what is trained on, what validates if it is named."""
        names = {"train": "train_source", "validation": "validation_source", "demonstrations": "demonstration_source"}
        found = {name: getattr(self, attribute, None) for name, attribute in names.items()}
        return {name: [] if source is None else [source] for name, source in found.items()}

    def fingerprint(self, source: Source, name: str) -> str:
        """Of the content of one of them."""
        if is_built_in(source) and not has_own_splits(source):
            return str(source)
        return fingerprint(source, "validation" if name == "validation" else "train", self.files)

    def read_whole(self, read: Callable[[], RowsT]) -> RowsT:
        """What `read` makes of the training and validation files in one state of theirs, whose digests are `files`.

        Raises:
            UserError: They change whenever they are read.
        """
        before = self._digests()
        for _ in range(READINGS):
            found, after = read(), self._digests()
            if after == before:
                self.files = after
                return found
            before = after
        raise UserError(f"data: found {', '.join(before)} changed whenever read, expected files that nobody writes")

    def expect_unchanged(self) -> None:
        """For what reads the files of a run once more.

        Raises:
            UserError: They are not those that were read.
        """
        now = self._digests() if self.files else {}
        for path, digest in self.files.items():
            if now.get(path) != digest:
                raise UserError(
                    f"{path}: found it changed since the run has read it, expected it left alone; begin anew"
                )

    def expect_agreement(self) -> None:
        """All processes of a run have read the same; called by all of them.

        Raises:
            UserError: One has read other content.
        """
        if not (self.files and dist.is_available() and dist.is_initialized()):
            return
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, [*self.files.values()])
        for number, path in enumerate(self.files):
            if len({digests[number] for digests in everyone}) > 1:
                raise UserError(f"{path}: found other content on another process of the run, expected it left alone")

    def files_of(self, source: Source) -> dict[str, str]:
        """Path -> digest of what `read_whole` has read of a source's files."""
        paths = [] if is_built_in(source) else map(str, local_files(source))
        return {path: self.files[path] for path in paths if path in self.files}

    def _digests(self) -> dict[str, str]:
        sources = self.sources()
        local = [one for name in ("train", "validation") for one in sources[name] if not is_built_in(one)]
        return {str(path): rows_digest(path) for source in local for path in local_files(source)}

    def longest_row(self) -> tuple[int, str]:
        """(tokens, what the context is found to be) of the longest row that a model will read; known after `setup`."""
        context, rows = int(getattr(self, "context", 0)), dict[str, Any]()
        for name in ("train", "validation", "predict"):
            examples: Examples[Any] | None = getattr(self, f"{name}_examples", None)
            if examples is not None:
                rows[name] = examples.longest_row()
        if not rows or any(row is None for row in rows.values()):
            return context, str(context)
        name, longest = max(rows.items(), key=lambda item: len(item[1]))
        text = self.tokenizer.decode(longest[:SHOWN_TOKENS].tolist())
        return len(longest), f"{context} and in {name} a row of {len(longest)} tokens ({text!r:.60}...)"

    def sharding(self) -> tuple[int, int]:
        """(rank, world) among the processes that see different data; (0, 1) without a Trainer."""
        kwargs = getattr(self.trainer, "distributed_sampler_kwargs", None) if self.trainer is not None else None
        return (int(kwargs["rank"]), int(kwargs["num_replicas"])) if kwargs else (0, 1)

    def training_loader(
        self, examples: Examples[Any], batch_size: int, seed: int, kind: Callable[..., BatchLoader[Any]] = BatchLoader
    ) -> BatchLoader[Any]:
        """A shuffled loader whose place this module saves; it goes on where the last one, or a checkpoint, stopped."""
        rank, world = self.sharding()
        loader = kind(examples, batch_size, seed, rank=rank, world=world)
        state = self._pending or (self._train_loader.state() if self._train_loader is not None else None)
        if state is not None:
            loader.restore(state)
        elif (checkpoint := getattr(self.trainer, "ckpt_path", None)) and self.trainer.state.fn == "fit":  # type: ignore[union-attr]
            where = f"{checkpoint}: {type(self).__qualname__}"
            raise UserError(f"{where}: found no place in the data, expected that of a checkpoint of this procedure")
        loader.limit = getattr(self.trainer, "limit_train_batches", 1.0)  # 1.0: of no Trainer
        if self.trainer is not None and loader.goes_on:
            # Or the epochs after it would get its length.
            self.trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]
        self._train_loader, self._pending = loader, None
        return loader

    def validation_loader(
        self, examples: Examples[BatchT], batch_size: int, alone: int | None = None
    ) -> BatchLoader[BatchT]:
        """Every example once, in a fixed order. The Trainer's limit, and `num_sanity_val_steps`, count the batches that
        one process would have, so that any number of them measures the same examples.

        Args:
            batch_size: Of each process.
            alone: Of a process that has no others; None: the same.

        Raises:
            UserError: The limit is a share of each process's batches.
        """
        rank, world = self.sharding()
        loader = BatchLoader(examples, batch_size, shuffle=False, drop_last=False, rank=rank, world=world)
        loader.most = self._most(world, alone or batch_size)
        loader.first = partial(self._sane, alone or batch_size)
        return loader

    def _sane(self, alone: int) -> int | None:
        """Examples of the Trainer's look at some batches before the first step; None: at any other time, or at all."""
        if self.trainer is None or not getattr(self.trainer, "sanity_checking", False):
            return None
        steps = self.trainer.num_sanity_val_steps
        return int(steps) * alone if math.isfinite(steps) else None

    def _most(self, world: int, alone: int) -> int | None:
        """Examples that a limit leaves to several processes together; None: one process, or no limit."""
        if self.trainer is None or world == 1:
            return None
        stage = self._stage if self._stage in ("test", "predict") else "val"
        limit = getattr(self.trainer, f"limit_{stage}_batches", None)
        if isinstance(limit, float) and limit < 1.0:
            found = f"found {limit} beside {world} processes, expected a whole number of batches, as one has them"
            raise UserError(f"trainer.limit_{stage}_batches: {found}")
        return limit * alone if isinstance(limit, int) and limit else None

    @property
    def _stage(self) -> str | None:
        """What the Trainer is asked for: fit, validate, test or predict."""
        state = getattr(self.trainer, "state", None)
        return None if state is None or state.fn is None else str(state.fn.value)

    def test_dataloader(self) -> Any:
        """What `gpt test` reads: the validation source, so name your test file with `--data.validation`."""
        return self.val_dataloader()

    def predict_dataloader(self) -> Any:
        """What `gpt predict` reads: the validation source, in the order of its rows to be read beside them; of several,
        the first.
        """
        loaders = self.val_dataloader()
        loader: BatchLoader[Any] = loaders[0] if isinstance(loaders, list) else loaders
        loader.by_length = False
        if self._stage != "predict":  # a table of samples asks for rows of its own
            loader.most = None
        return loader

    def forget_loader(self) -> None:
        """For `setup`: another fit with this module begins at the first epoch again, unless a checkpoint says
        otherwise.
        """
        self._train_loader = None

    def state_dict(self) -> dict[str, Any]:
        if self._train_loader is not None:
            return {"loader": self._train_loader.state()}
        return {"loader": self._pending} if self._pending is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the place until there is a loader.

        Raises:
            UserError: It is none.
        """
        name = f"{type(self).__qualname__}: loader"
        self._pending = typed(Place, state_dict.get("loader"), name)._asdict() if state_dict else None
        if self._train_loader is not None and self._pending is not None:
            self._train_loader.restore(self._pending)
            self._pending = None
