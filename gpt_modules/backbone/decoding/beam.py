"""Beam search: the most likely continuation that a search of a given width finds.

Wu et al. 2016, section 7: hypotheses Y of a prompt X are compared by log P(Y|X) / ((5 + |Y|) / 6)^α, |Y| with the
end-of-text token. Brown et al. 2020, section 2.4, answer so with width 4 and α = 0.6. Their third term, coverage, is of
encoders and has no place here.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gpt_modules.backbone.decoding.generation import (
    CUDA_STEPS_BETWEEN_CHECKS,
    Ends,
    Generation,
    Prompts,
    check_prompts,
    ends_of,
    inference,
    is_end,
    left_padded,
    new_cache,
    real_tokens,
    without_graphs,
)
from gpt_modules.backbone.decoding.step import bare_hidden, input_major, lend_cast
from gpt_modules.backbone.lora import lend_merged
from gpt_modules.backbone.models import GPT
from gpt_modules.errors import UserError


@torch.no_grad()
def beam_search(
    model: GPT,
    prompts: Prompts,
    *,
    max_new_tokens: int,
    eos_id: Ends,
    width: int = 4,
    length_penalty: float = 0.6,
) -> Generation:
    """The best hypothesis of each prompt: its tokens, and their log-probabilities under the model.

    A hypothesis ends with `eos_id` (or one of them), or at `max_new_tokens`; one that ends leaves its place to the
    next best. `prompts` as of `generate`. The answer is a function of the model and the prompt: of equal scores, the
    one from the better hypothesis comes first, then the smaller token. Prompts whose best cannot be beaten any more
    leave the batch.

    Args:
        width: hypotheses pursued at once; 1 is greedy.
        length_penalty: α; 0 compares log-probabilities, larger values favour longer answers.

    Raises `UserError` as `generate` does, and for a width below 1 or a negative penalty.
    """
    tokens, lengths = left_padded(prompts, model.head_weight.device)
    check_prompts(model, tokens, lengths, max_new_tokens)
    if width < 1:
        raise UserError(f"width: found {width}, expected at least 1")
    if not 0.0 <= length_penalty < math.inf:
        raise UserError(f"length_penalty: found {length_penalty}, expected 0 or more")
    with (
        inference(model),
        lend_merged(model),
        lend_cast(model),
        input_major(model, max_new_tokens) as head,
        without_graphs(model),
    ):
        search = _Search(len(lengths), width, max_new_tokens, ends_of(eos_id, tokens.device), length_penalty)
        cache, read = new_cache(model, len(lengths), tokens.shape[1], static=False), bare_hidden(model)
        hidden = read(tokens, attention_mask=real_tokens(tokens, lengths), cache=cache)[:, -1]
        logits = (hidden @ head)[:, None].expand(-1, width, -1)
        cache = cache.fork(width, max_new_tokens - 1)
        for length in range(1, max_new_tokens + 1):
            search.extend(logits.float().log_softmax(2), length)
            rows = search.rows(length)
            if len(rows) == 0:
                break
            cache.keep(rows)
            hidden = read(search.tokens[:, :, length - 1].flatten()[:, None], cache=cache)[:, 0]
            logits = (hidden @ head).view(-1, width, head.shape[1])
    return Generation(*(part.clone() for part in search.best))


class _Search:
    """The hypotheses of A prompts that still search, W of each, best first, and the best that has ended of all B.

    `tokens` and `logprobs` (A, W, N) are what they say, `scores` (A, W) the sums, `parents` (A, W) which hypotheses of
    the step before they continue.
    """

    def __init__(self, prompts: int, width: int, steps: int, ends: Int[Tensor, "E"], penalty: float) -> None:
        self.width, self.steps, self.ends, self.penalty, device = width, steps, ends, penalty, ends.device
        self.active = torch.arange(prompts, device=device)
        self.tokens = torch.zeros(prompts, width, steps, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(prompts, width, steps, device=device)
        self.scores = torch.full((prompts, width), -torch.inf, device=device)
        self.scores[:, 0] = 0.0  # all begin alike: one counts
        self.parents = torch.zeros(prompts, width, dtype=torch.long, device=device)
        self.best = Generation(self.tokens[:, 0].clone(), self.logprobs[:, 0].clone(), self.tokens[:, 0].bool())
        self.best_scores = self.scores.new_full((prompts,), -torch.inf)

    def _norm(self, length: int) -> float:
        return float(((5 + length) / 6) ** self.penalty)

    def extend(self, logprobs: Float[Tensor, "A W V"], length: int) -> None:
        """One token more: of the 2 W best, those of the first W that end are candidates, W of the others go on."""
        vocab = logprobs.shape[2]
        totals = (self.scores[:, :, None] + logprobs).flatten(1)
        scores, index = _largest(totals, min(2 * self.width, totals.shape[1]))
        parents, token = index // vocab, index % vocab
        new = logprobs.flatten(1).gather(1, index)
        said = self.tokens.gather(1, parents[:, :, None].expand(-1, -1, self.steps))
        were = self.logprobs.gather(1, parents[:, :, None].expand(-1, -1, self.steps))
        said[:, :, length - 1], were[:, :, length - 1] = token, new
        ends = is_end(token, self.ends) | (length == self.steps)
        self._note(scores, said, were, ends, length)
        # Stable: those that go on stay in order. Where fewer than W do, the rest is out of the race.
        on = ends.to(torch.int8).argsort(dim=1, stable=True)[:, : self.width]
        self.scores = scores.masked_fill(ends, -torch.inf).gather(1, on)
        self.parents = parents.gather(1, on)
        each = on[:, :, None].expand(-1, -1, self.steps)
        self.tokens, self.logprobs = said.gather(1, each), were.gather(1, each)

    def _note(self, scores: Tensor, said: Tensor, were: Tensor, ends: Tensor, length: int) -> None:
        candidates = (scores / self._norm(length)).masked_fill(~ends, -torch.inf)[:, : self.width]
        top, at = candidates.max(dim=1)
        row = torch.arange(len(top), device=top.device)
        better = top > self.best_scores[self.active]
        found = said[row, at], were[row, at], torch.arange(self.steps, device=top.device).expand_as(said[:, 0]) < length
        for held, new in zip((self.best_scores, *self.best), (top, *found), strict=True):
            chosen = better if new.ndim == 1 else better[:, None]
            held[self.active] = torch.where(chosen, new, held[self.active])

    def rows(self, length: int) -> Int[Tensor, "K"]:
        """The rows of the batch (A W) that the hypotheses continue; none at the end, or once no best can be beaten."""
        rows = self.parents + self.width * torch.arange(len(self.parents), device=self.parents.device)[:, None]
        interval = CUDA_STEPS_BETWEEN_CHECKS if rows.is_cuda else 1
        if length == self.steps:
            return rows[:0].flatten()
        if len(self.ends) == 0 or length % interval:
            return rows.flatten()
        # Probabilities only fall, and no norm is above the last.
        on = self.scores[:, 0] / self._norm(self.steps) > self.best_scores[self.active]
        self.active, self.scores, self.parents = self.active[on], self.scores[on], self.parents[on]
        self.tokens, self.logprobs = self.tokens[on], self.logprobs[on]
        return rows[on].flatten()


def _largest(values: Float[Tensor, "A N"], count: int) -> tuple[Float[Tensor, "A K"], Int[Tensor, "A K"]]:
    """The `count` largest of each row with their places, largest first; of equal ones the first, which `topk` leaves
    open.
    """
    least = values.topk(count, dim=1).values[:, -1:]
    above, equal = values > least, values == least
    chosen = above | (equal & (equal.cumsum(1) <= count - above.sum(1, keepdim=True)))
    places = chosen.nonzero()[:, 1].view(len(values), count)
    largest, order = values.gather(1, places).sort(dim=1, descending=True, stable=True)
    return largest, places.gather(1, order)
