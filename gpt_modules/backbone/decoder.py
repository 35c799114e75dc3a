"""The decoder of the GPT lineage: token ids (B, T) -> hidden states (B, T, C).

Read top-down: attention, MLP, block, decoder. What differs between GPT-1 and GPT-2 is where the layer norms stand and
how the residual projections start; what differs between GPT-2 and GPT-3, which layers see a band only. Checked against
`GPT2LMHeadModel`, `OpenAIGPTLMHeadModel` and `GPTNeoForCausalLM` of transformers in `tests/backbone`.

Sources: Vaswani et al. 2017; Radford et al. 2018, section 4.1; Radford et al. 2019, section 2.3; Brown et al. 2020,
section 2.1.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.checkpoint import checkpoint

from gpt_modules.backbone.config import GPT_FIELDS, DecoderConfig
from gpt_modules.backbone.decoding.apart import RowCaches
from gpt_modules.backbone.decoding.kvcache import KVCache
from gpt_modules.backbone.masks import Mask, Masks, attention_masks, banded_attention, can_fuse
from gpt_modules.errors import UserError


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which a token sees itself and what stands before it, or of that what a mask leaves."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_head = config.n_head
        self.dropout = config.attn_pdrop
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.qkv_bias)
        self.proj = nn.Linear(config.n_embd, config.n_embd)
        self.drop = nn.Dropout(config.resid_pdrop)

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        mask: Mask = None,
        cache: KVCache | None = None,
        read: Int[Tensor, "N"] | None = None,
    ) -> Float[Tensor, "*S C"]:
        """`mask` (#B, 1, T, S) is added to the scores of every head; None means causal attention among these tokens.
        `read`: as of `Decoder.forward`.
        """
        batch, width, _ = x.shape
        query, key, value = (
            self.qkv(x).view(batch, width, 3, self.n_head, -1).permute(2, 0, 3, 1, 4)
        )  # each (B, H, T, D)
        if isinstance(cache, RowCaches):  # of unequal length: each attends alone
            mixed = cache.attend(self.layer, query, key, value)
            apart: Tensor = self.drop(self.proj(mixed.transpose(1, 2).reshape(batch, width, -1)))
            return apart
        if cache is not None:
            key, value = cache.write(self.layer, key, value)
            if len(key) < batch:  # all rows in one: a fork without room
                query = query.transpose(0, 1).reshape(1, self.n_head, batch * width, -1)
        if isinstance(mask, BlockMask):
            mixed = banded_attention(query, key, value, mask)
        else:
            mixed = F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=mask,
                dropout_p=self.dropout if self.training else 0.0,
                is_causal=mask is None and width > 1,
            )
        # (B, T, H, D), or (1, B T, H, D): the same in memory
        out: Tensor = self.drop(self.proj(only(read, mixed.transpose(1, 2).reshape(batch, width, -1))))
        return out


class MLP(nn.Module):
    """Two layers, four times as wide in between, with GELU in its tanh form (Hendrycks and Gimpel 2016)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.proj = nn.Linear(4 * config.n_embd, config.n_embd)
        self.drop = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Float[Tensor, "*S C"]) -> Float[Tensor, "*S C"]:
        out: Tensor = self.drop(self.proj(F.gelu(self.fc(x), approximate="tanh")))
        return out


class Block(nn.Module):
    """Attention, then MLP, each added to its input; layer norms before (GPT-2) or after the sums (GPT-1)."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.norm_first = config.norm == "pre"
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = CausalSelfAttention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        mask: Mask = None,
        cache: KVCache | None = None,
        read: Int[Tensor, "N"] | None = None,
    ) -> Float[Tensor, "*S C"]:
        if self.norm_first:
            x = only(read, x) + self.attn(self.ln_1(x), mask, cache, read)
            x = x + self.mlp(self.ln_2(x))
        else:
            x = self.ln_1(only(read, x) + self.attn(x, mask, cache, read))
            x = self.ln_2(x + self.mlp(x))
        return x


def only(read: Int[Tensor, "N"] | None, x: Float[Tensor, "B T C"]) -> Float[Tensor, "*S C"]:
    """The tokens of `x` that are read, (N, C); all of them (B, T, C) where `read` is None."""
    return x if read is None else x.flatten(0, 1).index_select(0, read)


class Decoder(nn.Module):
    """Embeddings, blocks and (pre-norm only) a final layer norm. It knows no head and no loss."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        if beyond := sorted(config.to_dict().keys() - set(GPT_FIELDS)):
            raise UserError(f"config: {beyond[0]}: found {getattr(config, beyond[0])}, expected none: not built yet")
        self.config = config
        self.compiled = False
        self.recompute = False  # a block's activations in the backward pass, instead of storing them
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        if config.norm == "pre":
            self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.reset_parameters()

    def reset_parameters(self, layer: nn.Module | None = None) -> None:
        """Draw fresh weights, of all layers or of one, from torch's global generator: N(0, 0.02), biases 0, layer norms
        1 and 0.

        With `init: gpt2` the 2 n_layer projections that write into the residual stream start 1 / sqrt(2 n_layer)
        smaller.
        """
        residual_std = 0.02 / math.sqrt(2 * self.config.n_layer) if self.config.init == "gpt2" else 0.02
        for name, module in (layer or self).named_modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, nn.Embedding | nn.Linear):
                nn.init.normal_(module.weight, std=residual_std if name.endswith(".proj") else 0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        positions: Int[Tensor, "B T"] | None = None,
        segments: Int[Tensor, "B T"] | None = None,
        attention_mask: Bool[Tensor, "B T"] | None = None,
        cache: KVCache | None = None,
        read: Int[Tensor, "N"] | None = None,
    ) -> Float[Tensor, "*S C"]:
        """Hidden states (B, T, C) of token ids (B, T). Right-padded rows need none of the optional arguments.

        Args:
            positions: of each token; by default 0, 1, 2, ... counting real tokens only.
            segments: packed rows: a token sees only its own segment; 0 is padding. Give `positions` with it.
            attention_mask: True = real token; for left-padded rows. Real tokens never see the others.
            cache: holds the tokens already read, to which these are appended; the mask, if any, is of the new tokens.
            read: places in the flattened rows (B T) of the states that are wanted, which alone are returned (N, C). In
                the last block other tokens are keys and values only.

        Raises `UserError` where a row is longer than `n_positions`.
        """
        masks: Masks
        if cache is not None:
            counted, masks = cache.reserve(tokens.shape[1], attention_mask)
            positions = counted if positions is None else positions
        else:
            fused = can_fuse(self.config, tokens.device, self.training)
            masks = attention_masks(self.config, tokens, segments, attention_mask, self.wte.weight.dtype, fused)
            positions = self._default_positions(tokens, attention_mask) if positions is None else positions
        x: Tensor = self.drop(self.wte(tokens) + self.wpe(positions))
        wanted = [*[None] * (len(self.blocks) - 1), read]
        for block, kind, states in zip(self.blocks, self.config.layers, wanted, strict=True):
            if self.recompute and cache is None and torch.is_grad_enabled():
                x = checkpoint(block, x, masks[kind], None, states, use_reentrant=False)
            else:
                x = block(x, masks[kind], cache, states)
        if self.config.norm == "pre":
            x = self.ln_f(x)
        return x

    def _default_positions(
        self, tokens: Int[Tensor, "B T"], attention_mask: Bool[Tensor, "B T"] | None
    ) -> Int[Tensor, "..."]:
        longest, limit = tokens.shape[1], self.config.n_positions
        if longest > limit and attention_mask is not None:  # only then is the device asked
            longest = int(attention_mask.sum(1).max())
        if longest > limit:
            raise UserError(f"tokens: found rows of {longest}, expected at most n_positions = {limit}")
        if attention_mask is not None:
            return (attention_mask.cumsum(1) - 1).clamp_min(0)
        return torch.arange(tokens.shape[1], device=tokens.device)

    def compile_blocks(self) -> None:
        """`torch.compile` each block in place, so that the names in `state_dict` stay as they are."""
        for block in self.blocks:
            block.compile()
        self.compiled = True
