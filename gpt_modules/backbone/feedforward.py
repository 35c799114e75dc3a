"""A plain network of numbers: what MAML's regression experiment adapts (Finn et al. 2017, section 5.1)."""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from gpt_modules.backbone.config_rules import LARGEST_SIZE
from gpt_modules.errors import expect


class FeedForward(nn.Sequential):
    """Linear layers with ReLU between them: (B, I) -> (B, O); the paper's has two hidden layers of 40.

    Args:
        inputs: I.
        hidden: widths of the layers in between.
        outputs: O.
    """

    def __init__(self, inputs: int = 1, hidden: list[int] | None = None, outputs: int = 1) -> None:
        widths = [inputs, *([40, 40] if hidden is None else hidden), outputs]
        fits = all(1 <= width <= LARGEST_SIZE for width in widths)
        expect(fits, "network: widths", widths, f"1 to {LARGEST_SIZE:,} each")
        layers: list[nn.Module] = []
        for narrow, wide in pairwise(widths):
            layers += [nn.Linear(narrow, wide), nn.ReLU()]
        super().__init__(*layers[:-1])

    def forward(self, inputs: Float[Tensor, "B I"]) -> Float[Tensor, "B O"]:
        out: Tensor = super().forward(inputs)  # type: ignore[no-untyped-call]
        return out
