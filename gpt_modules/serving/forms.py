"""Answers in OpenAI's form: whole, in chunks, and errors."""

import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gpt_modules.backbone.decoding.batching import Likely
from gpt_modules.data.text.spelling import Spelling


@dataclass(frozen=True)
class Form:
    """What all parts of one answer begin with. kind: `chat.completion` or `text_completion`."""

    kind: str
    model: str
    fingerprint: str
    spelling: Spelling
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def chats(self) -> bool:
        return self.kind == "chat.completion"

    def whole(self, choices: list[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        """An answer that is all there."""
        return {**self._head(self.kind), "choices": choices, "usage": usage}

    def chunk(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> dict[str, Any]:
        """A part of one that is streamed."""
        found = {**self._head("chat.completion.chunk" if self.chats else self.kind), "choices": choices}
        return found if usage is None else {**found, "usage": usage}

    def _head(self, kind: str) -> dict[str, Any]:
        prefix = "chatcmpl" if self.chats else "cmpl"
        names = {"id": f"{prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model}
        return {**names, "system_fingerprint": self.fingerprint}

    def choice(
        self, index: int, text: str, likely: Sequence[Likely] | None, end: str | None, offset: int = 0, echoed: int = 0
    ) -> dict[str, Any]:
        """A choice of a whole answer.

        Args:
            offset: where its first token stands in its text, for `text_offset`.
            echoed: how many of its tokens are the prompt's, whose control tokens have a text; an answer's have none.
        """
        logprobs = None if likely is None else self._logprobs(likely, offset, echoed)
        if self.chats:
            said: dict[str, Any] = {"message": {"role": "assistant", "content": text, "refusal": None}}
        else:
            said = {"text": text}
        return {"index": index, **said, "logprobs": logprobs, "finish_reason": end}

    def part(
        self, index: int, text: str | None, likely: Sequence[Likely] | None, end: str | None, offset: int = 0
    ) -> dict[str, Any]:
        """A choice of a chunk; without text, the chunk that opens a chat's answer."""
        if not self.chats:
            return self.choice(index, text or "", likely, end, offset)
        opening = {"role": "assistant", "content": "", "refusal": None}
        delta = opening if text is None else {"content": text} if text or end is None else {}
        logprobs = None if not likely else self._logprobs(likely, offset)
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": end}

    def _logprobs(self, likely: Sequence[Likely], offset: int, echoed: int = 0) -> dict[str, Any]:
        return self._of_chat(likely) if self.chats else self._of_text(likely, offset, echoed)

    def _of_chat(self, likely: Sequence[Likely]) -> dict[str, Any]:
        content = [
            {**self._token(of.token, of.logprob), "top_logprobs": [self._token(*pair) for pair in of.top]}
            for of in likely
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        spelled = self.spelling.bytes_of(token)
        return {"token": self.spelling.name_of(token), "logprob": _finite(logprob), "bytes": list(spelled)}

    def _of_text(self, likely: Sequence[Likely], offset: int, echoed: int) -> dict[str, Any]:
        tokens, offsets, spelled = [], [], b""
        for place, of in enumerate(likely):
            tokens.append(self.spelling.name_of(of.token))
            offsets.append(offset + len(spelled.decode(errors="ignore")))
            if place < echoed or not self.spelling.has_control([of.token]):
                spelled += self.spelling.bytes_of(of.token)
        known = [not math.isnan(of.logprob) for of in likely]
        return {
            "tokens": tokens,
            "token_logprobs": [_finite(of.logprob) if there else None for of, there in zip(likely, known, strict=True)],
            "top_logprobs": [self._top(of) if there else None for of, there in zip(likely, known, strict=True)],
            "text_offset": offsets,
        }

    def _top(self, of: Likely) -> dict[str, float]:
        """The likeliest tokens, and the one that stands there, as OpenAI has it."""
        pairs = dict(of.top)
        if pairs:
            pairs.setdefault(of.token, of.logprob)
        return {self.spelling.name_of(token): _finite(logprob) for token, logprob in pairs.items()}


def _finite(logprob: float) -> float:
    """JSON has no infinity; OpenAI writes this in its place."""
    return max(logprob, -9999.0)


def usage_of(prompt: int, spoken: int) -> dict[str, int]:
    """Tokens of prompts and answers."""
    return {"prompt_tokens": prompt, "completion_tokens": spoken, "total_tokens": prompt + spoken}


def error_of(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
