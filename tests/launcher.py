"""`gpt fit`, or a script, in a process of its own, as a launcher starts the other ranks from its command line."""

import os
import signal
import subprocess
import sys


def launch(*words: object) -> None:
    """Run `gpt fit` with these words, on one thread a process; it and what it started end with this call."""
    run_script("-m", "gpt_modules", "fit", *words)


def run_script(*words: object) -> None:
    """The same of Python with these words."""
    command = [sys.executable, *map(str, words)]
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
