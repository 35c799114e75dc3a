"""The experiment runs through at toy size, goes on where it was, and its numbers are the runs' own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("overoptimisation.py")


@pytest.mark.slow
def test_measures_and_does_nothing_twice(demo: Path, tmp_path: Path) -> None:
    output, work = tmp_path / "results.json", tmp_path / "work"
    words = ["--demo", str(demo), "--work", str(work), "--output", str(output), "--tiny"]

    def measure() -> list[str]:
        line = [sys.executable, str(SCRIPT), "measure", *words, "--seeds", "3"]
        done = subprocess.run(line, capture_output=True, text=True, timeout=600, env=ENVIRONMENT, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.splitlines()

    table = measure()[-5:]
    results = json.loads(output.read_text())
    assert [(one["labels"], one["rounds"]) for one in results["policies"]] == [(8, 1), (16, 1), (16, 2)]
    for one in results["policies"]:
        assert one["kl"][0] == 0, "the first point is the SFT model"
        assert len({len(one[name]) for name in ("run", "kl", "proxy", "gold", "vader", "ended")}) == 1
        assert len(one["kl"]) == 3, "before, and after each iteration, in rounds as at once"
    first, second = (one["gold"][0] for one in results["policies"][:2])
    assert first == second, "the same held-out answers, before anything is learned"
    assert [one["n"] for one in results["best_of_n"]] == [[1, 2, 4, 8]] * 2
    assert len(list((work / "seed-3").glob("*-ppo/summary.json"))) == 2
    written = {path: path.stat().st_mtime_ns for path in work.rglob("summary.json")}
    assert measure()[-5:] == table
    assert written == {path: path.stat().st_mtime_ns for path in work.rglob("summary.json")}


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "JSONARGPARSE_DEPRECATION_WARNINGS": "off"}
