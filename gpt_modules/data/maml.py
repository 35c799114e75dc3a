"""Episodes for meta-learning: tasks drawn anew for every batch, each with a support set to adapt on and a query set to
be judged by.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any, Literal, cast

from gpt_modules.data.arguments import expect_default, expect_one_of, expect_whole
from gpt_modules.data.batches import EpisodeBatch
from gpt_modules.data.episodes.drawing import (
    AnyEpisode,
    EpisodeLoader,
    EpisodeStream,
    PointEpisode,
    draw_from,
    generator_of,
    mingled,
    stacked,
)
from gpt_modules.data.episodes.encoder import SEPARATOR, EpisodeEncoder, InContextSet
from gpt_modules.data.episodes.families import Episode, Family, PointFamily
from gpt_modules.data.loader import BatchLoader
from gpt_modules.data.resumable import ResumableDataModule
from gpt_modules.data.rows.sources import Source, warn_of_shared_rows
from gpt_modules.data.splits import Split
from gpt_modules.data.text.tokenizers import Tokenizer, TokenizerKind, check_training, of_size
from gpt_modules.errors import UserError
from gpt_modules.labelling import Labelling

TOKENIZER_EPISODES = 500  # of each family: so many show every character of it
TOKENIZER_EXAMPLES = 5
TOKENIZER_IDS = 512
VALIDATION_SEED = 0  # whatever the run's seed: all runs validate on the same tasks

Objective = Literal["language", "classification", "regression"]


class EpisodicDataModule(ResumableDataModule):
    """Tasks of one family, or of several in turn, each task with its own examples (Finn et al. 2017, section 2.1; the
    support and query sets of Vinyals et al. 2016).

    Args:
        families: What tasks are drawn from: families of text, or one of numbers.
        validation_families: The same for validation, to see whether adapting generalises over families; None: the
            held-out tasks of `families`.
        objective: "language": the response is predicted token by token. "classification": its class, by a head; all
            families then need the same number of classes. Numbers are always regression.
        support: Examples to adapt on, in all: N times K for N-way K-shot.
        query: Examples to be judged by, in all.
        tasks: Tasks a batch, of each process.
        steps: Batches an epoch.
        validation_tasks: Tasks to validate on, the same every time and for every seed.
        val_tasks_a_batch: Tasks a batch in validation; None: `tasks`.
        tokenizer: "train" (one of the families' own text), the folder of the model that it starts from, a tokenizer
            file, "gpt2", or a name on the hub.
        vocab_size: For "train": ids at most, the end token among them; None: 512. Of any other tokenizer: None, or what
            it has.
        tokenizer_kind: For "train" alone: characters, byte-level BPE like GPT-2's, or BPE of lower-cased words like
            GPT-1's.
        context: Tokens of a row.
        in_context: Train in context: the query set of a training task is one row, its support and query examples one
            after the other, every response a target; in validation one row a query, the support set before it.
        seed: Seed of the training tasks.
    """

    def __init__(
        self,
        families: list[Family] | PointFamily,
        validation_families: list[Family] | PointFamily | None = None,
        objective: Literal["language", "classification"] = "language",
        support: int = 10,
        query: int = 10,
        tasks: int = 4,
        steps: int = 1000,
        validation_tasks: int = 64,
        val_tasks_a_batch: int | None = None,
        tokenizer: str = "gpt2",
        vocab_size: int | None = None,
        tokenizer_kind: TokenizerKind = "characters",
        context: int = 128,
        in_context: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(tokenizer)
        self.families: dict[Split, list[Any]] = {"train": _listed(families)}
        self.families["validation"] = _listed(families if validation_families is None else validation_families)
        self.objective: Objective = "regression" if isinstance(families, PointFamily) else objective
        self.support, self.query, self.tasks, self.steps = support, query, tasks, steps
        self.validation_tasks, self.val_tasks_a_batch = (
            validation_tasks,
            tasks if val_tasks_a_batch is None else val_tasks_a_batch,
        )
        self.trained_vocab_size, self.trained_kind = vocab_size, tokenizer_kind
        self.context, self.in_context, self.seed = context, in_context, seed
        self._encoder: EpisodeEncoder | None = None
        self._check(objective)

    def sources(self) -> dict[str, list[Source]]:
        """Of families that read text; what they hold out of it hangs on both of their sources."""
        read = {
            split: [family for family in found if hasattr(family, "source")] for split, found in self.families.items()
        }
        both = [[source for source in (family.source, family.validation) if source] for family in read["validation"]]
        return {"train": [family.source for family in read["train"]], "validation": [*chain(*both)]}

    @property
    def task_spec(self) -> Labelling:
        """The task of a classifier: so many classes, named by their numbers. What they mean, each task says anew."""
        if self.objective != "classification":
            raise ValueError(f"found the objective {self.objective}, expected classification")
        return Labelling("classification", tuple(map(str, range(self.families["train"][0].classes))))

    def open_tokenizer(self) -> Tokenizer:
        """The tokenizer, for a classifier with task tokens."""
        if self.objective == "regression":
            raise UserError("tokenizer: found families of numbers, expected families of text")
        if self.tokenizer_name == "train":
            size = self.trained_vocab_size or TOKENIZER_IDS
            opened = Tokenizer.train(self.training_texts(), size, self.trained_kind)
        else:
            opened = of_size(super().open_tokenizer(), self.trained_vocab_size, self.tokenizer_name)
        return opened.with_task_tokens() if self.objective == "classification" else opened

    def training_texts(self) -> Iterator[str]:
        """Text to train a tokenizer on: training tasks of all families, whatever the seed."""
        for family in dict.fromkeys(chain(self.families["train"], self.families["validation"])):
            for number in range(TOKENIZER_EPISODES):
                support, query = family.episode(generator_of("train", 0, 0, number), "train", TOKENIZER_EXAMPLES, 1)
                yield SEPARATOR.join(example.prompt + example.response for example in support + query)

    def prepare_data(self) -> None:
        """Reads what the families read, once for all processes of a machine."""
        self._try_families()

    def setup(self, stage: str) -> None:
        """Draws and encodes an episode of each family, to find out before the first step what is wrong."""
        self.forget_loader()
        self._try_families()

    def train_dataloader(self) -> BatchLoader[EpisodeBatch]:
        """Batches of `tasks` new tasks."""
        _, world = self.sharding()
        encode = self._encode_training if self.in_context else self.encode
        stream = EpisodeStream(self._drawing("train", self.seed), encode, self.steps * self.tasks * world)
        return self.training_loader(stream, self.tasks, self.seed, partial(EpisodeLoader, steps=self.steps))

    def val_dataloader(self) -> BatchLoader[EpisodeBatch]:
        """The tasks of `episodes("validation", ...)` with seed 0."""
        encode = self._encode_validation if self.in_context else self.encode
        stream = EpisodeStream(self._drawing("validation", VALIDATION_SEED), encode, self.validation_tasks)
        return self.validation_loader(stream, self.val_tasks_a_batch)

    def episodes(self, split: Split, tasks: int, support: int, query: int, seed: int = 0) -> list[AnyEpisode]:
        """So many tasks of a split, of the families in turn: the same for the same arguments.

        To compare sizes of the support set on the same tasks, draw at the largest and take the beginning of each:
        `Episode(episode.support[:k], episode.query)`, or of an encoded set its first k examples, `[:, :k]`.
        """
        draw = draw_from(self.families[split], split, seed, support, query)
        return [draw(0, number) for number in range(tasks)]

    def encode(self, episodes: Sequence[AnyEpisode]) -> EpisodeBatch:
        """Episodes with sets of the same sizes as a batch, whatever `in_context` is: one row an example."""
        if self.objective == "regression":
            points = cast(Sequence[PointEpisode], episodes)
            return EpisodeBatch(stacked([x.support for x in points]), stacked([x.query for x in points]))
        return self.encoder.encode(cast(Sequence[Episode], episodes))

    def encode_in_context(self, episodes: Sequence[Episode]) -> InContextSet:
        """The same queries, each in one row behind its support set; for a language model."""
        if self.objective != "language":
            raise ValueError(f"found the objective {self.objective}, expected language")
        return self.encoder.encode_in_context(episodes)

    @property
    def encoder(self) -> EpisodeEncoder:
        """Text to rows of tokens."""
        if self._encoder is None:
            self._encoder = EpisodeEncoder(self.tokenizer, self.context, self.objective == "classification")
        return self._encoder

    def _encode_training(self, episodes: Sequence[Any]) -> EpisodeBatch:
        rows = self.encoder.encode_in_one_row([mingled(episode) for episode in episodes])
        return EpisodeBatch(self.encode(episodes).support, rows)

    def _encode_validation(self, episodes: Sequence[Any]) -> EpisodeBatch:
        return EpisodeBatch(self.encode(episodes).support, self.encode_in_context(episodes).rows)

    def _drawing(self, split: Split, seed: int) -> Callable[[int, int], AnyEpisode]:
        return draw_from(self.families[split], split, seed, self.support, self.query)

    def _try_families(self) -> None:
        for split, families in self.families.items():
            draw = self._drawing(split, VALIDATION_SEED)
            for number, family in enumerate(families):
                episode = draw(0, number)
                try:
                    self.encode([episode])
                except UserError as error:
                    raise UserError(f"{type(family).__name__}: {error}") from error
        self._tell_shared()

    def _tell_shared(self) -> None:
        """A family of validation may have been told to hold out what another family trains on."""
        train, validation = (
            [{"text": text} for family in families if isinstance(family, Family) for text in family.texts(split)]
            for split, families in self.families.items()
        )
        if validation:
            warn_of_shared_rows(train, validation, "validation_families")

    def _check(self, objective: str) -> None:
        """What no constructor argument says alone."""
        size = TOKENIZER_IDS if self.trained_vocab_size is None else self.trained_vocab_size
        check_training(self.tokenizer_name, size, self.trained_kind)
        names = ("support", "query", "tasks", "steps", "validation_tasks", "val_tasks_a_batch", "context")
        expect_whole(1, **{name: getattr(self, name) for name in names})
        expect_whole(0, None, seed=self.seed)
        expect_one_of(("language", "classification"), objective=objective)
        if not self.families["train"] or not self.families["validation"]:
            raise UserError("families: found none, expected at least one")
        found = {isinstance(family, PointFamily) for families in self.families.values() for family in families}
        if len(found) > 1:
            raise UserError("validation_families: found text beside numbers, expected the same kind as families")
        if self.in_context and (self.objective, objective) != ("language", "language"):
            raise UserError("in_context: found true without a language model, expected objective: language")
        if objective == "classification":
            self._check_classes()
        self._check_text()

    def _check_text(self) -> None:
        """What only text has, and what only a tokenizer that is trained."""
        text: dict[str, Any] = {"tokenizer_kind": self.trained_kind}
        if self.objective == "regression":
            text |= {"tokenizer": self.tokenizer_name, "vocab_size": self.trained_vocab_size, "context": self.context}
            expect_default(EpisodicDataModule, "families", "families of numbers", **text)
        elif self.tokenizer_name != "train":
            expect_default(EpisodicDataModule, "tokenizer", f"the tokenizer {self.tokenizer_name:.60}", **text)

    def _check_classes(self) -> None:
        if self.objective == "regression":
            raise UserError("objective: found classification for families of numbers, expected language")
        counts = [(type(f).__name__, f.classes) for families in self.families.values() for f in families]
        for name, classes in counts:
            if classes < 2 or classes != counts[0][1]:
                raise UserError(
                    f"families: found {name} with {classes} classes, expected the same number for all, at least 2"
                )


def _listed(families: list[Family] | PointFamily) -> list[Any]:
    return list(families) if isinstance(families, list) else [families]
