"""A step's process, which the signals of the pipeline's reach."""

import signal
import subprocess
from types import FrameType


def run_process(command: list[str]) -> int:
    """Run a stage; hand on the signals that ask to stop, and wait for it to save. Returns its exit status, 128 + n
    for signal n.
    """
    process: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        if process is None:
            early.append(number)
        # Ctrl-C reaches the whole foreground group by itself; a second copy would be the "at once" of the stage.
        elif number != signal.SIGINT:
            process.send_signal(number)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        process = subprocess.Popen(command)
        for number in early:
            process.send_signal(number)
        status = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status
