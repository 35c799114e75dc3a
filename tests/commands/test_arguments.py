"""The values of arguments: what fits, and the one line of what does not."""

import argparse
import os
import re
from pathlib import Path

import pytest
import torch

from gpt_modules.commands.arguments import Arguments, add_device, device_of, number, path_name, utf8_text, whole_number
from gpt_modules.errors import UserError


@pytest.mark.parametrize(("text", "value"), [("3", 3), ("4", 4), (str(2**63 - 1), 2**63 - 1)])
def test_a_whole_number_that_fits(text, value):
    assert whole_number(3)(text) == value


@pytest.mark.parametrize("text", ["2", "-3", "", "many", "3.0", "1e3", "nan", str(2**63), "9" * 5000])
def test_a_whole_number_that_does_not(text):
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        whole_number(3)(text)
    assert str(caught.value) == f"found {text[:40]!r}, expected a whole number from 3"


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "-inf", "1e400", "warm", ""])
def test_a_number_that_does_not_fit(text):
    read = number(lambda value: value >= 0, "a number from 0")
    assert (read("0"), read("1e-38"), read("2")) == (0.0, 1e-38, 2.0)
    with pytest.raises(argparse.ArgumentTypeError, match=re.escape(f"found {text!r}, expected a number from 0")):
        read(text)


def test_bytes_that_are_not_utf8():
    assert utf8_text("ünï\x00") == "ünï\x00"
    with pytest.raises(argparse.ArgumentTypeError, match="found bytes that are not UTF-8, expected UTF-8 text"):
        utf8_text(os.fsdecode(b"caf\xe9"))


def test_the_name_of_a_file():
    assert path_name("a/b.json") == Path("a/b.json")
    for text in ("", " ", "a\0b", "x" * 256, "a/" + "é" * 128):
        with pytest.raises(argparse.ArgumentTypeError, match="expected the name of a file or a folder"):
            path_name(text)


def test_the_line_names_the_argument():
    parser = Arguments(prog="gpt speak")
    parser.add_argument("--top-k", type=whole_number(1))
    add_device(parser)
    with pytest.raises(UserError) as caught:
        parser.parse_args(["--top-k", "0"])
    assert str(caught.value) == "--top-k: found '0', expected a whole number from 1"
    with pytest.raises(UserError, match=r"^gpt speak: --device: invalid choice: 'abacus' .*; see gpt speak --help$"):
        parser.parse_args(["--device", "abacus"])
    with pytest.raises(UserError, match=r"^gpt speak: unrecognized arguments: --loud; see gpt speak --help$"):
        parser.parse_args(["--loud"])


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("--max_new_tokens 24", "--max-new-tokens"),
        ("--max_new_tokens=24 --topk 3", "--max-new-tokens --top-k"),
        ("--max-new-token 24", "--max-new-tokens"),
    ],
)
def test_an_option_that_is_spelled_otherwise_is_named(words, meant):
    parser = Arguments(prog="gpt speak")
    for name in ("--max-new-tokens", "--top-k", "--top-p"):
        parser.add_argument(name)
    with pytest.raises(UserError) as caught:
        parser.parse_args(words.split())
    line = f"gpt speak: unrecognized arguments: {words}; did you mean {meant}?; see gpt speak --help"
    assert str(caught.value) == line


@pytest.mark.parametrize("there", [False, True])
def test_the_device_that_is_meant(monkeypatch, there):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert device_of(argparse.Namespace(device="cpu")).type == "cpu"
    assert device_of(argparse.Namespace(device="auto")).type == ("cuda" if there else "cpu")
    if there:
        assert device_of(argparse.Namespace(device="cuda")).type == "cuda"
    else:
        with pytest.raises(UserError) as caught:
            device_of(argparse.Namespace(device="cuda"))
        assert str(caught.value) == "--device: found 'cuda', expected auto or cpu: torch sees no CUDA device here"
