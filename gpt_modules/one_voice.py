"""A mistake that several processes of a run make is told once: the first on a machine that comes to it tells, whichever
it is, and the others end without a word.

They know of one another before they have met and after one is gone: by a file of the user's in the folder for temporary
ones, which says what has started who told, torchrun or a Trainer, and where its processes meet.
"""

import fcntl
import os
import time
from pathlib import Path

APART = 5.0  # seconds, about, between the first and the last process that a launcher starts
_RANKS = {"LOCAL_RANK", "RANK"}
_run = (0, 0.0)


def begin() -> None:
    """A command begins: what was told before, or by what another launcher has started, is of another run."""
    global _run
    launched = _RANKS & os.environ.keys()  # or it is to be a Trainer, which starts the others itself
    _run = (os.getppid() if launched else os.getpid(), time.time())


def launcher() -> int | None:
    """The process that has started this one among others of a run; None: it was started by itself."""
    return _run[0] if _RANKS & os.environ.keys() else None


def is_told(telling: bool) -> bool:
    """Whether another process of this run has told of a mistake. A run of one process has no other, and one of the same
    rank is of another run, such as the command before in a shell that names a rank.

    Args:
        telling: where none has, this one does, as the others will find.
    """
    if not _RANKS & os.environ.keys():
        return False
    import tempfile  # a third of what a command imports before it can answer Ctrl-C

    path = Path(tempfile.gettempdir()) / f"gpt-{os.getuid()}.told"
    try:
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        with os.fdopen(number, "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            launcher, began = f"{_run[0]}:{os.environ.get('MASTER_PORT')}", _run[1]
            own = f"{os.environ.get('RANK')}:{os.environ.get('LOCAL_RANK')}"
            told, now = file.read().split(), time.time()
            if told[:1] == [launcher] and told[1] != own and began - APART <= float(told[2]) <= now:
                return True
            if telling:
                file.seek(0)
                file.write(f"{launcher} {own} {now!r}")
                file.truncate()
    except (OSError, ValueError, IndexError):  # what cannot be asked is told
        pass
    return False
