"""Lines of a pipe, and of a person, who ends them."""

import io
import sys

import pytest

from gpt_modules.commands import reading_lines
from gpt_modules.commands.reading_lines import typed_lines
from gpt_modules.errors import UserError


def test_a_line_keeps_its_number(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfone\r\n\n three \n")))
    assert list(typed_lines()) == [(1, "one"), (3, "three")]


def test_bytes_that_are_not_utf8(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello\n\xff\xfe\n")))
    with pytest.raises(UserError, match="standard input:2: found bytes that are not UTF-8"):
        list(typed_lines())


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_person_forgets_a_line_and_ends_it(monkeypatch, capsys):
    typed = iter([" hello ", "", KeyboardInterrupt(), "again", EOFError()])

    def read(sign):
        assert sign == "> "
        line = next(typed)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr(reading_lines, "_reader", lambda: read)
    monkeypatch.setattr(sys, "stdin", Terminal())
    assert list(typed_lines()) == [(1, "hello"), (4, "again")]
    assert capsys.readouterr().out == "(Ctrl-D ends it)\n\n", "the shell's own sign begins a line"


def test_lines_are_edited_where_there_is_a_terminal(monkeypatch):
    pytest.importorskip("prompt_toolkit")
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    monkeypatch.setattr(sys, "stdout", Terminal())
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        read = reading_lines._reader()
        keys.send_text("hella\x7fo\r")  # a key too many, and the one that takes it back
        assert read("> ") == "hello"
        keys.send_text("\x1b[A\r")  # up: the line before
        assert read("> ") == "hello"
