"""What a run reads and never trains must be, on resuming, what it was: a reference or a reward that was exported anew
in between would be another task, and nothing would tell.
"""

import logging
from collections.abc import Mapping

from gpt_modules.errors import UserError
from gpt_modules.storage.yaml_files import dotted

log = logging.getLogger(__name__)

FUNCTION = "function "  # begins the name of a reward function, where others are folders


def check_unchanged(found: Mapping[str, str | None], recorded: Mapping[str, str | None]) -> None:
    """Compare what was read with what the checkpoint says was read under the same names. Another name is another
    recipe, and said there; a function whose source has changed, or is not known, is named in the log.

    Raises:
        UserError: a folder holds another model.
    """
    for name, digest in found.items():
        before = recorded.get(name, digest)
        if name.startswith(FUNCTION):
            _compare_source(name, digest, before, name in recorded)
        elif digest != before:
            said = dotted(tuple(name.split(".")))
            raise UserError(
                f"{said}: found another model (SHA-256 {str(digest)[:12]}…) than this run began with, expected "
                f"{str(before)[:12]}…: put it back, or begin a new run"
            )


def _compare_source(name: str, digest: str | None, before: str | None, known: bool) -> None:
    if known and None in (digest, before):
        log.warning("%s: whether it is what the checkpoint was trained with is not known, as its source is not", name)
    elif digest != before:
        log.warning("%s: its source, or its file's around it, is not what the checkpoint was trained with", name)
