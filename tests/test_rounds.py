"""Steps 2 and 3 repeated: each round from the newest policy, all votes so far, the first model as reference; killed
anywhere, the same bits; with people, a pause in each round.
"""

import contextlib
import hashlib
import io
import json
import os
import signal
import time
from pathlib import Path

import pytest
import yaml
from curves import points
from rich.console import Console

from gpt_modules.backbone import load_pretrained, model_digest
from gpt_modules.commands import run as command
from gpt_modules.commands.pipelines.reading import read_pipeline
from gpt_modules.commands.run import make_plans, run_plans, show_result
from gpt_modules.errors import UserError
from gpt_modules.storage.comparisons import ComparisonStore, Judgement, Vote
from gpt_modules.storage.summary import read_summary

pytestmark = pytest.mark.slow

JUDGE = "def length(prompts, answers):\n    return [float(len(answer)) for answer in answers]\n"
ROUNDS = {
    "root": "runs",
    "rounds": 2,
    "round": [
        {
            "name": "compare",
            "command": "compare",
            "feeds": {"model": ["ppo@last", "sft"]},
            "set": {"prompts": "prompts.jsonl", "count": 12, "k": 3, "max_new_tokens": 6, "device": "cpu"},
            "metrics": ["prompts"],
        },
        {
            "name": "label",
            "command": "label",
            "feeds": {"reward": "reward@last"},
            "set": {"by": "judge:length"},
            "metrics": ["votes", "reward_accuracy"],
        },
        {
            "name": "reward",
            "config": "reward.yaml",
            "feeds": {"model.init_args.init_from": "sft", "data.init_args.train": "label"},
            "metrics": ["val/accuracy"],
        },
        {
            "name": "ppo",
            "config": "ppo.yaml",
            "feeds": {
                "model.init_args.init_from": "ppo@last",
                "model.init_args.reference_from": "sft",
                "model.init_args.rewards": "reward",
            },
            "metrics": ["val/score", "val/kl"],
        },
    ],
    "prompts": ["the film"],
    "sample_tokens": 4,
}


class World:
    """A folder with a pipeline of two rounds, whose processes are forked from one that has imported everything.

    Args:
        kill: step -> how often it is killed in its middle yet.
    """

    def __init__(self, folder, micro, gpt):
        self.folder, self.gpt, self.kill, self.printed = folder, gpt, {}, io.StringIO()
        folder.mkdir(exist_ok=True)
        (folder / "judge.py").write_text(JUDGE)
        (folder / "prompts.jsonl").write_bytes(micro.prompts.read_bytes())
        data = {"data__validation_fraction": 0.3, "trainer__max_epochs": 2}
        for word, changes in (("reward", data | {"data__batch_size": 2}), ("ppo", {"trainer__max_epochs": 2})):
            (folder / f"{word}.yaml").write_text(json.dumps(micro.recipe(word, folder / "unused", **changes)))
        self.content = json.loads(json.dumps(ROUNDS)) | {"start": {"sft": str(micro.gpt), "ppo": str(micro.gpt)}}

    def process(self, words):
        arguments = words[3:]
        (folder,) = [word for word in arguments if "default_root_dir" in word] or [""]
        step = folder.rpartition("round-")[2] or f"{self._round(arguments)}/{arguments[0]}"
        process = self.gpt.start(*arguments, cwd=self.folder)
        if self.kill.get(step, 0):
            self.kill[step] -= 1
            self._kill_in_the_middle(process, arguments)
        ended = self.gpt.wait()
        self.printed.write(ended.stdout + ended.stderr)
        return ended.status if ended.status >= 0 else 128 - ended.status

    def _round(self, arguments):
        """Of a command's words: compare has the name of its round, label its number, which is the same here."""
        (at,) = [place for place, word in enumerate(arguments) if word in ("--name", "--round")]
        return arguments[at + 1].removeprefix("round-")

    def _kill_in_the_middle(self, process, arguments):
        """A run once it has a checkpoint, another command at once. One that was faster than that has ended."""
        folder = next((Path(word.partition("=")[2]) for word in arguments if "default_root_dir" in word), None)
        while folder is not None and not list((self.folder / folder / "checkpoints").glob("step=*.ckpt")):
            time.sleep(0.01)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)

    def run(self):
        """What gpt run printed; it ends as gpt run does."""
        (self.folder / "rounds.yaml").write_text(yaml.safe_dump(self.content))
        output = io.StringIO()
        console = Console(file=output, width=140)
        pipeline = read_pipeline(Path("rounds.yaml"))
        try:
            run_plans(pipeline, make_plans(pipeline), console)
            show_result(pipeline, console)
        finally:
            self.printed.write(output.getvalue())
        return output.getvalue()

    @property
    def outcome(self):
        """Weights of all exports, votes of all rounds, answers of all tasks."""
        with ComparisonStore.open(self.folder / "runs/comparisons.db", writing=False) as store:
            found = [(task.round, task.prompt, [answer.text for answer in task.answers]) for task in store.tasks()]
        files = sorted((self.folder / "runs").glob("round-*/*/export*/model.safetensors"))
        files += sorted((self.folder / "runs").glob("round-*/label/votes.jsonl"))
        names = [str(path.relative_to(self.folder)) for path in files]
        return found, dict(zip(names, (hashlib.sha256(path.read_bytes()).hexdigest() for path in files), strict=True))


@pytest.fixture
def make(tmp_path, micro, gpt, monkeypatch):
    def make():
        return enter(World(tmp_path / "world", micro, gpt), monkeypatch)

    return make


def enter(world, monkeypatch):
    monkeypatch.chdir(world.folder)
    monkeypatch.setattr(command, "run_process", world.process)
    return world


@pytest.fixture(scope="module")
def straight(tmp_path_factory, micro, gpt):
    """One that nothing disturbed."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        world = enter(World(tmp_path_factory.mktemp("straight"), micro, gpt), monkeypatch)
        world.run()
    return world


def test_each_round_goes_on_from_the_newest_policy(straight, micro, monkeypatch):
    printed, runs = straight.printed.getvalue(), straight.folder / "runs"
    digests = [
        model_digest(load_pretrained(str(folder), kind="gpt")) for folder in (micro.gpt, runs / "round-1/ppo/export")
    ]
    with ComparisonStore.open(runs / "comparisons.db", writing=False) as store:
        tasks = list(store.tasks())
        assert [task.round for task in tasks] == [1] * 12 + [2] * 12
        assert len({task.prompt for task in tasks}) == 24  # of prompts that no other round has
        # In the first round, policy and SFT model are one.
        assert {answer.source.digest for task in tasks[:12] for answer in task.answers} == {digests[0]}
        assert {answer.source.digest for task in tasks[12:] for answer in task.answers} == set(digests)
        assert all(len({answer.text for answer in task.answers}) == len(task.answers) for task in tasks)
    lines = [(runs / f"round-{n}/label/votes.jsonl").read_text(encoding="utf-8").splitlines() for n in (1, 2)]
    votes = [list(map(json.loads, of)) for of in lines]
    assert votes[1][: len(votes[0])] == votes[0]
    assert {row["round"] for row in votes[1][len(votes[0]) :]} == {2}
    for row in votes[1]:  # ranked by their length
        assert row["ranking"] == [1 + sum(len(b) > len(a) for b in row["responses"]) for a in row["responses"]]
    assert "reward_accuracy" not in read_summary(runs / "round-1/label").after  # there was none yet
    assert 0 <= read_summary(runs / "round-2/label").after["reward_accuracy"] <= 1
    # Against the first SFT model, not against where the round began.
    assert read_summary(runs / "round-1/ppo").before["val/kl"] == pytest.approx(0.0, abs=1e-5)
    kl = [read_summary(runs / f"round-{n}/ppo") for n in (1, 2)]
    assert kl[1].before["val/kl"] == pytest.approx(kl[0].after["val/kl"], rel=1e-5)
    assert kl[1].before["val/kl"] > 1e-3
    _check_report(runs, printed, kl[0].steps)
    assert enter(straight, monkeypatch).run().count("done before, skipped") == 8


def _check_report(runs, printed, steps):
    assert "What each round did" in printed
    assert "What each stage did" not in printed
    assert (runs / "result.png").read_bytes().startswith(b"\x89PNG")
    curves = points(runs / "rounds")
    own = [points(runs / f"round-{n}/ppo")["val/score"] for n in (1, 2)]
    joined = dict(own[0])
    for at, values in own[1].items():  # where a round ends, another begins, with another reward
        joined[steps + at] = joined.get(steps + at, set()) | values
    assert curves["ppo/val/score"] == joined
    assert {*curves["rounds/label/votes"]} == {1, 2}


def test_killed_anywhere_it_goes_on_bit_for_bit(make, straight):
    world = make()
    steps = ["1/compare", "1/label", "1/ppo", "2/compare", "2/reward", "2/ppo"]
    world.kill, killed = dict.fromkeys(steps, 1), 0
    while any(world.kill.values()):
        with contextlib.suppress(SystemExit):
            world.run()
        killed += "ended with status 137" in world.printed.getvalue().splitlines()[-1]
    world.run()
    assert killed >= 4
    assert world.outcome == straight.outcome


def test_people_are_waited_for_in_each_round(make):
    world = make()
    label = world.content["round"][1]
    label |= {"set": {"enough": 10, "overlap": 0.5}, "feeds": {}, "metrics": ["votes", "agreement"]}
    for number in (1, 2):
        for left in (12, 3):
            with pytest.raises(SystemExit) as ended:
                world.run()
            assert ended.value.code == command.WAITS
            *skipped, line = world.printed.getvalue().splitlines()
            assert "label" not in skipped[-1]
            assert line == (
                f"[{4 * number - 2}/8] round-{number}/label: {left} of 12 tasks wait to be ranked ({left - 2} until it "
                f"is enough): gpt label runs/comparisons.db --overlap 0.5 --round {number}; then the same gpt run goes "
                "on"
            )
            _rank(number, 9 if left == 12 else 1)
    printed = world.run()
    assert "What each round did" in printed
    # Votes that come later are those of the next round; what has been learned from stays as it was.
    lines = (world.folder / "runs/round-1/label/votes.jsonl").read_text().splitlines()
    assert len(lines) == 10
    _rank(1, 2)
    assert world.run().count("done before, skipped") == 8
    assert (world.folder / "runs/round-1/label/votes.jsonl").read_text().splitlines() == lines


def _rank(number, count):
    with ComparisonStore.open(Path("runs/comparisons.db")) as store:
        store.add_labeler("Ada", "person")
        waiting = [task for task in store.tasks(number) if store.vote_of(task.id, "Ada") is None]
        for task in waiting[:count]:
            judged = {answer.id: Judgement(rank) for rank, answer in enumerate(task.answers, start=1)}
            store.vote(Vote(task.id, "Ada", judged, f"Ada {task.id}"))


def test_what_a_round_was_made_from_may_not_change(make):
    world = make()
    world.content["rounds"] = 1
    world.run()
    compare = world.content["round"][0]
    compare["set"]["temperature"] = 0.5
    kept = "its answers and votes are kept: name another --root"
    with pytest.raises(UserError, match=rf"^runs/round-1/compare: since it was run, temperature was 1.0, .*; {kept}$"):
        world.run()
    del compare["set"]["temperature"]
    votes = world.folder / "runs/round-1/label/votes.jsonl"
    votes.write_text(votes.read_text().replace('"ranking": [1', '"ranking": [3'))
    with pytest.raises(UserError, match=r"^runs/round-1/reward: since it was run, the content of data.train"):
        world.run()
