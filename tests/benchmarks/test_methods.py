"""The comparison of methods runs through at toy size, does nothing twice, and its table is of the runs' own numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import methods_results
import pytest

SCRIPT = Path(__file__).with_name("methods.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "JSONARGPARSE_DEPRECATION_WARNINGS": "off"}


@pytest.mark.slow
def test_measures_and_does_nothing_twice(demo: Path, tmp_path: Path) -> None:
    output, work = tmp_path / "results.json", tmp_path / "work"
    words = ["--demo", str(demo), "--work", str(work), "--output", str(output), "--tiny", "--seeds", "3"]

    def measure() -> list[str]:
        line = [sys.executable, str(SCRIPT), "measure", *words]
        done = subprocess.run(line, capture_output=True, text=True, timeout=600, env=ENVIRONMENT, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return [line for line in done.stdout.splitlines() if line.startswith("|")]

    table = measure()
    curves = {one["method"]: one for one in json.loads(output.read_text())["curves"]}
    assert list(curves) == ["PPO", "PPO-ptx", "RLOO", "GRPO", "DPO", "best of n"]
    for name, one in curves.items():
        assert one["kl"][0] == 0, "the first point is the SFT model"
        assert len({len(values) for values in one.values() if isinstance(values, list)}) == 1, name
    sft = {name: curves["PPO"][name][0] for name in ("score", "finished", "vader", "ended", "perplexity")}
    for name in ("PPO-ptx", "RLOO", "GRPO", "DPO"):  # the same held-out answers, before anything is learnt
        assert {measure: curves[name][measure][0] for measure in sft} == sft
    assert curves["best of n"]["perplexity"] == [sft["perplexity"]] * 3
    written = {path: path.stat().st_mtime_ns for path in work.rglob("*.json")}
    assert measure() == table
    assert written == {path: path.stat().st_mtime_ns for path in work.rglob("*.json")}


def test_reads_a_curve_between_two_of_its_points() -> None:
    one = {"kl": [0.0, 2.0, 6.0], "score": [-1.0, 1.0, 3.0]}
    assert methods_results.at(one, "kl", 1.0, "score") == 0.0
    assert methods_results.at(one, "kl", 4.0, "score") == 2.0
    assert methods_results.at(one, "kl", 7.0, "score") is None
