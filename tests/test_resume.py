"""A run that is killed or stopped, and resumed, is the run that was not: every logged value, bit for bit, and the
artefact.
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from curves import points

pytestmark = pytest.mark.slow

WORDS = ["pretraining", "finetuning", "sft", "reward", "ppo", "maml", "dpo"]
EXPORTS = {
    "pretraining": ["export"],
    "finetuning": ["export"],
    "sft": ["export"],
    "reward": ["export"],
    "ppo": ["export", "export-critic"],
    "ppo-shared": ["export", "export-critic", "export-ema"],
    "maml": ["export"],
    "dpo": ["export"],
}


def digests(root, word):
    return {
        name: hashlib.sha256((root / name / "model.safetensors").read_bytes()).hexdigest() for name in EXPORTS[word]
    }


def write_recipe(micro, word, root, **changes):
    """With pretraining text beside what a word can have it beside."""
    root.parent.mkdir(parents=True, exist_ok=True)
    path = root.with_suffix(".yaml")
    if word in ("sft", "ppo", "ppo-shared"):
        changes = {"data__pretraining": {"train": str(micro.pretraining), "context": 16, "batch_size": 4}, **changes}
    if word.startswith("ppo"):
        changes = {"model__ptx": {"coef": 0.5, "windows": 2}, **changes}
    path.write_text(json.dumps(micro.recipe(word, root, **changes)))
    return path


def checkpoints(root):
    return sorted(int(path.stem.removeprefix("step=")) for path in (root / "checkpoints").glob("step=*.ckpt"))


@pytest.fixture(scope="module")
def straight(micro, gpt, tmp_path_factory):
    """word -> the folder of a run that nothing disturbed; made when first asked for."""
    folder, made = tmp_path_factory.mktemp("straight"), {}

    def run(word):
        if word not in made:
            root = folder / word
            ended = gpt.run("fit", "--config", write_recipe(micro, word, root))
            assert ended.status == 0, ended.stderr
            made[word] = root
        return made[word]

    return run


@pytest.fixture
def elsewhere(tmp_path):
    """A folder for temporary files on another file system than the run's, where there is one."""
    shm = Path("/dev/shm")
    other = shm.is_dir() and shm.stat().st_dev != tmp_path.stat().st_dev
    folder = (shm if other else tmp_path) / f"gpt-modules-{os.getpid()}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def assert_same_run(root, straight, word):
    expected, found = points(straight), points(root)
    assert len(expected["train/loss"]) > 5
    for tag, steps in expected.items():
        missing = set(steps) - set(found.get(tag, {}))
        assert not missing, f"{tag}: no value at {sorted(missing)}"
        assert found[tag] == steps, f"{tag} differs"
    assert digests(root, word) == digests(straight, word)
    before, after = (json.loads((folder / "summary.json").read_text()) for folder in (straight, root))
    for key in ("before", "after", "steps"):
        assert after[key] == before[key], key
    litter = [path.name for path in root.rglob(".*") if path.name != ".lock"]
    assert not litter


def newest(root):
    return max(checkpoints(root), default=0)


def is_writing(root):
    """A checkpoint or its digest is on its way, or an artefact."""
    return any(root.glob("checkpoints/.*.tmp")) or any(root.glob(".export*.tmp"))


def signal_when(gpt, condition, words, number=signal.SIGKILL, delay=0.0, **options):
    """Start, signal once the condition holds and a delay is over; how it ended."""
    pid = gpt.start(*words, **options)
    process = Path(f"/proc/{pid}")
    while process.exists() and not condition():
        time.sleep(0.001)
    time.sleep(delay)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    return gpt.wait()


@pytest.mark.parametrize("word", [*WORDS, "ppo-shared"])
def test_killed_and_resumed(word, micro, gpt, straight, tmp_path, elsewhere):
    """At moments drawn at random, in training, validation or rollout, and while a checkpoint is being written."""
    root, rng, options = tmp_path / "run", random.Random(word), {"TMPDIR": str(elsewhere)}
    words = ["fit", "--config", write_recipe(micro, word, root)]
    kills = 0
    for number in range(4):
        resume = ["--ckpt_path", "last"] if checkpoints(root) else []
        step = newest(root) + rng.choice([2, 2, 4])
        arrived = lambda step=step: newest(root) >= step  # noqa: E731
        between = lambda step=step: newest(root) >= step - 2 and is_writing(root)  # noqa: E731
        condition, delay = (between, 0.0) if number % 2 else (arrived, 0.2 * rng.random())
        ended = signal_when(gpt, condition, [*words, *resume], delay=delay, **options)
        assert ended.status in (0, -signal.SIGKILL), ended.stderr
        kills += ended.status != 0
        if ended.status == 0:
            break
    if ended.status:
        ended = gpt.run(*words, "--ckpt_path", "last", **options)
    assert ended.status == 0, ended.stderr
    assert kills >= 2
    assert_same_run(root, straight(word), word)


@pytest.mark.parametrize("word", ["pretraining", "ppo"])
def test_told_to_stop_and_resumed(word, micro, gpt, straight, tmp_path):
    """Saved at the step it was at, which the checkpoint interval would not have done."""
    root = tmp_path / "run"
    words = ["fit", "--config", write_recipe(micro, word, root, checkpoint__every_n_steps=1000)]
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        resume = ["--ckpt_path", "last"] if checkpoints(root) else []
        begun = newest(root)
        logged = lambda begun=begun: max(points(root).get("train/loss", {-1: 0})) >= begun + 2  # noqa: E731
        ended = signal_when(gpt, logged, [*words, *resume], number)
        assert ended.status == status, ended.stderr
        assert "Traceback" not in ended.stderr
        assert ended.stderr.splitlines()[-1] == f"saved at step {newest(root)}; go on with --ckpt_path last"
        assert newest(root) == max(points(root)["train/loss"]) + 1, "no step is lost"
    assert gpt.run(*words, "--ckpt_path", "last").status == 0
    assert_same_run(root, straight(word), word)


@pytest.mark.parametrize("word", ["pretraining", "ppo"])
def test_killed_between_the_last_checkpoint_and_the_artefact(word, micro, gpt, tmp_path):
    """The resumed run has no step left to take, and still writes what the next stage needs."""
    root = tmp_path / "run"
    steps = {"trainer__max_steps": 4, "trainer__limit_val_batches": 1, "export__monitor": None, "export__mode": "min"}
    words = ["fit", "--config", write_recipe(micro, word, root, **steps)]
    assert gpt.run(*words).status == 0
    assert newest(root) == 4
    shutil.rmtree(root / "export")
    (root / "summary.json").unlink()
    ended = gpt.run(*words, "--ckpt_path", "last")
    assert ended.status == 0, ended.stderr
    assert (root / "export" / "model.safetensors").is_file()
    assert json.loads((root / "summary.json").read_text())["steps"] == 4
