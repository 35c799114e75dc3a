"""A process that code of the user's, such as a reward function, forks from a command: it has a copy of all that the
command holds, and is no part of it. SIGTERM ends it, as whoever forked it expects; and where it would leave the code
that forked it, it ends, and neither undoes nor tells what is its parent's.

The signals that a terminal or a scheduler sends to a whole group stay handled as in the parent, which on the first of
them finishes a step: that may need what its children compute.
"""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

_NOTE_ONLY = {"gpt_modules", "lightning"}  # packages whose handlers note that a run is to stop
_masks = threading.local()


def _hold() -> None:
    """SIGTERM waits until the new process knows what it does."""
    _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _release() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before)


def _begin() -> None:
    module = str(getattr(signal.getsignal(signal.SIGTERM), "__module__", ""))
    if module.partition(".")[0] in _NOTE_ONLY:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _release()


os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_begin)


@contextmanager
def forks_end_here() -> Iterator[None]:
    """A process that is forked in here ends where it would leave, by whichever way."""
    process = os.getpid()
    try:
        yield
    except BaseException as error:
        if os.getpid() != process:
            end(error)
        raise
    if os.getpid() != process:
        end(None)


def end(error: BaseException | None) -> NoReturn:
    """End a forked process as Python ends a script, but for what is to be done once, at the end of its parent."""
    status = 0 if error is None else 1
    with suppress(OSError, ValueError):  # a stream that is closed
        if isinstance(error, SystemExit):
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
            sys.stderr.write(f"{error.code}\n" if isinstance(error.code, str) else "")
        elif error is not None:
            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status & 0xFF)
