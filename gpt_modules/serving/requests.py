"""What a client may ask for, in OpenAI's form, read by type and bounded in size.

A parameter that would change the answer and is not computed here is refused, by its name; one that never changes it,
such as `user`, is taken. `null` means that it is not given.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from gpt_modules.data.rows.fields import FieldError
from gpt_modules.data.rows.messages import question_of
from gpt_modules.errors import UserError
from gpt_modules.storage.documents import Rule, typed
from gpt_modules.storage.strict_json import only_value

MOST_CHOICES = 128  # of one request, over all its prompts

KindT = TypeVar("KindT")


def _only(fits: Any, expected: str) -> Rule:
    return Rule(fits, f"{expected}: nothing else is computed here")


def _within(low: float, high: float) -> Rule:
    return Rule(lambda number: low <= number <= high, f"a number from {low:g} to {high:g}")


Temperature = Annotated[float, _within(0, 2)]
Part = Annotated[float, Rule(lambda number: 0 < number <= 1, "a number above 0, up to 1")]
Choices = Annotated[int, _within(1, MOST_CHOICES)]
Seed = Annotated[int, Rule(lambda number: abs(number) < 2**63, "a whole number of 64 bits")]
Stop = Annotated[str, Rule(lambda text: len(text) > 0, "a text that is not empty")]
Stops = Annotated[list[Stop], Rule(lambda stops: len(stops) <= 4, "at most 4")]
Count = Annotated[int, _within(0, 2**31)]
Zero = Annotated[float, _only(lambda number: number == 0, "0")]
Empty = Annotated[dict[str, Any], _only(lambda found: not found, "none")]
NoText = Annotated[str, _only(lambda text: not text, "none")]
NoList = Annotated[list[Any], _only(lambda found: not found, "none")]


@dataclass(frozen=True)
class StreamOptions:
    """include_usage: a last chunk counts tokens. include_obfuscation: taken, chunks are never padded."""

    include_usage: bool = False
    include_obfuscation: bool = False


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What both ways to ask have in common.

    Args:
        top_k: not OpenAI's: sample from the k likeliest tokens.
        stop: one text or up to four.
    """

    model: str
    n: Choices = 1
    temperature: Temperature = 1.0
    top_p: Part = 1.0
    top_k: Annotated[int, _within(1, 2**31)] | None = None
    seed: Seed | None = None
    stop: Stop | Stops = field(default_factory=list)
    stream: bool = False
    stream_options: StreamOptions | None = None
    frequency_penalty: Zero = 0.0
    presence_penalty: Zero = 0.0
    logit_bias: Empty = field(default_factory=dict)
    user: Any = None

    def __post_init__(self) -> None:
        if self.stream_options is not None and not self.stream:
            raise UserError("stream_options: found without stream, expected stream: true")

    @property
    def stops(self) -> list[str]:
        """The texts that end an answer."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop)

    @property
    def counts_in_stream(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


@dataclass(frozen=True, kw_only=True)
class Completion(Asked):
    """`/v1/completions`. prompt: a text, texts, token ids, or several lists of these."""

    prompt: str | list[int] | list[str] | list[list[int]]
    max_tokens: Count | None = None
    echo: bool = False
    logprobs: Annotated[int, _within(0, 5)] | None = None
    best_of: Annotated[int, _only(lambda number: number == 1, "1")] = 1
    suffix: NoText = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_tokens == 0 and not self.echo:
            raise UserError("max_tokens: found 0 without echo, expected at least 1")
        if self.echo and self.stream:
            raise UserError("echo: found with stream, expected one of them")
        if not self.prompts or len(self.prompts) * self.n > MOST_CHOICES:
            found = f"{len(self.prompts)} prompts and n = {self.n}"
            raise UserError(f"prompt: found {found}, expected 1 to {MOST_CHOICES} choices together")

    @property
    def prompts(self) -> list[str | list[int]]:
        """One or several."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [token for token in self.prompt if isinstance(token, int)]
        return [ids] if ids else [of for of in self.prompt if not isinstance(of, int)]


@dataclass(frozen=True)
class TextPart:
    """A part of a message."""

    type: Literal["text"]
    text: str


@dataclass(frozen=True)
class Message:
    """A turn of a conversation; several parts of text are one text.

    What the server itself says may be sent back as clients keep it: with nothing refused, called or noted.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart]
    name: NoText = ""
    refusal: NoText = ""
    tool_calls: NoList = field(default_factory=list)
    function_call: Empty = field(default_factory=dict)
    audio: Empty = field(default_factory=dict)
    annotations: NoList = field(default_factory=list)
    tool_call_id: str = ""

    def __post_init__(self) -> None:
        if self.tool_call_id and self.role != "tool":
            raise UserError(f"tool_call_id: found with the role {self.role}, expected tool")

    @property
    def plain(self) -> dict[str, str]:
        """As rows of messages have it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


@dataclass(frozen=True)
class Format:
    """Plain text alone."""

    type: Annotated[str, _only(lambda kind: kind == "text", "text")] = "text"


@dataclass(frozen=True, kw_only=True)
class Chat(Asked):
    """`/v1/chat/completions`. max_tokens: left out, an answer may be as long as the context has room."""

    messages: list[Message]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, _within(0, 20)] | None = None
    response_format: Format | None = None
    modalities: Annotated[list[str], _only(lambda found: found == ["text"], '["text"]')] = field(
        default_factory=lambda: ["text"]
    )
    tools: NoList = field(default_factory=list)
    functions: NoList = field(default_factory=list)
    tool_choice: Annotated[str, _only(lambda found: found in ("none", "auto"), "none")] = "none"
    parallel_tool_calls: bool = True
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_logprobs is not None and not self.logprobs:
            raise UserError("top_logprobs: found without logprobs, expected logprobs: true")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            found = f"{self.max_completion_tokens} beside max_tokens = {self.max_tokens}"
            raise UserError(f"max_completion_tokens: found {found}, expected one of them")
        if self.most == 0:
            raise UserError("max_tokens: found 0, expected at least 1")
        _ = self.conversation

    @property
    def most(self) -> int | None:
        """Tokens of an answer, under their new name or their old one."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def conversation(self) -> list[dict[str, str]]:
        """As rows of messages have it.

        Raises:
            UserError: it is none that an assistant may answer.
        """
        return _conversation(self.messages)


@dataclass(frozen=True, kw_only=True)
class Score:
    """`/v1/score`: responses to one prompt, which is a text or a conversation."""

    model: str
    responses: Annotated[
        list[str], Rule(lambda found: 1 <= len(found) <= MOST_CHOICES, f"1 to {MOST_CHOICES} responses")
    ]
    prompt: str | None = None
    messages: list[Message] | None = None

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise UserError("prompt: expected either prompt or messages")
        _ = self.asked

    @property
    def asked(self) -> str | list[dict[str, str]]:
        """What the responses are to, as rows have it."""
        return _conversation(self.messages or []) if self.prompt is None else self.prompt


def _conversation(messages: list[Message]) -> list[dict[str, str]]:
    try:
        return question_of({"messages": [message.plain for message in messages]})
    except FieldError as error:
        raise UserError(str(error)) from error


def read_body(body: bytes, kind: type[KindT]) -> KindT:
    """What a body asks for.

    Raises:
        UserError: it is no JSON, or not of this kind; the line begins with the name of the field.
    """
    return typed(kind, _given(only_value(body)), first=0)  # type: ignore[no-any-return]


def _given(value: object) -> object:
    """Without the keys that are null, wherever they stand."""
    if isinstance(value, list):
        return [_given(item) for item in value]
    return {key: _given(of) for key, of in value.items() if of is not None} if isinstance(value, dict) else value
