"""The exceptions that are the user's to read: one line is the whole story."""


class UserError(RuntimeError):
    """A mistake in a recipe, a file or an argument.

    The message is one line that names the file, the row or field, what was found and what was expected. The command
    line prints it without a traceback and exits with status 2.
    """


class Stopped(SystemExit):
    """The end that a signal asks for, with its status. told: whether a line has said so, with what is there of it."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number, self.told = number, False


class TooLong(UserError):
    """More tokens than a model's context has."""


def expect(fits: bool, field: str, found: object, expected: str) -> None:
    """Refuse a value that does not fit: `expect(size >= 1, "batch_size", size, "at least 1")`.

    Raises:
        UserError: it does not.
    """
    if not fits:
        raise UserError(f"{field}: found {found!r}, expected {expected}")
