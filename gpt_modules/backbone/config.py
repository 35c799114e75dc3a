"""The sizes of a decoder, as one frozen dataclass: GPT-1, GPT-2 and GPT-3 Small are settings of it, not classes.

Sources: Radford et al. 2018, section 4.1 (GPT-1); Radford et al. 2019, section 2.3 and table 2 (GPT-2); Kaplan et al.
2020, section 2.1 (floating-point operations a token).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from gpt_modules.errors import UserError

Norm = Literal["pre", "post"]
Init = Literal["gpt1", "gpt2"]


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

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_positions", "n_layer", "n_head", "n_embd"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"config: {name}: found {value!r}, expected a whole number of at least 1")
        for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0.0 <= value < 1.0:
                raise UserError(f"config: {name}: found {value!r}, expected a probability in [0, 1)")
        for name, choices in (("norm", get_args(Norm)), ("init", get_args(Init))):
            if getattr(self, name) not in choices:
                raise UserError(f"config: {name}: found {getattr(self, name)!r}, expected one of {', '.join(choices)}")
        if not isinstance(self.layer_norm_epsilon, int | float) or not self.layer_norm_epsilon > 0.0:
            raise UserError(f"config: layer_norm_epsilon: found {self.layer_norm_epsilon!r}, expected a number above 0")
        if self.n_embd % self.n_head:
            raise UserError(f"config: n_embd: found {self.n_embd}, expected a multiple of n_head ({self.n_head})")

    @property
    def head_size(self) -> int:
        """D, the width of one attention head."""
        return self.n_embd // self.n_head

    def n_params(self) -> int:
        """Exact number of parameters of the language model, the tied output matrix counted once."""
        width = self.n_embd
        embeddings = (self.vocab_size + self.n_positions) * width
        # A block: 4 C^2 of attention and 8 C^2 of MLP; biases 9 C; two layer norms 4 C.
        blocks = self.n_layer * (12 * width * width + 13 * width)
        return embeddings + blocks + (2 * width if self.norm == "pre" else 0)

    def flops_per_token(self, context: int) -> int:
        """Floating-point operations a token of training (forward and backward) at `context` tokens.

        6 N_matmul + 12 n_layer C T: Kaplan et al. 2020, section 2.1, with the output matrix counted and biases, norms
        and embedding look-ups left out.
        """
        matmul = 12 * self.n_layer * self.n_embd**2 + self.vocab_size * self.n_embd
        return 6 * matmul + 12 * self.n_layer * self.n_embd * context

    def without_dropout(self) -> "DecoderConfig":
        """The same decoder with every dropout probability 0, as RLHF trains it."""
        return dataclasses.replace(self, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, so that a checkpoint stays readable with `weights_only=True`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DecoderConfig":
        """The inverse of `to_dict`; raises `UserError` for a field that does not exist."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise UserError(f"config: {name}: unknown field, expected one of {', '.join(known)}")
        return cls(**values)
