"""Two processes on the CPU: the data-parallel path runs, and takes the steps that one process takes."""

import json
from pathlib import Path

import pytest
import torch
from launcher import launch

from gpt_modules.backbone import load_pretrained

pytestmark = pytest.mark.slow

OVERLAY = Path(__file__).parents[1] / "recipes" / "hardware" / "cpu-ddp.yaml"


def steps(root):
    return json.loads((root / "summary.json").read_text())["steps"]


@pytest.fixture
def runs(micro, gpt, tmp_path):
    """runs(word): the folders of one process and of two, with the same global batch."""

    def run(word):
        roots = [tmp_path / name for name in ("one", "two")]
        changes = {"trainer__max_epochs": 2, "trainer__limit_train_batches": 4, "trainer__limit_val_batches": 1}
        for size, root in zip((8, 4), roots, strict=True):
            share = {} if word == "ppo" else {"data__batch_size": size}  # a rollout is of all processes
            recipe = micro.recipe(word, root, checkpoint__keep=100, **share, **changes)
            root.with_suffix(".yaml").write_text(json.dumps(recipe))
        assert gpt.run("fit", "--config", roots[0].with_suffix(".yaml")).status == 0
        launch("--config", roots[1].with_suffix(".yaml"), "--config", OVERLAY)
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
    launch(
        "--config",
        root.with_suffix(".yaml"),
        "--config",
        OVERLAY,
        f"--trainer.default_root_dir={again}",
        "--ckpt_path",
        str(inside),
    )
    last, resumed = (
        torch.load(folder / "checkpoints" / "step=00000008.ckpt", weights_only=True) for folder in (root, again)
    )
    for name, value in last["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], value), name
