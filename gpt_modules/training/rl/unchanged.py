"""What a run reads and never trains must be, on resuming, what it was: a reference or a reward that was exported anew
in between would be another task, and nothing would tell.
"""

import logging
from collections.abc import Mapping

from gpt_modules.errors import UserError

log = logging.getLogger(__name__)

FUNCTION = "function "  # begins the name of a reward function, where others are folders


def check_unchanged(found: Mapping[str, str | None], recorded: Mapping[str, str | None]) -> None:
    """Compare what was read with what the checkpoint says was read under the same names. Another name is another
    recipe, and said there; a function whose source has changed is named in the log.

    Raises:
        UserError: a folder holds another model.
    """
    for name, digest in found.items():
        if digest == recorded.get(name, digest):
            continue
        if name.startswith(FUNCTION):
            log.warning("%s: its source is not the one that the checkpoint was trained with", name)
            continue
        raise UserError(
            f"{name}: found another model (SHA-256 {str(digest)[:12]}…) than this run began with, expected "
            f"{str(recorded[name])[:12]}…: put it back, or begin a new run"
        )
