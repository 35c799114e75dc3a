"""Several models' scores of the same answers made one, and how far they lie apart."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

Combination = Literal["mean", "worst", "mean_minus_spread"]


def ensemble_spread(scores: Float[Tensor, "K *B"]) -> Float[Tensor, "*B"]:
    """Standard deviation over the K members, in units of their scores; 0 for one member.

    σ = √(1/K Σₖ (rₖ - r̄)²)

    Source: the root of the intra-ensemble variance of Coste et al. 2023, "Reward Model Ensembles Help Mitigate
    Overoptimization".
    """
    return scores.std(0, unbiased=False)


def combine_ensemble(
    scores: Float[Tensor, "K *B"], combination: Combination, spread_coef: float | None = None
) -> Float[Tensor, "*B"]:
    """One score from those of K members.

    mean: r̄ = 1/K Σₖ rₖ;   worst: minₖ rₖ;   mean_minus_spread: r̄ - λ σ

    Source: Coste et al. 2023, "Reward Model Ensembles Help Mitigate Overoptimization": mean, worst-case and
    uncertainty-weighted optimisation. The last subtracts the variance, λ σ², there; here it is the standard deviation,
    so that λ has no unit and means the same for scores of any scale.

    Args:
        spread_coef: λ, of `mean_minus_spread` and of no other.

    Raises:
        ValueError: another combination, or λ where it has no place or none where it has.
    """
    if (spread_coef is not None) != (combination == "mean_minus_spread"):
        raise ValueError(
            f"spread_coef: found {spread_coef} for {combination}, expected it with mean_minus_spread alone"
        )
    if spread_coef is not None:
        return scores.mean(0) - spread_coef * ensemble_spread(scores)
    if combination == "mean":
        return scores.mean(0)
    if combination == "worst":
        return scores.amin(0)
    raise ValueError(f"combination: found {combination!r}, expected 'mean', 'worst' or 'mean_minus_spread'")
