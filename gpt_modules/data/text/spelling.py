"""A token by itself: its bytes, which need not be whole characters, and a name for it that no other token has."""

import json
import re
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from gpt_modules.data.text.gpt1_bpe import WORD_END
from gpt_modules.data.text.gpt2_bpe import symbols_of_bytes
from gpt_modules.data.text.tokenizers import Tokenizer

_BYTE = re.compile("<0x([0-9A-F]{2})>")
_SPACE = "\u2581"  # of SentencePiece's vocabularies


class Spelling:
    """The tokens of a vocabulary, one by one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        form = json.loads(tokenizer.to_json())
        self._added = {added["id"]: added["content"] for added in form["added_tokens"]}
        self._control = {added["id"] for added in form["added_tokens"] if added["special"]}
        vocabulary = form["model"].get("vocab", {})
        pairs = ((name, id) for id, (name, _) in enumerate(vocabulary)) if isinstance(vocabulary, list) else None
        self._names: dict[int, str] = {id: name for name, id in pairs or vocabulary.items()}
        self._kinds = set(_kinds(form.get("decoder")))

    def bytes_of(self, token: int) -> bytes:
        """Its bytes; those of the tokens of a text, joined, are the text's. An id without a token has none."""
        if token in self._added:
            return str(self._added[token]).encode()
        name = self._names.get(token, "")
        if "ByteLevel" in self._kinds:
            return bytes(self._bytes[symbol] for symbol in name if symbol in self._bytes)
        if "ByteFallback" in self._kinds and (found := _BYTE.fullmatch(name)):
            return bytes.fromhex(found[1])
        return name.replace(_SPACE, " ").replace(WORD_END, " ").encode()

    def text_of(self, tokens: Iterable[int]) -> str:
        """Their bytes as a text, in which control tokens stand as they are written."""
        return b"".join(map(self.bytes_of, tokens)).decode(errors="replace")

    def has_control(self, tokens: Iterable[int]) -> bool:
        """Whether there is one that no text is made of."""
        return not self._control.isdisjoint(tokens)

    def name_of(self, token: int) -> str:
        """Its text; where its bytes are none, `bytes:\\xe2\\x80`, as OpenAI has it."""
        found = self.bytes_of(token)
        try:
            return found.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in found)

    @cached_property
    def _bytes(self) -> dict[str, int]:
        return symbols_of_bytes()


def _kinds(form: Any) -> list[str]:
    """The types of a decoder, however it is nested."""
    if isinstance(form, dict):
        own = [form["type"]] if isinstance(form.get("type"), str) else []
        return own + [kind for part in form.values() for kind in _kinds(part)]
    return [kind for part in form for kind in _kinds(part)] if isinstance(form, list) else []
