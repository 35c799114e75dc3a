"""`gpt fit` in a process of its own, as a launcher starts the other ranks from its command line."""

import os
import signal
import subprocess
import sys


def launch(*words: object) -> None:
    """Run `gpt fit` with these words, on one thread a process; it and what it started end with this call."""
    command = [sys.executable, "-m", "gpt_modules", "fit", *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        try:
            _, errors = process.communicate()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, errors
