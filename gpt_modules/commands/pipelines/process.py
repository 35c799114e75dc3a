"""A step's process, which the signals of the pipeline's reach."""

import signal
import subprocess
from types import FrameType


def run_process(command: list[str]) -> int:
    """Run a stage; hand on the signals that ask to stop, and wait for it to save. Returns its exit status, 128 + n
    for signal n; that of a signal, too, which came when the stage had nothing left to stop: no other is to begin.
    """
    process: subprocess.Popen[bytes] | None = None
    told: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        told.append(number)
        if process is None:
            return
        # Ctrl-C reaches the whole foreground group by itself; a second copy would be the "at once" of the stage.
        if number != signal.SIGINT:
            process.send_signal(number)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        process = subprocess.Popen(command)
        for number in [*told]:  # while it was started
            process.send_signal(number)
        status = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if status == 0 and told:
        return 128 + told[0]
    return status if status >= 0 else 128 - status
