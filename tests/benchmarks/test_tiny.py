"""Every benchmark runs through at toy sizes and prints a table with a row for each system, and its provenance."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = {
    "train_throughput.py --systems ours transformers plain": ["ours", "transformers", "plain"],
    "finetune_throughput.py --task multiple_choice": ["ours", "transformers"],
    "evaluate_throughput.py --task choice": ["ours", "lm_eval hf, 1", "lm_eval hf, 16"],
    "generate.py --control": ["ours", "transformers", "ours, entered twice"],
    "generate.py --family llama": ["ours", "transformers"],
    "ppo_throughput.py --systems ours arithmetic": ["ours", "arithmetic"],
    "prepare_throughput.py --rounds 1": ["ours", "map", "nanogpt"],
    "gpu_pretrain.py --modes eager": ["eager"],
    "gpu_generate.py --modes eager graph": ["eager", "graph"],
    "gpu_ppo.py --modes eager": ["eager"],
    "gpu_sft.py --modes eager": ["eager"],
}


@pytest.mark.slow
@pytest.mark.parametrize("command", BENCHMARKS)
def test_prints_a_row_for_each_system(command: str) -> None:
    script, *words = command.split()
    line = [sys.executable, str(Path(__file__).parent / script), "--tiny", "--rounds", "2", *words]
    done = subprocess.run(
        line, capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = [row.split("|")[1].strip() for row in done.stdout.splitlines() if row.startswith("| ")]
    assert rows == ["system", "---", *BENCHMARKS[command]]
    assert "torch" in done.stdout.splitlines()[-2]
    assert done.stdout.splitlines()[-1].endswith(" ".join(line[2:]) + "`")
