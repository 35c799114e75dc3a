"""The decoder of the GPT lineage: token ids (B, T) -> hidden states (B, T, C).

Read top-down: attention, MLP, blocks, decoder. What differs between models is decided where layers are made: how
positions are told, which norm stands where, what the MLP does, how many heads read the same keys, which layers see a
band only. Checked against the classes of transformers, GPT-1's to Qwen3's, in `tests/backbone`.

Sources: Vaswani et al. 2017; Radford et al. 2018, section 4.1; Radford et al. 2019, section 2.3; Brown et al. 2020,
section 2.1; of today's settings, those that `DecoderConfig` names.
"""

import functools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.checkpoint import checkpoint

from gpt_modules.backbone.activations import ACTIVATIONS
from gpt_modules.backbone.config import DecoderConfig
from gpt_modules.backbone.decoding.apart import RowCaches
from gpt_modules.backbone.decoding.kvcache import KVCache
from gpt_modules.backbone.embedding import Embedding
from gpt_modules.backbone.linear import Linear, made_again
from gpt_modules.backbone.masks import Mask, Masks, attention_masks, banded_attention, can_fuse, computed_in
from gpt_modules.backbone.norms import norm
from gpt_modules.backbone.rotary import Rotary, Rotation, rotate
from gpt_modules.errors import UserError

GRAPHS = 64  # of blocks, over all models of a process


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which a token sees itself and what stands before it, or of that what a mask leaves.

    Queries of H heads, keys and values of K: each of the latter is read by H / K of the former.
    """

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads = [config.n_head, config.kv_heads, config.kv_heads]
        self.dropout = config.attn_pdrop
        width = config.head_width
        self.qkv = Linear(config.n_embd, sum(self.heads) * width, bias=config.qkv_bias)
        self.proj = Linear(config.n_head * width, config.n_embd, bias=config.proj_bias)
        self.drop = Dropout(config.resid_pdrop)
        self.normed = config.qk_norm
        if self.normed:
            self.q_norm, self.k_norm = norm(config, width), norm(config, width)

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        mask: Mask = None,
        cache: KVCache | None = None,
        read: Int[Tensor, "N"] | None = None,
        rotation: Rotation | None = None,
    ) -> Float[Tensor, "*S C"]:
        """`mask` (#B, 1, T, S) is added to the scores of every head; None means causal attention among these tokens.
        `read`: as of `Decoder.forward`.
        """
        batch, width, _ = x.shape
        heads = self.qkv(x).view(batch, width, sum(self.heads), -1)
        query, key, value = self._turned(heads, rotation)
        if isinstance(cache, RowCaches):  # of unequal length: each attends alone
            mixed = cache.attend(self.layer, query, key, value)
        else:
            if cache is not None:
                key, value = cache.write(self.layer, key, value)
            if len(key) < batch:  # all rows in one: a fork without room
                query = query.transpose(0, 1).reshape(1, self.heads[0], batch * width, -1)
            # Of no cache whatever the width, which a compiler would have to know.
            mixed = self._attend(query, key, value, mask, mask is None and (cache is None or width > 1))
        # (B, T, H, D), or (1, B T, H, D): the same in memory
        out: Tensor = self.drop(self.proj(only(read, mixed.transpose(1, 2).reshape(batch, width, -1))))
        return out

    def _turned(self, heads: Float[Tensor, "B T _ D"], rotation: Rotation | None) -> Sequence[Tensor]:
        """Queries (B, H, T, D), keys and values (B, K, T, D); the first two normed and turned where a model does."""
        query_heads, key_heads, _ = self.heads
        if rotation is None and not self.normed:
            parts = heads.split_with_sizes(self.heads, dim=2)
        else:
            turning, value = heads.split_with_sizes([query_heads + key_heads, key_heads], dim=2)
            if self.normed:
                query, key = turning.split_with_sizes([query_heads, key_heads], dim=2)
                turning = torch.cat([self.q_norm(query), self.k_norm(key)], dim=2)
            if rotation is not None:  # all at once: half the kernels
                turning = rotate(turning, rotation)
            parts = (*turning.split_with_sizes([query_heads, key_heads], dim=2), value)
        # Turned after they are parted: their gradients then lie side by side as the product before has them.
        return [part.transpose(1, 2) for part in parts]

    def _attend(
        self,
        query: Float[Tensor, "B H T D"],
        key: Float[Tensor, "B K S D"],
        value: Float[Tensor, "B K S D"],
        mask: Mask,
        causal: bool,
    ) -> Float[Tensor, "B H T D"]:
        if isinstance(mask, BlockMask):
            return banded_attention(query, key, value, mask)
        grouped, width = query.shape[1] != key.shape[1], query.shape[2]
        attend = functools.partial(
            F.scaled_dot_product_attention,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
        )
        if grouped and width == 1:  # heads that read the same keys stand as if they were tokens: keys are read once
            together = query.reshape(len(key), key.shape[1], -1, query.shape[3])
            return attend(together, key, value).reshape(query.shape)
        return attend(query, key, value, is_causal=causal, enable_gqa=grouped)


class MLP(nn.Module):
    """Two layers, wider in between; of a gated one the first makes the gate and, behind it, what the gate lets pass."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.act = ACTIVATIONS[config.mlp]
        self.makes_again = config.mlp != "relu"  # which keeps what it gives, as the others keep what they are given
        made = 2 * config.inner_width if config.mlp == "swiglu" else config.inner_width
        self.fc = Linear(config.n_embd, made, bias=config.mlp_bias)
        self.proj = Linear(config.inner_width, config.n_embd, bias=config.mlp_bias)
        self.drop = Dropout(config.resid_pdrop)

    def forward(self, x: Float[Tensor, "*S C"]) -> Float[Tensor, "*S C"]:
        inner = self.fc(x)
        hidden = made_again(self.act, inner) if self.makes_again else self.act(inner)
        out: Tensor = self.drop(self.proj(hidden))
        return out


class Block(nn.Module):
    """Attention, then MLP, each added to its input, which it reads through a norm (GPT-2)."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = norm(config, config.n_embd)
        self.attn = CausalSelfAttention(config, layer)
        self.ln_2 = norm(config, config.n_embd)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        mask: Mask = None,
        cache: KVCache | None = None,
        read: Int[Tensor, "N"] | None = None,
        rotation: Rotation | None = None,
    ) -> Float[Tensor, "*S C"]:
        """Arguments as of `CausalSelfAttention.forward`."""
        return self.summed(x, only(read, x), lambda states: self.attn(states, mask, cache, read, rotation))

    def summed(self, x: Tensor, wanted: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        """`wanted` are the tokens of `x` that go on."""
        x = wanted + attend(self.ln_1(x))
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class PostNormBlock(Block):
    """The same with norms behind the sums (GPT-1)."""

    def summed(self, x: Tensor, wanted: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        x = self.ln_1(wanted + attend(x))
        out: Tensor = self.ln_2(x + self.mlp(x))
        return out


class ParallelBlock(Block):
    """Attention and MLP side by side, each through a norm of its own, and added at once (GPT-NeoX)."""

    def summed(self, x: Tensor, wanted: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        out: Tensor = wanted + attend(self.ln_1(x)) + self.mlp(self.ln_2(wanted))
        return out


def only(read: Int[Tensor, "N"] | None, x: Float[Tensor, "B T C"]) -> Float[Tensor, "*S C"]:
    """The tokens of `x` that are read, (N, C); all of them (B, T, C) where `read` is None."""
    return x if read is None else x.flatten(0, 1).index_select(0, read)


class Dropout(nn.Dropout):
    """Not even asked of torch where nothing is dropped: a step of decoding has more such calls than products."""

    def forward(self, input: Float[Tensor, "*S C"]) -> Float[Tensor, "*S C"]:
        return super().forward(input) if self.training and self.p > 0.0 else input


class Decoder(nn.Module):
    """Embeddings, blocks and (pre-norm only) a final norm. It knows no head and no loss."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False  # a block's activations in the backward pass, instead of storing them
        self.one_width = False  # of all rows that are learnt from
        self.wte = Embedding(config.vocab_size, config.n_embd)
        if config.positions == "learned":
            self.wpe = nn.Embedding(config.position_offset + config.n_positions, config.n_embd)
        else:
            self.rotary = Rotary(config.rotary_width, config.rope_theta, config.rope_scaling)
        self.drop = Dropout(config.embd_pdrop)
        block = ParallelBlock if config.parallel_residual else Block if config.norm == "pre" else PostNormBlock
        self.blocks = nn.ModuleList(block(config, layer) for layer in range(config.n_layer))
        if config.norm == "pre":
            self.ln_f = norm(config, config.n_embd)
        self.reset_parameters()

    @property
    def embeddings(self) -> list[nn.Module]:
        """That of tokens and, where positions are learned, theirs."""
        return [self.wte, *([self.wpe] if self.config.positions == "learned" else [])]

    def reset_parameters(self, layer: nn.Module | None = None) -> None:
        """Draw fresh weights, of all layers or of one, from torch's global generator: N(0, 0.02), biases 0, layer norms
        1 and 0.

        With `init: gpt2` the 2 n_layer projections that write into the residual stream start 1 / sqrt(2 n_layer)
        smaller.
        """
        residual_std = 0.02 / math.sqrt(2 * self.config.n_layer) if self.config.init == "gpt2" else 0.02
        for name, module in (layer or self).named_modules():
            if isinstance(module, nn.LayerNorm | nn.RMSNorm):
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
            fused = self.one_width and can_fuse(self.config, tokens.device, self.training)
            masks = attention_masks(self.config, tokens, segments, attention_mask, computed_in(self.wte.weight), fused)
            positions = self._default_positions(tokens, attention_mask) if positions is None else positions
        x, rotation = self._placed(tokens, positions)
        wanted = [*[None] * (len(self.blocks) - 1), read]
        for block, kind, states in zip(self.blocks, self.config.layers, wanted, strict=True):
            if self.recompute and cache is None and torch.is_grad_enabled():
                x = checkpoint(block, x, masks[kind], None, states, rotation, use_reentrant=False)
            else:
                x = block(x, masks[kind], cache, states, rotation)
        if self.config.norm == "pre":
            x = self.ln_f(x)
        return x

    def _placed(
        self, tokens: Int[Tensor, "B T"], positions: Int[Tensor, "*B T"]
    ) -> tuple[Float[Tensor, "B T C"], Rotation | None]:
        """Embedded tokens that know where they stand, or what turns their queries and keys so that they do."""
        if self.config.positions == "rotary":
            return self.drop(self.wte(tokens)), self.rotary(positions)
        offset = self.config.position_offset
        return self.drop(self.wte(tokens) + self.wpe(positions + offset if offset else positions)), None

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

    def expect_one_width(self) -> None:
        """All rows that are learnt from will be of one width, for which kernels may be made: of bands and products."""
        self.one_width = True
        for layer in self.modules():
            if isinstance(layer, Linear):
                layer.one_width = True

    def compile_blocks(self) -> None:
        """`torch.compile` each block in place, so that the names in `state_dict` stay as they are.

        Blocks of all models of a process share one code, whose graphs Dynamo counts together: learning and scoring,
        with and without states to read, of each width of model. Beyond its limit, 8, it would go on uncompiled.
        """
        torch._dynamo.config.recompile_limit = max(GRAPHS, torch._dynamo.config.recompile_limit)
        for block in self.blocks:
            block.compile()
