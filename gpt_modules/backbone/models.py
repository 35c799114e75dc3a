"""A decoder with a head: `GPT` predicts tokens, `RewardModel` scores responses and, as a critic, values states."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gpt_modules.backbone.config import DecoderConfig
from gpt_modules.backbone.decoder import Decoder
from gpt_modules.backbone.decoding.kvcache import KVCache
from gpt_modules.backbone.heads import ScalarHead


def output_matrix(config: DecoderConfig) -> nn.Linear:
    """One of its own, beside the token embedding and drawn as that is."""
    matrix = nn.Linear(config.n_embd, config.vocab_size, bias=False)
    nn.init.normal_(matrix.weight, std=0.02)
    return matrix


class GPT(nn.Module):
    """The language model: softmax(h Wᵀ) with W the token embedding (Radford et al. 2018, equation 2), or one of its own
    where the two are not tied.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.decoder = Decoder(config)
        if not config.tied:
            self.lm_head = output_matrix(config)

    @property
    def head_weight(self) -> Float[Tensor, "V C"]:
        """The output matrix; for losses that never form all logits."""
        return self.decoder.wte.weight if self.config.tied else self.lm_head.weight

    def hidden(
        self,
        tokens: Int[Tensor, "B T"],
        positions: Int[Tensor, "B T"] | None = None,
        segments: Int[Tensor, "B T"] | None = None,
        attention_mask: Bool[Tensor, "B T"] | None = None,
        cache: KVCache | None = None,
        read: Int[Tensor, "N"] | None = None,
    ) -> Float[Tensor, "*S C"]:
        """The decoder's hidden states, without the head. Arguments as of `Decoder.forward`."""
        out: Tensor = self.decoder(tokens, positions, segments, attention_mask, cache, read)
        return out

    def hidden_and_head(
        self,
        tokens: Int[Tensor, "B T"],
        positions: Int[Tensor, "B T"] | None = None,
        segments: Int[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T C"], Float[Tensor, "V C"]]:
        """`hidden` and `head_weight`, for one loss of both: on a CPU the gradients of an embedding that is tied to the
        head are then formed in one place. Arguments as of `Decoder.forward`.
        """
        embedding = self.decoder.wte
        embedding.lending = self.config.tied and tokens.device.type == "cpu" and torch.is_grad_enabled()
        try:
            hidden = self.hidden(tokens, positions, segments)
            return hidden, self.head_weight if embedding.lent is None else embedding.lent
        finally:
            embedding.lending, embedding.lent = False, None

    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        positions: Int[Tensor, "B T"] | None = None,
        segments: Int[Tensor, "B T"] | None = None,
        attention_mask: Bool[Tensor, "B T"] | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Logits (B, T, V) of the token after each one. Arguments as of `Decoder.forward`."""
        return F.linear(self.hidden(tokens, positions, segments, attention_mask, cache), self.head_weight)


class RewardModel(nn.Module):
    """A decoder with a scalar head: reward model (Stiennon et al. 2020) and critic.

    The buffers `bias` and `scale` shift and scale the raw output into the score, so that the demonstrations score 0 on
    average (Ouyang et al. 2022, section 3.5) without touching a weight: score = (raw + bias) * scale.
    """

    bias: Tensor
    scale: Tensor

    def __init__(self, config: DecoderConfig, decoder: Decoder | None = None) -> None:
        """Args: decoder: another model's trunk of this configuration, to stand on; left out: a new one."""
        super().__init__()
        self.config = config
        self.decoder = Decoder(config) if decoder is None else decoder
        self.head = ScalarHead(config.n_embd)
        self.register_buffer("bias", torch.tensor(0.0, dtype=torch.float32))
        self.register_buffer("scale", torch.tensor(1.0, dtype=torch.float32))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RewardModel":
        """What `to` and its like call: weights may become bf16, the two constants keep their digits."""
        kept = (self.bias, self.scale)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if not self.bias.is_meta and not kept[0].is_meta:
            self.bias, self.scale = (value.to(self.bias.device) for value in kept)
        return self

    def token_values(
        self,
        tokens: Int[Tensor, "B T"],
        positions: Int[Tensor, "B T"] | None = None,
        segments: Int[Tensor, "B T"] | None = None,
        attention_mask: Bool[Tensor, "B T"] | None = None,
        read: Int[Tensor, "N"] | None = None,
    ) -> Float[Tensor, "*S"]:
        """The raw head output at every token, without `bias` and `scale`: what a critic is trained on. Arguments as of
        `Decoder.forward`.
        """
        out: Tensor = self.head(self.decoder(tokens, positions, segments, attention_mask, read=read))
        return out

    def raw_scores(self, tokens: Int[Tensor, "B T"], lengths: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
        """The raw head output (B,) of right-padded rows (B, T), at the last of each row's `lengths` tokens: a
        difference of two is the log-odds of a preference.
        """
        last = torch.arange(len(tokens), device=tokens.device) * tokens.shape[1] + lengths - 1
        raw: Tensor = self.head(self.decoder(tokens, read=last)).float()
        return raw

    def forward(self, tokens: Int[Tensor, "B T"], lengths: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
        """Scores (B,) of right-padded rows (B, T): (raw + bias) * scale."""
        return (self.raw_scores(tokens, lengths) + self.bias) * self.scale

    @torch.no_grad()
    def fold_scale(self) -> "RewardModel":
        """Move `bias` and `scale` into the head, so that `token_values` are in units of the score: how a critic
        begins.
        """
        self.head.linear.weight.mul_(self.scale)
        self.head.linear.bias.add_(self.bias).mul_(self.scale)
        self.bias.zero_()
        self.scale.fill_(1.0)
        return self

    @classmethod
    def from_gpt(cls, gpt: GPT) -> "RewardModel":
        """A reward model whose trunk is a copy of `gpt`'s and whose head is fresh; same device and type."""
        model = cls(gpt.config).to(gpt.head_weight.device, gpt.head_weight.dtype)
        model.decoder.load_state_dict(gpt.decoder.state_dict())
        return model
