"""The script for a device: what one part costs the others, and how long all of them may take."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("gpu.sh")
STAND_IN = """#!/bin/sh
case "$*" in
  "-m pytest"*) echo "3 passed in 0.1s" ;;
  *gpu_ppo*) echo "| never | finished"; echo "RuntimeError: out of memory"; exit 1 ;;
  *gpu_sft*) exec sleep 60 ;;
  *gpu_*) echo "| graph | 1,234 |" ;;
  *) exec {python} "$@" ;;
esac
"""


def with_needs(packages: str) -> str:
    """The script, of other needs: to import torch takes seconds."""
    script, count = re.subn(r"^NEEDED=.*", f"NEEDED=({packages})", SCRIPT.read_text(), flags=re.M)
    assert count == 1
    return script


@pytest.fixture
def run(tmp_path: Path):
    """run(script, stand_in): its status and its table, with something in place of Python."""

    def go(script: str, stand_in: str = STAND_IN) -> tuple[subprocess.CompletedProcess[str], str]:
        python, copied = tmp_path / "python", tmp_path / "tests" / "benchmarks" / "gpu.sh"
        copied.parent.mkdir(parents=True)
        copied.write_text(script)
        python.write_text(stand_in.replace("{python}", sys.executable))
        python.chmod(0o755)
        environment = {**os.environ, "PYTHON": str(python)}
        command = ["bash", str(copied), str(tmp_path / "out")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        table = tmp_path / "out" / "table.txt"
        return done, table.read_text() if table.exists() else ""

    return go


def test_a_part_that_fails_or_hangs_costs_no_other_and_stands_in_the_table(run) -> None:
    done, table = run(with_needs("json").replace("part sft 50 ", "part sft 1 "))
    assert done.returncode == 1, done.stderr
    assert table.splitlines()[-1] == "Failed or cut off: ppo-eager (1) ppo-compiled (1) sft (124)"
    assert table.count("| graph | 1,234 |") == 5
    assert table.count("3 passed") == 2
    headings = re.findall(r"^## (.*)", table, re.M)
    assert headings == re.findall(r"^== (\S+) \(at most", done.stdout, re.M)


def test_all_limits_together_are_twelve_minutes() -> None:
    script = SCRIPT.read_text()
    limits = [int(found) for found in re.findall(r"^ *part \S+ (\d+) ", script, re.M)]
    twice = [int(found) for found in re.findall(r"^  part \S+ (\d+) ", script, re.M)]  # eager and compiled
    assert len(limits) == 7 + 1
    assert sum(limits) + sum(twice) + len(limits) + len(twice) <= 720


def test_what_is_missing_is_told_before_any_part(run) -> None:
    done, table = run(with_needs("no_such_package json"))
    assert (done.returncode, table) == (2, "")
    assert done.stdout.startswith("expected to import, and could not: no_such_package (ModuleNotFoundError: ")
