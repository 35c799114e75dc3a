"""How the benchmarks here measure: every system in a fresh process of its own, one burst each in turn, order rotated.

A system is a function `system(turn, options)` that works piece by piece and calls `turn.tick(work)` after each piece.
The first piece warms up. From then on `tick` holds the system still while another one has its turn, so that a machine
whose speed drifts slows all of them alike, and what is compared is always two bursts of the same round. The control is
the first system entered twice: its ratio shows what this machine makes of no difference at all.

Peak memory is of a system's own process: `VmHWM` of Linux on the CPU, `torch.cuda.max_memory_allocated` on a GPU.
"""

import argparse
import datetime
import importlib.metadata
import logging
import multiprocessing
import os
import platform
import re
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

PACKAGES = ("torch", "lightning", "transformers")


class Burst(NamedTuple):
    """Some pieces of work in a row: how much, the seconds they took, those of the processor, and seconds by phase."""

    work: float
    seconds: float
    cpu_seconds: float
    phases: dict[str, float]


class Result(NamedTuple):
    """A system's bursts, one a round, and the peak of its memory in bytes."""

    bursts: list[Burst]
    peak: int


class Clock:
    """Time since it was made. On a GPU by CUDA events, once the device has done what was asked of it so far."""

    def __init__(self, device: str) -> None:
        self.event = self._event() if device == "cuda" else None
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Seconds, and seconds of this process's processor time."""
        seconds = time.perf_counter() - self.wall
        if self.event is not None:
            end = self._event()
            end.synchronize()
            seconds = self.event.elapsed_time(end) / 1000
        return seconds, time.process_time() - self.cpu

    @staticmethod
    def _event() -> Any:
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class Turn:
    """What a system is given to say how far it is."""

    def __init__(self, connection: Connection, device: str, pieces: int) -> None:
        self.connection, self.device, self.pieces = connection, device, pieces
        self.clock: Clock | None = None
        self.count, self.work, self.phases = 0, 0.0, Counter[str]()

    def tick(self, work: float, **phases: float) -> bool:
        """A piece is done. True: do another one. False: the measurement is over, return."""
        burst = None
        if self.clock is not None:
            self.count, self.work = self.count + 1, self.work + work
            self.phases.update(phases)
            if self.count < self.pieces:
                return True
            burst = Burst(self.work, *self.clock.read(), dict(self.phases))
        self.connection.send((burst, peak_memory(self.device)))
        go: bool = self.connection.recv()
        self.count, self.work, self.phases = 0, 0.0, Counter()
        self.clock = Clock(self.device)
        return go


System = Callable[[Turn, argparse.Namespace], None]


def peak_memory(device: str) -> int:
    """Bytes at the peak, of this process; not `ru_maxrss`, which a child takes over from its parent."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(match[1]) * 1024 if match else 0


class Worker:
    """A system in its process, started at once and then held."""

    def __init__(self, system: System, options: argparse.Namespace, pieces: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_run, args=(system, theirs, options, pieces), daemon=True)
        self.process.start()
        theirs.close()
        self.bursts: list[Burst] = []
        self.peak = 0

    def receive(self) -> None:
        """Wait until the system holds still again."""
        burst, self.peak = self.connection.recv()
        if burst is not None:
            self.bursts.append(burst)


def _run(system: System, connection: Connection, options: argparse.Namespace, pieces: int) -> None:
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    system(Turn(connection, options.device, pieces), options)


def measure(systems: Mapping[str, System], options: argparse.Namespace, pieces: int) -> dict[str, Result]:
    """Run `options.rounds` rounds in which each system does `pieces` pieces of work; the order rotates.

    `options` needs `rounds`, `control`, `threads` and `device` (see `parser`); systems read their own sizes from it.
    """
    entered = dict(systems)
    if options.control:
        first = next(iter(systems))
        entered[f"{first}, entered twice"] = systems[first]
    workers = [Worker(system, options, pieces) for system in entered.values()]
    try:
        for worker in workers:
            worker.receive()
        for round_ in range(options.rounds):
            for place in range(len(workers)):
                worker = workers[(round_ + place) % len(workers)]
                worker.connection.send(True)
                worker.receive()
        for worker in workers:
            worker.connection.send(False)
            worker.process.join(timeout=60)
    except EOFError:
        sys.exit("error: a system ended early; what it said stands above")
    finally:
        for worker in workers:
            worker.process.kill()
    return {name: Result(worker.bursts, worker.peak) for name, worker in zip(entered, workers, strict=True)}


def rates(result: Result, clock: str = "seconds") -> list[float]:
    """Work a second of each burst; `clock` is a time of `Burst`."""
    return [burst.work / getattr(burst, clock) for burst in result.bursts]


def ratio(result: Result, baseline: Result, clock: str = "seconds") -> str:
    """Median over the rounds of one system's rate over another's, with the lowest and the highest."""
    pairs = zip(rates(result, clock), rates(baseline, clock), strict=True)
    ratios = [ours / theirs for ours, theirs in pairs]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def comparison(results: Mapping[str, Result], unit: str, baseline: str | None = None) -> str:
    """A Markdown table: a row a system, medians over the rounds, ratios to `baseline` round by round."""
    header = ["system", f"{unit}/s", f"{unit} a CPU second", "peak memory, GB"]
    if baseline is not None:
        header += [f"ratio to {baseline}", "ratio by CPU seconds"]
    rows = []
    for name, result in results.items():
        speeds = [f"{statistics.median(rates(result, clock)):,.0f}" for clock in ("seconds", "cpu_seconds")]
        row = [name, *speeds, f"{result.peak / 1e9:.2f}"]
        if baseline is not None:
            row += [ratio(result, results[baseline], clock) for clock in ("seconds", "cpu_seconds")]
        rows.append(row)
    return markdown(header, rows)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows))


def provenance(options: argparse.Namespace) -> str:
    """Device, versions, date, load and command line, without which a number means nothing."""
    versions = ", ".join(f"{name} {version}" for name in PACKAGES if (version := _version(name)))
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    command = " ".join(["python", *sys.argv])
    today = datetime.date.today().isoformat()
    where = f"{device_name(options.device)}, {options.threads} thread(s)"
    return f"{where}; Python {platform.python_version()}, {versions}; {today}; load {load}\n`{command}`"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # nobody needs a peer where it is not measured
        return None


def device_name(device: str) -> str:
    """The GPU's name, or the processor's with its number of cores."""
    if device == "cuda":
        import torch

        return str(torch.cuda.get_device_name())
    match = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return f"{match[1] if match else platform.machine()}, {os.cpu_count()} cores"


def parser(description: str | None, rounds: int, device: str = "cpu") -> argparse.ArgumentParser:
    """The options that all benchmarks share."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=rounds, help="bursts of each system; the table shows medians")
    made.add_argument("--control", action="store_true", help="enter the first system twice: the noise of the machine")
    made.add_argument("--threads", type=int, default=1, help="threads of each system on the CPU")
    made.add_argument("--tiny", action="store_true", help="toy sizes: whether it runs, not how fast")
    made.set_defaults(device=device)
    return made


def parser_on_gpu(description: str | None, rounds: int, modes: Iterable[str] = ()) -> argparse.ArgumentParser:
    """And those of benchmarks on a GPU, which measure our own ways of doing the same."""
    made = parser(description, rounds)
    if modes:
        made.add_argument("--modes", nargs="+", choices=list(modes), default=list(modes))
    return made


def parse_on_gpu(made: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse, and find the GPU; `--tiny` runs on the CPU where there is none."""
    import torch

    options = made.parse_args()
    options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.device == "cpu" and not options.tiny:
        made.error("no CUDA device; --tiny runs toy sizes on the CPU")
    return options


def trainer_on_gpu(turn: Turn, folder: str, *callbacks: Any, **settings: Any) -> Any:
    """A Trainer in bfloat16 for as long as the callbacks want, with nothing to write and nobody to tell."""
    import lightning.pytorch as L

    from gpt_modules.training.callbacks.gradients import FreedGradients
    from gpt_modules.training.callbacks.guards import FiniteLossGuard

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    return L.Trainer(
        accelerator="gpu" if turn.device == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed",
        default_root_dir=folder,
        logger=False,
        callbacks=[FiniteLossGuard(), FreedGradients(), *callbacks],
        gradient_clip_val=1.0,
        max_epochs=10**6,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
