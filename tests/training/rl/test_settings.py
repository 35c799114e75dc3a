"""Every number of a recipe's settings is one that means something, or refused by its name."""

import dataclasses
import math
import re

import pytest

from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError
from gpt_modules.training.rl.scores import ScoresConfig
from gpt_modules.training.rl.settings import (
    ClipConfig,
    CriticConfig,
    EarlyStop,
    EMAConfig,
    KLConfig,
    PtxConfig,
    SamplingConfig,
    Shaping,
)

# What each field takes at its edges; all else of NASTY is refused.
TAKEN = {
    "kl.coef": {0.0, 0.5, 1e30},
    "kl.target": {None, 0.5, 1e30},
    "kl.horizon": {0.5, 1e30},
    "clip.ratio": {0.5},
    "clip.ratio_high": {None, 0.5, 1e30},
    "clip.value": {0.5, 1e30},
    "clip.value_coef": {0.0, 0.5, 1e30},
    "critic.lr": {None, 0.5, 1.0, 1e30},
    "ptx.coef": {0.0, 0.5, 1.0, 1e30},
    "critic.max_norm": {None, 0.5, 1.0, 1e30},
    "ema.decay": {0.0, 0.5},
    "early_stop.kl": {None, 0.5, 1.0, 1e30},
    "early_stop.ratio": {None, 1e30},
    "gamma": {0.0, 0.5, 1.0},
    "lam": {0.0, 0.5, 1.0},
    "sampling.eval_temperature": {None, 0.0, 0.5, 1.0, 1e30},
    "scores.clip": {None, 0.5, 1.0, 1e30},
    "scores.length_penalty": {0.0, 0.5, 1.0, 1e30},
    "missing_eos_score": {None, 0.0, 0.5, 1.0, 1e30, -1.0},
}
NASTY = [0.0, 0.5, 1.0, 1e30, -1.0, math.inf, -math.inf, math.nan]


def fields():
    groups = {"kl.": KLConfig, "clip.": ClipConfig, "critic.": CriticConfig, "ptx.": PtxConfig, "ema.": EMAConfig}
    others = {"early_stop.": EarlyStop, "sampling.": SamplingConfig, "scores.": ScoresConfig, "": Shaping}
    for prefix, kind in (groups | others).items():
        for field in dataclasses.fields(kind):
            if field.type in (float, float | None):
                yield kind, field.name, prefix + field.name


@pytest.mark.parametrize(("kind", "name", "told"), list(fields()))
def test_values(kind, name, told):
    taken = TAKEN[told] | ({1.0} if told.startswith(("kl", "clip")) and told != "clip.ratio" else set())
    for value in NASTY:
        if value in taken:
            assert getattr(kind(**{name: value}), name) == value
            continue
        with pytest.raises(UserError, match=rf"^{told}: found {re.escape(str(value))}, expected ") as error:
            kind(**{name: value})
        assert "\n" not in str(error.value)


def test_a_coefficient_of_zero_cannot_be_steered():
    with pytest.raises(UserError, match=r"^kl\.coef: found 0\.0, expected more than 0 with a target"):
        KLConfig(coef=0.0, target=6.0)


def test_a_step_with_text_has_some():
    with pytest.raises(UserError, match=r"^ptx\.windows: found 0, expected a whole number in \[1, inf\)$"):
        PtxConfig(coef=1.0, windows=0)


def test_only_a_penalty_in_the_reward_is_steered():
    with pytest.raises(
        UserError, match=r"^kl\.target: found 6\.0, expected none beside kl\.loss: it steers the reward"
    ):
        KLConfig(target=6.0, loss="k3")


def test_the_defaults_are_published_ones():
    """Stiennon et al. 2020: beta 0.05, lambda 0.95, no discount; the code of Ziegler et al. 2019: a horizon of 10000
    episodes, both clips 0.2, a value loss that weighs 0.1, whitened advantages; but not its whitened rewards.
    """
    assert KLConfig() == KLConfig(coef=0.05, target=None, horizon=10_000)
    assert ClipConfig() == ClipConfig(ratio=0.2, value=0.2, value_coef=0.1)
    assert PtxConfig() == PtxConfig(coef=0.0, windows=8), "appendix C.4: 8 times as many as episodes"
    assert EMAConfig().decay == 0.992
    assert Shaping() == Shaping(1.0, 0.95, missing_eos_score=-1.0, whiten_rewards=False, whiten_advantages=True)


def test_a_setting_that_nothing_follows_says_why():
    assert KLConfig(target=6.0).idle() == {}
    assert KLConfig().idle() == {"horizon": "there is no target, so the coefficient is fixed"}
    assert ClipConfig().idle() == {}
    assert KLConfig(coef=0.0, loss="k3").idle()["loss"] == "kl.coef is 0, so there is no penalty"
    assert KLConfig(loss="k3").idle().keys() == {"horizon"}
    assert ClipConfig(value_coef=0.0).idle() == {"value": "value_coef is 0, so the critic does not learn"}


@pytest.mark.parametrize("value", [-1, True])
def test_a_warmup_is_a_number_of_iterations(value):
    with pytest.raises(UserError, match=rf"^critic\.warmup: found {value}, expected a whole number in \[0, inf\)"):
        CriticConfig(warmup=value)


def test_stops_are_tokens_or_texts_of_one_token_in_place_of_the_end_of_text():
    gpt2 = Tokenizer.gpt2()
    assert SamplingConfig().ends(gpt2) == (50256,)
    assert SamplingConfig(stop=[".", 198, "<|endoftext|>"]).ends(gpt2) == (13, 198, 50256)


@pytest.mark.parametrize(
    ("stop", "line"),
    [
        ([], "found [], expected at least one text or token, or null"),
        (["\n\nHuman:"], "found '\\n\\nHuman:', expected a text of one token of the policy's tokenizer, not of 4"),
        ([""], "found '', expected a text of one token of the policy's tokenizer, not of 0"),
        ([50257], "found 50257, expected a token of the policy's tokenizer, 0 to 50256"),
        ([-1], "found -1, expected a token of the policy's tokenizer, 0 to 50256"),
        ([True], "found True, expected a text of one token"),
    ],
)
def test_a_stop_that_is_no_token_is_refused(stop, line):
    with pytest.raises(UserError) as error:
        SamplingConfig(stop=stop).ends(Tokenizer.gpt2())
    place = "model." if stop else ""
    assert str(error.value).startswith(f"{place}sampling.stop: {line}")


@pytest.mark.parametrize(
    ("kind", "field", "value", "least"),
    [
        (SamplingConfig, "sampling.truncate_after", -1, 0),
        (ScoresConfig, "scores.samples", 1, 2),
        (ScoresConfig, "scores.free_length", -1, 0),
    ],
)
def test_whole_numbers(kind, field, value, least):
    name = field.partition(".")[2]
    line = rf"^{re.escape(field)}: found {value}, expected a whole number in \[{least}, inf\)$"
    with pytest.raises(UserError, match=line):
        kind(**{name: value})
    assert getattr(kind(**{name: least}), name) == least
