"""What scales the states in a block: layer norm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gpt_modules.backbone.config import DecoderConfig
from gpt_modules.backbone.linear import made_again


class LayerNorm(nn.LayerNorm):
    """torch's, of which a layer that reads it need not keep what it gives."""

    def forward(self, input: Float[Tensor, "*S C"]) -> Float[Tensor, "*S C"]:
        return made_again(self._normed, input, self.weight, self.bias)

    def _normed(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class RMSNorm(nn.RMSNorm):
    """In the wider of the types of input and weight, which torch would not take together, and back in the input's: no
    rule of autocast is about this norm. A layer that reads it need not keep what it gives.
    """

    def forward(self, x: Float[Tensor, "*S C"]) -> Float[Tensor, "*S C"]:
        return made_again(self._normed, x, self.weight)

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, weight.dtype)
        return F.rms_norm(x.to(wide), self.normalized_shape, weight.to(wide), self.eps).to(x.dtype)


def norm(config: DecoderConfig, width: int) -> nn.Module:
    """Over the last `width` channels; of the mean square alone, or of mean and variance with a bias."""
    kind = RMSNorm if config.norm_kind == "rms" else LayerNorm
    made: nn.Module = kind(width, eps=config.layer_norm_epsilon)
    return made
