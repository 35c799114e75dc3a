"""One step of decoding: forward, filter, draw. The same function everywhere; on CUDA it is captured once and replayed."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gpt_modules.backbone.kvcache import KVCache
from gpt_modules.backbone.models import GPT
def filter_logits(l, t, k, p): return l.float() if t == 1.0 else l.float() / t

Advance: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class SamplingRule(NamedTuple):
    """How a token is chosen from logits. Temperature 0 takes the most likely one."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None


class DecodeStep:
    """Forward, filter and draw for one token of each row. Reads and fills the cache."""

    def __init__(self, model: GPT, cache: KVCache, rule: SamplingRule) -> None:
        self.model = model
        self.cache = cache
        self.rule = rule

    def prefill(
        self, tokens: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"] | None, uniform: Float[Tensor, "B"]
    ) -> tuple[Int[Tensor, "B"], Float[Tensor, "B"]]:
        """Read the prompts and choose the first new token of each; only the last position meets the head."""
        hidden = self.model.hidden(tokens, attention_mask=mask, cache=self.cache)[:, -1]
        return choose(F.linear(hidden, self.model.head_weight), uniform, self.rule)

    def __call__(
        self, token: Int[Tensor, "B"], uniform: Float[Tensor, "B"]
    ) -> tuple[Int[Tensor, "B"], Float[Tensor, "B"]]:
        hidden = self.model.hidden(token[:, None], cache=self.cache)[:, 0]
        return choose(F.linear(hidden, self.model.head_weight), uniform, self.rule)


def choose(
    logits: Float[Tensor, "B V"], uniform: Float[Tensor, "B"], rule: SamplingRule
) -> tuple[Int[Tensor, "B"], Float[Tensor, "B"]]:
    """One token (B,) a row and its log-probability (B,): the first whose cumulative probability exceeds `uniform`."""
    if rule.temperature == 0.0:
        best, token = logits.float().max(dim=-1)
        return token, best - logits.float().logsumexp(dim=-1)
    logits = filter_logits(logits, rule.temperature, rule.top_k, rule.top_p)
    top = logits.amax(dim=-1, keepdim=True)
    cumulative = (logits - top).exp_().cumsum(dim=-1)
    total = cumulative[:, -1:]
    # Rounding may carry the threshold up to the total itself, beyond every token.
    threshold = torch.minimum(uniform[:, None] * total, total.nextafter(torch.zeros_like(total)))
    token = torch.searchsorted(cumulative, threshold, right=True)
    logprob = logits.gather(1, token) - top - total.log()
    return token[:, 0], logprob[:, 0]


def can_capture(model: GPT) -> bool:
    """Whether a step can become a CUDA graph: weights whole on a CUDA device, and a torch that has graphs."""
    weight = model.head_weight
    # Sharded weights are gathered by hooks, which talk to other processes: not for a graph.
    return weight.is_cuda and type(weight) is nn.Parameter and hasattr(torch.cuda, "CUDAGraph")


def accelerated(step: DecodeStep, token: Int[Tensor, "B"], uniform: Float[Tensor, "B"], compile: bool) -> Advance:
    advance: Advance = torch.compile(step, dynamic=False) if compile else step
    return CapturedStep(advance, step.cache, token, uniform) if can_capture(step.model) else advance


class CapturedStep:
    """A decode step as a CUDA graph: launched as one, where its kernels one by one would leave the device waiting.

    Needs a static cache. Not exercised without a CUDA device; on others `generate` runs the very function captured
    here.
    """

    def __init__(self, advance: Advance, cache: KVCache, token: Int[Tensor, "B"], uniform: Float[Tensor, "B"]) -> None:
        self.token, self.uniform = token.clone(), uniform.clone()
        # Libraries allocate and choose kernels on first use, which a capture forbids: warm up on a side stream.
        side, current = torch.cuda.Stream(), torch.cuda.current_stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            advance(self.token, self.uniform)
            cache.rewind()
        current.wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.chosen = advance(self.token, self.uniform)

    def __call__(
        self, token: Int[Tensor, "B"], uniform: Float[Tensor, "B"]
    ) -> tuple[Int[Tensor, "B"], Float[Tensor, "B"]]:
        self.token.copy_(token)
        self.uniform.copy_(uniform)
        self.graph.replay()
        return self.chosen
