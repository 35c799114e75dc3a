"""Two processes on the CPU: the data-parallel path runs, and takes the steps that one process takes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpt_modules.backbone import load_pretrained

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


@pytest.fixture
def runs(micro, gpt, tmp_path):
    """runs(word): the folders of one process and of two, with the same global batch."""

    def run(word):
        roots = [tmp_path / name for name in ("one", "two")]
        changes = {"trainer__max_epochs": 2, "trainer__limit_train_batches": 4, "trainer__limit_val_batches": 1}
        for size, root in zip((8, 4), roots, strict=True):
            recipe = micro.recipe(word, root, data__batch_size=size, checkpoint__keep=100, **changes)
            root.with_suffix(".yaml").write_text(json.dumps(recipe))
        assert gpt.run("fit", "--config", roots[0].with_suffix(".yaml")).status == 0
        launch(roots[1].with_suffix(".yaml"))
        assert steps(roots[0]) == steps(roots[1]) == 8
        return roots

    return run


def test_pretraining_takes_the_steps_of_one_process(runs):
    for root in runs("pretraining"):
        assert load_pretrained(root / "export", kind="gpt")


def test_ppo_takes_the_steps_of_one_process_and_resumes_inside_an_iteration(runs, tmp_path):
    """Each process goes on with its own share of the experience."""
    _, root = runs("ppo")
    again = tmp_path / "again"
    inside = root / "checkpoints" / "step=00000006.ckpt"
    launch(root.with_suffix(".yaml"), f"--trainer.default_root_dir={again}", "--ckpt_path", str(inside))
    last, resumed = (
        torch.load(folder / "checkpoints" / "step=00000008.ckpt", weights_only=True) for folder in (root, again)
    )
    for name, value in last["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], value), name
