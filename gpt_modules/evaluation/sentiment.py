"""An independent judge of sentiment: the VADER rules (Hutto and Gilbert 2014), which no reward model was trained on."""

from functools import cache
from typing import Any

from gpt_modules.errors import UserError


@cache
def _analyzer() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise UserError(
            "vader: the package vaderSentiment is not installed; pip install 'gpt-modules[demo]'"
        ) from error
    return SentimentIntensityAnalyzer()


def vader(prompts: list[str], responses: list[str]) -> list[float]:
    """Compound score of each response, -1 (most negative) to 1. The prompt's instruction is not judged."""
    return [float(_analyzer().polarity_scores(response)["compound"]) for response in responses]
