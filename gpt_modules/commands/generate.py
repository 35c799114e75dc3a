"""`gpt generate`: a model folder continues prompts."""

import codecs
import sys
from collections.abc import Iterable, Iterator
from itertools import chain

from gpt_modules.commands.arguments import utf8_text, whole_number
from gpt_modules.commands.speaker import Prompt, Speaker, speaking_parser
from gpt_modules.errors import UserError

LONGEST_LINE = 2**24  # bytes
DESCRIPTION = """Continue prompts with a model folder: each --prompt, or each line of standard input, is printed with
its continuation, in order, as they come. A line is taken as it stands, without its end (LF or CRLF); lines of white
space alone are passed over. What a prompt is continued with depends on the seed and on its place among the prompts, not
on what they say."""


def main(words: list[str]) -> None:
    """`gpt generate --model FOLDER --prompt TEXT`: print each prompt with its continuation.

    Raises:
        UserError: For a mistake in an argument or the folder, and for no prompt or one that is not UTF-8.
    """
    parser = speaking_parser("generate", DESCRIPTION)
    parser.add_argument("--prompt", action="append", type=utf8_text,
                        help=r"as often as wanted; \n is a new line; default: the lines of standard input")  # fmt: skip
    parser.add_argument("--samples", type=whole_number(1), default=1, metavar="N", help="continuations of each prompt")
    options = parser.parse_args(words)
    speaker = Speaker.open(options)
    asked: Iterable[tuple[str, str]]
    if options.prompt is None:
        lines = stdin_lines()
        first = next(lines, None)
        if first is None:
            raise UserError("--prompt: none given and standard input is empty, expected a text to continue")
        asked = ((f"standard input:{number}", line) for number, line in chain([first], lines))
    else:
        asked = ((f"prompt {i}", text.replace("\\n", "\n")) for i, text in enumerate(options.prompt, start=1))
    _print(speaker, asked, options.samples)


def _print(speaker: Speaker, asked: Iterable[tuple[str, str]], samples: int) -> None:
    texts: list[str] = []  # of the prompts that were read and not yet answered

    def prompts() -> Iterator[Prompt]:
        for place, (name, text) in enumerate(asked):
            ids = speaker.tokenizer.opening([text])[0]
            for sample in range(samples):
                texts.append(text)
                yield Prompt(ids, f"{place} {sample}", name)

    for answer in speaker.answers(prompts()):
        say(texts.pop(0) + answer.text)


def say(line: str) -> None:
    """A line of standard output, at once; what its encoding lacks is written as an escape."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    sys.stdout.flush()


def stdin_lines() -> Iterator[tuple[int, str]]:
    """(number, line) of standard input, without a byte order mark, line ends and lines of white space alone.

    Raises:
        UserError: It cannot be read, or a line is endless or not UTF-8.
    """
    for number, line in enumerate(_raw_lines(), start=1):
        if len(line) > LONGEST_LINE:
            raise UserError(f"standard input:{number}: found a line of more than {LONGEST_LINE:,} bytes, expected text")
        line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        try:
            text = line.removesuffix(b"\n").removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            found = f"found bytes that are not UTF-8 (0x{error.object[error.start]:02x})"
            raise UserError(f"standard input:{number}: {found}, expected UTF-8 text") from error
        if text.strip():
            yield number, text


def _raw_lines() -> Iterator[bytes]:
    while sys.stdin is not None:  # it is None where the shell closed it
        try:
            line = sys.stdin.buffer.readline(LONGEST_LINE + 1)
        except OSError as error:
            raise UserError(f"standard input: cannot be read ({error.strerror}), expected text") from error
        if not line:
            return
        yield line
