"""The TensorBoard of a run, for those who write to it."""

import threading
from collections.abc import Callable
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.loggers import TensorBoardLogger
from lightning_utilities.core.rank_zero import rank_zero_warn
from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread


def tensorboard(trainer: L.Trainer) -> Any | None:
    """The summary writer of rank 0, if the run has one."""
    logger = trainer.logger
    return logger.experiment if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero else None


def log_interval(trainer: L.Trainer) -> int:
    """Steps between log steps; a connector of Lightning's sets the attribute, so type checkers do not see it."""
    return int(trainer.log_every_n_steps)  # type: ignore[attr-defined]


def at_log_step(trainer: L.Trainer) -> bool:
    """Whether the batch that ends took a step whose metrics are logged; one that only accumulates took none."""
    return trainer.global_step % log_interval(trainer) == 0 and not trainer.fit_loop._should_accumulate()


def markdown_table(rows: list[dict[str, str]]) -> str:
    """Rows as the Markdown that TensorBoard's text tab renders."""
    if not rows:
        return ""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ⏎ ") for cell in cells) + " |"

    header = list(rows[0])
    return "\n".join([line(header), line(["---"] * len(header)), *(line([row[key] for key in header]) for row in rows)])


def survive_full_disk(writer: Any) -> Any:
    """`writer` whose curves end, with one warning, where the disk does: the run they are of goes on."""
    events = writer._get_file_writer().event_writer
    if not isinstance(events.add_event, _Surviving):
        said: list[OSError] = []
        for name in ("add_event", "flush", "close"):
            setattr(events, name, _Surviving(getattr(events, name), writer.log_dir, said))
    return writer


def tell_full_disk_once() -> None:
    """TensorBoard's writing thread hands its error to whoever writes next, who tells it: no traceback from the thread,
    too.
    """
    if not isinstance(threading.excepthook, _Hook):
        threading.excepthook = _Hook(threading.excepthook)


class _Hook:
    def __init__(self, before: Callable[[threading.ExceptHookArgs], Any]) -> None:
        self.before = before

    def __call__(self, arguments: threading.ExceptHookArgs) -> None:
        if not (isinstance(arguments.thread, _AsyncWriterThread) and isinstance(arguments.exc_value, OSError)):
            self.before(arguments)


class _Surviving:
    def __init__(self, method: Callable[..., Any], folder: str, said: list[OSError]) -> None:
        self.method, self.folder, self.said = method, folder, said

    def __call__(self, *arguments: Any) -> None:
        if self.said:
            return
        try:
            self.method(*arguments)
        except OSError as error:
            self.said.append(error)
            rank_zero_warn(f"{self.folder}: the curves end here, the run goes on: {error}")
