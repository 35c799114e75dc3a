"""What `methods.py` has measured: as a table, and as a figure. It imports no model, so that a notebook may draw it."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

FILE = Path(__file__).parents[2] / "notebooks/figures/methods.json"
LEVELS = (2.0, 4.0, 6.0, 8.0)  # nats an answer
SECONDS = (30.0, 60.0, 90.0)  # of a processor


def at(one: dict[str, Any], axis: str, level: float, name: str) -> float | None:
    """A curve's value where it first comes to this level of an axis, between two measured points; None: it does not."""
    places, values = one[axis], one[name]
    for before, after in zip(range(len(places) - 1), range(1, len(places)), strict=True):
        low, high = places[before], places[after]
        if low <= level <= high and high > low:
            part = (level - low) / (high - low)
            return float(values[before] + part * (values[after] - values[before]))
    return None


def spread(values: Sequence[float]) -> str:
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "") if values else "–"


def table(results: dict[str, Any]) -> str:
    """Mean and standard deviation over seeds of each method, at levels of the KL, then of the processor's time."""
    lines = []
    shown = {"score": "score", "finished": "finished", "vader": "VADER", "perplexity": "perplexity"}
    methods = list(dict.fromkeys(one["method"] for one in results["curves"]))
    for axis, levels, unit in (("kl", LEVELS, "nats"), ("seconds", SECONDS, "CPU s")):
        lines += [f"| at | method | seeds | {' | '.join(shown.values())} | KL |", "|" + "---|" * (len(shown) + 4)]
        for level in levels:
            for method in methods:
                seeds = [one for one in results["curves"] if one["method"] == method]
                if axis == "seconds" and method in ("DPO", "best of n"):
                    continue
                columns = [
                    [value for one in seeds if (value := at(one, axis, level, name)) is not None]
                    for name in (*shown, "kl")
                ]
                if columns[0]:
                    cells = " | ".join(map(spread, columns))
                    lines.append(f"| {level:g} {unit} | {method} | {len(columns[0])} | {cells} |")
        lines.append("")
    lines += ["| method | CPU s | score | finished | VADER | ended | KL | perplexity |", "|" + "---|" * 8]
    for method in methods:
        seeds = [one for one in results["curves"] if one["method"] == method]
        names = ("seconds", "score", "finished", "vader", "ended", "kl", "perplexity")
        lines.append(f"| {method} | {' | '.join(spread([one[name][-1] for one in seeds]) for name in names)} |")
    return "\n".join(lines)


def figure(results: dict[str, Any]) -> Any:
    """Score, VADER and the perplexity of pretraining text against the distance from the SFT model."""
    from matplotlib import pyplot as plt

    drawn, panels = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    colors: dict[str, str] = {}
    for one in results["curves"]:
        method = one["method"]
        label = None if method in colors else method
        color = colors.setdefault(method, f"C{len(colors)}")
        for axes, name in zip(panels, ("finished", "vader", "perplexity"), strict=True):
            axes.plot(one["kl"], one[name], "-o", color=color, alpha=0.7, markersize=3, label=label)
    titles = ("score, -2 without an end", "VADER", "perplexity of pretraining text")
    for axes, title in zip(panels, titles, strict=True):
        axes.set(xlabel="KL to the SFT model, nats an answer", title=title)
    panels[0].legend(fontsize="small")
    return drawn
