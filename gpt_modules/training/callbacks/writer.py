"""The TensorBoard of a run, for those who write to it."""

from typing import Any

import lightning.pytorch as L
from lightning.pytorch.loggers import TensorBoardLogger


def tensorboard(trainer: L.Trainer) -> Any | None:
    """The summary writer of rank 0, if the run has one."""
    logger = trainer.logger
    return logger.experiment if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero else None


def log_interval(trainer: L.Trainer) -> int:
    """Steps between log steps; a connector of Lightning's sets the attribute, so type checkers do not see it."""
    return int(trainer.log_every_n_steps)  # type: ignore[attr-defined]


def markdown_table(rows: list[dict[str, str]]) -> str:
    """Rows as the Markdown that TensorBoard's text tab renders."""
    if not rows:
        return ""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ⏎ ") for cell in cells) + " |"

    header = list(rows[0])
    return "\n".join([line(header), line(["---"] * len(header)), *(line([row[key] for key in header]) for row in rows)])
