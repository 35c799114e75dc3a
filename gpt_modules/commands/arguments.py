"""Command-line words of the commands that are not Lightning's."""

import argparse
from typing import NoReturn

from gpt_modules.errors import UserError


class Arguments(argparse.ArgumentParser):
    """An argument parser whose complaint is the one line that every mistake of the user's gets, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Raise it for `main` to print."""
        raise UserError(f"{self.prog}: {message}; see {self.prog} --help")
