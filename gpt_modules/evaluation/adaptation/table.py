"""A comparison of ways to learn a new task, as a table for people and as plain values for `adaptation.json`."""

import math
from collections.abc import Sequence
from typing import Any, Literal

from gpt_modules.evaluation.adaptation.comparison import Comparison, Point
from gpt_modules.evaluation.tasks.metrics import Estimate

Axis = Literal["steps", "support"]


def adaptation_table(comparison: Comparison, trained: tuple[int, int], tasks: int, notes: Sequence[str] = ()) -> str:
    """Accuracy and loss of the queries by steps and by examples, means ± standard errors over the tasks.

    Args:
        trained: support examples and inner steps that the network was meta-learned for.
        tasks: how many the means are of.
        notes: lines below.
    """
    examples, steps = counted(trained[0], "example"), counted(trained[1], "step")
    axes: list[tuple[Axis, Sequence[Point], str]] = [
        ("steps", comparison.by_steps, f"after so many steps on {examples}"),
        (
            "support",
            comparison.by_support,
            f"after {steps} on so many examples, fine-tuning after its best",
        ),
    ]
    blocks = []
    for axis, points, title in axes:
        if any(point.accuracy is not None for point in points):
            blocks.append(_block(points, axis, "accuracy", f"query accuracy {title} ({tasks} tasks)"))
        blocks.append(_block(points, axis, "loss", f"query loss {title} ({tasks} tasks)"))
    return "\n\n".join([*blocks, *([] if not notes else ["\n".join(notes)])])


def comparison_values(comparison: Comparison) -> dict[str, Any]:
    """Plain values for JSON, which knows no infinity: a loss beyond a float's range is null."""
    return {axis: [_plain(point) for point in points] for axis, points in comparison._asdict().items()}


def counted(number: int, noun: str) -> str:
    """ "1 step", "2 steps"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def _block(points: Sequence[Point], axis: Axis, metric: str, title: str) -> str:
    columns = sorted({getattr(point, axis) for point in points})
    arms = list(dict.fromkeys(point.arm for point in points))
    cells = {(point.arm, getattr(point, axis)): _cell(getattr(point, metric)) for point in points}
    rows = [["", *map(str, columns)], *([arm, *(cells.get((arm, column), "") for column in columns)] for arm in arms)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) if at else cell.ljust(width) for at, (cell, width) in enumerate(row))
        for row in (list(zip(cells, widths, strict=True)) for cells in rows)
    ]
    return "\n".join([title, *(line.rstrip() for line in lines)])


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    error = "" if estimate.standard_error is None else f" ± {_number(estimate.standard_error)}"
    return _number(estimate.value) + error


def _number(value: float) -> str:
    return f"{value:.3f}" if value < 1000 else f"{value:.2g}"


def _plain(point: Point) -> dict[str, Any]:
    """Without what a point does not have: the accuracy of numbers, a learning rate that nobody chose."""
    return {key: value for key, value in ((key, _value(value)) for key, value in point._asdict().items())
            if value is not None}  # fmt: skip


def _value(value: Any) -> Any:
    if isinstance(value, Estimate):
        return {key: number if number is not None and math.isfinite(number) else None
                for key, number in value._asdict().items()}  # fmt: skip
    return value
