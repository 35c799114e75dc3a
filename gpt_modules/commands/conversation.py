"""A conversation as a person edits it: turns are said, taken back, asked again, saved and loaded."""

import json
from pathlib import Path
from typing import Any

from gpt_modules.errors import UserError
from gpt_modules.storage.durable import replace_durably
from gpt_modules.storage.json_files import read_json

Message = dict[str, Any]


class Conversation:
    """What was said so far. A file of it is a row of `messages`, as SFT reads them: an answer that was cut off has a
    weight of 0 there, for what SFT learns of an answer is its end too.
    """

    def __init__(self, system: str | None = None) -> None:
        self.messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]

    @property
    def turns(self) -> int:
        """Questions so far."""
        return sum(message["role"] == "user" for message in self.messages)

    def ask(self, text: str) -> None:
        """The user's turn."""
        self.messages.append({"role": "user", "content": text})

    def answer(self, text: str, ended: bool = True) -> None:
        """The assistant's, which ended or was cut off; an empty one is none, and the question is taken back."""
        if text:
            self.messages.append(_answer(text, ended))
        else:
            self.undo()

    def replace_answer(self, text: str, ended: bool = True) -> None:
        """Another answer in place of the last one."""
        self.messages[-1] = _answer(text, ended)

    def undo(self) -> str | None:
        """Take back the last question and what came of it: the question, None where there is none."""
        asked = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        if not asked:
            return None
        question: str = self.messages[asked[-1]]["content"]
        del self.messages[asked[-1] :]
        return question

    def set_system(self, text: str) -> None:
        """What the system says from now on; nothing, where the text is empty."""
        said = [message for message in self.messages if message["role"] != "system"]
        self.messages = [{"role": "system", "content": text}, *said] if text else said

    def reset(self) -> None:
        """Forget all but what the system says."""
        self.messages = [message for message in self.messages if message["role"] == "system"]

    def save(self, path: Path) -> None:
        """Into a new file, a row of JSON.

        Raises:
            UserError: there is nothing to save, or a file of this name.
        """
        if not self.turns:
            raise UserError("/save: found no turn, expected at least one")
        if path.exists():
            raise UserError(f"/save: found {path}, which is there already, expected a new file")
        replace_durably(path, json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n")

    def load(self, path: Path) -> None:
        """Go on from a file of one row of messages.

        Raises:
            UserError: it is none, or does not end with the assistant's turn.
        """
        from gpt_modules.data.rows.fields import FieldError
        from gpt_modules.data.rows.messages import messages_of

        expected = "one row of messages, as /save writes it"
        try:
            row = read_json(path, expected)
            messages = messages_of(row, weighed=True) if isinstance(row, dict) and "messages" in row else None
        except (FieldError, UserError) as error:
            where = f"{path}: " if isinstance(error, FieldError) else ""
            raise UserError(f"/load: {where}{error}") from error
        if not messages or messages[-1]["role"] != "assistant":
            found = "no messages" if not messages else f"messages of which the last is the {messages[-1]['role']}'s"
            raise UserError(f"/load: {path}: found {found}, expected {expected}, of which the last is the assistant's")
        self.messages = messages


def _answer(text: str, ended: bool) -> Message:
    return {"role": "assistant", "content": text} | ({} if ended else {"weight": 0})
