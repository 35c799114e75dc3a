"""VADER judges answers, not prompts."""

import sys

import pytest

from gpt_modules.errors import UserError
from gpt_modules.evaluation import sentiment


def test_praise_is_above_blame_and_the_prompt_is_not_judged():
    praise, blame, nothing = sentiment.vader(
        ["This is awful."] * 3, ["I love it, wonderful!", "I hate it, terrible!", "the table"]
    )
    assert praise > 0.5
    assert blame < -0.5
    assert nothing == 0.0


def test_without_the_package_it_is_one_line(monkeypatch):
    sentiment._analyzer.cache_clear()
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    with pytest.raises(UserError, match="not installed; pip install"):
        sentiment.vader(["x"], ["y"])
    sentiment._analyzer.cache_clear()
