"""A pipeline runs what is not done, goes on with what was cut off, and notices what has changed."""

import io
import json
import os
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from gpt_modules.commands import run as pipelines
from gpt_modules.commands.pipelines.reading import read_pipeline
from gpt_modules.commands.run import main, make_plans, run_plan
from gpt_modules.errors import UserError
from gpt_modules.storage.summary import Summary, write_summary


class World:
    """A pipeline of two stages, pretraining and SFT on rows of its own, whose processes are recorded and succeed unless
    told otherwise.
    """

    def __init__(self, folder, micro):
        self.folder, self.commands, self.status = folder, [], 0
        self.rows = folder / "sft.jsonl"
        self.rows.write_bytes(micro.sft.read_bytes())
        for word in ("pretraining", "sft"):
            recipe = micro.recipe(word, folder / "unused")
            self.write(word, recipe)
        self.change("sft", data__train="sft.jsonl", data__tokenizer="${model.init_args.init_from}")
        stages = [{"name": word, "config": f"{word}.yaml", "metrics": ["val/loss"]} for word in ("pretraining", "sft")]
        stages[1]["feeds"] = {"model.init_args.init_from": "pretraining"}
        self.pipeline = {"root": "runs", "stages": stages}
        (folder / "gpu.yaml").write_text("trainer: {accelerator: gpu, precision: bf16-mixed}\n")

    def write(self, word, recipe):
        (self.folder / f"{word}.yaml").write_text("# a comment\n" + json.dumps(recipe))

    def change(self, word, **changes):
        recipe = yaml.safe_load((self.folder / f"{word}.yaml").read_text())
        for place, value in changes.items():
            section, _, key = place.partition("__")
            (recipe[section].get("init_args", recipe[section]))[key] = value
        self.write(word, recipe)

    def process(self, command):
        self.commands.append(command[4:])
        words = dict(word[2:].split("=", 1) for word in command if word.startswith("--") and "=" in word)
        folder = Path(words["trainer.default_root_dir"])
        if self.status == 0:
            (folder / "export").mkdir(parents=True)
            (folder / "export" / "config.json").write_text('{"model_type": "gpt2"}')
            write_summary(folder, Summary({"val/loss": 2.5}, {"val/loss": 1.25}, 90.0))
        return self.status

    def run(self, *overlays, root=None):
        """What was printed."""
        (self.folder / "pipeline.yaml").write_text(json.dumps(self.pipeline))
        pipeline, output = read_pipeline(self.folder / "pipeline.yaml", root), io.StringIO()
        for number, plan in enumerate(make_plans(pipeline, list(overlays)), start=1):
            run_plan(plan, f"[{number}]", Console(file=output, width=60))
        return output.getvalue()

    def refusal(self, *overlays, **options):
        begun = len(self.commands)
        with pytest.raises(UserError) as caught:
            self.run(*overlays, **options)
        assert len(self.commands) == begun
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400
        return str(caught.value)


@pytest.fixture
def world(tmp_path, micro, monkeypatch):
    world = World(tmp_path, micro)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipelines, "run_process", world.process)
    return world


def test_stages_run_in_order_and_feed_each_other(world):
    world.run()
    first, second = world.commands
    assert first == ["--config", "pretraining.yaml", "--trainer.default_root_dir=runs/pretraining"]
    assert second[1:] == [
        "sft.yaml",
        "--trainer.default_root_dir=runs/sft",
        "--model.init_args.init_from=runs/pretraining/export",
    ]


def test_what_is_done_is_skipped_whatever_does_not_matter_has_changed(world):
    """A comment, the root in other words, the hardware, a moved file with an old date, another spelling of a value."""
    world.run()
    (world.folder / "sft.yaml").write_text("# another\n" + (world.folder / "sft.yaml").read_text())
    world.change("pretraining", trainer__gradient_clip_val=1)
    world.change("sft", data__train=str(world.rows), checkpoint__every_n_steps=3)
    os.utime(world.rows)
    assert world.run("gpu.yaml", root=str(world.folder / "runs")).count("done before, skipped") == 2
    assert len(world.commands) == 2


def test_what_matters_is_noticed_and_named(world):
    world.run()
    rows = world.rows.read_text()
    world.rows.write_text(rows.replace("good", "nice"))
    line = world.refusal()
    assert line == (
        "runs/sft: since it was run, the content of data.train changed; remove the folder to run it anew, or "
        "name another --root"
    )
    world.rows.write_text(rows)
    world.change("pretraining", trainer__max_epochs=4)
    assert "runs/pretraining: since it was run, trainer.max_epochs was 3, is now 4; remove" in world.refusal()
    world.change("pretraining", trainer__max_epochs=3)
    world.pipeline["stages"][1]["set"] = {"model.init_args.optimizer.lr": 0.5}
    assert "runs/sft: since it was run, model.optimizer.lr was 0.01, is now 0.5" in world.refusal()
    del world.pipeline["stages"][1]["set"]
    (world.folder / "runs/pretraining/export/config.json").write_text('{"model_type": "gpt_neo"}')
    line = "the content of data.tokenizer changed; the content of model.init_from changed; remove"
    assert f"runs/sft: since it was run, {line}" in world.refusal()


def test_what_is_wrong_in_a_later_stage_is_told_before_the_first_begins(world):
    """A key, a type, a class, data that is not there, and a feed that no class has."""
    feeds = world.pipeline["stages"][1]["feeds"]
    world.pipeline["stages"][1]["feeds"] = {"model.init_args.init_form": "pretraining"}
    assert world.refusal().startswith("stage sft: ")
    world.pipeline["stages"][1]["feeds"] = feeds
    for change in ({"trainer__max_steps": "many"}, {"model__lr": 1.0}, {"data__train": "absent.jsonl"}):
        before = (world.folder / "sft.yaml").read_text()
        world.change("sft", **change)
        line = world.refusal()
        assert line.startswith("stage sft: ")
        assert change.popitem()[0].partition("__")[2] in line or "absent.jsonl" in line
        (world.folder / "sft.yaml").write_text(before)
    world.pipeline |= {"prompts": ["x"], "sample_tokens": 32}
    assert world.refusal() == "stage pretraining: sample_tokens: found 32, expected fewer than the model's 32"


def test_a_stage_writes_where_the_pipeline_looks_however_its_keys_are_said(world):
    world.pipeline["stages"][1]["set"] = {"trainer": "{default_root_dir: elsewhere, max_steps: 2}"}
    expected = "found 'elsewhere', expected the pipeline's own 'runs/sft': set no other"
    assert world.refusal() == f"stage sft: trainer.default_root_dir: {expected}"


def test_two_batches_of_validation_are_two_in_a_pipeline(world):
    world.change("sft", trainer__limit_val_batches=2)
    world.run()
    assert len(world.commands) == 2


def test_what_was_cut_off_is_resumed(world):
    world.status = 143
    with pytest.raises(SystemExit) as ended:
        world.run()
    assert ended.value.code == 143
    (world.folder / "runs/pretraining/checkpoints").mkdir()
    (world.folder / "runs/pretraining/checkpoints/step=00000001.ckpt").touch()
    world.status = 0
    assert "resuming" in world.run()
    assert world.commands[1][-2:] == ["--ckpt_path", "last"]
    assert "--ckpt_path" not in world.commands[2]


def test_a_recipe_that_failed_at_once_may_be_mended(world):
    """Nothing was made of it yet, so nothing is lost; what it had exported of the best so far makes room."""
    world.status = 2
    with pytest.raises(SystemExit):
        world.run()
    (world.folder / "runs/pretraining/export").mkdir()
    world.change("pretraining", trainer__max_epochs=4)
    world.status = 0
    world.run()
    assert len(world.commands) == 3


def test_a_recipe_that_changes_while_an_earlier_stage_runs_is_told(world):
    """What was checked and written down is what runs."""
    real = world.process

    def slow(command):
        world.change("sft", trainer__max_epochs=4)
        return real(command)

    pipelines.run_process = slow  # which the fixture puts back
    with pytest.raises(UserError, match=r"^stage sft: found its recipe changed since gpt run began, expected it to"):
        world.run()
    assert [command[1] for command in world.commands] == ["pretraining.yaml"]
    assert not (world.folder / "runs/sft").exists()
    world.run()
    assert [command[1] for command in world.commands] == ["pretraining.yaml", "sft.yaml"]


def test_an_export_of_the_users_is_not_made_room_of(world):
    """However often it is tried; an attempt of ours has left its `stage.json`."""
    mine = world.folder / "runs/sft/export"
    mine.mkdir(parents=True)
    (mine / "model.safetensors").write_bytes(b"mine")
    line = "runs/sft/export: found a folder that gpt run did not make, expected none; name another --root"
    assert world.refusal() == world.refusal() == line
    assert (mine / "model.safetensors").read_bytes() == b"mine"
    assert world.commands == []


def test_a_lost_artefact_and_a_run_of_somebody_else_are_one_line(world):
    world.run()
    config = world.folder / "runs/pretraining/export/config.json"
    text = config.read_text()
    config.unlink()
    assert world.refusal().startswith("runs/pretraining/export/config.json: missing, though its stage is done")
    config.write_text(text)
    (world.folder / "runs/sft/stage.json").unlink()
    assert world.refusal() == "runs/sft/stage.json: no such file, expected what gpt run made this folder from"


def test_a_stage_that_ends_without_its_outcome_is_one_line(world, monkeypatch):
    monkeypatch.setattr(pipelines, "run_process", lambda command: 0)
    with pytest.raises(
        UserError, match=r"pretraining/summary.json: no such file, expected the summary of a finished run"
    ):
        world.run()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs no right to write, or a mount")
def test_nowhere_to_write_is_one_line(world):
    (world.folder / "runs").write_text("a file")
    assert "runs/pretraining: could not be written (" in world.refusal()


@pytest.mark.parametrize("words", [["absent"], ["absent.yaml"], ["pipelines/absent", "--config", "x"]])
def test_a_pipeline_that_is_none(words):
    with pytest.raises(UserError, match="no such recipe"):
        main(words)


@pytest.mark.slow
def test_two_stages_for_real(micro, gpt, tmp_path):
    """Pretraining feeds SFT; the second time nothing is left to do."""
    names = ("pretraining", "sft")
    recipes = {
        word: micro.recipe(word, tmp_path / "unused", trainer__max_steps=2, trainer__limit_val_batches=1)
        for word in names
    }
    recipes["sft"]["data"]["init_args"]["tokenizer"] = "${model.init_args.init_from}"
    for word, recipe in recipes.items():
        (tmp_path / f"{word}.yaml").write_text(json.dumps(recipe))
    stages = [{"name": word, "config": f"{word}.yaml", "metrics": ["val/loss"]} for word in names]
    stages[1]["feeds"] = {"model.init_args.init_from": "pretraining"}
    content = {"root": str(tmp_path / "runs"), "stages": stages, "prompts": ["the film"], "sample_tokens": 4}
    (tmp_path / "pipeline.yaml").write_text(json.dumps(content))
    ended = gpt.run("run", tmp_path / "pipeline.yaml")
    assert ended.status == 0, ended.stderr
    assert "What each stage did" in ended.stdout
    assert "What each stage's model says" in ended.stdout
    assert (tmp_path / "runs/result.png").read_bytes().startswith(b"\x89PNG")
    again = gpt.run("run", tmp_path / "pipeline.yaml")
    assert again.stdout.count("done before, skipped") == 2
