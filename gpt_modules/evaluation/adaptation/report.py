"""What a comparison leaves behind: `adaptation.json`, scalars, figures, the run's baseline, what it could not do."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_modules.evaluation.adaptation.comparison import Comparison, Point, Settings
from gpt_modules.evaluation.adaptation.figures import adaptation_figure
from gpt_modules.evaluation.adaptation.table import comparison_values, counted
from gpt_modules.storage.durable import check_writable, replace_durably

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = "adaptation.json"
_FINETUNING = "fine-tuning"


def write_comparison(
    root: Path, found: Comparison, trained: tuple[int, int], sizes: Mapping[str, int], notes: Sequence[str]
) -> None:
    """`adaptation.json` in a run's folder.

    Args:
        trained: support examples and inner steps that the network was meta-learned for.
        sizes: what the numbers are of: tasks, tuning tasks, seed.

    Raises:
        UserError: it cannot be written.
    """
    document = {
        "trained": dict(zip(("support", "steps"), trained, strict=True)),
        **sizes,
        "notes": list(notes),
        **comparison_values(found),
    }
    check_writable(root)
    replace_durably(root / FILE, json.dumps(document, indent=2, allow_nan=False) + "\n")


def metric_values(points: Sequence[Point]) -> dict[str, float]:
    """`adaptation/<way>_<metric>` of each point, for a logger."""
    values = {}
    for point in points:
        way = re.sub(r"\W+", "_", point.arm).strip("_")
        for metric, estimate in (("accuracy", point.accuracy), ("loss", point.loss)):
            if estimate is not None:
                values[f"adaptation/{way}_{metric}"] = estimate.value
    return values


def finetuned_baseline(points: Sequence[Point]) -> dict[str, dict[str, Any]]:
    """What fine-tuning reached, as a run's summary has baselines: metric -> name and value; empty where it is not."""
    found = {}
    for point in points:
        if point.arm == _FINETUNING:
            metric, best = ("loss", point.loss) if point.accuracy is None else ("accuracy", point.accuracy)
            found[f"val/{metric}"] = {"name": f"({_FINETUNING})", "value": best.value}
    return found


def how_finetuned(points: Sequence[Point], settings: Settings, tuning_tasks: int, folder: str | None) -> str:
    """Where its settings end at what they were chosen from, more might have served it better: that is said too.

    Args:
        points: at the trained number of examples.
        folder: what fine-tuning began with; None: the weights that the run began with.
    """
    rates, most = settings.learning_rates, max(settings.finetuning_steps, *settings.steps)
    for point in points:
        if point.arm == _FINETUNING:
            largest = " (the largest)" if point.learning_rate == max(rates) else ""
            steps = " (the most)" if point.steps == most else ""
            tried = ", ".join(f"{rate:g}" for rate in rates)
            weights = folder or "the weights that the run began with"
            return (f"{_FINETUNING}: AdamW from {weights}, rate (of {tried}) and steps (up to {most}) chosen on "
                    f"{tuning_tasks} training tasks; with {point.support} examples {point.learning_rate:g}{largest} "
                    f"and {point.steps}{steps}")  # fmt: skip
    return f"{_FINETUNING}: left out, as no checkpoint was given that knows the weights that the run began with"


def comparison_figures(found: Comparison, trained: tuple[int, int]) -> "Iterator[tuple[str, Figure]]":
    """(name, figure): the ways against their steps, and against their examples."""
    support, steps = trained
    yield "steps", adaptation_figure(found.by_steps, "steps", counted(support, "example"), "inner steps")
    title = f"{counted(steps, 'inner step')}, fine-tuning after its best"
    yield "support", adaptation_figure(found.by_support, "support", title, "support examples")
