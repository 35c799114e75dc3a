"""What a simple method reaches on the same data: a trained model that does not beat it has learned nothing worth the
time.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Ngram = tuple[int, ...]


class KneserNey:
    """Interpolated n-gram model with modified Kneser-Ney discounts (Chen and Goodman 1999, section 3).

    Args:
        tokens: the training stream, documents separated by an end-of-text token like any other.
        vocab_size: tokens of the uniform distribution below the unigrams.
        order: length of the n-grams.
    """

    def __init__(self, tokens: NDArray[np.integer], vocab_size: int, order: int = 3) -> None:
        self.order, self.vocab_size = order, vocab_size
        self.known: list[NDArray[np.int64]] = []  # for each length the n-grams that were seen, by their codes
        self.discounts: list[NDArray[np.float64]] = []
        self.counts: list[NDArray[np.int64]] = []  # of the n-grams by their numbers; by those of their contexts:
        self.totals: list[NDArray[np.float64]] = []
        self.reserved: list[NDArray[np.float64]] = []
        numbers = self._know(tokens)
        starts = np.arange(max(0, len(tokens) - order + 1))
        for length in range(order, 0, -1):
            _, first, counts = np.unique(numbers[length][starts], return_index=True, return_counts=True)
            place = np.argsort(first)  # as they came, which is the order in which what they leave is summed
            starts = starts[first[place]]
            self._add_level(numbers[length][starts], numbers[length - 1][starts], counts[place], length)
            starts = starts + 1  # below the highest order, an n-gram counts once for each word it was seen after

    def _know(self, tokens: NDArray[np.integer]) -> list[NDArray[np.int64]]:
        """Number the n-grams of 0, 1, ... tokens by their place among those of their length; returns the number of that
        which begins at each token. A code is the number of what stands before the last token, and that.
        """
        numbers = [np.zeros(len(tokens) + 1, dtype=np.int64)]
        for length in range(1, self.order + 1):
            ends = np.asarray(tokens[length - 1 :], dtype=np.int64)
            codes = numbers[-1][: len(ends)] * self.vocab_size + ends
            known, inverse = np.unique(codes, return_inverse=True)
            self.known.append(known)
            numbers.append(inverse)
        return numbers

    def _numbers(self, ngrams: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Of their first 0, 1, ... tokens; -1 for what was not seen."""
        found = [np.zeros(len(ngrams), dtype=np.int64)]
        for codes, tokens in zip(self.known, ngrams.T, strict=False):
            wanted = found[-1] * self.vocab_size + tokens
            place = np.searchsorted(codes, wanted).clip(max=max(0, len(codes) - 1))
            seen = (found[-1] >= 0) & (codes[place] == wanted) if len(codes) else np.zeros(len(wanted), dtype=bool)
            found.append(np.where(seen, place, -1))
        return found

    def _add_level(
        self, ngrams: NDArray[np.int64], contexts: NDArray[np.int64], counts: NDArray[np.int64], length: int
    ) -> None:
        discounts = np.array(_discounts(counts.tolist()))
        by_number = np.zeros(len(self.known[length - 1]), dtype=np.int64)
        by_number[ngrams] = counts
        size = len(self.known[length - 2]) if length > 1 else 1
        self.discounts.insert(0, discounts)
        self.counts.insert(0, by_number)
        self.totals.insert(0, _sums(contexts, counts, size))
        self.reserved.insert(0, _sums(contexts, discounts[counts.clip(max=3)], size))

    def probability(self, ngram: Ngram) -> float:
        """P(last token | the ones before it), summing to 1 over the vocabulary."""
        return float(self._probabilities(np.array([ngram], dtype=np.int64))[0])

    def _probabilities(self, ngrams: NDArray[np.int64]) -> NDArray[np.float64]:
        found = np.full(len(ngrams), 1.0 / self.vocab_size)
        for level in range(ngrams.shape[1]):
            contexts, numbers = self._numbers(ngrams[:, ngrams.shape[1] - level - 1 :])[-2:]
            known = np.flatnonzero(contexts >= 0)
            known = known[self.totals[level][contexts[known]] > 0]
            context, number = contexts[known], numbers[known]
            counts = np.where(number >= 0, self.counts[level][number], 0)
            kept = np.maximum(0.0, counts - self.discounts[level][counts.clip(max=3)])
            found[known] = (kept + self.reserved[level][context] * found[known]) / self.totals[level][context]
        return found

    def perplexity(self, tokens: NDArray[np.integer]) -> float:
        """exp of the mean negative log-probability of every token that has a full context."""
        found = self._probabilities(_windows(tokens, self.order)).tolist()
        return math.exp(-sum(map(math.log, found)) / len(found))


def _sums(places: NDArray[np.int64], values: NDArray[Any], size: int) -> NDArray[np.float64]:
    """Of the values of each place, one after another."""
    return np.bincount(places, values, size).astype(np.float64)


def _windows(tokens: NDArray[np.integer], order: int) -> NDArray[np.int64]:
    """Every `order` tokens in a row, a row each."""
    count = max(0, len(tokens) - order + 1)
    return np.stack([np.asarray(tokens[k : k + count], dtype=np.int64) for k in range(order)], axis=1)


def _discounts(counts: Iterable[int]) -> tuple[float, float, float, float]:
    """D(0), D(1), D(2), D(3+) from counts of counts, at most the count. Where these are too few or too odd to estimate
    from, half the count, as KenLM falls back to: of nothing, nothing would be left for an n-gram that was never seen.
    """
    of_counts = Counter(counts)
    n1, n2, n3, n4 = (of_counts[k] for k in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2) if n1 else 0.5
    raw = (1 - 2 * y * n2 / max(n1, 1), 2 - 3 * y * n3 / max(n2, 1), 3 - 4 * y * n4 / max(n3, 1))
    d1, d2, d3 = (min(value, float(k)) if value > 0.0 else k / 2 for k, value in enumerate(raw, start=1))
    return 0.0, d1, d2, d3


class BagOfWords:
    """A linear scorer over the words of a text, fitted to pairs by logistic regression (Bradley and Terry 1952).

    Args:
        pairs: (better, worse) texts.
        decay: L2 penalty on the weights.
        epochs: passes of Adam over all pairs at once.
    """

    def __init__(self, pairs: Sequence[tuple[str, str]], decay: float = 1e-4, epochs: int = 150) -> None:
        seen = Counter(word for pair in pairs for text in pair for word in dict.fromkeys(_words(text)))
        repeated = (word for word, count in seen.items() if count > 1)
        self.index = {word: number for number, word in enumerate(repeated)}
        self.weights = torch.zeros(len(self.index), 1, requires_grad=True)
        better, worse = (self._bags(texts) for texts in zip(*pairs, strict=True))
        optimizer = torch.optim.Adam([self.weights], lr=0.05)
        for _ in range(epochs):
            optimizer.zero_grad()
            margins = self._score(*better) - self._score(*worse)
            loss = F.softplus(-margins).mean() + decay * self.weights.square().sum() / 2
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    def _bags(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Word numbers of all texts in a row, and where each text begins."""
        bags = [[self.index[word] for word in dict.fromkeys(_words(text)) if word in self.index] for text in texts]
        starts = np.cumsum([0, *(len(bag) for bag in bags)])[:-1]
        words = torch.tensor(
            [number for bag in bags for number in bag], dtype=torch.long
        )  # int also where there is none
        return words, torch.from_numpy(starts)

    def _score(self, words: Tensor, starts: Tensor) -> Tensor:
        return F.embedding_bag(words, self.weights, starts, mode="sum")

    @torch.no_grad()
    def scores(self, texts: Sequence[str]) -> Tensor:
        """(N,): higher is better; 0 for a text of unknown words."""
        return self._score(*self._bags(texts)).squeeze(1)

    def accuracy(self, pairs: Sequence[tuple[str, str]]) -> float:
        """Share of the pairs whose better text scores higher; a tie counts half."""
        better, worse = (self.scores(texts) for texts in zip(*pairs, strict=True))
        return float(((better > worse).float() + 0.5 * (better == worse).float()).mean())


class NaiveBayes:
    """Multinomial naive Bayes over words and pairs of neighbouring words, every count plus one.

    log P(class | text) = log P(class) + Σ log (count(feature, class) + 1) / (count(class) + V) + constant

    Features that the training texts do not have are left out. Source: Wang and Manning 2012, "Baselines and Bigrams".

    Args:
        labels: class of each text, from 0.
        n_classes: how many there are; one without a text is never predicted.
    """

    def __init__(self, texts: Sequence[str], labels: Sequence[int], n_classes: int) -> None:
        counts: list[Counter[str]] = [Counter() for _ in range(n_classes)]
        for text, label in zip(texts, labels, strict=True):
            counts[label].update(_ngrams(text))
        vocabulary = set().union(*counts)
        totals = [count.total() + len(vocabulary) for count in counts]
        self.priors = [math.log(n / len(labels)) if n else -math.inf for n in map(list(labels).count, range(n_classes))]
        self.evidence = {
            feature: [math.log((count[feature] + 1) / total) for count, total in zip(counts, totals, strict=True)]
            for feature in vocabulary
        }

    def predict(self, texts: Sequence[str]) -> list[int]:
        """The most probable class of each text; of equal ones the first."""
        return [self._predict(text) for text in texts]

    def accuracy(self, texts: Sequence[str], labels: Sequence[int]) -> float:
        """Share of the texts whose class is predicted."""
        found = [predicted == label for predicted, label in zip(self.predict(texts), labels, strict=True)]
        return sum(found) / len(found)

    def _predict(self, text: str) -> int:
        known = [self.evidence[feature] for feature in _ngrams(text) if feature in self.evidence]
        posterior = [math.fsum(logs) for logs in zip(self.priors, *known, strict=True)]
        return posterior.index(max(posterior))


def _ngrams(text: str) -> list[str]:
    words = _words(text)
    return words + [f"{first} {second}" for first, second in pairwise(words)]


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z']+|[!?]", text.lower())
