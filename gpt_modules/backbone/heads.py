"""What stands on top of the decoder. The language-model head is the token embedding, tied, and needs no module.

The heads of tasks read the states at the extract tokens of an example's S rows, (B, S, C). They have no bias and start
at N(0, 0.02): softmax(h W_y), Radford et al. 2018, equation 3; dropout before it as in section 4.1.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ExactLinear(nn.Linear):
    """A linear layer that multiplies in float32 at any precision of the run: in bf16, of 3 digits, 512 rewards have 94
    values, and a head costs nothing.
    """

    def forward(self, input: Float[Tensor, "*S C"]) -> Float[Tensor, "*S L"]:
        wide = torch.promote_types(input.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(wide)
        with torch.autocast(input.device.type, enabled=False):
            return F.linear(input.to(wide), self.weight.to(wide), bias)


class ScalarHead(nn.Module):
    """Hidden states (..., C) -> one number each (...): a reward, or the value of a state.

    Weights start N(0, 1 / (C + 1)) in variance and the bias 0, as in Ziegler et al. 2019 and Stiennon et al. 2020.
    """

    def __init__(self, n_embd: int) -> None:
        super().__init__()
        self.linear = ExactLinear(n_embd, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.linear.weight, std=1.0 / math.sqrt(self.linear.in_features + 1))
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Float[Tensor, "*S C"]) -> Float[Tensor, "*S"]:
        # A copy, no view: what gathers shards for the backward pass hangs at a model's output, and a view may lose it.
        out: Tensor = self.linear(hidden).squeeze(-1).clone()
        return out


class ClassificationHead(nn.Module):
    """The state of an example's one row -> its `n_outputs` logits (B, L); for regression L is 1."""

    def __init__(self, n_embd: int, n_outputs: int, dropout: float) -> None:
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.linear = _linear(n_embd, n_outputs)

    def forward(self, states: Float[Tensor, "B 1 C"]) -> Float[Tensor, "B L"]:
        out: Tensor = self.linear(self.drop(states.squeeze(1)))
        return out


class SimilarityHead(ClassificationHead):
    """The states of a pair's two orders, added -> its `n_outputs` logits (B, L), whichever of the two comes first."""

    def forward(self, states: Float[Tensor, "B S C"]) -> Float[Tensor, "B L"]:
        return super().forward(states.sum(1, keepdim=True))


class MultipleChoiceHead(nn.Module):
    """The states of an example's S answers -> a score each (B, S).

    Dropout strikes the same channels of all answers of an example, as in the original code: they are compared with one
    another, and masks of their own would be noise in every difference.
    """

    def __init__(self, n_embd: int, dropout: float) -> None:
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.linear = _linear(n_embd, 1)

    def forward(self, states: Float[Tensor, "B S C"]) -> Float[Tensor, "B S"]:
        kept = self.drop(states.new_ones(len(states), 1, states.shape[2]))
        out: Tensor = self.linear(states * kept).squeeze(2)
        return out


def _linear(n_embd: int, n_outputs: int) -> ExactLinear:
    linear = ExactLinear(n_embd, n_outputs, bias=False)
    nn.init.normal_(linear.weight, std=0.02)
    return linear
