"""The one exception that is the user's to read: its message is the whole story, in one line."""


class UserError(RuntimeError):
    """A mistake in a recipe, a file or an argument.

    The message is one line that names the file, the row or field, what was found and what was expected. The command
    line prints it without a traceback and exits with status 2.
    """


class TooLong(UserError):
    """More tokens than a model's context has."""


def expect(fits: bool, field: str, found: object, expected: str) -> None:
    """Refuse a value that does not fit: `expect(size >= 1, "batch_size", size, "at least 1")`.

    Raises:
        UserError: it does not.
    """
    if not fits:
        raise UserError(f"{field}: found {found!r}, expected {expected}")
