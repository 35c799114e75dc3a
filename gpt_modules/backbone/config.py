"""The sizes of a decoder, as one frozen dataclass: GPT-1, GPT-2, GPT-3 and GPT-Neo are settings of it, not classes, and
so are today's decoders.

- GPT-1 (Radford et al. 2018, section 4.1): `norm: post`, `init: gpt1`, 40,478 tokens, 512 positions.
- GPT-2 (Radford et al. 2019, section 2.3 and table 2): the defaults, 12 to 48 layers.
- GPT-3 (Brown et al. 2020, section 2.1 and table 2.1): GPT-2's with 2,048 positions and `attention: [dense, banded]`,
  "alternating dense and locally banded". The paper gives neither the width of the band nor which layers have it: dense
  first and 256 tokens are GPT-Neo's choices.
- GPT-Neo (EleutherAI 2021): GPT-3's with `qkv_bias: false`.
- GPT-NeoX, Pythia (Black et al. 2022, section 2.1; Biderman et al. 2023): `positions: rotary`, `rope_fraction: 0.25`,
  `parallel_residual: true`, `mlp: gelu`, `tied: false`.
- OPT (Zhang et al. 2022): `mlp: relu`, `position_offset: 2`.
- Llama (Touvron et al. 2023, section 2.2; Grattafiori et al. 2024, section 3.2): `positions: rotary`, `norm_kind: rms`,
  `mlp: swiglu`, no biases; from 2 on `n_kv_head`, in 3.1 `rope_scaling` of the kind llama3.
- Mistral (Jiang et al. 2023): Llama's with `attention: [banded]`.
- Qwen2 (Yang et al. 2024): Llama's with `qkv_bias: true`. Qwen3 (Yang et al. 2025): without, and `qk_norm: true`.

Floating-point operations a token: Kaplan et al. 2020, section 2.1.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from gpt_modules.backbone.config_rules import MOST_LAYERS, check
from gpt_modules.backbone.rotary import RopeScaling
from gpt_modules.errors import UserError
from gpt_modules.storage.documents import typed
from gpt_modules.storage.json_files import shown

Norm = Literal["pre", "post"]
Init = Literal["gpt1", "gpt2"]
Attention = Literal["dense", "banded"]
Positions = Literal["learned", "rotary"]
NormKind = Literal["layer", "rms"]
Activation = Literal["gelu_tanh", "gelu", "relu", "swiglu"]


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes and switches of a decoder-only Transformer. The defaults are GPT-2 124M.

    Raises `UserError`, one line naming the field, for a value that no decoder can have.
    """

    vocab_size: int = 50257
    """V, rows of the token embedding and of the output matrix."""
    n_positions: int = 1024
    """Longest context in tokens."""
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    """C, the width."""
    norm: Norm = "pre"
    """pre: a norm at the input of each sub-block and one at the end (GPT-2). post: after each sum only (GPT-1)."""
    init: Init = "gpt2"
    """gpt1: N(0, 0.02) everywhere. gpt2: the same with residual projections scaled by 1 / sqrt(2 n_layer)."""
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    attention: tuple[Attention, ...] = ("dense",)
    """What the layers attend to, from the lowest, repeated over all. dense: all before; banded: the last `window`."""
    window: int = 256
    """Tokens that a banded layer sees: the token itself and the window - 1 before it."""
    qkv_bias: bool = True
    """Whether queries, keys and values have a bias; GPT-Neo's have none."""
    positions: Positions = "learned"
    """learned: an embedding of each position, added to the token's. rotary: queries and keys are turned, see
    `rotary`.
    """
    position_offset: int = 0
    """Rows of the position embedding before that of the first position: 2 in OPT."""
    rope_theta: float = 10_000.0
    """The longest wavelength, about, in positions / 2 pi."""
    rope_fraction: float = 1.0
    """The part of a head that turns."""
    rope_scaling: RopeScaling | None = None
    norm_kind: NormKind = "layer"
    """layer: Ba et al. 2016. rms: without mean and bias (Zhang and Sennrich 2019)."""
    mlp: Activation = "gelu_tanh"
    """GELU in its tanh form or exact (Hendrycks and Gimpel 2016), ReLU, or silu(x W) x V (Shazeer 2020, SwiGLU)."""
    n_inner: int | None = None
    """Width of the MLP in between; left out: 4 C."""
    n_kv_head: int | None = None
    """Heads of keys and values, each read by n_head / n_kv_head of queries (Ainslie et al. 2023); left out: n_head."""
    head_size: int | None = None
    """D, the width of a head; left out: C / n_head."""
    qk_norm: bool = False
    """A norm of each head's queries and keys, before they turn (Qwen3)."""
    proj_bias: bool = True
    """Whether the projection behind attention has a bias."""
    mlp_bias: bool = True
    parallel_residual: bool = False
    """Attention and MLP read the same input and are added at once (GPT-J; Black et al. 2022, section 2.1.2)."""
    tied: bool = True
    """Whether the output matrix is the token embedding (Press and Wolf 2017)."""

    def __post_init__(self) -> None:
        check(self)
        object.__setattr__(self, "attention", _pattern(self.attention))

    @property
    def head_width(self) -> int:
        """D, the width of one attention head."""
        return self.n_embd // self.n_head if self.head_size is None else self.head_size

    @property
    def kv_heads(self) -> int:
        """K, heads of keys and values."""
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def inner_width(self) -> int:
        """Width of the MLP in between; a gated one has two such layers side by side."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    @property
    def rotary_width(self) -> int:
        """R, channels of a head that turn with its position."""
        return int(self.head_width * self.rope_fraction)

    @property
    def layers(self) -> tuple[Attention, ...]:
        """The attention of each layer: the pattern repeated."""
        return tuple(self.attention[layer % len(self.attention)] for layer in range(self.n_layer))

    def matrices(self) -> int:
        """Numbers in the matrices of a block: what each token is multiplied by there."""
        width, heads, inner = self.n_embd, self.head_width, self.inner_width
        attention = width * heads * (2 * self.n_head + 2 * self.kv_heads)
        return attention + width * inner * (3 if self.mlp == "swiglu" else 2)

    def n_params(self) -> int:
        """Exact number of parameters of the language model, a tied output matrix counted once."""
        width, heads = self.n_embd, self.head_width
        per_channel = 2 if self.norm_kind == "layer" else 1
        biases = heads * (self.n_head + 2 * self.kv_heads) * self.qkv_bias + width * self.proj_bias
        biases += (self.inner_width * (2 if self.mlp == "swiglu" else 1) + width) * self.mlp_bias
        norms = per_channel * (2 * width + 2 * heads * self.qk_norm)
        positions = self.n_positions + self.position_offset if self.positions == "learned" else 0
        embeddings = (self.vocab_size * (1 if self.tied else 2) + positions) * width
        final = per_channel * width if self.norm == "pre" else 0
        return embeddings + self.n_layer * (self.matrices() + biases + norms) + final

    def flops_per_token(self, context: int) -> int:
        """Floating-point operations a token of training (forward and backward) at `context` tokens.

        6 N_matmul + 12 H D S, with H D the width of all heads and S the keys that stand before a query, summed over the
        layers: T in a dense layer and min(T, window) in a banded one. Kaplan et al. 2020, section 2.1, with the output
        matrix counted and biases, norms, rotations and embedding look-ups left out.
        """
        matmul = self.n_layer * self.matrices() + self.vocab_size * self.n_embd
        keys = sum(min(context, self.window) if kind == "banded" else context for kind in self.layers)
        return 6 * matmul + 12 * self.n_head * self.head_width * keys

    def without_dropout(self) -> "DecoderConfig":
        """The same decoder with every dropout probability 0, as RLHF trains it."""
        return dataclasses.replace(self, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, as JSON has them, so that a checkpoint stays readable with `weights_only=True`.

        What GPT-Neo has no word for stands there only where it says something: a model's files and its digest do not
        change with what other models can be.
        """
        values = {**dataclasses.asdict(self), "attention": list(self.attention)}
        return {name: value for name, value in values.items() if name in GPT_FIELDS or value != _DEFAULTS[name]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DecoderConfig":
        """The inverse of `to_dict`; raises `UserError` for a field that does not exist."""
        for name in values:
            if name not in _DEFAULTS:
                raise UserError(f"config: {name}: unknown field, expected one of {', '.join(_DEFAULTS)}")
        found = dict(values)
        if "attention" in values:
            found["attention"] = _pattern(values["attention"])
        if isinstance(values.get("rope_scaling"), Mapping):
            found["rope_scaling"] = typed(RopeScaling, values["rope_scaling"], "config: rope_scaling")
        return cls(**found)


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(DecoderConfig)}
GPT_FIELDS = tuple(_DEFAULTS)[: list(_DEFAULTS).index("qkv_bias") + 1]
"""Those that say all of GPT-1, GPT-2, GPT-3 and GPT-Neo."""


def _pattern(found: object) -> tuple[Attention, ...]:
    """A tuple of what YAML and JSON give as a list."""
    kinds = list(get_args(Attention))
    if not isinstance(found, list | tuple) or not 0 < len(found) <= MOST_LAYERS or any(k not in kinds for k in found):
        value = list(found) if isinstance(found, tuple) else found
        raise UserError(f"config: attention: found {shown(value)}, expected a list of {' and '.join(kinds)}")
    return tuple(found)
