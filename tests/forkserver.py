"""Runs `gpt` commands in forks of a process that has imported everything: a start is quick, and a kill is a kill.

One JSON object a line on standard input: `words`, `folder` (for stdin, stdout and stderr), `cwd`, `environment`.
Answers with the fork's process id, then with its exit status once it has ended.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import gpt_modules.commands.fit
from gpt_modules.cli import main


def become(request: dict[str, Any]) -> None:
    """In the fork: stand where the request says, as a process of its own would."""
    folder = Path(request["folder"])
    for number, name, flags in ((0, "stdin", os.O_RDONLY), (1, "stdout", os.O_WRONLY), (2, "stderr", os.O_WRONLY)):
        os.dup2(os.open(folder / name, flags | os.O_CREAT | (os.O_TRUNC if number else 0)), number)
    sys.stdin = os.fdopen(0)
    os.chdir(request["cwd"])
    os.environ.update(request["environment"])
    tempfile.tempdir = None
    sys.argv = ["gpt", *request["words"]]
    main()


def serve() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        process = os.fork()
        if process == 0:
            become(request)
            return
        sys.stdout.write(f"{process}\n")
        sys.stdout.flush()
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        sys.stdout.write(f"{status}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    assert gpt_modules.commands.fit, "imported before the first fork"
    serve()
