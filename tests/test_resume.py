"""A run that is killed, stopped or interrupted, and resumed, is the run that was not: every logged value bit for bit, and the artefact."""

import hashlib
import json
import os
import random
import shutil
import signal
import time
from collections import defaultdict
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event

pytestmark = pytest.mark.slow

WORDS = ["pretraining", "sft", "reward", "ppo"]
EXPORTS = {"pretraining": ["export"], "sft": ["export"], "reward": ["export"], "ppo": ["export", "export-critic"]}


def points(root):
    """tag -> step -> the values that were ever logged there; timings, and what depends on them, left out."""
    found = defaultdict(lambda: defaultdict(set))
    for file in sorted(root.glob("events.out.tfevents.*")):
        for record in RawEventFileLoader(str(file)).Load():
            event = Event.FromString(record)
            for value in event.summary.value:
                if value.HasField("simple_value") and not value.tag.startswith("perf/"):
                    found[value.tag][event.step].add(value.simple_value)
    return {tag: dict(steps) for tag, steps in found.items()}


def digests(root, word):
    return {name: hashlib.sha256((root / name / "model.safetensors").read_bytes()).hexdigest() for name in EXPORTS[word]}


def write_recipe(micro, word, root, **changes):
    root.parent.mkdir(parents=True, exist_ok=True)
    path = root.with_suffix(".yaml")
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
    folder = (shm if shm.is_dir() and shm.stat().st_dev != tmp_path.stat().st_dev else tmp_path) / f"gpt-modules-{os.getpid()}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def assert_same_run(root, straight, word):
    expected, found = points(straight), points(root)
    assert len(expected["train/loss"]) > 10
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


def wait_for(condition, pid, seconds=60.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition() or not Path(f"/proc/{pid}/stat").exists():
            return
        time.sleep(0.0005)
    raise TimeoutError


def kill_when(gpt, condition, words, sign=signal.SIGKILL, **options):
    """Start, signal once the condition holds and a delay is over; how it ended."""
    delay = options.pop("delay", 0.0)
    pid = gpt.start(*words, **options)
    wait_for(condition, pid)
    time.sleep(delay)
    if Path(f"/proc/{pid}/stat").exists():
        os.kill(pid, sign)
    return gpt.wait()


@pytest.mark.parametrize("word", WORDS)
def test_killed_and_resumed(word, micro, gpt, straight, tmp_path, elsewhere):
    """At moments drawn at random, in training, validation or rollout, and while a checkpoint is being written."""
    root, rng = tmp_path / "run", random.Random(word)
    recipe = write_recipe(micro, word, root)
    resume: list[str] = []
    kills = 0
    for number in range(5):
        reached = max(checkpoints(root), default=0) + rng.choice([2, 2, 4])
        writing = lambda: any((root / "checkpoints").glob(".*.tmp")) and max(checkpoints(root), default=0) >= reached - 2  # noqa: B023, E731
        arrived = lambda: max(checkpoints(root), default=0) >= reached  # noqa: B023, E731
        moment = {"condition": writing, "delay": 0.0} if number % 2 else {"condition": arrived, "delay": 0.2 * rng.random()}
        ended = kill_when(gpt, words=["fit", "--config", recipe, *resume], TMPDIR=str(elsewhere), **moment)
        assert ended.status in (0, -signal.SIGKILL), ended.stderr
        kills += ended.status != 0
        if ended.status == 0:
            break
        resume = ["--ckpt_path", "last"] if checkpoints(root) else []
    else:
        ended = gpt.run("fit", "--config", recipe, *resume, TMPDIR=str(elsewhere))
    assert ended.status == 0, ended.stderr
    assert kills >= 2
    assert_same_run(root, straight(word), word)


@pytest.mark.parametrize("word", ["pretraining", "ppo"])
def test_told_to_stop_and_resumed(word, micro, gpt, straight, tmp_path):
    """Saved at the step it was at, which the checkpoint interval would not have done."""
    root = tmp_path / "run"
    recipe = write_recipe(micro, word, root, checkpoint__every_n_steps=1000)
    resume: list[str] = []
    for sign, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        before = max(checkpoints(root), default=0)
        logged = lambda: max(points(root).get("train/loss", {-1: 0})) >= before + 2  # noqa: B023, E731
        ended = kill_when(gpt, logged, ["fit", "--config", recipe, *resume], sign)
        assert ended.status == status, ended.stderr
        assert "Traceback" not in ended.stderr
        (step,) = checkpoints(root)[-1:]
        assert step == max(points(root)["train/loss"]) + 1, "no step is lost"
        resume = ["--ckpt_path", "last"]
    assert gpt.run("fit", "--config", recipe, *resume).status == 0
    assert_same_run(root, straight(word), word)
