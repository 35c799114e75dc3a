"""How right an answer is, and how far the mean over the items is to be trusted.

exact_match             the texts are equal, but for white space at their ends
normalized_exact_match  equal in lower case, without punctuation and articles (SQuAD's normalisation)
f1                      of the words that both have, after the same normalisation (Rajpurkar et al. 2016, section 6.1)
bleu                    of the corpus, 4-grams, sacreBLEU's tokenisation 13a, unsmoothed, 0 to 100 (Post 2018)
rouge                   F1 of 1-grams, 2-grams and the longest common subsequence, and their mean, 0 to 1 (Lin 2004),
                        without stemming; Radford et al. 2019, table 4

Of several references the best one counts; BLEU takes them together.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpt_modules.evaluation.tasks.definitions import Metric

Numbers = NDArray[np.float64]
RESAMPLES = 1000
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


class Estimate(NamedTuple):
    """A metric over n items with its standard error; None where nothing can be said (one item, or one beyond a
    float's range).
    """

    value: float
    standard_error: float | None


def mean(values: Sequence[float]) -> Estimate:
    """The mean; of right and wrong answers the error is sqrt(p (1 - p) / (n - 1))."""
    array = np.asarray(values, dtype=np.float64)
    error = float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else None
    return Estimate(float(array.mean()), error)


def bootstrap(statistics: Numbers, value_of: Callable[[Numbers], Numbers], seed: int = 0) -> Estimate:
    """A function of the sum over the items; its error is its spread over resampled items (Efron 1979).

    Args:
        statistics: (N, S), what each item adds.
        value_of: (R, S) sums -> (R,) values.
        seed: of the resampling.
    """
    n, rng = len(statistics), np.random.default_rng(seed)
    value = float(value_of(statistics.sum(0, keepdims=True))[0])
    if n < 2:
        return Estimate(value, None)
    counts = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(np.float64)
    with np.errstate(over="ignore"):  # the square of an untrained model's perplexity a word
        error = float(value_of(counts @ statistics).std(ddof=1))
    return Estimate(value, error if math.isfinite(error) else None)


def ratio_of(transform: Callable[[Numbers], Numbers]) -> Callable[[Numbers], Numbers]:
    """For `bootstrap`: a function of the first sum over the second, such as nats a word."""
    return lambda sums: transform(sums[:, 0] / sums[:, 1])


def normalize(text: str) -> str:
    """SQuAD's: lower case, no punctuation, no articles, single spaces; of a text that is nothing else, lower case only,
    for an answer that says nothing does not agree with "A".
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()) or text.lower().strip()


def word_f1(prediction: str, reference: str) -> float:
    """F1 of the words of two texts; two texts without words agree."""
    found, wanted = normalize(prediction).split(), normalize(reference).split()
    if not found or not wanted:
        return float(found == wanted)
    shared = (Counter(found) & Counter(wanted)).total()
    return 2 * shared / (len(found) + len(wanted))


def text_scores(
    metrics: Sequence[Metric], predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, list[float]]:
    """Name of a metric -> its value for each prediction: every metric but BLEU, which only a corpus has."""
    pairs = list(zip(predictions, references, strict=True))
    scores: dict[str, list[float]] = {}
    if "exact_match" in metrics:
        scores["exact_match"] = [float(any(said.strip() == one.strip() for one in known)) for said, known in pairs]
    if "normalized_exact_match" in metrics:
        equal = [float(any(normalize(said) == normalize(one) for one in known)) for said, known in pairs]
        scores["normalized_exact_match"] = equal
    if "f1" in metrics:
        scores["f1"] = [max(word_f1(said, one) for one in known) for said, known in pairs]
    if "rouge" in metrics:
        scores |= _rouge(pairs)
    return scores


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]], seed: int = 0) -> Estimate:
    """BLEU of a corpus; its items' counts are torchmetrics', added up anew for every resample."""
    from torchmetrics.text import SacreBLEUScore  # a second to import, which most tasks do not need

    counter, rows = SacreBLEUScore(tokenize="13a"), []
    for said, known in zip(predictions, references, strict=True):
        counter.reset()
        counter.update([said], [list(known)])
        lengths = [float(counter.preds_len), float(counter.target_len)]
        rows.append([*counter.numerator.tolist(), *counter.denominator.tolist(), *lengths])
    return bootstrap(np.asarray(rows, dtype=np.float64), _bleu_of, seed)


def _bleu_of(sums: Numbers) -> Numbers:
    """(R, 10) sums of matches and n-grams for n = 1 to 4, and both lengths -> (R,)."""
    matches, ngrams, said, known = sums[:, :4], sums[:, 4:8], sums[:, 8], sums[:, 9]
    whole = (matches > 0).all(1)
    precision = np.exp(np.log(np.where(matches > 0, matches, 1) / np.maximum(ngrams, 1)).mean(1))
    brevity = np.exp(np.minimum(0.0, 1 - known / np.maximum(said, 1)))
    return np.asarray(np.where(whole, 100 * brevity * precision, 0.0))


def _rouge(pairs: Sequence[tuple[str, Sequence[str]]]) -> dict[str, list[float]]:
    from torchmetrics.functional.text import rouge_score

    keys = ("rouge1", "rouge2", "rougeL")  # rougeLsum would need a sentence splitter's data
    found: dict[str, list[float]] = {key: [] for key in (*keys, "rouge_average")}
    for said, known in pairs:
        result = rouge_score([said], [list(known)], accumulate="best", rouge_keys=keys)
        values = [float(result[f"{key}_fmeasure"]) for key in keys]
        for key, value in zip(found, [*values, sum(values) / len(values)], strict=True):
            found[key].append(value)
    return found
