"""What a scorer makes of preferences: which pairs a ranking says, how often groups of them are in the right order, and
how scores go with another number of the answers, as their length.
"""

import torch
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor


def untied_pairs(
    ranks: Int[Tensor, "P K"], mask: Bool[Tensor, "P K"]
) -> tuple[Int[Tensor, "N"], Int[Tensor, "N"], Int[Tensor, "N"]]:
    """(prompt, better, worse) of each pair of a prompt's counted answers that is no tie: a row, and two columns of it.

    `ranks`: lower is better, equal is a tie. `mask`: answers that exist.
    """
    better = ranks.unsqueeze(2) < ranks.unsqueeze(1)
    prompt, winner, loser = (better & mask.unsqueeze(2) & mask.unsqueeze(1)).nonzero(as_tuple=True)
    return prompt, winner, loser


def group_means(
    values: Real[Tensor, "N"], groups: Int[Tensor, "N"]
) -> tuple[Int[Tensor, "G"], Float[Tensor, "G"], Int[Tensor, "G"]]:
    """(group, mean, count) of each group that has a value, ascending; means in float64."""
    found, place, counts = torch.unique(groups, return_inverse=True, return_counts=True)
    totals = torch.zeros(len(found), dtype=torch.float64, device=values.device).index_add(0, place, values.double())
    return found, totals / counts, counts


def row_deviations(values: Real[Tensor, "P K"], mask: Bool[Tensor, "P K"]) -> Float[Tensor, "N"]:
    """Of each counted value, row after row, the difference from the mean of its row's counted values; float64."""
    kept = torch.where(mask, values.double(), 0.0)
    means = kept.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    return (kept - means)[mask]


def deviation_correlation(x: Float[Tensor, "N"], y: Float[Tensor, "N"]) -> Float[Tensor, ""]:
    """Pearson's r of deviations from means: of those within rows, pooled, what rows have in common cannot feign it.

    r = Σ x y / √(Σ x² Σ y²);   NaN where one of them never deviates.
    """
    return (x * y).sum() / (x.square().sum().sqrt() * y.square().sum().sqrt())
