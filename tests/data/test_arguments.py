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
from gpt_modules.data.episodes.transforms import SequenceTransforms
from gpt_modules.data.episodes.ways import LabelledClasses
from gpt_modules.data.finetuning import FinetuningDataModule
from gpt_modules.data.maml import EpisodicDataModule
from gpt_modules.data.ppo import PPODataModule
from gpt_modules.data.pretraining import PretrainingDataModule
from gpt_modules.data.reward import RewardDataModule
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
    with pytest.raises(UserError, match=rf"^mixture\[1\].weight: found {weight}, expected a number above 0"):
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
