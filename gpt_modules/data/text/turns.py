"""A conversation as text and control tokens, where what people and models wrote is text and nothing else.

A template makes one text of its own words and of what was said, in which `<|im_end|>` may be either's. To tell them
apart, what is said is marked within each sign that a control token begins with, before the template is applied; then a
control token that is whole is the template's, also where it trims, splits or joins. A template that says something else
because of the marks is refused, and so is one that makes control tokens of what is said: that unescapes it, or leaves
the marks out. Such a one has other control tokens around contents that say nothing.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, lru_cache

from gpt_modules.data.text.chat_template import ChatTemplate, Message
from gpt_modules.data.text.sandbox import constants, sought
from gpt_modules.errors import UserError

Parts = list[str | int]
"""Text, id, text, ..., text; a text may be empty."""
_PRIVATE = (*range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE))  # characters without a meaning
_TOLD = {"role": "system", "content": "Be brief."}
_ASKED = {"role": "user", "content": "Why?"}
_SAID = {"role": "assistant", "content": "So."}
_CALLED = {"role": "tool", "content": "1"}
_HEARD = (([_ASKED], False), ([_TOLD, _ASKED], False), ([_ASKED, _CALLED], False))
_SPOKEN = (([_ASKED], True), ([_ASKED, _SAID], False), ([_TOLD, _ASKED, _SAID, _ASKED, _SAID], False))
"""Conversations in which a template writes what it writes around each who speaks."""


class Turns:
    """A template over a vocabulary.

    Args:
        control: the text and the id of each token that only a template may write.
    """

    def __init__(self, template: ChatTemplate, control: Mapping[str, int]) -> None:
        self.template, self.control = template, control
        longest = sorted((token for token in control if len(token) > 1), key=len, reverse=True)
        self._tokens = re.compile(f"({'|'.join(map(re.escape, longest)) or '(?!)'})")
        self._controls = lru_cache(maxsize=64)(self._written)

    def parts(self, messages: Sequence[Message], speak: bool) -> Parts:
        """What the template makes of a conversation; `speak`: up to where the assistant is to speak next.

        Raises:
            UserError: The template says no, or what it writes depends on control tokens in what was said.
        """
        text, mark = self.template.render(messages, speak), ""
        controls = self._controls(tuple((of["role"], self._neutral(of["content"])) for of in messages), speak)
        if any(self._signs.search(message["content"]) for message in messages):
            plain, mark = text, _unused(messages)
            marked = [{**message, "content": self._marked(message["content"], mark)} for message in messages]
            text = self.template.render(marked, speak)
            if text.replace(mark, "") != plain:
                found = "found that what it writes depends on signs of control tokens in what is said"
                raise UserError(f"{self.template.where}: {found}, expected one that does not")
        pieces = self._tokens.split(text)
        if tuple(pieces[1::2]) != controls:
            found = "found that it makes control tokens of what is said"
            raise UserError(f"{self.template.where}: {found}, expected one that leaves it as it is")
        pieces[::2] = [piece.replace(mark, "") if mark else piece for piece in pieces[::2]]
        return [self.control[piece] if i % 2 else piece for i, piece in enumerate(pieces)]

    def _neutral(self, content: str) -> str:
        """A content that says nothing where this one says something, but for what the template itself looks for."""
        pieces = self._kept.split(content)
        pieces[::2] = ["x" if piece and not piece.isspace() else piece for piece in pieces[::2]]
        return "".join(pieces)

    def _written(self, neutral: tuple[tuple[str, str], ...], speak: bool) -> tuple[str, ...]:
        """The control tokens that the template writes around contents that have none."""
        text = self.template.render([{"role": role, "content": content} for role, content in neutral], speak)
        return tuple(self._tokens.findall(text))

    def answer(self, messages: Sequence[Message], answer: str) -> tuple[Parts, Parts]:
        """A prompt, and what the assistant has to say after it to have given this answer: its end included, and nothing
        that the template writes behind that.

        Some templates write a conversation otherwise once it is answered (Mistral's then leaves out what the system
        says). There the answer is what they write after the last turn alone.

        Raises:
            UserError: That does not begin with its prompt either, or nothing ends the answer.
        """
        prompt = self.parts(messages, True)
        said = self._after(prompt, messages, answer)
        if said is None:
            last = [*messages][max((i for i, of in enumerate(messages) if of["role"] == "user"), default=0) :]
            said = self._after(self.parts(last, True), last, answer)
        if said is None:
            found = f"an answer to a conversation of {len(messages)} that changes what stands before it"
            raise UserError(f"{self.template.where}: found {found}, expected one that begins with its prompt")
        if len(said) < 2:
            raise UserError(f"{self.template.where}: found no token that ends an answer, expected one behind it")
        return prompt, said[:2]

    def _after(self, prompt: Parts, messages: Sequence[Message], answer: str) -> Parts | None:
        """What the answered conversation goes on with after its prompt; None: it does not begin with it."""
        whole = self.parts([*messages, {"role": "assistant", "content": answer}], False)
        *before, last = prompt
        there = whole[len(before)] if len(whole) > len(before) else None
        if whole[: len(before)] != before or not isinstance(there, str) or not there.startswith(str(last)):
            return None
        return [there[len(str(last)) :], *whole[len(prompt) :]]

    @cached_property
    def end(self) -> int | None:
        """The token that ends an answer; None: the template writes none, or takes no plain question and answer."""
        try:
            _, said = self.answer([_ASKED], _SAID["content"])
        except UserError:
            return None
        return int(said[1])

    @cached_property
    def _signs(self) -> re.Pattern[str]:
        """The first sign of each control token, but where a text begins that the template itself looks for: of white
        space only if the token follows, for templates trim.
        """
        tokens = [token for token in self.control if len(token) > 1]
        firsts = {re.escape(token[0]) for token in tokens if not token[0].isspace()}
        blank = {f"{token[0]}(?={re.escape(token[1:])})" for token in tokens if token[0].isspace()}
        return re.compile(f"(?P<kept>{self._kept.pattern})|(?P<sign>{'|'.join(firsts | blank) or '(?!)'})")

    @cached_property
    def _kept(self) -> re.Pattern[str]:
        """What the template itself writes or looks for, and has nothing of a control token."""
        kept = sorted(map(re.escape, filter(self._is_apart, constants(self.template.source))), key=len, reverse=True)
        return re.compile(f"({'|'.join(kept) or '(?!)'})")

    def _is_apart(self, text: str) -> bool:
        """Whether no control token stands in a text, nor begins at its end."""
        ends = [text[start:] for start in range(len(text))]
        return bool(ends) and not any(token in text or token.startswith(tuple(ends)) for token in self.control)

    def _marked(self, content: str, mark: str) -> str:
        return self._signs.sub(lambda found: found[0] + mark * (found.lastgroup == "sign"), content)


def written(template: ChatTemplate, tokens: Iterable[str]) -> set[str]:
    """Those of the tokens that a template writes itself, around what is said. A vocabulary need not call them special
    (Hermes' `<|im_start|>`), yet whoever types them is to steer nothing.

    What it writes only where the assistant speaks, and also looks for in what is said, is the assistant's own to write
    (Qwen's `<think>`); and a word or white space is text.
    """
    signs = {token for token in tokens if len(token) > 1 and not token.strip().isalnum() and not token.isspace()}
    if not signs:
        return set()
    heard, spoken = ({token for token in signs if token in _renderings(template, of)} for of in (_HEARD, _SPOKEN))
    try:
        return heard | (spoken - sought(template.source))
    except Exception:  # no template of Jinja: told where a conversation needs one
        return set()


def _renderings(template: ChatTemplate, conversations: Iterable[tuple[Sequence[Message], bool]]) -> str:
    """What a template makes of the conversations that it takes."""
    texts = []
    for messages, speak in conversations:
        with suppress(UserError):
            texts.append(template.render(messages, speak))
    return "\0".join(texts)


def _unused(messages: Sequence[Message]) -> str:
    """A character that nobody has said."""
    said = {character for message in messages for character in message["content"]}
    found = next((character for character in map(chr, _PRIVATE) if character not in said), None)
    if found is None:
        raise UserError("messages: found every private character of Unicode, expected one that is not said")
    return found
