"""Runs `gpt` commands in forks of a process that has imported everything: a start is quick, and a kill is a kill.

One JSON object a line on standard input: `words`, `folder` (for stdin, stdout and stderr), `cwd`, `environment`, and
`ranks`, the number of processes that run the command together, as a launcher of clusters starts them. Answers with the
first one's process id, then with an exit status once all have ended: 0, or that of the first one that failed, which
ends the others.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only

import gpt_modules.commands.fit
from gpt_modules.cli import main


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
    while running:
        process, status = os.wait()
        running.discard(process)
        if (code := os.waitstatus_to_exitcode(status)) and not failed:
            failed = code
            for other in running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(other, signal.SIGKILL)
    return failed


def serve() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        if request["ranks"] > 1:
            request["environment"] |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        processes: list[int] = []
        for rank in range(request["ranks"]):
            process = os.fork()
            if process == 0:
                become(request, rank)
                return
            processes.append(process)
        sys.stdout.write(f"{processes[0]}\n")
        sys.stdout.flush()
        sys.stdout.write(f"{all_ended(processes)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    assert gpt_modules.commands.fit, "imported before the first fork"
    serve()
