"""Lines of standard input: a person types and edits them, with those before within reach; a pipe has them."""

import sys
from collections.abc import Callable, Iterator
from itertools import count

from gpt_modules.commands.generate import say, stdin_lines
from gpt_modules.errors import UserError


def typed_lines() -> Iterator[tuple[int, str]]:
    """(number, line), stripped, none of them empty, until the end of input (Ctrl-D). Ctrl-C forgets a line.

    Raises:
        UserError: a line is not UTF-8.
    """
    if sys.stdin is None or not sys.stdin.isatty():
        yield from ((number, line.strip()) for number, line in stdin_lines())
        return
    read = _reader()
    for number in count(1):
        try:
            line = read("> ").strip()
        except EOFError:
            say("")
            return
        except KeyboardInterrupt:
            say("(Ctrl-D ends it)")
            continue
        except UnicodeDecodeError as error:
            raise UserError("standard input: found bytes that are not UTF-8, expected UTF-8 text") from error
        if line:
            yield number, line


def _reader() -> Callable[[str], str]:
    """prompt_toolkit's, with arrows, search and history; where it is not installed, Python's own."""
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import InMemoryHistory
    except ImportError:
        return input
    if not sys.stdout.isatty():
        return input
    session: PromptSession[str] = PromptSession(history=InMemoryHistory())
    return session.prompt
