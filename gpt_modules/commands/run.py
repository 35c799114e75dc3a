"""`gpt run`: stages in order, each a recipe in a process of its own; finished ones are skipped, a cut-off one is
resumed.
"""

import hashlib
import json
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.table import Table

from gpt_modules.commands.arguments import Arguments
from gpt_modules.errors import UserError
from gpt_modules.storage.recipes import read_recipe


@dataclass(frozen=True)
class Stage:
    """One recipe of a pipeline.

    Args:
        name: the stage's folder under the pipeline's root.
        config: recipe files, later ones win.
        feeds: recipe key -> name of an earlier stage whose exported folder it is set to.
        set: recipe key -> value, as on the command line.
        metrics: validation metrics that the closing table shows, before and after.
    """

    name: str
    config: list[str]
    feeds: dict[str, str] = field(default_factory=dict)
    set: dict[str, Any] = field(default_factory=dict)
    metrics: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Pipeline:
    """A pipeline file.

    Args:
        root: where the stages' folders go.
        stages: in order.
        prompts: what the language models of the stages are asked at the end.
        sample_tokens: longest answer shown.
    """

    root: Path
    stages: list[Stage]
    prompts: list[str] = field(default_factory=list)
    sample_tokens: int = 40

    def folder(self, stage: Stage) -> Path:
        """Where a stage writes."""
        return self.root / stage.name

    def export(self, name: str) -> Path:
        """A stage's artefact."""
        return self.root / name / "export"


def read_pipeline(path: Path, root: str | None = None) -> Pipeline:
    """Parse and check a pipeline file.

    Raises:
        UserError: naming the file and the field.
    """
    content = read_recipe(path)
    _check_keys(path, "", content, {"root", "stages", "prompts", "sample_tokens"}, {"root", "stages"})
    if not isinstance(content["stages"], list):
        raise UserError(f"{path}: stages: found {type(content['stages']).__name__}, expected a list")
    stages: list[Stage] = []
    for number, entry in enumerate(content["stages"], start=1):
        where = f"stages[{number}]."
        _check_keys(path, where, entry, {"name", "config", "feeds", "set", "metrics"}, {"name", "config"})
        _check_name(path, f"{where}name", entry["name"], [stage.name for stage in stages])
        config = entry["config"] if isinstance(entry["config"], list) else [entry["config"]]
        for recipe in config:
            read_recipe(Path(recipe))
        earlier = [stage.name for stage in stages]
        for key, source in entry.get("feeds", {}).items():
            if source not in earlier:
                raise UserError(
                    f"{path}: {where}feeds.{key}: found {source!r}, "
                    f"expected an earlier stage: {', '.join(earlier) or 'none'}"
                )
        stages.append(Stage(**{**entry, "config": config}))
    rest = {key: content[key] for key in ("prompts", "sample_tokens") if key in content}
    return Pipeline(root=Path(root or content["root"]), stages=stages, **rest)


def _check_name(path: Path, where: str, name: Any, earlier: list[str]) -> None:
    """A stage's name is its folder: of its own, and inside the pipeline's."""
    if not isinstance(name, str) or Path(name).name != name or name in earlier:
        raise UserError(f"{path}: {where}: found {name!r}, expected the name of a folder that no earlier stage has")


def _check_keys(path: Path, where: str, entry: Any, known: set[str], required: set[str]) -> None:
    if not isinstance(entry, dict):
        raise UserError(f"{path}: {where.rstrip('.')}: found {type(entry).__name__}, expected a mapping")
    for key in entry:
        if key not in known:
            raise UserError(f"{path}: {where}{key}: unknown key, expected one of {', '.join(sorted(known))}")
    for key in required - set(entry):
        raise UserError(f"{path}: {where}{key}: missing")


def main(words: list[str]) -> None:
    """`gpt run PIPELINE [--root DIR] [--config OVERLAY]... [--KEY VALUE]...`."""
    parser = Arguments(prog="gpt run", description="Run recipes in order, each stage's folder feeding the next.")
    parser.add_argument("pipeline", type=Path, help="a file of recipes/pipelines/")
    parser.add_argument("--root", help="folder for the stages, in place of the file's")
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="OVERLAY",
        help="recipe laid over every stage, e.g. hardware/gpu.yaml",
    )
    options = parser.parse_args(words)
    pipeline = read_pipeline(options.pipeline, options.root)
    console = Console(width=None if sys.stdout.isatty() else 140)
    for number, stage in enumerate(pipeline.stages, start=1):
        run_stage(pipeline, stage, options.config, f"[{number}/{len(pipeline.stages)}]", console)
    console.print(result_table(pipeline))
    if pipeline.prompts:
        console.print(sample_table(pipeline))
    draw_result(pipeline, pipeline.root / "result.png")
    console.print(f"Picture: {pipeline.root / 'result.png'}", highlight=False)
    console.print(f"TensorBoard: tensorboard --logdir {pipeline.root}", highlight=False)


def stage_arguments(pipeline: Pipeline, stage: Stage, overlays: list[str]) -> list[str]:
    """The stage as words of `gpt fit`."""
    words = [word for recipe in [*stage.config, *overlays] for word in ("--config", recipe)]
    words += [f"--trainer.default_root_dir={pipeline.folder(stage)}"]
    words += [f"--{key}={pipeline.export(source)}" for key, source in stage.feeds.items()]
    return words + [
        f"--{key}={json.dumps(value) if not isinstance(value, str) else value}" for key, value in stage.set.items()
    ]


def fingerprint(pipeline: Pipeline, stage: Stage, overlays: list[str]) -> str:
    """Digest of everything a stage depends on: its words, its recipes' contents, the weights it is fed."""
    digest = hashlib.sha256(json.dumps(stage_arguments(pipeline, stage, overlays)).encode())
    for recipe in [*stage.config, *overlays]:
        digest.update(Path(recipe).read_bytes())
    for source in stage.feeds.values():
        config = pipeline.export(source) / "config.json"
        if not config.is_file():
            raise UserError(
                f"{config}: missing, though its stage is done; remove {config.parent.parent} to run it anew"
            )
        digest.update(config.read_bytes())
    return digest.hexdigest()


def run_stage(pipeline: Pipeline, stage: Stage, overlays: list[str], label: str, console: Console) -> None:
    """Skip, resume or start one stage.

    Raises:
        UserError: when the folder holds the outcome of another recipe.
        SystemExit: with the stage's own status when it fails or is told to stop.
    """
    folder = pipeline.folder(stage)
    mark, current = folder / "stage.sha256", fingerprint(pipeline, stage, overlays)
    begun = (folder / "summary.json").is_file() or any((folder / "checkpoints").glob("step=*.ckpt"))
    if begun and mark.is_file() and mark.read_text().strip() != current:
        raise UserError(
            f"{folder}: made by another version of {', '.join(stage.config)} or of what it builds on; "
            "remove the folder to run it anew"
        )
    if (folder / "summary.json").is_file():
        console.print(f"{label} {stage.name}: done before, skipped", highlight=False)
        return
    words = stage_arguments(pipeline, stage, overlays)
    if any((folder / "checkpoints").glob("step=*.ckpt")):
        words += ["--ckpt_path", "last"]
        console.print(f"{label} {stage.name}: resuming in {folder}", highlight=False)
    else:
        console.print(f"{label} {stage.name}: {', '.join(stage.config)} -> {folder}", highlight=False)
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(current + "\n")
    status = run_process([sys.executable, "-m", "gpt_modules", "fit", *words])
    if status:
        console.print(
            f"{label} {stage.name}: ended with status {status}; the same command goes on from there", highlight=False
        )
        raise SystemExit(status)


def run_process(command: list[str]) -> int:
    """Run a stage; hand on the signals that ask to stop, and wait for it to save. Returns its exit status, 128 + n
    for signal n.
    """
    process = subprocess.Popen(command)

    def forward(number: int, frame: FrameType | None) -> None:
        # Ctrl-C reaches the whole foreground group by itself; a second copy would be the "at once" of the stage.
        if number != signal.SIGINT:
            process.send_signal(number)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        status = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status


def result_table(pipeline: Pipeline) -> Table:
    """Stage, metric before -> after, baseline, time."""
    table = Table(title="What each stage did", title_justify="left")
    for column in ("stage", "metric (held out)", "before", "after", "baseline", "minutes"):
        table.add_column(column, justify="left" if column in ("stage", "metric (held out)", "baseline") else "right")
    for stage in pipeline.stages:
        summary = json.loads((pipeline.folder(stage) / "summary.json").read_text())
        for row, metric in enumerate(stage.metrics):
            before, after = summary["before"].get(metric), summary["after"].get(metric)
            baseline = summary.get("baselines", {}).get(metric)
            table.add_row(
                stage.name if row == 0 else "",
                metric.removeprefix("val/"),
                *("-" if value is None else f"{value:.3f}" for value in (before, after)),
                "" if baseline is None else f"{baseline['value']:.3f} {baseline['name']}",
                f"{summary['seconds'] / 60:.1f}" if row == 0 else "",
            )
    return table


def draw_result(pipeline: Pipeline, path: Path) -> None:
    """Draw the first metric of each stage over its run."""
    from gpt_modules.commands.report import read_curve, result_figure

    panels = []
    for stage in pipeline.stages:
        for metric in stage.metrics[:1]:
            summary = json.loads((pipeline.folder(stage) / "summary.json").read_text())
            curve = read_curve(pipeline.folder(stage), metric)
            panels.append((stage.name, metric.removeprefix("val/"), curve, summary["baselines"].get(metric)))
    if panels:
        result_figure(panels).savefig(path, dpi=110)


def sample_table(pipeline: Pipeline) -> Table:
    """The same prompts answered by each stage's language model, with the same noise."""
    from gpt_modules.commands.speaker import folder_texts

    speaking = [stage for stage in pipeline.stages if _is_language_model(pipeline.export(stage.name))]
    table = Table(title="What each stage's model says", title_justify="left", show_lines=True)
    for column in ("prompt", *(stage.name for stage in speaking)):
        table.add_column(column)
    answers = [
        folder_texts(pipeline.export(stage.name), pipeline.prompts, pipeline.sample_tokens, seed=0)
        for stage in speaking
    ]
    for row in zip(pipeline.prompts, *answers, strict=True):
        table.add_row(*(cell.strip() for cell in row))
    return table


def _is_language_model(folder: Path) -> bool:
    config = json.loads((folder / "config.json").read_text())
    return bool(config.get("gpt_modules", {}).get("kind") == "gpt")
