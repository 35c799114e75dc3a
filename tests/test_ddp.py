"""Two processes on the CPU: the data-parallel path runs, and takes the steps that one process takes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

OVERLAY = Path(__file__).parents[1] / "recipes" / "hardware" / "cpu-ddp.yaml"


def launch(recipe, *words):
    """A process of its own, as the launcher starts the second one from its command line."""
    command = [sys.executable, "-m", "gpt_modules", "fit", "--config", str(recipe), "--config", str(OVERLAY), *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        try:
            _, errors = process.communicate(timeout=240)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, errors


def steps(root):
    return json.loads((root / "summary.json").read_text())["steps"]


@pytest.mark.parametrize("word", ["pretraining", "ppo"])
def test_two_processes_take_the_steps_of_one(micro, gpt, tmp_path, word):
    """The same global batch, so the same number of steps; and a checkpoint in the middle of an iteration is resumed."""
    roots = [tmp_path / name for name in ("one", "two")]
    for size, root in zip((8, 4), roots, strict=True):
        recipe = micro.recipe(
            word, root, data__batch_size=size, trainer__max_epochs=2, checkpoint__every_n_steps=3, checkpoint__keep=100
        )
        root.with_suffix(".yaml").write_text(json.dumps(recipe))
    assert gpt.run("fit", "--config", roots[0].with_suffix(".yaml")).status == 0
    launch(roots[1].with_suffix(".yaml"))
    assert steps(roots[0]) == steps(roots[1])
    exports = [
        torch.load(sorted((root / "checkpoints").glob("*.ckpt"))[0], weights_only=True)["global_step"] for root in roots
    ]
    assert exports == [3, 3]
    again = tmp_path / "again"
    middle = sorted((roots[1] / "checkpoints").glob("*.ckpt"))[0]
    launch(roots[1].with_suffix(".yaml"), f"--trainer.default_root_dir={again}", "--ckpt_path", str(middle))
    digests = [(root / "export" / "model.safetensors").read_bytes() for root in (roots[1], again)]
    assert digests[0] == digests[1]
