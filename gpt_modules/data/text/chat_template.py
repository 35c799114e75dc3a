"""Chat templates: what makes one text of a list of messages, as `transformers` keeps it beside a model.

A folder carries it as `chat_template.jinja`, or as `chat_template` in its `tokenizer_config.json`. A folder without one
has ours, which is plain text; the end token closes every answer:

    System: Be brief.
    User: Who wrote Hamlet?
    Assistant: Shakespeare.<|endoftext|>
    User: When?
    Assistant:
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateSyntaxError

from gpt_modules.data.text import sandbox
from gpt_modules.data.text.reading import SETTINGS_FILE, content_of, settings_of
from gpt_modules.errors import UserError
from gpt_modules.storage.json_files import shown
from gpt_modules.storage.model_files import TEMPLATE_FILE
from gpt_modules.storage.text_files import read_text

OURS = """\
{%- for message in messages -%}
    {{- "\\n" if loop.previtem and loop.previtem.role == "assistant" }}
    {{- message.role | capitalize ~ ": " ~ message.content ~ (eos_token if message.role == "assistant" else "\\n") }}
{%- endfor %}
{%- if add_generation_prompt -%}
    {{- "\\n" if messages[-1].role == "assistant" }}
    {{- "Assistant:" }}
{%- endif -%}
"""
_NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_LARGEST = 1 << 20  # bytes; the longest known have some ten thousand

Message = Mapping[str, Any]


@dataclass(frozen=True)
class ChatTemplate:
    """A template, and what it calls a model's tokens.

    Args:
        source: Jinja's text.
        names: (name, token) of those that it may write, such as ("bos_token", "<s>").
        where: what it is in an error message.
    """

    source: str = OURS
    names: tuple[tuple[str, str], ...] = ()
    where: str = "the chat template"

    @classmethod
    def beside(cls, folder: Path) -> "ChatTemplate":
        """That of a folder; ours, with the folder's names of tokens, where it has none.

        Raises:
            UserError: It cannot be read, or there are several of which none is the default.
        """
        settings = settings_of(folder)
        named = {f"{name}_token": content_of(settings.get(f"{name}_token")) for name in _NAMED}
        names = tuple((name, token) for name, token in named.items() if token)
        path = folder / TEMPLATE_FILE
        if path.is_file():
            return cls(read_text(path, "a chat template", _LARGEST), names, str(path))
        found, where = settings.get("chat_template"), f"{folder / SETTINGS_FILE}: chat_template"
        return cls(names=names) if found is None else cls(_default(found, where), names, where)

    @property
    def told(self) -> str:
        """What a person who opens a model should know of it: a line, nothing where the template is the folder's own."""
        line = "chat template: ours (User: ... Assistant:), as the folder has no other; a model that never learned it "
        return line + "goes on with the text" if self.where == ChatTemplate.where else ""

    def with_end(self, token: str) -> "ChatTemplate":
        """The same; where it has no name for the token that ends a text, it is this one."""
        return self if "eos_token" in dict(self.names) else replace(self, names=(*self.names, ("eos_token", token)))

    def reads_like(self, other: "ChatTemplate") -> bool:
        """Whether both make the same of every conversation."""
        used = [{(name, token) for name, token in of.names if name in of.source} for of in (self, other)]
        return self.source == other.source and used[0] == used[1]

    def render(self, messages: Sequence[Message], speak: bool) -> str:
        """The text of a conversation.

        Args:
            messages: `{"role", "content"}` each.
            speak: up to where the assistant is to speak next.

        Raises:
            UserError: It is no template, refuses the messages, or goes beyond its bounds.
        """
        plain = [{"role": message["role"], "content": message["content"]} for message in messages]
        template = self.compiled()
        try:
            return sandbox.render(
                template, messages=plain, tools=None, documents=None, add_generation_prompt=speak, **dict(self.names)
            )
        except Exception as error:  # all that it may come to; what is no template at all has been told
            raise UserError(
                f"{self.where}: {_reason(error)}, in a conversation of {len(plain)}, expected its text"
            ) from error

    def compiled(self) -> Template:
        """As Jinja has it.

        Raises:
            UserError: It is no template.
        """
        try:
            return _compiled(self.source)
        except Exception as error:
            line = f":{error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
            raise UserError(f"{self.where}{line}: found {_reason(error)}, expected a template of Jinja") from error


@lru_cache(maxsize=64)
def _compiled(source: str) -> Template:
    return sandbox.compile_template(source)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text:.160}" if text else type(error).__name__


def _default(found: object, where: str) -> str:
    """The template among several: a list of {"name", "template"}."""
    if isinstance(found, list) and all(isinstance(item, dict) for item in found):
        found = {str(item.get("name")): item.get("template") for item in found}.get("default", found)
    if not isinstance(found, str):
        raise UserError(f"{where}: found {shown(found)}, expected a text, or a list with one that is named default")
    return found
