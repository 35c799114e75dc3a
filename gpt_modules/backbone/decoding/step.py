"""One step of decoding: forward, filter, draw. The same function everywhere; on CUDA it is captured and replayed.

Nothing in a step waits for the device, and with a static cache nothing in it changes shape or address.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gpt_modules.backbone.decoding.bare import bare
from gpt_modules.backbone.decoding.kvcache import KVCache
from gpt_modules.backbone.masks import computed_in
from gpt_modules.backbone.models import GPT
from gpt_modules.errors import expect
from gpt_modules.functional.logprobs import aligned
from gpt_modules.functional.sampling import filter_logits, running_sums

Advance: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

# Ids to a block of the two-stage draw: about the square root of a usual vocabulary.
BLOCK = 256
# From this many steps on, copies of weights in another layout pay for themselves on a CPU (`input_major`).
LONG_ENOUGH = 64


class SamplingRule(NamedTuple):
    """How a token is chosen from logits. Temperature 0 takes the most likely one."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def check(self) -> None:
        """Raises `UserError` for a value that no distribution has."""
        temperature, top_k, top_p = self
        expect(0.0 <= temperature < math.inf, "temperature", temperature, "a finite number from 0 (greedy)")
        expect(top_k is None or top_k >= 1, "top_k", top_k, "at least 1")
        expect(top_p is None or 0.0 < top_p <= 1.0, "top_p", top_p, "above 0, up to 1")


class DecodeStep:
    """Forward, filter and draw for one token of each row. Reads and fills the cache."""

    def __init__(self, model: GPT, cache: KVCache, rule: SamplingRule, head: Float[Tensor, "C V"]) -> None:
        self.model = model
        self.hidden = model.hidden if cache.static else bare_hidden(model)
        self.cache = cache
        self.rule = rule
        self.head = head

    def prefill(
        self, tokens: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"] | None, uniform: Float[Tensor, "2 B"]
    ) -> tuple[Int[Tensor, "B"], Float[Tensor, "B"]]:
        """Read the prompts and choose the first new token of each; only the last position meets the head."""
        hidden = self.hidden(tokens, attention_mask=mask, cache=self.cache)[:, -1]
        return choose(hidden @ self.head, uniform, self.rule)

    def __call__(
        self, token: Int[Tensor, "B"], uniform: Float[Tensor, "2 B"]
    ) -> tuple[Int[Tensor, "B"], Float[Tensor, "B"]]:
        hidden = self.hidden(token[:, None], cache=self.cache)[:, 0]
        return choose(hidden @ self.head, uniform, self.rule)


def bare_hidden(model: GPT) -> Callable[..., Tensor]:
    """`GPT.hidden` at less cost, for as long as nobody changes the model's layers or its mode. Sharded weights are
    gathered by modules' hooks: there it is the model's own.
    """
    hidden: Callable[..., Tensor] = bare(model).hidden if is_whole(model) else model.hidden
    return hidden


@contextmanager
def input_major(model: GPT, steps: int) -> Iterator[Float[Tensor, "C V"]]:
    """Lend the linear layers that make more than they read copies of their weights that lie in memory as (in, out), and
    yield the output matrix so, in the type that it is multiplied in: autocast, which keeps its copies of parameters,
    would cast a view in every step.

    A CPU multiplies few rows by a matrix up to twice as fast where the longer axis lies side by side, and nothing else
    takes longer in a small batch. Parameters keep their shape and identity and get their own memory back.
    Elsewhere, and for few steps, lends nothing.
    """
    weight = model.head_weight
    head = weight.t().to(computed_in(weight))
    if weight.device.type != "cpu" or steps < LONG_ENOUGH or not is_whole(model):
        yield head
        return
    linears = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    linears = [weight for weight in linears if len(weight) >= weight.shape[1]]
    own = [parameter.data for parameter in linears]
    try:
        for parameter in linears:
            parameter.data = parameter.data.t().contiguous().t()
        yield aligned(len(head), head.shape[1], head.dtype, head.device).copy_(head)
    finally:
        for parameter, data in zip(linears, own, strict=True):
            parameter.data = data


@contextmanager
def lend_cast(model: GPT) -> Iterator[None]:
    """Lend the linear layers what does not learn of them in the type that autocast multiplies in, which keeps copies of
    what learns and would cast all else at every token. The same numbers, and each gets its own memory back.
    """
    weight = model.head_weight
    cast = torch.is_autocast_enabled(weight.device.type) and is_whole(model)
    layers = [module for module in model.modules() if cast and isinstance(module, nn.Linear)]
    still = [one for layer in layers for one in layer.parameters(recurse=False) if not one.requires_grad]
    frozen = [parameter for parameter in still if parameter.dtype == torch.float32]
    own = [parameter.data for parameter in frozen]
    try:
        for parameter in frozen:
            parameter.data = parameter.data.to(computed_in(weight))
        yield
    finally:
        for parameter, data in zip(frozen, own, strict=True):
            parameter.data = data


def choose(
    logits: Float[Tensor, "B V"], uniform: Float[Tensor, "2 B"], rule: SamplingRule
) -> tuple[Int[Tensor, "B"], Float[Tensor, "B"]]:
    """One token (B,) a row and its log-probability (B,); what is drawn is a function of `uniform` alone."""
    if rule.temperature == 0.0:
        token = logits.argmax(dim=-1)
        probs = logits.float().softmax(dim=-1)
    else:
        probs = filter_logits(logits, rule.temperature, rule.top_k, rule.top_p).softmax(dim=-1)
        token = draw(probs, uniform)
    # The log of a float32 probability is as exact as a log-softmax down to 1e-38, and saves a pass over the vocabulary.
    return token, probs.gather(1, token[:, None])[:, 0].log()


def draw(probs: Float[Tensor, "B V"], uniform: Float[Tensor, "2 B"]) -> Int[Tensor, "B"]:
    """A token (B,) a row by inverting the distribution function: first a block of ids by its mass, then one within it.

    Two uniform numbers a row and V / 256 + 256 terms to accumulate, in place of V of each. An id of probability 0 is
    never drawn.
    """
    vocab = probs.shape[1]
    whole = vocab // BLOCK * BLOCK
    masses = [probs[:, :whole].view(len(probs), -1, BLOCK).sum(dim=2)] if whole else []
    masses += [probs[:, whole:].sum(dim=1, keepdim=True)] if whole < vocab else []
    block = _invert(torch.cat(masses, dim=1) if len(masses) > 1 else masses[0], uniform[0])
    ids = torch.add(torch.arange(BLOCK, device=probs.device), block, alpha=BLOCK)
    if whole == vocab:
        within = probs.gather(1, ids)
    else:  # the last block is short; to fill it up would copy all of a large vocabulary
        within = probs.gather(1, ids.clamp_max(vocab - 1)).masked_fill(ids >= vocab, 0.0)
    return torch.add(_invert(within, uniform[1]), block, alpha=BLOCK)[:, 0]


def _invert(weights: Float[Tensor, "B N"], uniform: Float[Tensor, "B"]) -> Int[Tensor, "B 1"]:
    # float64 where it exists: rounding in the sum must not reach into an id of weight 0.
    cumulative = running_sums(weights, uniform.dtype)
    return torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)


def can_capture(model: GPT) -> bool:
    """Whether a step can become a CUDA graph: weights whole on a CUDA device, and a torch that has graphs."""
    return model.head_weight.is_cuda and is_whole(model) and hasattr(torch.cuda, "CUDAGraph")


def is_whole(model: nn.Module) -> bool:
    """Whether all weights lie in this process. Sharded ones are gathered by hooks, layer by layer, which talk to other
    processes and leave some gathered.
    """
    return all(type(parameter) is nn.Parameter for parameter in model.parameters())


def accelerated(step: DecodeStep, token: Int[Tensor, "B"], uniform: Float[Tensor, "2 B"], compile: bool) -> Advance:
    advance: Advance = torch.compile(step, dynamic=False) if compile else step
    return CapturedStep(advance, step.cache, token, uniform) if can_capture(step.model) else advance


class CapturedStep:
    """A decode step as a CUDA graph: launched as one, where its kernels one by one would leave the device waiting.

    Needs a static cache. Without a CUDA device tests run it on paper.
    """

    def __init__(
        self, advance: Advance, cache: KVCache, token: Int[Tensor, "B"], uniform: Float[Tensor, "2 B"]
    ) -> None:
        self.token, self.uniform = token.clone(), uniform.clone()
        # Libraries allocate and choose kernels on first use, which a capture forbids: warm up on a side stream. All of
        # it on the model's device, which need not be the current one.
        device = token.device
        side, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)  # type: ignore[no-untyped-call]
        side.wait_stream(current)
        with torch.cuda.stream(side):
            advance(self.token, self.uniform)
            cache.rewind()
        current.wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        # Of this thread alone: others, such as one that watches a process group, may ask the device meanwhile.
        with torch.cuda.graph(self.graph, stream=side, capture_error_mode="thread_local"):
            self.chosen = advance(self.token, self.uniform)

    def __call__(
        self, token: Int[Tensor, "B"], uniform: Float[Tensor, "2 B"]
    ) -> tuple[Int[Tensor, "B"], Float[Tensor, "B"]]:
        self.token.copy_(token)
        self.uniform.copy_(uniform)
        self.graph.replay()
        token, logprob = self.chosen  # written anew by the next replay
        return token.clone(), logprob.clone()
