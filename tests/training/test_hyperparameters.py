"""Hyper-parameters are plain data, and those of which nothing follows are refused."""

import inspect
import math
from dataclasses import is_dataclass, replace
from typing import get_args, get_type_hints

import pytest
import torch

from gpt_modules import training
from gpt_modules.backbone import Decoder, DecoderConfig, LoRAConfig
from gpt_modules.data import Columns, FinetuningDataModule, PPODataModule, PretrainingDataModule, SFTDataModule
from gpt_modules.data.corpus.mixture import MixedSource
from gpt_modules.data.episodes.ways import LabelledClasses
from gpt_modules.data.mixed import PretrainingText
from gpt_modules.errors import UserError
from gpt_modules.evaluation.callbacks import ZeroShotProbes
from gpt_modules.evaluation.probes import Probe
from gpt_modules.training import (
    DPOModule,
    FinetuningModule,
    MAMLModule,
    PPOModule,
    PretrainingModule,
    RewardModule,
    SFTModule,
)
from gpt_modules.training.accumulation import BatchConfig
from gpt_modules.training.callbacks.checkpointing import ExactCheckpoint
from gpt_modules.training.callbacks.export import ExportBest
from gpt_modules.training.callbacks.throughput import Throughput
from gpt_modules.training.hyperparameters import arguments, plain, typed
from gpt_modules.training.inner_loop import InnerLoop
from gpt_modules.training.optimizers import OptimizerConfig, ScheduleConfig
from gpt_modules.training.ppo import ClipConfig, CriticConfig, KLConfig
from gpt_modules.training.rl.rewards import RewardSource
from gpt_modules.training.rl.settings import EarlyStop, EMAConfig

MODULES = [PretrainingModule, SFTModule, RewardModule, PPOModule, DPOModule]


@pytest.mark.parametrize("kind", MODULES)
def test_every_argument_is_documented(kind):
    documented = {line.split(":")[0] for line in map(str.strip, kind.__doc__.splitlines()) if ":" in line}
    names = {name.strip() for line in documented for name in line.split(",")}
    assert set(inspect.signature(kind).parameters) <= names


@pytest.mark.parametrize(
    ("word", "decoders"), [("pretraining", 1), ("finetuning", 1), ("sft", 1), ("reward", 1), ("ppo", 4)]
)
def test_compiled_is_what_it_is_asked_for(fit, procedure, monkeypatch, word, decoders):
    """The policy, the critic, the reference and the reward of PPO; of the others the model."""
    compiled = []
    monkeypatch.setattr(Decoder, "compile_blocks", lambda decoder: compiled.append(decoder))
    for asked in (False, True):
        fit(*procedure(word, compile=asked), limit_train_batches=0, limit_val_batches=0)
        assert len(set(map(id, compiled))) == asked * decoders


def test_activations_are_recomputed_where_it_is_asked_for(fit, procedure):
    for asked in (False, True):
        module, data = procedure("pretraining", recompute=asked)
        fit(module, data, limit_train_batches=0, limit_val_batches=0)
        assert module.model.decoder.recompute == asked
        module, data = procedure("ppo", recompute=asked)
        fit(module, data, limit_train_batches=0, limit_val_batches=0)
        assert module.policy.decoder.recompute == module.critic.decoder.recompute == asked


@pytest.mark.parametrize("kind", [ScheduleConfig, KLConfig, ClipConfig])
def test_dataclasses_survive_the_way_through_plain_data(kind):
    value = kind()
    assert isinstance(plain(value), dict)
    assert plain(typed(kind, plain(value))) == plain(value)
    assert typed(kind, value) is value


def test_tuples_become_lists_and_arguments_leave_self_out():
    assert plain({"betas": (0.9, 0.95), "n": None, "deep": [{"x": (True, "y")}]}) == {
        "betas": [0.9, 0.95],
        "n": None,
        "deep": [{"x": [True, "y"]}],
    }
    assert arguments({"self": object(), "__class__": int, "lr": 1.0}) == {"lr": 1.0}


def test_what_is_no_plain_data_is_refused_at_construction():
    with pytest.raises(TypeError, match="plain data, found function"):
        plain({"function": lambda: None})
    with pytest.raises(
        UserError, match=r"^rewards: found <function .*; a function by its name, 'package.module:name'$"
    ):
        arguments({"rewards": test_what_is_no_plain_data_is_refused_at_construction})
    with pytest.raises(UserError, match=r"^model: found <object .*, expected numbers, texts, lists and mappings; "):
        arguments({"model": object()})


@pytest.mark.parametrize("found", ["adam", 3, ["adam"], {"lrr": 1.0}])
def test_what_is_no_group_of_settings_is_told_with_their_names(found):
    with pytest.raises(UserError, match=r"^OptimizerConfig: found .*, expected one, or a mapping with names among lr,"):
        typed(OptimizerConfig, found)


CLASSES = [
    PretrainingModule, FinetuningModule, SFTModule, RewardModule, PPOModule, MAMLModule, DPOModule,
    OptimizerConfig, ScheduleConfig, BatchConfig, LoRAConfig, InnerLoop, ExactCheckpoint, Throughput,
]  # fmt: skip
NEEDED = {"init_from": "folder", "rewards": "folder", "tokens": 100.0}


def numbers():
    """Every constructor argument that is a number, with numbers that it cannot be."""
    for kind in CLASSES:
        hints = get_type_hints(kind.__init__)
        for name in inspect.signature(kind).parameters:
            kinds = {int, float, tuple[float, float]} & {hints[name], *get_args(hints[name])}
            wrong = ([-1] if kinds else []) + ([math.nan, -math.inf] if kinds - {int} else [])
            for value in wrong if name != "missing_eos_score" else [math.nan]:  # any finite score will do
                yield pytest.param(kind, name, value, id=f"{kind.__name__}-{name}-{value}")


@pytest.mark.parametrize(("kind", "name", "value"), list(numbers()))
def test_every_number_is_refused_at_construction_by_its_name(kind, name, value):
    needed = {key: given for key, given in NEEDED.items() if key in inspect.signature(kind).parameters}
    with pytest.raises(UserError, match=rf"\b{name}\b.*found .*, expected") as error:
        kind(**{**needed, name: (value, 0.9) if name == "betas" else value})
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (OptimizerConfig, {"betas": (0.9, 2.0)}, r"optimizer\.betas: found 2\.0, expected a number in \[0, 1\)"),
        (ScheduleConfig, {"warmup": 9, "total": 5}, r"schedule\.total: found 5, expected at least the warm-up's 9"),
        (ScheduleConfig, {"warmup": 9, "unit": "run"}, r"schedule\.warmup: found 9, expected a number in \[0, 1\]"),
        (ExactCheckpoint, {"every_n_steps": 0}, r"checkpoint\.every_n_steps: found 0, expected a whole number in"),
        (ExactCheckpoint, {"keep": 1}, r"checkpoint\.keep: found 1, expected a whole number in \[2, inf\)"),
        (ExportBest, {"mode": "max"}, r"export\.mode: found 'max', expected it left at 'min': there is no monitor"),
        (LoRAConfig, {"rank": 0}, r"lora\.rank: found 0"),
        (LoRAConfig, {"rank": True}, r"lora\.rank: found True"),
        (SFTModule, {"init_from": "x", "dropout": 1.5}, r"dropout: found 1\.5, expected a number in \[0, 1\)"),
    ],
)
def test_values_beyond_the_other_end(kind, arguments, message):
    with pytest.raises(UserError, match=message):
        kind(**arguments)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [(KLConfig, {"coef": 1e39}), (ClipConfig, {"value_coef": 1e39}), (OptimizerConfig, {"lr": 1e39})],
)
def test_a_coefficient_is_no_more_than_float32_holds(kind, arguments):
    (name,) = arguments
    with pytest.raises(UserError, match=rf"\.{name}: found 1e\+39, expected a number up to 3\.4e\+38, which float32 h"):
        kind(**arguments)
    kind(**{name: 3.4e38})


SGD, LEVEL = OptimizerConfig(sgd=True, lr=0.1), ScheduleConfig(shape="constant")
REPTILE = OptimizerConfig(lr=0.5, weight_decay=0.0, eps=1.0)
CRITIC_AT_REST = ClipConfig(value_coef=0.0)
IDLE = [
    ("sft", {"optimizer": replace(SGD, betas=(0.5, 0.9))}, "optimizer.betas: found [0.5, 0.9]"),
    ("reward", {"optimizer": replace(SGD, eps=1e-3)}, "optimizer.eps: found 0.001"),
    ("pretraining", {"schedule": replace(LEVEL, final=0.3)}, "schedule.final: found 0.3"),
    ("finetuning", {"schedule": replace(LEVEL, total=7.0)}, "schedule.total: found 7.0"),
    ("ppo", {"schedule": ScheduleConfig(warmup_start=0.5)}, "schedule.warmup_start: found 0.5"),
    ("pretraining", {"sample_tokens": 7}, "sample_tokens: found 7"),
    ("sft", {"seed": 7}, "seed: found 7"),
    ("dpo", {"sample_tokens": 7}, "sample_tokens: found 7"),
    ("finetuning", {"optimizer": OptimizerConfig(muon_lr=0.1), "layer_decay": 0.5}, "layer_decay: found 0.5"),
    ("ppo", {"kl": KLConfig(horizon=7.0)}, "kl.horizon: found 7.0"),
    ("ppo", {"clip": replace(CRITIC_AT_REST, value=0.5)}, "clip.value: found 0.5"),
    ("ppo", {"clip": CRITIC_AT_REST, "critic": CriticConfig(lr=0.5)}, "critic.lr: found 0.5"),
    ("maml", {"inner": InnerLoop(0, rates="per_step")}, "inner.rates: found 'per_step'"),
    ("maml", {"algorithm": "reptile", "inner": InnerLoop(2), "optimizer": REPTILE}, "optimizer.eps: found 1.0"),
    ("maml", {"network": torch.nn.Linear(1, 1)}, "init_from: found '"),
    ("maml", {"init_from": None, "network": torch.nn.Linear(1, 1), "config": DecoderConfig()}, "config: found {"),
]  # fmt: skip


@pytest.mark.parametrize(("word", "given", "line"), IDLE)
def test_a_setting_that_nothing_follows_is_refused(procedure, word, given, line):
    with pytest.raises(UserError) as caught:
        procedure(word, **given)
    assert str(caught.value).startswith(line)
    assert ", expected it left at " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("word", ["pretraining", "finetuning", "sft", "reward", "ppo", "maml", "dpo"])
def test_defaults_are_nobodys_wish(procedure, word):
    """Neither those of a procedure nor those of a group: one setting given leaves the others as they are."""
    module, _ = procedure(word, optimizer=SGD, schedule=LEVEL)
    defaults = inspect.signature(type(module)).parameters
    own = {"optimizer": {"sgd": True}, "schedule": {"shape": "constant"}}
    procedure(word, **{name: replace(defaults[name].default, **change) for name, change in own.items()})


OWNERS = [getattr(training, name) for name in training.__all__]
OWNERS += [PretrainingDataModule, FinetuningDataModule, SFTDataModule, PPODataModule, LabelledClasses, ZeroShotProbes]
EXAMPLES = {
    "config": DecoderConfig(vocab_size=300, n_layer=1, n_head=1, n_embd=8), "lora": LoRAConfig(2),
    "batch": BatchConfig(9),
    "ema": EMAConfig(0.5), "early_stop": EarlyStop(kl=0.5), "columns": Columns("comment", label="verdict"),
    "pretraining": PretrainingText(mixture=[MixedSource("a.txt", 1.0), MixedSource("b.txt", 2.0)]),
    "mixture": [MixedSource(["a.txt"], 1.0)], "probes": [Probe("sst2", "rows.jsonl")],
    "rewards": RewardSource(folder="folder"), "monitors": {"mine": RewardSource(function="m:f")},
    "critic": CriticConfig(lora=LoRAConfig(2)), "optimizer": OptimizerConfig(lr=0.5, betas=(0.5, 0.6)),
}  # fmt: skip


def groups_in(hint):
    """The dataclasses in an annotation, whatever is around them."""
    inner = [group for of in get_args(hint) for group in groups_in(of)]
    return [hint] if is_dataclass(hint) else inner


def groups():
    """Every constructor argument that is a group of settings, or has some."""
    for owner in OWNERS:
        hints = get_type_hints(owner.__init__)
        for name, parameter in inspect.signature(owner).parameters.items():
            if groups_in(hints.get(name)):
                default = parameter.default if is_dataclass(parameter.default) else None
                yield pytest.param(owner, name, EXAMPLES.get(name, default), id=f"{owner.__name__}-{name}")


def as_told(name, value, change=lambda group: group):
    """A group as a mapping, in what stands around it."""
    if isinstance(value, list):
        return [as_told(name, one, change) for one in value]
    if isinstance(value, dict):
        return {key: as_told(name, one, change) for key, one in value.items()}
    return change(plain(value))


@pytest.fixture
def unchecked(monkeypatch):
    """Constructors without the check of their annotations, which name the dataclass alone, as recipes have it."""
    for owner in OWNERS:
        monkeypatch.setattr(owner, "__init__", inspect.unwrap(owner.__init__))


def made(owner, name, value):
    parameters = inspect.signature(owner).parameters
    needed = {"init_from": "folder", "rewards": "folder", "source": "rows.jsonl", "train": "rows.jsonl"}
    if name in ("mixture", "config"):
        needed = {key: of for key, of in needed.items() if key not in ("train", "init_from")}
    return owner(**{**{key: of for key, of in needed.items() if key in parameters}, name: value})


@pytest.mark.parametrize(("owner", "name", "value"), list(groups()))
def test_a_group_of_settings_may_be_told_as_a_mapping(unchecked, owner, name, value):
    told, given = made(owner, name, as_told(name, value)), made(owner, name, value)
    if hasattr(given, "hparams") and name in given.hparams:
        assert told.hparams == given.hparams
        return
    found, expected = (getattr(one, name) for one in (told, given))
    if name == "pretraining":
        found, expected = found.data.mixture, expected.data.mixture
    assert found == expected
    assert expected


@pytest.mark.parametrize(("owner", "name", "value"), list(groups()))
def test_a_mapping_of_other_names_or_values_is_one_line(unchecked, owner, name, value):
    named = rf"\b({name}|RewardSource)\b.*found "
    with pytest.raises(UserError, match=f"{named}.*with names among .*") as unknown:
        made(owner, name, as_told(name, value, lambda group: {**group, "no_such": 1}))
    with pytest.raises(UserError, match=f"{named}.*expected ") as misfit:
        made(owner, name, as_told(name, value, lambda group: {key: ["", object] for key in group}))
    assert all("\n" not in str(caught.value) for caught in (unknown, misfit))


def test_what_a_mapping_leaves_out_is_as_the_group_has_it(unchecked):
    told, given = SFTModule("folder", optimizer={"lr": 0.5}), SFTModule("folder", optimizer=OptimizerConfig(lr=0.5))
    assert told.hparams == given.hparams
