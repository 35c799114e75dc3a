"""What `overoptimisation.py` has measured: read from its runs, as a table, and as figures.

The notebook `feedback` draws the same figures from the same file.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

FILE = Path(__file__).parents[2] / "notebooks/figures/overoptimisation.json"
CURVES = {"kl": "val/kl", "proxy": "val/score", "gold": "val/gold", "vader": "val/vader", "ended": "val/ended"}
UNFINISHED = -2.0  # what PPO is given for an answer that does not end


def curve(folders: Sequence[Path]) -> dict[str, list[float]]:
    """What was held out, over runs that go on from one another; `run`: the number of each, from 1."""
    from gpt_modules.commands.pipelines.report import read_curve

    found: dict[str, list[float]] = {name: [] for name in ("run", *CURVES)}
    for number, folder in enumerate(folders, start=1):
        columns = {name: dict(read_curve(folder, tag)) for name, tag in CURVES.items()}
        for step in sorted(columns["kl"])[int(number > 1) :]:  # a run begins where the one before has ended
            found["run"].append(number)
            for name, column in columns.items():
                found[name].append(round(column[step], 4))
    return found


def chosen(path: Path, labels: int) -> dict[str, Any]:
    """The best of n by a proxy, and how often the proxy orders two answers to a prompt as the gold reward does."""
    import torch

    from gpt_modules.functional import best_of_n_kl, best_of_n_mean

    draws = torch.load(path, weights_only=True)
    proxy, gold = draws[str(labels)], draws["gold"]
    optimised = torch.where(draws["ended"], proxy, UNFINISHED)  # what PPO is given
    count = proxy.shape[1]
    counts = [2**power for power in range(count.bit_length()) if 2**power <= count]

    def gained(values: torch.Tensor, n: int) -> float:
        return round(float(best_of_n_mean(optimised, values, n).mean()), 4)

    pairs = torch.triu(torch.ones(count, count, dtype=torch.bool), 1)
    order, wanted = ((of[:, :, None] - of[:, None, :])[:, pairs].sign() for of in (proxy, gold))
    return {
        "n": counts,
        "kl": [round(best_of_n_kl(n), 4) for n in counts],
        "proxy": [gained(proxy, n) for n in counts],
        "gold": [gained(gold, n) for n in counts],
        "accuracy": round(float((order == wanted)[wanted != 0].double().mean()), 4),
    }


def complete(folders: Sequence[Path]) -> bool:
    return all((folder / "summary.json").exists() for folder in folders)


def runs(seed: Path, settings: Mapping[str, Any]) -> Iterator[tuple[dict[str, int], list[Path]]]:
    """(labels and rounds, folders) of each policy of a seed."""
    for labels in settings["labels"]:
        yield {"labels": labels, "rounds": 1}, [seed / f"ppo-{labels}"]
    folders = [seed / f"round-{number}-ppo" for number in range(1, settings["rounds"] + 1)]
    yield {"labels": settings["in_rounds"], "rounds": settings["rounds"]}, folders


def collect(work: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that is measured so far, beside the settings it was measured with."""
    policies, best = [], []
    for seed in sorted(work.glob("seed-*")):
        number = int(seed.name.removeprefix("seed-"))
        done = [(name, folders) for name, folders in runs(seed, settings) if complete(folders)]
        policies += [{"seed": number, **name, **curve(folders)} for name, folders in done]
        if (seed / "draws.pt").exists():
            measured = [n for n in settings["labels"] if complete([seed / f"reward-{n}"])]
            best += [{"seed": number, "labels": n, **chosen(seed / "draws.pt", n)} for n in measured]
    return {"settings": dict(settings), "policies": policies, "best_of_n": best}


def spread(values: Sequence[float]) -> str:
    """Mean, and the standard deviation over seeds."""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def read(policy: Mapping[str, Any], name: str, when: str) -> float:
    """A curve's value before PPO, at the end, at its own peak, or at the peak of the gold reward."""
    values = policy[name]
    own, gold = (curve.index(max(curve)) for curve in (values, policy["gold"]))
    return float(values[{"before": 0, "end": -1, "peak": own, "peak of gold": gold}[when]])


COLUMNS = {
    "proxy at the end": ("proxy", "end"),
    "gold before": ("gold", "before"),
    "gold at its peak": ("gold", "peak"),
    "nats there": ("kl", "peak of gold"),
    "gold at the end": ("gold", "end"),
    "nats at the end": ("kl", "end"),
    "VADER at its peak": ("vader", "peak"),
    "VADER at the end": ("vader", "end"),
}
COMPARED = ("gold at its peak", "gold at the end", "VADER at its peak", "VADER at the end")


def table(results: Mapping[str, Any]) -> str:
    """A row for each number of comparisons and rounds, mean and spread over seeds; then rounds less at once, by
    seed.
    """
    names = ["comparisons", "rounds", "seeds", *COLUMNS]
    lines = [f"| {' | '.join(names)} |", f"| {' | '.join('---' for _ in names)} |"]
    groups: dict[tuple[int, int], dict[int, Mapping[str, Any]]] = {}
    for policy in results["policies"]:
        groups.setdefault((policy["labels"], policy["rounds"]), {})[policy["seed"]] = policy
    for (labels, rounds), group in sorted(groups.items()):
        cells = [spread([read(policy, *column) for policy in group.values()]) for column in COLUMNS.values()]
        lines.append(f"| {' | '.join([f'{labels:,}', str(rounds), str(len(group)), *cells])} |")
    for (labels, rounds), group in sorted(groups.items()):
        at_once = groups.get((labels, 1), {})
        seeds = sorted(group.keys() & at_once.keys()) if rounds > 1 else []
        for name in COMPARED if seeds else ():
            gains = [read(group[seed], *COLUMNS[name]) - read(at_once[seed], *COLUMNS[name]) for seed in seeds]
            listed = ", ".join(f"{gain:+.2f}" for gain in gains)
            lines.append(f"\n{name}, {rounds} rounds less at once, by seed: {listed}; {spread(gains)}")
    return "\n".join(lines)


# --- figures ---


def proxies_figure(results: dict[str, Any]) -> Any:
    """Above: proxy and gold reward, less what they began with, against the distance from the SFT model; a panel for
    each number of comparisons, a line and a marker a seed, dashed the best of n. Below: VADER on the same answers of
    PPO.
    """
    from matplotlib import pyplot as plt

    sizes = results["settings"]["labels"]
    figure, rows = plt.subplots(
        2, len(sizes), figsize=(4 * len(sizes), 5.6), sharex=True, sharey="row", height_ratios=[2, 1],
        layout="constrained",
    )  # fmt: skip
    for column, labels in enumerate(sizes):
        for kind, style, way in (("policies", "-", "PPO"), ("best_of_n", "--", "best of n")):
            found = [one for one in results[kind] if one["labels"] == labels and one.get("rounds", 1) == 1]
            for number, one in enumerate(found):
                for color, name in enumerate(("proxy", "gold")):
                    label = None if number else f"{name}, {way}"
                    gains = [value - one[name][0] for value in one[name]]
                    rows[0, column].plot(_roots(one), gains, style, color=f"C{color}", label=label, **_of_seed(one))
                if "vader" in one:
                    rows[1, column].plot(_roots(one), one["vader"], color="C2", **_of_seed(one))
        rows[0, column].set(title=f"{labels:,} comparisons")
        rows[0, column].axhline(0, color="0.85", zorder=0)
        rows[1, column].set(xlabel="sqrt(KL to the SFT model), nats an answer")
    rows[0, 0].set_ylabel("gain over the SFT model")
    rows[1, 0].set_ylabel("VADER")
    rows[0, 0].legend(fontsize="small")
    return figure


def rounds_figure(results: dict[str, Any]) -> Any:
    """The gold reward and VADER of policies that had as many comparisons, at once or in rounds; dots: where new ones
    come in.
    """
    from matplotlib import pyplot as plt

    labels = results["settings"]["in_rounds"]
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.8), sharex=True, layout="constrained")
    for color, rounds in (("C1", 1), ("C2", results["settings"]["rounds"])):
        found = [one for one in results["policies"] if (one["labels"], one["rounds"]) == (labels, rounds)]
        for number, one in enumerate(found):
            ends = [i for i, (run, later) in enumerate(pairwise(one["run"])) if run != later]
            label = None if number else "at once" if rounds == 1 else f"in {rounds} rounds"
            for axes, name in zip(panels, ("gold", "vader"), strict=True):
                line = axes.plot(_roots(one), one[name], "-o", color=color, alpha=0.8, markersize=4, label=label)
                line[0].set_markevery(ends)
    for axes, name in zip(panels, ("gold reward", "VADER"), strict=True):
        axes.set(xlabel="sqrt(KL to the SFT model), nats an answer", ylabel=name)
    panels[0].legend(title=f"{labels} comparisons")
    return figure


def draw(path: Path) -> None:
    """Each figure of the results as PNG, beside them."""
    results = json.loads(path.read_text())
    for figure, name in ((proxies_figure(results), "proxies"), (rounds_figure(results), "rounds")):
        figure.savefig(path.with_name(f"{path.stem}-{name}.png"), dpi=110)


def _of_seed(one: Mapping[str, Any]) -> dict[str, Any]:
    return {"alpha": 0.7, "marker": "os^Dv"[one["seed"] % 5], "markersize": 3}


def _roots(one: Mapping[str, Any]) -> list[float]:
    return [max(value, 0.0) ** 0.5 for value in one["kl"]]
