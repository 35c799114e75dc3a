"""What a network of one number takes a function for, before and after it has learned from a few of its points (Finn et
al. 2017, figure 2).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_map

from gpt_modules.data.batches import EpisodeBatch, EpisodeSet
from gpt_modules.evaluation.adaptation.comparison import Network, gradient_descent
from gpt_modules.functional import Parameters, supervised_scores

Numbers: TypeAlias = NDArray[np.floating[Any]]


class FunctionFit(NamedTuple):
    """A function that a network learns from a few points.

    support: x and y of the points. x, truth (P,): the function, x rising. predictions: steps of learning -> (P,).
    """

    support: tuple[Numbers, Numbers]
    x: Numbers
    truth: Numbers
    predictions: Mapping[int, Numbers]


@torch.no_grad()
def function_fits(
    network: Network, rates: Parameters, episodes: EpisodeBatch, steps: Sequence[int]
) -> list[FunctionFit]:
    """What a network of one number takes each task's function for, after numbers of steps, at the query points."""
    fits = []

    def loss(parameters: Parameters, examples: EpisodeSet) -> Tensor:
        return supervised_scores(network.forward(parameters, examples.inputs), examples.targets)[0]

    for task in range(len(episodes.query.targets)):
        support, query = (tree_map(lambda tensor, at=task: tensor[at], examples) for examples in episodes)
        order = query.inputs[0][:, 0].argsort()
        x, truth = query.inputs[0][order], query.targets[order]
        path = zip(range(max(steps) + 1), gradient_descent(rates)(loss, network.parameters, support), strict=False)
        said = {step: _numbers(network.forward(moved, (x,))) for step, moved in path if step in steps}
        points = (_numbers(support.inputs[0]), _numbers(support.targets))
        fits.append(FunctionFit(points, _numbers(x), _numbers(truth), said))
    return fits


def _numbers(column: Tensor) -> Numbers:
    """(P, 1) -> (P,)."""
    numbers: Numbers = column[:, 0].float().cpu().numpy()
    return numbers
