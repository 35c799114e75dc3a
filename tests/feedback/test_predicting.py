"""How many of the pairs that labelers order a scorer orders alike."""

import math

from gpt_modules.feedback.labelers import Scorer
from gpt_modules.feedback.predicting import predicted
from gpt_modules.storage.comparisons import Answer, Ranking, Source


def ranking(task, texts, ranks, labeler="Ada"):
    answers = tuple(Answer(text, Source("m"), None, number) for number, text in enumerate(texts))
    nothing = (None,) * len(texts)
    return Ranking(task, 1, "p", labeler, answers, tuple(ranks), nothing, (frozenset(),) * len(texts))


def length(prompts, answers):
    return [float(len(answer)) for answer in answers]


def test_pairs_that_labelers_order_by_task_and_labeler():
    votes = [
        ranking(1, ["aaa", "aa", "a"], [1, 2, 3]),  # longest first: 3 of 3
        ranking(1, ["aaa", "aa", "a"], [3, 2, 1], "Bo"),  # 0 of 3
        ranking(2, ["a", "aa", "aaa"], [2, 1, 1]),  # a tie is no pair: 2 of 2
        ranking(3, ["aa", "bb"], [1, 2]),  # the scores do not tell them apart
    ]
    found = predicted(Scorer("length", None, length), votes)
    assert (found.part, found.pairs, found.tasks) == (5 / 8, 8, 2)
    assert math.isnan(predicted(Scorer("length", None, length), votes[3:]).part)
