"""`gpt chat`: a model folder answers, line by line."""

import sys
from collections.abc import Callable, Iterator

from gpt_modules.commands.generate import Speaker, speaking_parser


def main(words: list[str]) -> None:
    """`gpt chat --model FOLDER`: read a line, answer it, until end of input."""
    parser = speaking_parser("chat", "Talk to a model folder. Ends with Ctrl-D.")
    parser.add_argument(
        "--transcript", action="store_true", help="send the whole conversation in the form SFT gives chat-style rows"
    )
    options = parser.parse_args(words)
    speaker = Speaker(options)
    respond = _transcript(speaker) if options.transcript else lambda line: speaker.answer([line + "\n"])[0]
    for line in _lines():
        sys.stdout.write(respond(line).strip() + "\n")
        sys.stdout.flush()


def _transcript(speaker: Speaker) -> Callable[[str], str]:
    from gpt_modules.data.rows.chat import encode_conversation

    messages: list[dict[str, str]] = []

    def respond(line: str) -> str:
        messages.append({"role": "user", "content": line})
        text = speaker.continue_ids([encode_conversation(messages, speaker.tokenizer)])[0].strip()
        messages.append({"role": "assistant", "content": text})
        return text

    return respond


def _lines() -> Iterator[str]:
    """Lines of standard input, with a prompt sign when a person types."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, SystemExit, KeyboardInterrupt):
            return
        if line:
            yield line
