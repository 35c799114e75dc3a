"""Arguments of the data's classes, refused where they are given: before a file is read or a step taken."""

import inspect
import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

from gpt_modules.errors import UserError, expect

MOST = 1 << 20  # of what a batch holds, or an epoch in batches of one: beyond, arrays of places fill the memory


def expect_whole(least: int, most: int | None = MOST, **values: Any) -> None:
    """Whole numbers from `least` to `most` (None: without end); None is left to mean what the argument says.

    Raises:
        UserError: One is not; with its name.
    """
    for name, value in values.items():
        if value is not None:
            whole = isinstance(value, Integral) and not isinstance(value, bool)
            expect(whole and int(value) >= least, name, value, f"at least {least}")
            if most is not None:
                expect(int(value) <= most, name, value, f"at most {most:,}")


def expect_part(**values: float) -> None:
    """Parts of a whole, of which both what is taken and what is left are something.

    Raises:
        UserError: A number is not between 0 and 1.
    """
    for name, value in values.items():
        expect(_is_number(value) and 0 < value < 1, name, value, "a number above 0 and below 1")


def expect_positive(**values: float) -> None:
    """Raises:
    UserError: A value is no finite number above 0.
    """
    for name, value in values.items():
        expect(_is_number(value) and 0 < value < math.inf, name, value, "a finite number above 0")


def expect_one_of(known: Sequence[str], **values: Any) -> None:
    """Raises:
    UserError: A value is none of the words.
    """
    for name, value in values.items():
        expect(value in known, name, value, " or ".join(known))


class IdleArgument(UserError):
    """An argument without effect beside what another one says.

    Args:
        name: Of the argument.
        value: Of the argument.
        default: What it is by itself.
        other: Name of the other one.
        beside: What that one says, in words.
        expected: Left out: the default.
    """

    def __init__(
        self, name: str, value: object, default: object, other: str, beside: str, expected: str | None = None
    ) -> None:
        self.name, self.default, self.other = name, default, other
        self.found = f"{value!r:.60} beside {beside}, where it has no effect"
        super().__init__(f"{name}: found {self.found}, expected {expected or repr(default)}")

    def below(self, outer: str) -> "IdleArgument":
        """The same of the arguments that the argument `outer` holds."""
        self.name, self.other, self.args = f"{outer}.{self.name}", f"{outer}.{self.other}", (f"{outer}.{self}",)
        return self


def expect_default(owner: Callable[..., Any], other: str, beside: str, prefix: str = "", **values: Any) -> None:
    """Arguments of a class that have no effect `beside` what the argument `other` says: nobody is to believe that they
    had.

    Raises:
        IdleArgument: One is not as the class has it by itself; with its name, which `prefix` opens.
    """
    known = inspect.signature(owner).parameters
    for name, value in values.items():
        if value != known[name].default:
            raise IdleArgument(f"{prefix}{name}", value, known[name].default, other, beside)


def expect_parted(owner: Callable[..., Any], train: Any, validation: Any, own: bool, fraction: float) -> None:
    """A `validation_fraction` where there is a source to hold it out of.

    Args:
        owner: The class that has the argument.
        train: The source, for the message.
        validation: The source that validates; None: a part of the other one.
        own: Whether the source parts itself.
        fraction: The argument.

    Raises:
        IdleArgument: Nothing is held out, and the argument is not as the class has it by itself.
    """
    expect_part(validation_fraction=fraction)
    if validation is not None:
        expect_default(owner, "validation", "a validation source", validation_fraction=fraction)
    elif own:
        expect_default(owner, "train", f"{train!s:.60}, which parts itself", validation_fraction=fraction)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
