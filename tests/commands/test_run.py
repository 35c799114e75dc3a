"""A pipeline runs what is not done, goes on with what was cut off, and notices what has changed."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from gpt_modules.commands import run as pipelines
from gpt_modules.commands.run import (
    Pipeline,
    Stage,
    read_pipeline,
    result_table,
    run_process,
    run_stage,
    stage_arguments,
)
from gpt_modules.errors import UserError


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Two stages whose runs are recorded, and succeed unless told otherwise."""
    for recipe in ("one.yaml", "two.yaml", "overlay.yaml"):
        (tmp_path / recipe).write_text("trainer: {max_steps: 1}\n")
    stages = [
        Stage("one", [str(tmp_path / "one.yaml")], metrics=["val/loss"]),
        Stage(
            "two",
            [str(tmp_path / "two.yaml")],
            feeds={"model.init_args.init_from": "one"},
            set={"trainer.max_steps": 3},
        ),
    ]
    pipeline = Pipeline(tmp_path / "runs", stages)
    commands: list[list[str]] = []
    status = {"next": 0}

    def process(command):
        commands.append(command)
        folder = Path(next(word.split("=", 1)[1] for word in command if word.startswith("--trainer.default_root_dir=")))
        if status["next"] == 0:
            (folder / "export").mkdir(parents=True, exist_ok=True)
            (folder / "export" / "config.json").write_text("{}")
            summary = {"before": {"val/loss": 2.5}, "after": {"val/loss": 1.25}, "seconds": 90.0}
            (folder / "summary.json").write_text(
                json.dumps(summary | {"baselines": {"val/loss": {"name": "(3-gram)", "value": 2.0}}})
            )
        return status["next"]

    monkeypatch.setattr(pipelines, "run_process", process)
    return pipeline, commands, status


def run(pipeline, overlays=()):
    output = io.StringIO()
    for number, stage in enumerate(pipeline.stages, start=1):
        run_stage(pipeline, stage, list(overlays), f"[{number}]", Console(file=output, width=300))
    return output.getvalue()


def test_stages_run_in_order_and_feed_each_other(world):
    pipeline, commands, _ = world
    run(pipeline)
    first, second = (command[4:] for command in commands)
    root = pipeline.root
    assert first == ["--config", pipeline.stages[0].config[0], f"--trainer.default_root_dir={root / 'one'}"]
    assert second == [
        "--config",
        pipeline.stages[1].config[0],
        f"--trainer.default_root_dir={root / 'two'}",
        f"--model.init_args.init_from={root / 'one' / 'export'}",
        "--trainer.max_steps=3",
    ]
    assert commands[0][:4] == [sys.executable, "-m", "gpt_modules", "fit"]


def test_what_is_done_is_skipped(world):
    pipeline, commands, _ = world
    run(pipeline)
    assert run(pipeline).count("done before, skipped") == 2
    assert len(commands) == 2


def test_what_was_cut_off_is_resumed(world):
    pipeline, commands, status = world
    status["next"] = 143
    with pytest.raises(SystemExit) as ended:
        run(pipeline)
    assert ended.value.code == 143
    (pipeline.root / "one" / "checkpoints").mkdir()
    (pipeline.root / "one" / "checkpoints" / "step=00000001.ckpt").touch()
    status["next"] = 0
    assert "resuming" in run(pipeline)
    assert commands[1][-2:] == ["--ckpt_path", "last"]
    assert "--ckpt_path" not in commands[2]


def test_a_changed_recipe_is_noticed(world):
    pipeline, _, _ = world
    run(pipeline)
    Path(pipeline.stages[0].config[0]).write_text("trainer: {max_steps: 2}\n")
    with pytest.raises(UserError, match=r"one: made by another version of .*one\.yaml"):
        run(pipeline)


def test_changed_weights_are_noticed_by_the_stage_that_they_feed(world):
    pipeline, _, _ = world
    run(pipeline)
    (pipeline.export("one") / "config.json").write_text('{"sha256": "other"}')
    with pytest.raises(UserError, match=r"two: made by another version"):
        run(pipeline)


def test_an_overlay_is_part_of_what_a_stage_depends_on(world, tmp_path):
    pipeline, commands, _ = world
    overlay = str(tmp_path / "overlay.yaml")
    run(pipeline, [overlay])
    assert commands[0][4:8] == ["--config", pipeline.stages[0].config[0], "--config", overlay]
    with pytest.raises(UserError, match="another version"):
        run(pipeline)


def test_a_recipe_that_failed_at_once_may_be_mended(world):
    """Nothing was made of it yet, so nothing is lost."""
    pipeline, commands, status = world
    status["next"] = 2
    with pytest.raises(SystemExit):
        run(pipeline)
    Path(pipeline.stages[0].config[0]).write_text("trainer: {max_steps: 2}\n")
    status["next"] = 0
    run(pipeline)
    assert len(commands) == 3


def test_a_lost_artefact_is_one_line(world):
    pipeline, _, _ = world
    run(pipeline)
    (pipeline.export("one") / "config.json").unlink()
    with pytest.raises(UserError, match=r"one/export/config\.json: missing"):
        run(pipeline)


def test_the_table_shows_before_after_baseline_and_minutes(world):
    pipeline, _, _ = world
    run(pipeline)
    output = io.StringIO()
    Console(file=output, width=140).print(result_table(pipeline))
    row = next(line for line in output.getvalue().splitlines() if "one" in line)
    for cell in ("loss", "2.500", "1.250", "2.000", "1.5"):
        assert cell in row


def test_values_of_any_kind_are_set_as_json():
    stage = Stage("a", ["r.yaml"], set={"x": [1, 2], "y": True, "z": "text"})
    words = stage_arguments(Pipeline(Path("runs"), [stage]), stage, [])
    assert words[-3:] == ["--x=[1, 2]", "--y=true", "--z=text"]


GOOD = {"name": "a", "config": "one.yaml"}


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"stages": []}, "root: missing"),
        ({"root": "runs", "stages": GOOD}, "stages: found dict, expected a list"),
        ({"root": "runs", "stages": ["a"]}, r"stages\[1\]: found str"),
        ({"root": "runs", "stages": [{"name": "a"}]}, r"stages\[1\]\.config: missing"),
        ({"root": "runs", "stages": [{**GOOD, "feed": {}}]}, r"stages\[1\]\.feed: unknown key"),
        (
            {"root": "runs", "stages": [{**GOOD, "feeds": {"x": "b"}}]},
            r"feeds\.x: found 'b', expected an earlier stage: none",
        ),
        ({"root": "runs", "stages": [GOOD, GOOD]}, r"stages\[2\]\.name: found 'a'"),
        ({"root": "runs", "stages": [{**GOOD, "name": "../a"}]}, r"stages\[1\]\.name: found '\.\./a'"),
        ({"root": "runs", "stages": [{**GOOD, "config": "absent.yaml"}]}, r"absent\.yaml: no such recipe"),
        ({"root": "runs", "stages": [], "stage": []}, "stage: unknown key"),
    ],
)
def test_mistakes_in_a_pipeline_are_one_line(tmp_path, monkeypatch, content, part):
    monkeypatch.chdir(tmp_path)
    Path("one.yaml").write_text("{}")
    Path("pipeline.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=part) as error:
        read_pipeline(Path("pipeline.yaml"))
    assert "\n" not in str(error.value)
    assert "yaml" in str(error.value)


def test_the_root_of_the_command_line_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("one.yaml").write_text("{}")
    Path("pipeline.yaml").write_text(
        yaml.safe_dump({"root": "runs", "stages": [GOOD], "prompts": ["x"], "sample_tokens": 3})
    )
    pipeline = read_pipeline(Path("pipeline.yaml"), "elsewhere")
    assert pipeline.folder(pipeline.stages[0]) == Path("elsewhere/a")
    assert (pipeline.prompts, pipeline.sample_tokens) == (["x"], 3)


@pytest.mark.parametrize(("code", "status"), [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)])
def test_a_stages_status_is_handed_on(code, status):
    assert run_process([sys.executable, "-c", code]) == status


STOPPED = """
import os, signal, sys, threading
from gpt_modules.commands.run import run_process
stage = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(143)); print('up', flush=True); time.sleep(60)"
threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
sys.exit(run_process([sys.executable, "-c", stage]))
"""


def test_a_signal_reaches_the_stage_and_its_status_comes_back():
    assert (
        subprocess.run([sys.executable, "-c", STOPPED], check=False, timeout=60, capture_output=True).returncode == 143
    )


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
    stages = [{"name": word, "config": str(tmp_path / f"{word}.yaml"), "metrics": ["val/loss"]} for word in names]
    stages[1]["feeds"] = {"model.init_args.init_from": "pretraining"}
    content = {"root": str(tmp_path / "runs"), "stages": stages, "prompts": ["the film"], "sample_tokens": 4}
    (tmp_path / "pipeline.yaml").write_text(json.dumps(content))
    ended = gpt.run("run", tmp_path / "pipeline.yaml")
    assert ended.status == 0, ended.stderr
    assert "What each stage did" in ended.stdout
    assert "What each stage's model says" in ended.stdout
    again = gpt.run("run", tmp_path / "pipeline.yaml")
    assert again.stdout.count("done before, skipped") == 2
