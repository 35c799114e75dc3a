"""Runs `gpt` commands in forks of a process that has imported everything: a start is quick, and a kill is a kill.

One JSON object a line on standard input: `words`, `folder` (for stdin, stdout and stderr), `cwd`, `environment`, and
`ranks`, the number of processes that run the command together, as a launcher of clusters starts them. Answers with the
first one's process id, then with an exit status once all have ended: 0, or that of the first one that failed, after
which the others have some seconds to end by themselves.
"""

import atexit
import contextlib
import gc
import json
import os
import signal
import socket
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import Any, NoReturn

from lightning.fabric.utilities.rank_zero import rank_zero_only

import gpt_modules.commands.fit
from gpt_modules.cli import main

GRACE = 20.0  # seconds


def become(request: dict[str, Any], rank: int) -> None:
    """In the fork: stand where the request says, as a process of its own would."""
    folder = Path(request["folder"])
    for number, name, flags in ((0, "stdin", os.O_RDONLY), (1, "stdout", os.O_WRONLY), (2, "stderr", os.O_WRONLY)):
        path = folder / (f"{name}.{rank}" if rank and number else name)
        os.dup2(os.open(path, flags | os.O_CREAT | (os.O_TRUNC if number else 0)), number)
    sys.stdin = os.fdopen(0)
    os.chdir(request["cwd"])
    os.environ.update(request["environment"])
    if request["ranks"] > 1:
        os.environ["LOCAL_RANK"] = str(rank)
        rank_zero_only.rank = rank
    tempfile.tempdir = None
    sys.argv = ["gpt", *request["words"]]
    main()


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def all_ended(processes: list[int]) -> int:
    """Their exit status, once the last one has ended."""
    running, failed = set(processes), 0
    late = threading.Timer(GRACE, end, [running])
    while running:
        process, status = os.wait()
        running.discard(process)
        if (code := os.waitstatus_to_exitcode(status)) and not failed:
            failed = code
            late.start()
    late.cancel()
    return failed


def end(processes: set[int]) -> None:
    for process in processes.copy():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def status_of(request: dict[str, Any], rank: int) -> int:
    """What Python would exit with."""
    try:
        become(request, rank)
    except SystemExit as error:
        if isinstance(error.code, str):
            sys.stderr.write(error.code + "\n")
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def leave(status: int) -> NoReturn:
    """As Python ends, but for the objects that are alive: they lie in pages of the parent, and to take them all apart,
    which copies these, takes three times what most commands do.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(status)


def serve() -> None:
    gc.collect()
    gc.freeze()  # a collection in a fork looks at what is its own
    for line in sys.stdin:
        request = json.loads(line)
        if request["ranks"] > 1:
            request["environment"] |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        processes: list[int] = []
        for rank in range(request["ranks"]):
            process = os.fork()
            if process == 0:
                leave(status_of(request, rank))
            processes.append(process)
        sys.stdout.write(f"{processes[0]}\n")
        sys.stdout.flush()
        sys.stdout.write(f"{all_ended(processes)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    assert gpt_modules.commands.fit, "imported before the first fork"
    serve()
