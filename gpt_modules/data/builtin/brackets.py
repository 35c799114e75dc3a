"""A task for reinforcement learning whose best answer is known: to close brackets. The prompt `([{` wants `}])`.

A model that is pretrained on `bracket_texts` closes as many as it opens, but whatever kind comes; what the
prompts of `bracket_prompts` want, only `closed_share` tells it.
"""

import random
from itertools import product

from gpt_modules.data.splits import Row, Split, split_of

PAIRS = {"(": ")", "[": "]", "{": "}", "<": ">"}
DEPTH = 3
TEXTS = 4000  # of both splits together
FORMAT_VERSION = 1  # of what `bracket_texts` draws: caches are built from it


def bracket_texts(split: Split, seed: int = 0) -> list[Row]:
    """`{"text"}`: three opening brackets, then as many closing ones of any kind."""
    rng = random.Random(f"brackets {seed}")
    texts = (_any(rng) for _ in range(TEXTS))
    return [{"text": text} for text in texts if split_of(text) == split]


def bracket_prompts(split: Split) -> list[Row]:
    """`{"prompt"}`: three opening brackets to close, all 64 sequences once; a tenth validates, by hash."""
    prompts = ("".join(kinds) for kinds in product(PAIRS, repeat=DEPTH))
    return [{"prompt": prompt} for prompt in prompts if split_of(prompt) == split]


def best_answer(prompt: str) -> str:
    """The one answer that scores 1: what closes each bracket, the innermost first."""
    return "".join(PAIRS[kind] for kind in reversed(prompt))


def closed_share(prompts: list[str], responses: list[str]) -> list[float]:
    """A reward: the share of places at which a response is the best answer, 0 to 1; a place too many or too few is a
    wrong one.
    """
    return [_agreement(best_answer(prompt), response) for prompt, response in zip(prompts, responses, strict=True)]


def _any(rng: random.Random) -> str:
    opening, closing = ([rng.choice(kinds) for _ in range(DEPTH)] for kinds in (list(PAIRS), list(PAIRS.values())))
    return "".join(opening + closing)


def _agreement(best: str, response: str) -> float:
    right = sum(one == other for one, other in zip(best, response, strict=False))
    return right / max(len(best), len(response))
