"""How much responses repeat themselves and one another: what a policy that games its reward shows first.

Responses are counted from the left: a mask is True up to a row's end.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def distinct_ngrams(tokens: Int[Tensor, "B R"], mask: Bool[Tensor, "B R"], n: int) -> Float[Tensor, ""]:
    """Different n-grams of all responses together by their tokens; 0 where there are none.

    distinct-n = |{n-grams}| / Σ tokens

    It falls with the number of responses, so compare equal numbers. Source: Li et al. 2016, "A Diversity-Promoting
    Objective Function for Neural Conversation Models", section 5.2.
    """
    ngrams, _ = _ngrams(tokens, mask, n)
    different = mask.new_full((), len(torch.unique(ngrams, dim=0)), dtype=torch.float32)
    return different / mask.sum().clamp(min=1)


def repeated_ngrams(tokens: Int[Tensor, "B R"], mask: Bool[Tensor, "B R"], n: int = 4) -> Float[Tensor, "B"]:
    """Share of each response's n-grams that it has said before; 0 where it has none.

    seq-rep-n = 1 - |{n-grams}| / |n-grams|

    Source: Welleck et al. 2020, "Neural Text Generation with Unlikelihood Training", section 6.1.
    """
    ngrams, rows = _ngrams(tokens, mask, n)
    different = torch.unique(torch.cat([rows[:, None], ngrams], dim=1), dim=0)[:, 0]
    said, counted = (torch.bincount(of, minlength=len(tokens)) for of in (different, rows))
    return torch.where(counted > 0, 1.0 - said / counted.clamp(min=1), 0.0)


def _ngrams(
    tokens: Int[Tensor, "B R"], mask: Bool[Tensor, "B R"], n: int
) -> tuple[Int[Tensor, "N n"], Int[Tensor, "N"]]:
    """Each n-gram and the row that it stands in."""
    if tokens.shape[1] < n:
        return tokens.new_zeros(0, n), tokens.new_zeros(0)
    rows, starts = mask[:, n - 1 :].nonzero(as_tuple=True)
    return tokens.unfold(1, n, 1)[rows, starts], rows
