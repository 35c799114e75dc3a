"""`gpt generate`: what of its input is a prompt, what it prints, and the one line that a mistake gets."""

import io
import sys

import pytest

from gpt_modules.commands import generate
from gpt_modules.errors import UserError


class Closed:
    """A standard input whose reading fails."""

    class buffer:
        @staticmethod
        def readline(_):
            raise IsADirectoryError(21, "Is a directory")


@pytest.fixture
def speak(micro, monkeypatch, capsys):
    def run(*words, stdin=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)) if isinstance(stdin, bytes) else stdin)
        generate.main(["--model", str(micro.gpt), "--device", "cpu", "--max-new-tokens", "4", *words])
        return capsys.readouterr().out

    return run


def prompts_of(data, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    return list(generate.stdin_lines())


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"one\ntwo", [(1, "one"), (2, "two")]),
        (b"one\r\n two \r\n", [(1, "one"), (2, " two ")]),
        (b"\xef\xbb\xbfone\n\xef\xbb\xbftwo\n", [(1, "one"), (2, "\ufefftwo")]),
        (b"a\\nb\n", [(1, r"a\nb")]),
        (b"a\rb\x0bc\x0cd\x00\n", [(1, "a\rb\x0bc\x0cd\x00")]),
        ("a\u2028b\u0085c\n".encode(), [(1, "a\u2028b\u0085c")]),
        (b"\n \t\none\n\r\n\n", [(3, "one")]),
        (b"", []),
        (b"\xef\xbb\xbf", []),
    ],
)
def test_lines_are_taken_as_they_stand(monkeypatch, data, lines):
    assert prompts_of(data, monkeypatch) == lines


def test_lines_that_cannot_be_read(monkeypatch):
    with pytest.raises(UserError) as caught:
        prompts_of(b"one\ncaf\xe9\n", monkeypatch)
    expected = "standard input:2: found bytes that are not UTF-8 (0xe9), expected UTF-8 text"
    assert str(caught.value) == expected
    monkeypatch.setattr(generate, "LONGEST_LINE", 5)
    with pytest.raises(UserError, match="standard input:2: found a line of more than 5 bytes, expected text"):
        prompts_of(b"five\nsix_six\n", monkeypatch)
    monkeypatch.setattr(sys, "stdin", Closed())
    with pytest.raises(UserError, match=r"standard input: cannot be read \(Is a directory\), expected text"):
        list(generate.stdin_lines())
    monkeypatch.setattr(sys, "stdin", None)
    assert list(generate.stdin_lines()) == []


def test_prompts_and_their_continuations_in_order(speak):
    said = speak("--prompt", "the film", "--prompt", r"a\nb", "--samples", "2")
    assert said.startswith("the film")
    assert said.index("the film") < said.index("\nthe film") < said.index("\na\nb") < said.rindex("\na\nb")
    assert said == speak("--prompt", "the film", "--prompt", r"a\nb", "--samples", "2"), "the seed is fixed"
    first = speak("--prompt", "the film")
    assert said.startswith(first), "what follows a prompt changes nothing"


def test_lines_of_standard_input_are_prompts(speak):
    said = speak("--temperature", "0", stdin=b"\xef\xbb\xbfthe film\r\n\r\na story\r\n")
    assert said == speak("--temperature", "0", "--prompt", "the film", "--prompt", "a story")
    assert speak(stdin=rb"a\nb").startswith(r"a\nb")


def test_where_no_length_is_said_the_model_has_room_for_it(speak, micro, capsys):
    generate.main(["--model", str(micro.gpt), "--device", "cpu", "--prompt", "the film"])
    assert capsys.readouterr().out == speak("--prompt", "the film", "--max-new-tokens", "16")
    with pytest.raises(SystemExit):
        generate.main(["--help"])
    assert "(default 64, or half the model's context, whichever is less)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("temperature", ["0", "1e-38"])
def test_without_heat_it_is_greedy(speak, temperature):
    assert speak("--prompt", "the film", "--temperature", temperature) == speak("--prompt", "the film", "--top-k", "1")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--top-k", "0"], "--top-k: found '0', expected a whole number from 1"),
        (["--top-p", "1.5"], "--top-p: found '1.5', expected a number above 0, up to 1"),
        (["--top-p", "0"], "--top-p: found '0', expected a number above 0, up to 1"),
        (["--top-p", "nan"], "--top-p: found 'nan', expected a number above 0, up to 1"),
        (["--temperature", "-1"], "--temperature: found '-1', expected a number from 0"),
        (["--temperature", "nan"], "--temperature: found 'nan', expected a number from 0"),
        (["--temperature", "inf"], "--temperature: found 'inf', expected a number from 0"),
        (
            ["--temperature", "0", "--top-k", "5"],
            "--top-k: found 5 with --temperature 0, which takes the likeliest token",
        ),
        (
            ["--top-p", "0.5", "--temperature", "0"],
            "--top-p: found 0.5 with --temperature 0, which takes the likeliest",
        ),
        (["--max-new-tokens", "0"], "--max-new-tokens: found '0', expected a whole number from 1"),
        (
            ["--max-new-tokens", str(10**12)],
            f"--max-new-tokens: found {10**12}, expected fewer than the model's context",
        ),
        (["--samples", "0"], "--samples: found '0', expected a whole number from 1"),
        (["--seed", "-1"], "--seed: found '-1', expected a whole number from 0"),
        (["--seed", str(10**30)], f"--seed: found '{10**30}', expected a whole number from 0"),
        (["--prompt", "caf\udce9"], "--prompt: found bytes that are not UTF-8, expected UTF-8 text"),
        ([], "--prompt: none given and standard input is empty, expected a text to continue"),
    ],
)
def test_a_mistake_gets_one_line(speak, words, message):
    with pytest.raises(UserError) as caught:
        speak(*words, stdin=b"\n")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_what_the_terminal_cannot_show_is_escaped(monkeypatch):
    shown = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", shown)
    generate.say("né \u2603 \U0001f600")
    assert shown.buffer.getvalue() == "né \\u2603 \\U0001f600\n".encode("latin-1")
