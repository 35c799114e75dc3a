"""`gpt chat`: a model folder answers, line by line."""

import sys
from collections.abc import Iterator
from itertools import count

from gpt_modules.commands.generate import say, stdin_lines
from gpt_modules.commands.speaker import Prompt, Speaker, speaking_parser
from gpt_modules.errors import UserError


def main(words: list[str]) -> None:
    """`gpt chat --model FOLDER`: read a line, answer it, until end of input.

    Raises:
        UserError: For a mistake in an argument or the folder, and for a line that is not UTF-8.
    """
    parser = speaking_parser("chat", "Talk to a model folder. Ends with Ctrl-D.")
    parser.add_argument(
        "--transcript", action="store_true", help="send the whole conversation in the form SFT gives chat-style rows"
    )
    options = parser.parse_args(words)
    speaker = Speaker.open(options)
    from gpt_modules.data.rows.chat import encode_conversation

    messages: list[dict[str, str]] = []
    for turn, (number, line) in enumerate(_lines(), start=1):
        messages.append({"role": "user", "content": line})
        conversation = options.transcript
        ids = (
            encode_conversation(messages, speaker.tokenizer) if conversation else speaker.tokenizer.encode(line + "\n")
        )
        (answer,) = speaker.answers([Prompt(ids, str(turn), f"line {number}")])
        messages.append({"role": "assistant", "content": answer.text.strip()})
        say(answer.text.strip())


def _lines() -> Iterator[tuple[int, str]]:
    """(number, line) of standard input, stripped, with a prompt sign when a person types."""
    if sys.stdin is None or not sys.stdin.isatty():
        yield from ((number, line.strip()) for number, line in stdin_lines())
        return
    for number in count(1):
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            say("")
            return
        except UnicodeDecodeError as error:
            raise UserError("standard input: found bytes that are not UTF-8, expected UTF-8 text") from error
        if line:
            yield number, line
