"""How far a piece of work is: a bar that moves on a terminal, elsewhere a line now and then; on stderr."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 30.0


class Meter:
    """Told the part that is done, it says items done and all, and the time left; nothing stays on a terminal.

    Args:
        title: Of the work.
        items: How many there are.
    """

    def __init__(self, title: str, items: int) -> None:
        self.title, self.items = title, items
        self.started = self.said = time.monotonic()
        console = Console(file=sys.stderr)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self.bar = Progress(*columns, console=console, transient=True) if console.is_terminal else None

    def __enter__(self) -> "Meter":
        if self.bar is not None:
            self.bar.start()
            self.bar.add_task(self.title, total=self.items)
        return self

    def update(self, part: float) -> None:
        """`part` of the work is done, 0 to 1."""
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=int(part * self.items))
            return
        now = time.monotonic()
        if now - self.said >= SECONDS_BETWEEN_LINES and 0.0 < part < 1.0:
            self.said = now
            left = (now - self.started) * (1.0 - part) / part
            done = f"{int(part * self.items):,} of {self.items:,} items"
            sys.stderr.write(f"{self.title}: {done}, about {_clock(left)} left\n")
            sys.stderr.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
