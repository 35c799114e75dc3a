"""From what was asked to rows of the batch: ids of prompts, rules, noise, ends."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from gpt_modules.backbone.decoding.batching import Row
from gpt_modules.backbone.decoding.generation import noise_of
from gpt_modules.backbone.decoding.step import SamplingRule
from gpt_modules.backbone.models import GPT
from gpt_modules.data.rows.chat import encode_conversation
from gpt_modules.data.text.streaming import AnswerText
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import TooLong
from gpt_modules.serving.engine import Choice
from gpt_modules.serving.requests import Asked, Chat, Completion

USUAL_LENGTH = 16  # tokens of a completion, where a request says nothing of it


@dataclass(frozen=True)
class Speaker:
    """A model and its tokenizer, and how requests become rows of it."""

    model: GPT
    tokenizer: Tokenizer

    @property
    def ends(self) -> frozenset[int]:
        """Every token that ends an answer."""
        return frozenset(self.tokenizer.end_ids)

    def completion(self, asked: Completion) -> list[Choice]:
        """`n` choices of each prompt, in order.

        Raises:
            UserError: a prompt is not of this vocabulary, or does not fit.
        """
        prompts = [self._ids(prompt) for prompt in asked.prompts]
        left = self.model.config.n_positions - max(map(len, prompts))
        most = max(1, min(USUAL_LENGTH, left)) if asked.max_tokens is None else asked.max_tokens
        for prompt in prompts:
            self._check_room("prompt", prompt, most)
        return self._choices(asked, prompts, most, asked.logprobs, asked.echo)

    def chat(self, asked: Chat) -> list[Choice]:
        """`n` answers to a conversation.

        Raises:
            UserError: it is none, or does not fit.
        """
        if len(asked.messages) > (limit := self.model.config.n_positions):  # told before a template works for nothing
            raise TooLong(f"messages: found {len(asked.messages)} messages, expected fewer than {limit} tokens, the "
                          "model's context")  # fmt: skip
        prompt = encode_conversation(asked.conversation, self.tokenizer)
        self._check_room("messages", prompt, asked.most or 1)
        most = asked.most or self.model.config.n_positions - len(prompt)
        top = (asked.top_logprobs or 0) if asked.logprobs else None
        return self._choices(asked, [prompt], most, top, False)

    def _ids(self, prompt: str | list[int]) -> list[int]:
        """A text that is empty begins with the end token, as a document does."""
        ids = self.tokenizer.opening([prompt])[0] if isinstance(prompt, str) else prompt
        return ids if ids or not isinstance(prompt, str) else [self.tokenizer.eos_id]

    def _check_room(self, field: str, prompt: Sequence[int], most: int) -> None:
        if len(prompt) + most > (limit := self.model.config.n_positions):
            raise TooLong(f"{field}: found {len(prompt)} tokens and {most} to say, expected at most "
                          f"{limit} together, the model's context")  # fmt: skip

    def _choices(
        self, asked: Asked, prompts: Sequence[list[int]], most: int, top: int | None, echo: bool
    ) -> list[Choice]:
        seed = secrets.randbits(62) if asked.seed is None else asked.seed
        rule = SamplingRule(asked.temperature, asked.top_k, asked.top_p)
        found = []
        for number, prompt in enumerate(prompt for prompt in prompts for _ in range(asked.n)):
            noise = None if asked.temperature == 0 else noise_of(f"{seed} {number}")
            row = Row(prompt, most, rule, noise, self.ends, top, echo and top is not None)
            found.append(Choice(row, AnswerText(self.tokenizer, asked.stops, isinstance(asked, Chat))))
        return found
