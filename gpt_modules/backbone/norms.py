"""What scales the states in a block: layer norm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gpt_modules.backbone.config import DecoderConfig


class RMSNorm(nn.RMSNorm):
    """In the wider of the types of input and weight, which torch would not take together, and back in the input's: no
    rule of autocast is about this norm.
    """

    def forward(self, x: Float[Tensor, "*S C"]) -> Float[Tensor, "*S C"]:
        wide = torch.promote_types(x.dtype, self.weight.dtype)
        return F.rms_norm(x.to(wide), self.normalized_shape, self.weight.to(wide), self.eps).to(x.dtype)


def norm(config: DecoderConfig, width: int) -> nn.Module:
    """Over the last `width` channels; of the mean square alone, or of mean and variance with a bias."""
    kind = RMSNorm if config.norm_kind == "rms" else nn.LayerNorm
    made: nn.Module = kind(width, eps=config.layer_norm_epsilon)
    return made
