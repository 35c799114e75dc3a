"""Which tokens a token may see, in the forms that attention takes.

Dense layers see everything before, banded ones the last `window` tokens only, themselves included (Brown et al. 2020,
section 2.1). The band is counted in tokens of the row; a packed segment, and what stands behind padding on the left, is
contiguous, so there it is as wide as in a row of its own. Three forms:

- None: plain causal attention, which has the fastest kernels; also right for a band that is no narrower than the row;
- a tensor added to the scores, 0 or -inf, made once a forward for all layers of a kind;
- a `BlockMask`, for bands on CUDA: FlexAttention skips the blocks outside the band, forward and backward.
"""

import functools
import importlib.util
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from gpt_modules.backbone.config import Attention, DecoderConfig

Mask: TypeAlias = Tensor | BlockMask | None
Masks: TypeAlias = Mapping[Attention, Mask]

# The kernel's own lower limit on the width of a head.
FUSED_HEAD_SIZE = 16


def attention_masks(
    config: DecoderConfig,
    tokens: Int[Tensor, "B T"],
    segments: Int[Tensor, "B T"] | None,
    attention_mask: Bool[Tensor, "B T"] | None,
    dtype: torch.dtype,
    fused: bool,
) -> Masks:
    """The mask of each kind of layer, for rows that are read at once; tensors (#B, 1, T, T) are of `dtype`.

    Every token may read itself, so a row of padding gives numbers that nobody reads, never NaN. `fused`: a band may be
    a `BlockMask`, which it is where neither segments nor a mask is given.
    """
    visible = visible_tokens(segments, attention_mask)
    masks: Masks = {"dense": None if visible is None else additive(visible, dtype)}
    if "banded" not in config.layers:
        return masks
    width, window = tokens.shape[1], config.window
    if width <= window:
        return {**masks, "banded": masks["dense"]}
    if visible is None and fused:
        return {**masks, "banded": block_mask(width, window, tokens.device)}
    band = in_band(width, window, tokens.device)[None]
    return {**masks, "banded": additive(band if visible is None else visible & band, dtype)}


def visible_tokens(
    segments: Int[Tensor, "B T"] | None, attention_mask: Bool[Tensor, "B T"] | None
) -> Bool[Tensor, "#B T T"] | None:
    """True where a query (row) may read a key (column) of its own segment, or one that the mask calls real."""
    given = segments if segments is not None else attention_mask
    if given is None:
        return None
    width = given.shape[1]
    visible = torch.ones(width, width, dtype=torch.bool, device=given.device).tril_()[None]
    if segments is not None:
        visible = visible & (segments[:, :, None] == segments[:, None, :])
    if attention_mask is not None:
        itself = torch.eye(width, dtype=torch.bool, device=given.device)
        visible = visible & (attention_mask[:, None, :] | itself)
    return visible


def computed_in(weight: Tensor) -> torch.dtype:
    """The type that products with this weight take place in, autocast considered."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def in_band(width: int, window: int, device: torch.device) -> Bool[Tensor, "T T"]:
    """True where the key (column) is the query (row) or one of the window - 1 tokens before it."""
    return torch.ones(width, width, dtype=torch.bool, device=device).tril_().triu_(1 - window)


def additive(visible: Bool[Tensor, "#B R S"], dtype: torch.dtype) -> Float[Tensor, "#B 1 R S"]:
    """0 where visible, -inf elsewhere. A bool mask would be converted again by the attention of every layer."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, -torch.inf)[:, None]


def can_fuse(config: DecoderConfig, device: torch.device, training: bool) -> bool:
    """Whether bands can go through FlexAttention: training on a CUDA device that Triton compiles for.

    Not where attention drops out, which the kernel does not know. Nor in evaluation: rows there are of any length, and
    many lengths are many compilations.
    """
    if device.type != "cuda" or not training or config.attn_pdrop > 0.0 or config.head_width < FUSED_HEAD_SIZE:
        return False
    # Triton needs tensor cores, compute capability 7; ROCm devices count differently and all have what it takes.
    capable = torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (7, 0)
    return capable and _has_triton()


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def band_rule(window: int) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """FlexAttention's form of `in_band`: whether query i reads key j."""
    return lambda batch, head, i, j: (j <= i) & (i - j < window)


@functools.lru_cache(maxsize=32)
def block_mask(width: int, window: int, device: torch.device) -> BlockMask:
    """The band of rows of `width` tokens, kept: batches of one length follow one another."""
    return create_block_mask(band_rule(window), None, None, width, width, device=device)


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    fused: Callable[..., Tensor] = torch.compile(flex_attention)
    return fused


def banded_attention(
    query: Float[Tensor, "B H T D"], key: Float[Tensor, "B K T D"], value: Float[Tensor, "B K T D"], mask: BlockMask
) -> Float[Tensor, "B H T D"]:
    """Attention of the blocks that `mask` has, always compiled: as it is, FlexAttention would form all scores."""
    grouped = query.shape[1] != key.shape[1]
    if torch.compiler.is_compiling():  # part of a compiled block, and of its graph
        inside: Tensor = flex_attention(query, key, value, block_mask=mask, enable_gqa=grouped)
        return inside
    return _compiled()(query, key, value, block_mask=mask, enable_gqa=grouped)
