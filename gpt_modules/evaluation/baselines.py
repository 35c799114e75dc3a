"""What a simple method reaches on the same data: a trained model that does not beat it has learned nothing worth the
time.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

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
        stream = tokens.tolist()
        highest = Counter(zip(*(stream[k:] for k in range(order)), strict=False))
        counts: list[Counter[Ngram]] = [highest]
        for _ in range(order - 1):  # below the highest order, an n-gram counts once for each word it was seen after
            counts.insert(0, Counter(ngram[1:] for ngram in counts[0]))
        self.counts = counts
        self.discounts = [_discounts(level.values()) for level in counts]
        self.totals: list[dict[Ngram, int]] = []
        self.reserved: list[dict[Ngram, float]] = []
        for level, discounts in zip(counts, self.discounts, strict=True):
            totals: dict[Ngram, int] = defaultdict(int)
            reserved: dict[Ngram, float] = defaultdict(float)
            for ngram, count in level.items():
                totals[ngram[:-1]] += count
                reserved[ngram[:-1]] += discounts[min(count, 3)]
            self.totals.append(totals)
            self.reserved.append(reserved)

    def probability(self, ngram: Ngram) -> float:
        """P(last token | the ones before it), summing to 1 over the vocabulary."""
        if not ngram:
            return 1.0 / self.vocab_size
        level, context = len(ngram) - 1, ngram[:-1]
        lower = self.probability(ngram[1:]) if level else 1.0 / self.vocab_size
        total = self.totals[level].get(context, 0)
        if total == 0:
            return lower
        count = self.counts[level].get(ngram, 0)
        kept = max(0.0, count - self.discounts[level][min(count, 3)])
        return (kept + self.reserved[level][context] * lower) / total

    def perplexity(self, tokens: NDArray[np.integer]) -> float:
        """exp of the mean negative log-probability of every token that has a full context."""
        stream = tokens.tolist()
        ngrams = list(zip(*(stream[k:] for k in range(self.order)), strict=False))
        return math.exp(-sum(math.log(self.probability(ngram)) for ngram in ngrams) / len(ngrams))


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
