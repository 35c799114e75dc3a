"""The one exception that is the user's to read: its message is the whole story, in one line."""


class UserError(RuntimeError):
    """A mistake in a recipe, a file or an argument.

    The message is one line that names the file, the row or field, what was found and what was expected. The command
    line prints it
    without a traceback and exits with status 2.
    """
