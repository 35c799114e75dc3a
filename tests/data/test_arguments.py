"""Every number that a recipe can give to the data: what is accepted works, what is not is one line that names it."""

import inspect
import math
from typing import get_args

import pytest

from gpt_modules.data.arguments import expect_one_of, expect_part, expect_positive, expect_whole
from gpt_modules.data.corpus.mixture import MixedSource
from gpt_modules.data.episodes.ciphers import AffineCipher, SubstitutionCipher
from gpt_modules.data.episodes.cloze import Cloze
from gpt_modules.data.episodes.label_words import LabelWords
from gpt_modules.data.episodes.sinusoid import Sinusoid
from gpt_modules.data.episodes.transforms import SequenceTransforms
from gpt_modules.data.episodes.ways import LabelledClasses
from gpt_modules.data.finetuning import FinetuningDataModule
from gpt_modules.data.maml import EpisodicDataModule
from gpt_modules.data.ppo import PPODataModule
from gpt_modules.data.pretraining import PretrainingDataModule
from gpt_modules.data.reward import RewardDataModule
from gpt_modules.data.rows.labelled import Columns
from gpt_modules.data.sft import SFTDataModule
from gpt_modules.errors import UserError

WHOLE = [0, -1, 1, 10**18]
REAL = [0.0, -1.0, 1.0, 2.5, math.nan, math.inf, -math.inf, 1e18]
DATA_MODULES = [PretrainingDataModule, FinetuningDataModule, SFTDataModule, RewardDataModule, PPODataModule]
FAMILIES = [AffineCipher, SubstitutionCipher, SequenceTransforms, Cloze, LabelWords, LabelledClasses]


def numbers_of(kind):
    """The arguments that take a number, and odd ones of their type."""
    types = {p.name: {p.annotation, *get_args(p.annotation)} for p in inspect.signature(kind).parameters.values()}
    return {name: REAL if float in found else WHOLE for name, found in types.items() if {int, float} & found}


def cases(kinds):
    return [(kind, name, value) for kind in kinds for name, odd in numbers_of(kind).items() for value in odd]


def draws(data):
    """A run's beginning: the first batch to train on and all that validates."""
    data.setup("fit")
    if not isinstance(data, PPODataModule):
        next(iter(data.train_dataloader()))
    next(iter(data.val_dataloader()))


def works_or_names(name, run):
    try:
        run()
    except UserError as error:
        line = str(error)
    else:
        return
    assert name in line
    assert "\n" not in line


@pytest.mark.parametrize(("kind", "name", "value"), cases(DATA_MODULES))
def test_a_number_of_a_data_module_works_or_is_named(kind, name, value, micro, tmp_path):
    word = kind.__name__.removesuffix("DataModule").lower()
    files = {"finetuning": micro.labelled, "sft": micro.sft, "reward": micro.comparisons, "ppo": micro.prompts}
    settings = {"train": str(files.get(word, micro.pretraining)), "tokenizer": str(micro.gpt)}
    small = {"episodes": 2} if word == "ppo" else {"context": 32, "batch_size": 2}
    works_or_names(name, lambda: draws(kind(**{**settings, **small, "cache_dir": str(tmp_path), name: value})))


@pytest.mark.parametrize(("kind", "name", "value"), cases([EpisodicDataModule]))
def test_a_number_of_the_episodes_works_or_is_named(kind, name, value, micro):
    settings = {"families": [AffineCipher(5, 2)], "tokenizer": str(micro.gpt), "context": 32, "steps": 2}
    sizes = {"support": 2, "query": 2, "tasks": 2, "validation_tasks": 2}
    works_or_names(name, lambda: draws(kind(**{**settings, **sizes, name: value})))


@pytest.mark.parametrize(("kind", "name", "value"), cases(FAMILIES))
def test_a_number_of_a_family_is_accepted_or_named_at_once(kind, name, value):
    sources = {"source": "reviews"} if kind in (Cloze, LabelledClasses) else {}
    works_or_names(name, lambda: kind(**{**sources, name: value}))


@pytest.mark.parametrize("kind", [*DATA_MODULES, EpisodicDataModule, *FAMILIES])
def test_what_no_number_may_be_is_refused_by_every_constructor(kind):
    needed = {"families": [AffineCipher()]} if kind is EpisodicDataModule else {}
    needed |= {"source": "reviews"} if kind in (Cloze, LabelledClasses) else {}
    for name, odd in numbers_of(kind).items():
        for value in {-1, math.nan, math.inf} & set(odd):
            with pytest.raises(UserError, match=rf"{name}: found {value}, expected "):
                kind(**{**needed, name: value})


@pytest.mark.parametrize("weight", [0, -1.0, math.nan, math.inf])
def test_a_weight_of_a_mixture_is_refused_before_a_source_is_read(weight):
    with pytest.raises(UserError, match=rf"^mixture\.1\.weight: found {weight}, expected a number above 0"):
        PretrainingDataModule(mixture=[MixedSource("no.txt", 1.0), MixedSource("none.txt", weight)])


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: LabelWords(domains=[]), r"domains: found \[\], expected film, product or both"),
        (lambda: LabelWords(words=["cup", "cup"]), r"words: found \['cup', 'cup'\], expected at least 2 different"),
        (lambda: SFTDataModule(tokenizer=""), "tokenizer: found '', expected a folder, a file, gpt2, or a name"),
        (lambda: FinetuningDataModule(labels=["a"]), r"labels: found \['a'\], expected at least 2 names"),
        (lambda: PretrainingDataModule(tokenizer="train"), "vocab_size: found none, expected a number of ids"),
        (lambda: PretrainingDataModule(tokenizer="train", vocab_size=256), "vocab_size: found 256, expected at le"),
    ],
)
def test_words_are_refused_before_any_work(make, line):
    with pytest.raises(UserError, match=f"^{line}"):
        make()


SHARED = {"train": "a.jsonl", "validation": "b.jsonl"}
IDLE = {
    "pretraining with a validation source": (PretrainingDataModule, SHARED, {"validation_fraction": 0.2}),
    "pretraining with a source of two parts": (PretrainingDataModule, {}, {"validation_fraction": 0.2}),
    "a mixture of such sources": (
        PretrainingDataModule, {"mixture": [MixedSource("reviews", 1.0)]}, {"validation_fraction": 0.2}),
    "a field beside a mixture": (PretrainingDataModule, {"mixture": [MixedSource("a.csv", 1.0)]}, {"text_field": "x"}),
    "a kind of a tokenizer that is there": (PretrainingDataModule, {}, {"tokenizer_kind": "gpt1"}),
    "finetuning with a validation source": (FinetuningDataModule, SHARED, {"validation_fraction": 0.2}),
    "finetuning on what is built in": (FinetuningDataModule, {"train": "products"}, {"validation_fraction": 0.2}),
    "columns of what is built in": (FinetuningDataModule, {}, {"columns": Columns(label="x")}),
    "a pair beside answers": (
        FinetuningDataModule, {"train": "a.csv", "task": "multiple_choice"}, {"columns": Columns(pair="x")}),
    "answers of a class": (FinetuningDataModule, {"train": "a.csv"}, {"columns": Columns(choices="x")}),
    "sft with a validation source": (SFTDataModule, SHARED, {"validation_fraction": 0.2}),
    "sft on the reviews": (SFTDataModule, {}, {"validation_fraction": 0.2}),
    "reward with a validation source": (RewardDataModule, SHARED, {"validation_fraction": 0.2}),
    "reward on the reviews": (RewardDataModule, {}, {"validation_fraction": 0.2}),
    "answers that rows have": (RewardDataModule, {"train": "a.jsonl"}, {"k": 4}),
    "ppo with a validation source": (PPODataModule, SHARED, {"validation_fraction": 0.2}),
    "ppo on the reviews": (PPODataModule, {}, {"validation_fraction": 0.2}),
    "numbers have no tokens": (EpisodicDataModule, {"families": Sinusoid()}, {"context": 64}),
    "numbers have no tokenizer": (EpisodicDataModule, {"families": Sinusoid()}, {"tokenizer": "train"}),
    "episodes by a tokenizer that is there": (
        EpisodicDataModule, {"families": [AffineCipher()]}, {"tokenizer_kind": "gpt1"}),
    "sentences of a source of two parts": (Cloze, {}, {"text_field": "x"}),
    "classes with a validation source": (
        LabelledClasses, {"source": "a.csv", "validation": "b.csv"}, {"validation_fraction": 0.2}),
    "classes of what is built in": (LabelledClasses, {"source": "reviews"}, {"columns": Columns(text="x")}),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "given", "idle"), IDLE.values(), ids=IDLE)
def test_an_argument_without_effect_is_refused(kind, given, idle):
    kind(**given)
    ((name, _),) = idle.items()
    with pytest.raises(UserError, match=rf"^{name}\S*: found .*, where it has no effect, expected ") as caught:
        kind(**given, **idle)
    assert len(str(caught.value)) < 400


def test_a_field_of_files_without_fields_is_refused(tmp_path, micro):
    (tmp_path / "a.txt").write_text("one two\n" * 50)
    text, rows = str(tmp_path / "a.txt"), str(micro.pretraining)
    settings = {"tokenizer": str(micro.gpt), "cache_dir": str(tmp_path), "context": 8, "text_field": "story"}
    for given in (
        {"train": text},
        {"train": text, "validation": "shakespeare"},
        {"mixture": [MixedSource(rows, 1.0)], "validation": text},
    ):
        with pytest.raises(UserError, match=r"^text_field: found 'story' beside .*, without fields, where it has no"):
            PretrainingDataModule(**given, **settings).prepare_data()
    with pytest.raises(UserError, match=r"jsonl:1: story: found no such field"):
        PretrainingDataModule(train=[text, rows], **settings).prepare_data()


@pytest.mark.parametrize("make", [PretrainingDataModule, lambda **k: EpisodicDataModule([AffineCipher()], **k)])
def test_ids_of_a_tokenizer_that_is_there_are_what_it_has(make, micro):
    have = micro.vocab_size
    assert make(tokenizer=str(micro.gpt), vocab_size=have).tokenizer.vocab_size == have
    found = rf"found {have + 1} beside the tokenizer \S+, which has {have} ids"
    with pytest.raises(UserError, match=rf"^vocab_size: {found}, expected {have}, or tokenizer: train$"):
        make(tokenizer=str(micro.gpt), vocab_size=have + 1).tokenizer  # noqa: B018


def test_none_is_left_to_the_argument():
    expect_whole(1, size=None)


def test_borders_belong_to_whole_numbers_and_not_to_parts():
    expect_whole(2, 8, k=2)
    expect_whole(2, 8, k=8)
    for k, expected in ((1, "at least 2"), (9, "at most 8")):
        with pytest.raises(UserError, match=f"^k: found {k}, expected {expected}$"):
            expect_whole(2, 8, k=k)
    for part in (0, 1, True):
        with pytest.raises(UserError, match=f"part: found {part}, expected a number above 0 and below 1"):
            expect_part(part=part)
    expect_positive(rate=1e-300)
    with pytest.raises(UserError, match="kind: found 'c', expected a or b"):
        expect_one_of(("a", "b"), kind="c")
