"""Sentiment with label words drawn per task, from the human ratings that ship with the package.

In one task "lamp" stands for praise and "river" for blame, in the next another two words, or the same two the other way
round: which is which only the support set tells, so a model that reads no examples is at chance. Labels that mean
nothing outside the examples are how Wei et al. 2023, "Symbol tuning improves in-context learning in language models",
makes a model read them.
"""

import math
from functools import cached_property
from typing import get_args

import numpy as np

from gpt_modules.data.arguments import expect_one_of, expect_whole
from gpt_modules.data.builtin.reviews import MIN_GAP, Domain, load_reviews
from gpt_modules.data.episodes.families import Episode, Family
from gpt_modules.data.episodes.ways import WORDS, compose, draw_labels, draw_texts, draw_words, texts_needed
from gpt_modules.data.splits import Split, normalise
from gpt_modules.errors import UserError, expect

WAYS = 2
SIGNS = ("positive", "negative")


class LabelWords(Family):
    """Positive or negative, under two words drawn per task; sentences and pairs of words for validation are held out.

    Args:
        domains: "film", "product" or both; a task is about one of them, drawn.
        words: Label words to draw from; None: `ways.WORDS`.
        gap: Least distance of a sentence's mean rating from neutral, in rating points (-4 to 4).
        max_words: Words of the longest sentence, for short rows; longer ones are left out. None: all.
        separator: What stands between a sentence and its word; the word begins with a space.
    """

    classes = WAYS

    def __init__(
        self,
        domains: list[Domain] | None = None,
        words: list[str] | None = None,
        gap: float = MIN_GAP,
        max_words: int | None = None,
        separator: str = " ->",
    ) -> None:
        for i, domain in enumerate(domains or ()):
            expect_one_of(get_args(Domain), **{f"domains[{i}]": domain})
        expect(domains is None or len(domains) > 0, "domains", domains, "film, product or both")
        expect(0 <= gap < math.inf, "gap", gap, "rating points, at least 0")
        expect(words is None or len(set(words)) >= WAYS, "words", words, "at least 2 different ones")
        expect_whole(1, max_words=max_words)
        self.domains: list[Domain] = ["film"] if domains is None else domains
        self.words, self.gap, self.separator = WORDS if words is None else tuple(words), gap, separator
        self.max_words = max_words

    def episode(self, generator: np.random.Generator, split: Split, support: int, query: int) -> Episode:
        needed = texts_needed(WAYS, support, query)
        self._check(split, needed)
        domain = self.domains[generator.integers(len(self.domains))]
        answers = draw_words(generator, split, WAYS, self.words)
        labels = draw_labels(generator, WAYS, support, query)
        pools = [self._sentences[domain, split, SIGNS[i]] for i in generator.permutation(WAYS)]
        counts = np.bincount(labels, minlength=WAYS).tolist()
        texts = [draw_texts(generator, pool, count) for pool, count in zip(pools, counts, strict=True)]
        return compose(labels, texts, answers, self.separator, support)

    def _check(self, split: Split, needed: int) -> None:
        for domain in self.domains:
            for sign in SIGNS:
                found = len(self._sentences[domain, split, sign])
                if found < needed:
                    length = "" if self.max_words is None else f" of up to {self.max_words} words"
                    kind = f"{sign} {domain} sentences{length} rated {self.gap:g} or more from neutral"
                    what = f"{found} {kind} for {split}"
                    raise UserError(f"reviews: found {what}, expected at least {needed} (support and query)")

    @cached_property
    def _sentences(self) -> dict[tuple[Domain, Split, str], list[str]]:
        """The clear sentences, each text once in its domain: a few are in the data twice."""
        splits: tuple[Split, ...] = ("train", "validation")
        found: dict[tuple[Domain, Split, str], list[str]] = {
            (domain, split, sign): [] for domain in self.domains for split in splits for sign in SIGNS
        }
        seen: set[tuple[Domain, str]] = set()
        for review in load_reviews():
            key = review.domain, normalise(review.text)
            clear = abs(review.rating) >= self.gap and review.rating != 0
            short = self.max_words is None or len(review.text.split()) <= self.max_words
            if review.domain in self.domains and clear and short and key not in seen:
                seen.add(key)
                found[review.domain, review.split, SIGNS[review.rating < 0]].append(review.text)
        return found
