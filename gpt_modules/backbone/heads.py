"""What stands on top of the decoder. The language-model head is the token embedding, tied, and needs no module."""

import math

from jaxtyping import Float
from torch import Tensor, nn


class ScalarHead(nn.Module):
    """Hidden states (..., C) -> one number each (...): a reward, or the value of a state.

    Weights start N(0, 1 / (C + 1)) in variance and the bias 0, as in Ziegler et al. 2019 and Stiennon et al. 2020.
    """

    def __init__(self, n_embd: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_embd, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.linear.weight, std=1.0 / math.sqrt(self.linear.in_features + 1))
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Float[Tensor, "*S C"]) -> Float[Tensor, "*S"]:
        out: Tensor = self.linear(hidden).squeeze(-1)
        return out
