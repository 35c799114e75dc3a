"""The text of an answer while its tokens come: what is certain, as soon as it is."""

from collections.abc import Sequence

from gpt_modules.data.text.tokenizers import Tokenizer

_UNFINISHED = "\ufffd"


class AnswerText:
    """Grows by a token at a time. The pieces that it gives, joined, are the text of the tokens, up to the first stop.

    A character is given once all its bytes are there, and what may become a stop once it can no more. The end token
    and other special ones have no text; another token that ends an answer, such as a full stop, is a part of it.
    (SentencePiece replaces a run of byte tokens that is no UTF-8 as a whole, in hindsight; here what was certain of it
    stays.)

    Args:
        stops: texts that end it and are no part of it; of several, the one whose last character comes first.
        turn: it is a turn of a conversation, whose content begins with no white space: a template puts it there.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = (), turn: bool = False) -> None:
        self._begins = turn
        self._tokenizer, self._stops = tokenizer.within, [stop for stop in stops if stop]
        self._ids: list[int] = []  # of the last piece and what came behind it: a word may look back at the one before
        self._known = ""  # the text of those that have been turned into text
        self._held = ""  # what may become a stop
        self.stopped = False

    def add(self, token: int) -> str:
        """The piece that is certain with this token; nothing where it is stopped."""
        if token == self._tokenizer.eos_id:  # where it is no special one: GPT-1's newline
            return ""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        if self.stopped or len(text) <= len(self._known) or text.endswith(_UNFINISHED):
            return ""
        return self._released(self._advance(text))

    def close(self) -> str:
        """The rest, where no token follows."""
        if self.stopped:
            return ""
        piece = self._released(self._advance(self._tokenizer.decode(self._ids)))
        rest, self._held = self._held, ""
        return piece + rest

    def _advance(self, text: str) -> str:
        """What the text has beyond what is known; the ids behind it become those that are looked back at."""
        piece = text[len(self._known) :]
        known = self._tokenizer.decode(self._ids[len(self._ids) - 1 :])
        # The last token alone is the next one's context, unless it has but a part of a character.
        if _UNFINISHED in known or not text.endswith(known):
            self._known = text
        else:
            self._ids, self._known = self._ids[-1:], known
        return piece

    def _released(self, piece: str) -> str:
        if self._begins:
            piece = piece.lstrip()
            self._begins = not piece
        text = self._held + piece
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        held = max((_begun(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _begun(text: str, stop: str) -> int:
    """The length of the longest end of a text that a stop begins with."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)
