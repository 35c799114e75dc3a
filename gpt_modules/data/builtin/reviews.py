"""The data that ships with the package: 14,313 review sentences, each with the mean rating of 15 to 20 people.

Hutto and Gilbert 2014, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text": 10,604
sentences about films (the Rotten Tomatoes snippets of Pang and Lee 2005) and 3,708 about products, rated from -4
(very negative) to 4 (very positive). Do not test on SST-2 or MR what was trained on these: they are the same
sentences.

Five views, one a procedure. Those of ChatGPT's three steps are in the same language, an instruction line, then the
sentence, verbatim: so a policy taught by `sft_rows`, a reward model taught by `reward_rows` and the prompts of
`ppo_rows` fit one another.
"""

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpt_modules.data.splits import Row, Split, hash_fraction, split_of

Domain = Literal["film", "product"]

MIN_RATING = 0.5  # rating points from neutral; less is no clear sign
MIN_GAP = 1.0  # rating points; people's means of less are too close to call a preference
MAX_ROUNDS = 64
_FILES: dict[Domain, str] = {"film": "movie.tsv", "product": "amazon.tsv"}


class Review(NamedTuple):
    """One sentence. rating: mean of people's ratings, -4 to 4. split: by hash of the text alone."""

    text: str
    rating: float
    domain: Domain
    split: Split


def instruction(domain: Domain = "film", positive: bool = True) -> str:
    """The line that asks for a sentence, with its line break."""
    return f"Write a {'positive' if positive else 'negative'} sentence about a {domain}.\n"


@lru_cache(maxsize=1)
def load_reviews() -> tuple[Review, ...]:
    """All sentences in file order. Texts equal to a reader share a split, so none of them straddles."""
    return tuple(_parse(domain, line) for domain in _FILES for line in _lines(domain))


@lru_cache(maxsize=1)
def fingerprint() -> str:
    """SHA-256 of the sentences, for caches that are built from them."""
    return hashlib.sha256("\n".join(f"{r.text}\t{r.rating}" for r in load_reviews()).encode()).hexdigest()


def pretraining_rows(split: Split) -> list[Row]:
    """`{"text"}`: the sentences of both domains."""
    return [{"text": review.text} for review in _of(split, ("film", "product"))]


def finetuning_rows(split: Split, numeric: bool = False, domain: Domain = "film") -> list[Row]:
    """`{"text", "label"}`: the sentences about films, or products, that people rated 0.5 or more ("positive"), -0.5 or
    less ("negative"); `numeric`: all of them, with the rating itself.
    """
    reviews = _of(split, (domain,))
    if numeric:
        return [{"text": review.text, "label": review.rating} for review in reviews]
    clear = [review for review in reviews if abs(review.rating) >= MIN_RATING]
    return [{"text": r.text, "label": "positive" if r.rating > 0 else "negative"} for r in clear]


def sft_rows(split: Split) -> list[Row]:
    """`{"prompt", "response"}`: the instruction and a sentence that people rated 1 or more (positive), -1 or less
    (negative).
    """
    reviews = [review for review in _of(split, ("film", "product")) if abs(review.rating) >= 1]
    return [{"prompt": instruction(r.domain, r.rating > 0), "response": r.text} for r in reviews]


def reward_rows(split: Split, k: int = 2, seed: int = 0, domains: Sequence[Domain] = ("film",)) -> list[Row]:
    """`{"prompt", "responses", "ranking"}`: k random sentences under "Write a positive sentence ...", ranked by
    people's ratings.

    Ratings within a row are at least 1 apart. No sentence is used twice in one call; another seed groups them anew.
    For k = 2 these are plain random pairs, those too close dropped. For more, what was dropped is drawn again, and what
    is left then makes rows of fewer sentences, so that a pass sees nearly every sentence.

    Raises:
        ValueError: `k` is not 2 to 8 (nine ratings 1 apart fill the scale).
    """
    if not 2 <= k <= 8:
        raise ValueError(f"k: found {k}, expected 2 to 8")
    rows = []
    for number, domain in enumerate(domains):
        reviews = _of(split, (domain,))
        groups = _draw_groups(np.array([r.rating for r in reviews]), k, np.random.default_rng((seed, number)))
        rows += [_ranked(instruction(domain), [reviews[i] for i in group]) for group in groups]
    return rows


def reward_pool(split: Split, domains: Sequence[Domain] = ("film",)) -> list[Row]:
    """`{"prompt", "responses"}`: all the sentences from which `reward_rows` draws, whatever the seed."""
    return [{"prompt": instruction(d), "responses": [review.text for review in _of(split, (d,))]} for d in domains]


def ppo_rows(split: Split, domains: Sequence[Domain] = ("film",)) -> list[Row]:
    """`{"prompt"}`: "Write a positive sentence ..." and the first 2 to 4 words of a sentence, to be continued with a
    space.

    How many words is a function of the sentence. Every prompt once; validation has none that training has.
    """
    seen = set(_openings("train", domains)) if split == "validation" else set()
    return [{"prompt": prompt} for prompt in _openings(split, domains) if prompt not in seen]


def _lines(domain: Domain) -> list[str]:
    text = (files("gpt_modules.data.builtin") / "embedded" / _FILES[domain]).read_text(encoding="utf-8")
    return [line for line in text.split("\n") if line]


def _parse(domain: Domain, line: str) -> Review:
    _, rating, text = line.split("\t", 2)
    text = text.strip()
    return Review(text, float(rating), domain, split_of(text))


def _of(split: Split, domains: Sequence[Domain]) -> list[Review]:
    return [review for review in load_reviews() if review.split == split and review.domain in domains]


def _draw_groups(ratings: NDArray[np.float64], k: int, generator: np.random.Generator) -> list[list[int]]:
    """Random disjoint groups of k indices, or fewer once no k are left, whose ratings are all MIN_GAP apart."""
    pool = generator.permutation(len(ratings))
    groups: list[list[int]] = []
    for size in range(k, 1, -1):
        for _ in range(1 if k == 2 else MAX_ROUNDS):
            candidates = pool[: len(pool) // size * size].reshape(-1, size)
            gaps = np.diff(np.sort(ratings[candidates], axis=1), axis=1)
            apart = (gaps >= MIN_GAP).all(axis=1)
            groups += candidates[apart].tolist()
            pool = generator.permutation(np.concatenate([candidates[~apart].reshape(-1), pool[candidates.size :]]))
    return groups


def _ranked(prompt: str, reviews: list[Review]) -> Row:
    order = np.argsort([-review.rating for review in reviews], kind="stable")
    ranking = [0] * len(reviews)
    for rank, place in enumerate(order, start=1):
        ranking[int(place)] = rank
    return {"prompt": prompt, "responses": [review.text for review in reviews], "ranking": ranking}


def _openings(split: Split, domains: Sequence[Domain]) -> list[str]:
    prompts: dict[str, None] = {}
    for review in _of(split, domains):
        count = 2 + int(hash_fraction(f"words {review.text}") * 3)
        opening = re.match(rf"(?:\S+\s+){{{count - 1}}}\S+(?=\s+\S)", review.text)
        if opening:  # the sentence goes on after it
            prompts[instruction(review.domain) + opening.group()] = None
    return list(prompts)
