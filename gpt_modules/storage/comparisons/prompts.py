"""What is answered in a store of comparisons: a text, or a conversation, which any folder's chat template can read."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Prompt = str | Sequence[Mapping[str, Any]]
"""A text, or {"role", "content"} of each message, the last not the assistant's."""


class Spelled(NamedTuple):
    """A prompt as a store keeps it, one of the two: no text is taken for a conversation, whatever it says."""

    text: str | None
    messages: str | None

    @property
    def letters(self) -> str:
        """Those that it has, for what is drawn or ordered by them."""
        return self.messages or self.text or ""


def spelled(prompt: Prompt) -> Spelled:
    """The same for equal prompts, and for no others."""
    plain = plain_prompt(prompt)
    return Spelled(plain, None) if isinstance(plain, str) else Spelled(None, json.dumps(plain, ensure_ascii=False))


def plain_prompt(prompt: Prompt) -> str | list[dict[str, str]]:
    """A prompt without what does not belong to it, such as what is learned of an earlier answer."""
    if isinstance(prompt, str):
        return prompt
    return [{"role": message["role"], "content": message["content"]} for message in prompt]


def prompt_of(text: str | None, messages: str | None) -> Prompt:
    """What was `spelled`."""
    if messages is None:
        assert text is not None, "the table has one of the two"
        return text
    found: list[dict[str, str]] = json.loads(messages)
    return found


def said_last(prompt: Prompt) -> str:
    """The text, or the last message's: to know a prompt by."""
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


def prompt_field(prompt: Prompt) -> dict[str, Any]:
    """A prompt as a row has it, under the name that says which of the two it is."""
    return {"prompt" if isinstance(prompt, str) else "messages": plain_prompt(prompt)}
