"""Folders of the Hugging Face hub, by name: a few files of each, none of them code."""

import re
from collections.abc import Sequence
from pathlib import Path

from gpt_modules.errors import UserError
from gpt_modules.storage.paths import lies_in_folder, near_names, path_of

LONGEST = 200  # characters; the hub allows 96
_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def is_hub_name(name: str) -> bool:
    """Whether it reads like one: "owner/name", or a name of the hub's own."""
    return len(name) <= LONGEST and _NAME.fullmatch(name) is not None and not name.endswith(".json")


def fetch(name: str, files: Sequence[str]) -> Path:
    """The folder of those of a name's files that match, downloaded unless the cache has them.

    Args:
        name: On the hub, where there is no such path.
        files: Patterns of what is fetched.

    Raises:
        UserError: The name is nearly one of something here, or in a folder that is here, which is told without asking
            the hub; there is no such name, or no way to the hub.
    """
    near = near_names(name)
    if near or lies_in_folder(name):
        meant = f"; did you mean {' or '.join(near)}?" if near else f", expected something in {path_of(name).parent}"
        raise UserError(f"{name}: found no such file or folder{meant}")
    import huggingface_hub  # only here: slow to import, and most runs never need it

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(files)))
    except Exception as error:
        # Offline, unknown, gated: every library below raises its own; the user needs the name and the reason.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:150]
        raise UserError(f"{name}: no such folder, and not to be had from the Hugging Face hub: {reason}") from error
