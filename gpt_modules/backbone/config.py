"""The sizes of a decoder, as one frozen dataclass: GPT-1, GPT-2, GPT-3 and GPT-Neo are settings of it, not classes.

- GPT-1 (Radford et al. 2018, section 4.1): `norm: post`, `init: gpt1`, 40,478 tokens, 512 positions.
- GPT-2 (Radford et al. 2019, section 2.3 and table 2): the defaults, 12 to 48 layers.
- GPT-3 (Brown et al. 2020, section 2.1 and table 2.1): GPT-2's with 2,048 positions and `attention: [dense, banded]`,
  "alternating dense and locally banded". The paper gives neither the width of the band nor which layers have it: dense
  first and 256 tokens are GPT-Neo's choices.
- GPT-Neo (EleutherAI 2021): GPT-3's with `qkv_bias: false`.

Floating-point operations a token: Kaplan et al. 2020, section 2.1.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, get_args

from gpt_modules.errors import UserError
from gpt_modules.storage.json_files import shown

Norm = Literal["pre", "post"]
Init = Literal["gpt1", "gpt2"]
Attention = Literal["dense", "banded"]

LARGEST_SIZE = 2**31 - 1
MOST_LAYERS = 100_000
"""Beyond what any machine holds; files may say anything."""


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes and switches of a decoder-only Transformer. The defaults are GPT-2 124M.

    Raises `UserError`, one line naming the field, for a value that no decoder can have.
    """

    vocab_size: int = 50257
    """V, rows of the token embedding, which is also the output matrix."""
    n_positions: int = 1024
    """Longest context in tokens: rows of the learned position embedding."""
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    """C, the width; each head works on C / n_head of it."""
    norm: Norm = "pre"
    """pre: layer norm at the input of each sub-block and one at the end (GPT-2). post: after each sum only (GPT-1)."""
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

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_positions", "n_layer", "n_head", "n_embd", "window"):
            value, most = getattr(self, name), MOST_LAYERS if name == "n_layer" else LARGEST_SIZE
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                beyond = f", and at most {most:,}" if isinstance(value, int) and value > most else ""
                self._refuse(name, f"a whole number of at least 1{beyond}")
        for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop"):
            if not _is_number(getattr(self, name)) or not 0.0 <= getattr(self, name) < 1.0:
                self._refuse(name, "a probability in [0, 1)")
        for name, choices in (("norm", get_args(Norm)), ("init", get_args(Init))):
            if getattr(self, name) not in choices:
                self._refuse(name, f"one of {', '.join(choices)}")
        if not isinstance(self.qkv_bias, bool):
            self._refuse("qkv_bias", "true or false")
        if not _is_number(self.layer_norm_epsilon) or not 0.0 < self.layer_norm_epsilon < math.inf:
            self._refuse("layer_norm_epsilon", "a number above 0")
        if self.n_embd % self.n_head:
            raise UserError(f"config: n_embd: found {self.n_embd}, expected a multiple of n_head ({self.n_head})")
        object.__setattr__(self, "attention", _pattern(self.attention))

    def _refuse(self, name: str, expected: str) -> NoReturn:
        raise UserError(f"config: {name}: found {shown(getattr(self, name))}, expected {expected}")

    @property
    def head_size(self) -> int:
        """D, the width of one attention head."""
        return self.n_embd // self.n_head

    @property
    def layers(self) -> tuple[Attention, ...]:
        """The attention of each layer: the pattern repeated."""
        return tuple(self.attention[layer % len(self.attention)] for layer in range(self.n_layer))

    def n_params(self) -> int:
        """Exact number of parameters of the language model, the tied output matrix counted once."""
        width = self.n_embd
        embeddings = (self.vocab_size + self.n_positions) * width
        # A block: 4 C^2 of attention and 8 C^2 of MLP; biases 9 C, of which 3 C of qkv; two layer norms 4 C.
        blocks = self.n_layer * (12 * width * width + (13 if self.qkv_bias else 10) * width)
        return embeddings + blocks + (2 * width if self.norm == "pre" else 0)

    def flops_per_token(self, context: int) -> int:
        """Floating-point operations a token of training (forward and backward) at `context` tokens.

        6 N_matmul + 12 C S, with S the keys that stand before a query, summed over the layers: T in a dense layer and
        min(T, window) in a banded one. Kaplan et al. 2020, section 2.1, with the output matrix counted and biases,
        norms and embedding look-ups left out.
        """
        matmul = 12 * self.n_layer * self.n_embd**2 + self.vocab_size * self.n_embd
        keys = sum(min(context, self.window) if kind == "banded" else context for kind in self.layers)
        return 6 * matmul + 12 * self.n_embd * keys

    def without_dropout(self) -> "DecoderConfig":
        """The same decoder with every dropout probability 0, as RLHF trains it."""
        return dataclasses.replace(self, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, as JSON has them, so that a checkpoint stays readable with `weights_only=True`."""
        return {**dataclasses.asdict(self), "attention": list(self.attention)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DecoderConfig":
        """The inverse of `to_dict`; raises `UserError` for a field that does not exist."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise UserError(f"config: {name}: unknown field, expected one of {', '.join(known)}")
        return cls(**({**values, "attention": _pattern(values["attention"])} if "attention" in values else values))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _pattern(found: object) -> tuple[Attention, ...]:
    """A tuple of what YAML and JSON give as a list."""
    kinds = list(get_args(Attention))
    if not isinstance(found, list | tuple) or not 0 < len(found) <= MOST_LAYERS or any(k not in kinds for k in found):
        value = list(found) if isinstance(found, tuple) else found
        raise UserError(f"config: attention: found {shown(value)}, expected a list of {' and '.join(kinds)}")
    return tuple(found)
