"""Functions that a network learns, where the answer is known."""

import torch

from gpt_modules.data.batches import EpisodeBatch, EpisodeSet
from gpt_modules.evaluation.adaptation.comparison import Network
from gpt_modules.evaluation.adaptation.functions import function_fits


def test_functions_before_and_after_learning():
    """y = w x from w = 0, on y = t x: the loss (w - t)² at x = 1 is at its minimum after one step of 1 / 2."""
    slopes = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    support = EpisodeSet((torch.ones(3, 1, 1),), slopes)
    query = EpisodeSet((torch.tensor([2.0, -1.0]).expand(3, 2)[..., None],), torch.cat([2 * slopes, -slopes], dim=1))
    network = Network(lambda parameters, inputs: inputs[0] * parameters["w"], {"w": torch.zeros(1)})
    fits = function_fits(network, {"w": torch.tensor([0.5])}, EpisodeBatch(support, query), [0, 1])
    assert [fit.x.tolist() for fit in fits] == [[-1.0, 2.0]] * 3, "rising"
    assert [fit.truth.tolist() for fit in fits] == [[-1.0, 2.0], [-2.0, 4.0], [-3.0, 6.0]]
    assert [fit.support[1].tolist() for fit in fits] == [[1.0], [2.0], [3.0]]
    assert all(fit.predictions[0].tolist() == [0.0, 0.0] for fit in fits)
    assert all((fit.predictions[1] == fit.truth).all() for fit in fits)
