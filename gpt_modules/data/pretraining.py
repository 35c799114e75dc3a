"""Pretraining data: a corpus, or a mixture of several, as streams of tokens cut into windows."""

import hashlib
import json
import logging
from collections.abc import Iterator
from itertools import chain
from typing import Any

import tokenizers

from gpt_modules.data.arguments import IdleArgument, expect_default, expect_parted, expect_whole
from gpt_modules.data.batches import PackedBatch, TokenBatch
from gpt_modules.data.corpus.mixture import MixedSource, MixtureWindows, check_mixture
from gpt_modules.data.corpus.overlap import warn_of_shared_documents
from gpt_modules.data.corpus.shards import Tokens, between, join_tokens
from gpt_modules.data.corpus.streams import Corpus, tokens_fingerprint
from gpt_modules.data.corpus.windows import IsolatedWindows, TrainingWindows, ValidationWindows
from gpt_modules.data.loader import BatchLoader, Examples, limited
from gpt_modules.data.resumable import ResumableDataModule
from gpt_modules.data.rows.sources import REVIEWS, Source, cache_folder, has_own_splits, name_of
from gpt_modules.data.text.tokenizers import Tokenizer, TokenizerKind, check_training, of_size
from gpt_modules.storage.digests import sha256_of
from gpt_modules.storage.documents import settings_of
from gpt_modules.storage.durable import check_writable, replace_durably
from gpt_modules.storage.model_files import TOKENIZER_FILE

__all__ = ["PretrainingDataModule", "TrainingWindows", "ValidationWindows"]

log = logging.getLogger(__name__)


class PretrainingDataModule(ResumableDataModule):
    """Text to train a language model on, encoded once into a memory-mapped file in the cache, or encoded before.

    Documents are joined by `<|endoftext|>`; a window may hold the end of one and the start of the next, as in GPT-2
    and GPT-3 (Brown et al. 2020, appendix B).

    Args:
        train: "reviews", "shakespeare", "synthetic:TASK", files, folders or globs (.jsonl, .json, .csv, .parquet with
            a text field, .txt as one document each), or a data set's name on the hub ("owner/name" or
            "owner/name:config"); or tokens: a folder that `gpt prepare` wrote, or llm.c's .bin files. None: "reviews".
        mixture: Several such sources with weights, in place of `train`: each gets its share of the tokens trained on,
            whatever its size (Brown et al. 2020, table 2.2). An epoch has as many windows as all of them together.
        validation: As `train`; None: what embedded and generated sources hold out themselves, of other text
            `validation_fraction` of the documents by hash, and of tokens or of fewer than 100 documents the end (which
            moves when the source grows). Of a mixture: such a part of each source, one after the other.
        tokenizer: "gpt2", "train" (one of the training text), a folder or file with a tokenizer (a folder of
            `gpt prepare` has one), or a name on the hub.
        vocab_size: For "train": ids in all, the end token among them. Of any other tokenizer: None, or what it has.
        tokenizer_kind: For "train" alone: byte-level BPE like GPT-2's, BPE of lower-cased words like GPT-1's, or
            characters.
        context: Tokens a window, T of the batches.
        batch_size: Windows a batch, of each process.
        val_batch_size: The same for validation; None: `batch_size`.
        seed: Seed of the order and the offsets.
        cache_dir: None: $GPT_MODULES_CACHE or ~/.cache/gpt_modules.
        streaming: Read the source without storing a copy of it (only its tokens); files are never copied.
        text_field: The field that holds a row's text.
        validation_fraction: See `validation`.
        isolate_documents: Let no token see another document, and restart positions with each: better for short
            documents. False is GPT-2's and GPT-3's way.
    """

    def __init__(
        self,
        train: str | list[str] | None = None,
        validation: str | list[str] | None = None,
        tokenizer: str = "gpt2",
        vocab_size: int | None = None,
        tokenizer_kind: TokenizerKind = "gpt2",
        context: int = 128,
        batch_size: int = 16,
        val_batch_size: int | None = None,
        seed: int = 0,
        cache_dir: str | None = None,
        streaming: bool = False,
        text_field: str = "text",
        validation_fraction: float = 0.05,
        isolate_documents: bool = False,
        mixture: list[MixedSource] | None = None,
    ) -> None:
        super().__init__(tokenizer)
        check_training(tokenizer, vocab_size, tokenizer_kind)
        if tokenizer != "train":
            expect_default(
                PretrainingDataModule, "tokenizer", f"the tokenizer {tokenizer:.60}", tokenizer_kind=tokenizer_kind
            )
        expect_whole(1, context=context, batch_size=batch_size, val_batch_size=val_batch_size)
        expect_whole(0, None, seed=seed)
        if mixture is not None:
            if train is not None:
                beside, either = f"train {name_of(train):.60}", "either; null unsets the other one"
                raise IdleArgument("mixture", mixture, None, "train", beside, either)
            mixture = [settings_of(MixedSource, part, f"mixture.{place}") for place, part in enumerate(mixture)]
            check_mixture(mixture)
            if validation is None:
                expect_default(
                    PretrainingDataModule, "mixture", "a mixture, whose sources have their own", text_field=text_field
                )
        sources = [train or REVIEWS] if mixture is None else [part.source for part in mixture]
        own = all(map(has_own_splits, sources))
        expect_parted(PretrainingDataModule, ", ".join(map(name_of, sources)), validation, own, validation_fraction)
        self.isolate_documents = isolate_documents
        self.train_source, self.validation_source, self.mixture = train, validation, mixture
        self.trained_vocab_size, self.trained_kind = vocab_size, tokenizer_kind
        self.context, self.batch_size, self.val_batch_size, self.seed = context, batch_size, val_batch_size, seed
        self.cache_dir, self.streaming, self.text_field = cache_dir, streaming, text_field
        self.validation_fraction = validation_fraction
        self.train_tokens: Tokens | None = None
        self.validation_tokens: Tokens | None = None
        self._streams: list[Tokens] = []
        self._windows: MixtureWindows | None = None
        self._opened: list[Corpus] | None = None

    def open_tokenizer(self) -> Tokenizer:
        if self.tokenizer_name != "train":
            return of_size(super().open_tokenizer(), self.trained_vocab_size, self.tokenizer_name)
        assert self.trained_vocab_size is not None, "the constructor asks for it"
        settings = ("tokenizer", self.trained_kind, str(self.trained_vocab_size), tokenizers.__version__)
        keys = [corpus.key("train", *settings) for corpus in self._corpora()]
        key = keys[0] if len(keys) == 1 else hashlib.sha256(json.dumps(keys).encode()).hexdigest()[:24]
        folder = cache_folder(self.cache_dir) / "tokenizers" / key
        file, digest = folder / TOKENIZER_FILE, folder / f"{TOKENIZER_FILE}.sha256"
        if not (file.is_file() and digest.is_file() and digest.read_bytes() == sha256_of(file).encode()):
            if digest.exists():
                log.warning("%s: found altered since it was trained; trained anew", file)
            check_writable(folder)  # before the work
            Tokenizer.train(self._training_texts(), self.trained_vocab_size, self.trained_kind).save(folder)
            replace_durably(digest, sha256_of(file))
        return Tokenizer.load(folder)

    def sources(self) -> dict[str, list[Source]]:
        if self.mixture is None:
            return super().sources() | {"train": [self.train_source or REVIEWS]}
        return super().sources() | {"train": [part.source for part in self.mixture]}

    def fingerprint(self, source: Source, name: str) -> str:
        return tokens_fingerprint(source) or super().fingerprint(source, name)

    def prepare_data(self) -> None:
        """Trains the tokenizer and writes the tokens, unless the cache has them; checks what it has."""
        self._open()

    def setup(self, stage: str) -> None:
        """Maps the tokens into memory."""
        self.forget_loader()
        if self.train_tokens is None:
            self._open()

    def train_dataloader(self) -> BatchLoader[TokenBatch] | BatchLoader[PackedBatch]:
        """Batches (B, context), windows without replacement."""
        return self.training_loader(self.training_windows(), self.batch_size, self.seed)

    def val_dataloader(self) -> BatchLoader[TokenBatch] | BatchLoader[PackedBatch]:
        """Batches (B, context) that cover the validation text once."""
        return self.validation_loader(self.validation_windows(), self.val_batch_size or self.batch_size)

    def training_windows(self) -> Examples[Any]:
        """What is trained on, documents side by side or shut off from one another."""
        assert self.train_tokens is not None, "setup comes first"
        if self.mixture is None:
            return self._isolated(TrainingWindows(self.train_tokens, self.context, self.seed))
        self._windows = self._mixed_windows(self.mixture)
        return self._isolated(self._windows)

    def validation_windows(self) -> Examples[Any]:
        """What validates, the same way."""
        assert self.validation_tokens is not None, "setup comes first"
        return self._isolated(ValidationWindows(self.validation_tokens, self.context))

    def _isolated(self, windows: Examples[TokenBatch]) -> Examples[Any]:
        return IsolatedWindows(windows, self.tokenizer.start_id) if self.isolate_documents else windows

    def realised_mix(self) -> dict[str, float]:
        """What a mixture's training has seen so far, for logs; empty without a mixture or a training loader.

        Returns:
            `share/NAME`: of the windows seen, those of this source. `tokens/NAME`: how many tokens. `epochs/NAME`:
            passes over the source. All are functions of the loader's place alone, so that a resumed run goes on with
            the same numbers.
        """
        loader, windows = self._train_loader, self._windows
        if loader is None or windows is None:
            return {}
        an_epoch = int(limited(loader.whole, loader.limit)) * loader.size
        seen = loader.examples_before(loader.epoch, loader.position)
        drawn = windows.drawn(loader.epoch, min(seen, len(windows)), an_epoch)
        total = max(1, sum(drawn.values()))
        mix: dict[str, float] = {}
        for name, count, windows_a_pass in zip(windows.names, drawn.values(), windows.counts.tolist(), strict=True):
            mix |= {f"share/{name}": count / total, f"tokens/{name}": count * self.context}
            mix[f"epochs/{name}"] = count / windows_a_pass
        return mix

    def _mixed_windows(self, mixture: list[MixedSource]) -> MixtureWindows:
        weights, names = [source.weight for source in mixture], [source.label for source in mixture]
        windows = MixtureWindows(self._streams, weights, self.context, self.seed, names)
        for name, quota, passes in zip(names, windows.quotas.tolist(), windows.passes().values(), strict=True):
            share = quota / len(windows)
            log.info("mixture: %s: %.1f %% of the tokens, %.2f passes an epoch", name, 100 * share, passes)
        return windows

    def _open(self) -> None:
        opened = [corpus.open(self.tokenizer) for corpus in self._corpora()]
        self._streams = [train for train, _ in opened]
        self.train_tokens = join_tokens(self._streams)
        held_out = [validation for _, validation in opened if validation is not None]
        if self.mixture is not None and self.validation_source is not None:
            held_out = [self._whole(self.validation_source).open_validation(self.tokenizer)]
        if self.validation_source is not None:
            for corpus in self._corpora():
                warn_of_shared_documents(corpus, self._whole(self.validation_source))
        # Each stream opens with the end token that the one before it has closed with.
        self.validation_tokens = join_tokens(between(part, int(i > 0), len(part)) for i, part in enumerate(held_out))

    def _corpora(self) -> list[Corpus]:
        """What is trained on."""
        if self._opened is None:
            opened = self._described()
            self._check_fields(opened)
            if self.validation_source is not None:
                for corpus in opened:
                    corpus.refuse_shared(self.validation_source)
            self._opened = opened
        return self._opened

    def _check_fields(self, opened: list[Corpus]) -> None:
        for corpus in opened:
            corpus.check_field()
        if self.mixture is not None and self.validation_source is not None:
            self._whole(self.validation_source).check_field()

    def _described(self) -> list[Corpus]:
        settings = (self.cache_dir, self.streaming)
        if self.mixture is None:
            source = self.train_source or REVIEWS
            return [Corpus(source, self.validation_source, self.validation_fraction, False, self.text_field, *settings)]
        whole = self.validation_source is not None
        return [
            Corpus(part.source, None, self.validation_fraction, whole, part.text_field, *settings)
            for part in self.mixture
        ]

    def _whole(self, source: str | list[str]) -> Corpus:
        return Corpus(
            source, whole=True, text_field=self.text_field, cache_dir=self.cache_dir, streaming=self.streaming
        )

    def _training_texts(self) -> Iterator[str]:
        for corpus in self._corpora():
            yield from chain.from_iterable(corpus.documents("train"))
