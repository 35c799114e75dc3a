"""`gpt chat`: a line in, an answer out; the conversation so far where it is asked for."""

import io
import sys

import pytest

from gpt_modules.commands import chat
from gpt_modules.commands.speaker import Answer, Speaker
from gpt_modules.data.rows.chat import encode_conversation
from gpt_modules.errors import UserError


@pytest.fixture
def talk(micro, monkeypatch, capsys):
    """talk(words, stdin): the prompts that the model got, as ids, and what was printed; it answers " one ", " two "."""

    def run(*words, stdin):
        asked = []

        def answers(self, prompts):
            for prompt in prompts:
                asked.append(prompt.ids)
                yield Answer([" one ", " two\n"][len(asked) - 1], ended=True)

        monkeypatch.setattr(Speaker, "answers", answers)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        chat.main(["--model", str(micro.gpt), "--device", "cpu", "--max-new-tokens", "4", *words])
        return asked, capsys.readouterr().out

    return run


def test_each_line_alone(talk, micro):
    asked, said = talk(stdin=b"\xef\xbb\xbfhello \r\n\n  again")
    assert asked == [micro.tokenizer.encode("hello\n"), micro.tokenizer.encode("again\n")]
    assert said == "one\ntwo\n"


def test_the_whole_conversation(talk, micro):
    asked, _ = talk("--transcript", stdin=b"hello\nagain\n")
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "one"},
             {"role": "user", "content": "again"}]  # fmt: skip
    assert asked == [encode_conversation(turns[:1], micro.tokenizer), encode_conversation(turns, micro.tokenizer)]


def test_no_line_is_no_answer(talk):
    assert talk(stdin=b"\n\n") == ([], "")


def test_a_line_keeps_its_number(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\n\n three \n")))
    assert list(chat._lines()) == [(1, "one"), (3, "three")]


def test_bytes_that_are_not_utf8(talk):
    with pytest.raises(UserError, match="standard input:2: found bytes that are not UTF-8"):
        talk(stdin=b"hello\n\xff\xfe\n")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
def test_a_person_ends_it(monkeypatch, capsys, end):
    typed = iter([" hello ", "", end()])

    def read(sign):
        assert sign == "> "
        line = next(typed)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr(sys, "stdin", Terminal())
    assert list(chat._lines()) == [(1, "hello")]
    assert capsys.readouterr().out == "\n", "the shell's own sign begins a line"
