"""The distribution that the next token is drawn from: temperature, top-k, top-p."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

# Below it, logits over the temperature may leave float32's range; what is below float32's own is as cold as it gets.
_COLD = 1e-3
_COLDEST = torch.finfo(torch.float32).tiny


def filter_logits(
    logits: Float[Tensor, "B V"], temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Float[Tensor, "B V"]:
    """Logits of the distribution to sample from: temperature, then top-k, then top-p; float32, -inf for what is cut.

    `top_k` keeps the k most likely tokens (Fan et al. 2018, "Hierarchical Neural Story Generation"; ties with the k-th
    stay). `top_p` keeps the smallest set of most likely tokens whose probability reaches p (Holtzman et al. 2020, "The
    Curious Case of Neural Text Degeneration"), of what top-k left. Log-probs of samples must be taken from the returned
    logits. As the temperature falls to 0 what is left is the most likely token, ties equally; greedy decoding itself is
    not sampling and has no temperature here. Raises ValueError for a temperature that is not finite and above 0, a k <
    1, or a p outside (0, 1].
    """
    fits = 0 < temperature < math.inf and (top_k is None or top_k >= 1) and (top_p is None or 0 < top_p <= 1)
    if not fits:
        found = f"{temperature=}, {top_k=}, {top_p=}"
        raise ValueError(f"found {found}; expected a finite temperature > 0, top_k >= 1, 0 < top_p <= 1")
    filtered = logits.float()
    if temperature < _COLD:
        filtered = filtered - filtered.amax(dim=1, keepdim=True)
    if temperature != 1.0:
        filtered = filtered / max(temperature, _COLDEST)
    if top_k is not None and top_k < filtered.shape[1]:
        kth = filtered.topk(top_k, dim=1).values[:, -1:]
        filtered = filtered.masked_fill(filtered < kth, -torch.inf)
    return filtered if top_p is None or top_p == 1 else _nucleus(filtered, top_p)


def _nucleus(logits: Float[Tensor, "B V"], top_p: float) -> Float[Tensor, "B V"]:
    ordered, order = logits.sort(dim=1, descending=True)
    probs = ordered.softmax(dim=1)
    # A token goes when those before it already reach p, so the one that crosses p, and always the first, stays.
    beyond = running_sums(probs, probs.dtype) - probs >= top_p
    beyond[:, 0] = False  # a p below all of float32 is 0 there
    return logits.masked_fill(beyond.scatter(1, order, beyond), -torch.inf)


def running_sums(probs: Float[Tensor, "B N"], dtype: torch.dtype) -> Float[Tensor, "B N"]:
    """Sums of `probs`, each of which is at most about 1, up to each place, in `dtype`.

    Where algorithms are to be deterministic, a CUDA device adds whole numbers of 2^-52: it has no such sum of others,
    whose order decides how they round.
    """
    if not (probs.is_cuda and torch.are_deterministic_algorithms_enabled()):
        return probs.cumsum(dim=1, dtype=dtype)
    return (probs.double() * 2.0**52).long().cumsum(dim=1).double().mul(2.0**-52).to(dtype)
