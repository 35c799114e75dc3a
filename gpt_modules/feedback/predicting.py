"""How well scores predict what labelers say."""

from collections.abc import Sequence
from dataclasses import replace

from gpt_modules.feedback.agreement import Agreement, by_task, pairwise
from gpt_modules.feedback.labelers import Scorer
from gpt_modules.storage.comparisons import Ranking

_SCORER = "\0"  # no labeler's name


def predicted(scorer: Scorer, rankings: Sequence[Ranking]) -> Agreement:
    """Of the pairs of answers that a labeler puts in an order, the part that the scores order alike: the accuracy of a
    reward model on votes.
    """
    tasks = by_task(rankings)
    firsts = [of[0] for of in tasks]
    prompts = [found.prompt for found in firsts for _ in found.answers]
    scores = list(scorer.scores(prompts, [answer.text for found in firsts for answer in found.answers]))
    measured = []
    for of in tasks:
        own, scores = scores[: len(of[0].answers)], scores[len(of[0].answers) :]
        ranks = tuple(1 + sum(other > score for other in own) for score in own)
        measured.append([*of, replace(of[0], labeler=_SCORER, ranks=ranks)])
    return pairwise(measured, _SCORER)
