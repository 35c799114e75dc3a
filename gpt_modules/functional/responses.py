"""Which positions of a right-padded row (prompt, then response) speak about the response."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def response_positions(prompt_lengths: Int[Tensor, "B"], R: int) -> Int[Tensor, "B R"]:
    """Position of the state that predicts response token t: prompt_length - 1 + t, for t = 0 … R-1.

    A causal decoder's state at position i has read tokens 0 … i and predicts token i+1, so the first response token is
    predicted at the prompt's last position. Prompts have at least one token. The positions are not limited to the row's
    width.
    """
    steps = torch.arange(R, device=prompt_lengths.device, dtype=prompt_lengths.dtype)
    return prompt_lengths.unsqueeze(1) - 1 + steps


class Counted(NamedTuple):
    """The N response tokens that count, of all rows one after another: nothing else needs a head.

    cells: (N,) where they stand in the flattened mask (B, R).
    states: (N,) where the states that predict them stand in the flattened rows (B, T).
    """

    cells: Int[Tensor, "N"]
    states: Int[Tensor, "N"]

    @classmethod
    def of(
        cls, prompt_lengths: Int[Tensor, "B"], mask: Bool[Tensor, "B R"], width: int, count: int | None = None
    ) -> "Counted":
        """Those that `mask` counts, in rows of `width`. Waits for the device, unless it is told their `count`."""
        positions = response_positions(prompt_lengths, mask.shape[1])
        starts = torch.arange(len(mask), device=mask.device).unsqueeze(1) * width
        flat = mask.flatten()
        cells = (flat.nonzero() if count is None else torch.nonzero_static(flat, size=count))[:, 0]
        return cls(cells, (starts + positions).flatten().index_select(0, cells))

    def spread(self, values: Float[Tensor, "N"], mask: Bool[Tensor, "B R"]) -> Float[Tensor, "B R"]:
        """Numbers a token back in their cells, 0 in the others; differentiable."""
        return values.new_zeros(mask.numel()).index_copy(0, self.cells, values).view(mask.shape)
