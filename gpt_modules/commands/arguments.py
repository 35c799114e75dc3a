"""Command-line words of the commands that are not Lightning's: one line for every mistake, before any work."""

import argparse
import math
import os
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from gpt_modules.errors import UserError

if TYPE_CHECKING:
    import torch

LARGEST = 2**63 - 1
LONGEST_NAME = 255  # bytes, of a file on all systems
DEVICES = ("auto", "cpu", "cuda")
_UNKNOWN = "unrecognized arguments: "  # as argparse says it


class Arguments(argparse.ArgumentParser):
    """An argument parser whose complaint is the one line that every mistake of the user's gets, without the usage; a
    part of an option's name is none.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Raise it for `main` to print; a value that does not fit speaks for itself."""
        message = message.removeprefix("argument ")
        if message.startswith(_UNKNOWN):
            message += self._near(message.removeprefix(_UNKNOWN).split())
        raise UserError(message if ": found " in message else f"{self.prog}: {message}; see {self.prog} --help")

    def _near(self, words: Iterable[str]) -> str:
        """The options that were meant by such words, as a question, or nothing."""
        options = [word.partition("=")[0] for word in words if word.startswith("-")]
        near = [close[0] for word in options if (close := get_close_matches(word, self._option_string_actions, n=1))]
        return f"; did you mean {' '.join(near)}?" if near else ""


def whole_number(least: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number from `least`."""

    def read(text: str) -> int:
        try:
            value = int(_ascii(text))
        except ValueError:
            value = least - 1
        if not least <= value <= LARGEST:
            raise argparse.ArgumentTypeError(f"found {text[:40]!r}, expected a whole number from {least}")
        return value

    return read


def number(fits: Callable[[float], bool], expected: str) -> Callable[[str], float]:
    """The type of an argument that is a finite number which `fits`."""

    def read(text: str) -> float:
        try:
            value = float(_ascii(text))
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and fits(value)):
            raise argparse.ArgumentTypeError(f"found {text[:40]!r}, expected {expected}")
        return value

    return read


def _ascii(text: str) -> str:
    """The text of a number; Python reads the digits of all scripts, and nothing else of a command line does."""
    if not text.isascii():
        raise ValueError(text)
    return text


def utf8_text(text: str) -> str:
    """The type of an argument that is text: bytes that are not UTF-8 reach Python as halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("found bytes that are not UTF-8, expected UTF-8 text") from None
    return text


def path_name(text: str) -> Path:
    """The type of an argument that names a file or a folder: an empty one would be the current folder."""
    if not text.strip() or "\0" in text or any(len(os.fsencode(part)) > LONGEST_NAME for part in Path(text).parts):
        raise argparse.ArgumentTypeError(f"found {text[:40]!r}, expected the name of a file or a folder")
    return Path(text)


def add_device(parser: argparse.ArgumentParser) -> None:
    """`--device`, for `device_of`."""
    parser.add_argument("--device", default="auto", choices=DEVICES, help="auto takes a GPU where there is one")


def device_of(options: argparse.Namespace) -> "torch.device":
    """The device that `--device` means here.

    Raises:
        UserError: it is a GPU, and torch sees none.
    """
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device: found 'cuda', expected auto or cpu: torch sees no CUDA device here")
    there = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(there if options.device == "auto" else options.device)
