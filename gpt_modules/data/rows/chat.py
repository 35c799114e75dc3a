"""Conversations as plain text: "User: ...", "Assistant: ...", a line each.

    System: Be brief.
    User: Who wrote Hamlet?
    Assistant: Shakespeare.<|endoftext|>
    User: When?
    Assistant:

The end token closes every answer of the assistant and is a token, never those characters.
"""

from collections.abc import Sequence

from gpt_modules.data.text.tokenizers import Tokenizer

_NAMES = {"system": "System", "user": "User", "assistant": "Assistant"}


def transcript(messages: Sequence[dict[str, str]]) -> list[tuple[str, bool]]:
    """A conversation as (text, learned) turns, to be encoded one by one and joined, with an end token after each
    learned one.

    What the assistant says is learned, from the space after "Assistant:" on; all else is only read.

    Args:
        messages: `{"role": "system" | "user" | "assistant", "content": text}` each.
    """
    turns: list[tuple[str, bool]] = []
    pending = ""
    for message in messages:
        if message["role"] == "assistant":
            turns += [(pending + "Assistant:", False), (" " + message["content"], True)]
            pending = "\n"
        else:
            pending += f"{_NAMES[message['role']]}: {message['content']}\n"
    return turns


def chat_prompt(messages: Sequence[dict[str, str]]) -> list[tuple[str, bool]]:
    """As `transcript`, up to where the assistant is to speak next."""
    return transcript([*messages, {"role": "assistant", "content": ""}])[:-1]


def render_conversation(messages: Sequence[dict[str, str]]) -> str:
    """The text of `chat_prompt`, without the end tokens (text has none): to show, or for a first turn, to encode."""
    return "".join(text for text, _ in chat_prompt(messages))


def encode_conversation(messages: Sequence[dict[str, str]], tokenizer: Tokenizer) -> list[int]:
    """The ids of `chat_prompt` with the end tokens, exactly as supervised finetuning has seen them: what to generate
    from.
    """
    turns = chat_prompt(messages)
    encoded = tokenizer.encode_batch([text for text, _ in turns])
    closed = [[*ids, tokenizer.eos_id] if said else ids for ids, (_, said) in zip(encoded, turns, strict=True)]
    return [token for ids in closed for token in ids]


def fit_conversation(messages: Sequence[dict[str, str]], tokenizer: Tokenizer, room: int) -> tuple[list[int], int]:
    """The ids of `encode_conversation`, and how many of the oldest turns are left out, whole, so that they are at most
    `room`. What the system says stays, and so does the last turn: alone, it may be longer.

    A turn is what a user says and all up to what a user says next.
    """
    told = [message for message in messages if message["role"] == "system"]
    said = [message for message in messages if message["role"] != "system"]
    begins = [i for i, message in enumerate(said) if message["role"] == "user"] or [0]
    shortened = (
        (encode_conversation([*told, *said[begin:]], tokenizer), dropped) for dropped, begin in enumerate(begins)
    )
    found = next(shortened)
    while len(found[0]) > room and (shorter := next(shortened, None)) is not None:
        found = shorter
    return found
