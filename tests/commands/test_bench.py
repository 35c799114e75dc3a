"""gpt bench tells what a recipe takes, and leaves nothing."""

import json
import re

import pytest

from gpt_modules.commands import bench
from gpt_modules.errors import UserError
from gpt_modules.training.profiling.roofline import Work
from gpt_modules.training.profiling.stopwatch import Found


@pytest.mark.parametrize(
    ("word", "unit", "strategy"),
    [("pretraining", "tokens", None), ("ppo-shared", "episodes", "fsdp2"), ("maml", "tasks", "ddp")],
)
def test_a_row_for_each_phase_and_nothing_left(gpt, micro, tmp_path, word, unit, strategy):
    recipe = micro.recipe(word, tmp_path / "run")
    recipe["trainer"] |= {"devices": 2, "strategy": strategy} if strategy else {}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    (temporary := tmp_path / "temporary").mkdir()
    ranks = 2 if strategy else 1
    ended = gpt.run("bench", "recipe.yaml", "--seconds", "0.01", cwd=tmp_path, ranks=ranks, TMPDIR=str(temporary))
    assert ended.status == 0, ended.stderr
    rows = {
        line.split()[0]: line.split()[1:] for line in ended.stdout.splitlines() if re.match(r"[a-z]+ +[\d,.]+ ", line)
    }
    phases = {"forward", "backward", "optimizer", "data", "all"} | (
        {"sampling", "scoring"} if unit == "episodes" else set()
    )
    assert rows.keys() >= phases
    milliseconds = {name: float(row[0].replace(",", "")) for name, row in rows.items()}
    assert sum(milliseconds.values()) == pytest.approx(2 * milliseconds["all"], abs=0.1 * len(rows))
    assert float(rows["forward"][2].replace(",", "")) > 0
    if strategy:  # beside arithmetic, memory and the rest
        assert ended.stdout.startswith("2 processes, of which the first has ")
        share = {name: float(row[-2].strip(">%")) for name, row in rows.items()}
        assert share["all"] > 0
        assert (share["scoring" if word == "ppo-shared" else "backward"]) > 0
        assert not (gpt.folder / "stdout.1").read_text(), "one process tells"
    assert re.search(rf"^[\d,.]+ {unit}/s; ", ended.stdout, re.M)
    assert not (tmp_path / "run").exists()
    assert {path.name for path in tmp_path.iterdir()} <= {"recipe.yaml", "cache", "temporary"}
    assert not [path for path in temporary.iterdir() if path.suffix != ".told"]


def test_a_recipe_that_would_end_sooner_is_measured_all_the_same(gpt, micro, tmp_path):
    """Two steps an epoch, one epoch, two steps in all, a second of time: warming up alone takes three."""
    ends = {"max_epochs": 1, "limit_train_batches": 2, "max_steps": 2, "max_time": "00:00:00:01"}
    recipe = micro.recipe("pretraining", tmp_path / "run", **{f"trainer__{key}": value for key, value in ends.items()})
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    ended = gpt.run("bench", "recipe.yaml", "--seconds", "1.2", cwd=tmp_path)
    assert ended.status == 0, ended.stderr
    assert " steps in " in ended.stdout


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["--trainer.max_steps", "2"],
            "recipe.yaml: found a run that ends before it is measured, expected a longer one",
        ),
        (["--trainer.fast_dev_run", "true"], "max_epochs or max_time, no fast_dev_run, or fewer --seconds"),
        (["--ckpt_path", "last"], "--ckpt_path: found a checkpoint, expected none"),
        (["--seconds", "0"], "--seconds: found '0', expected a number above 0"),
        (["--model.optimiser.lr", "1"], "--model.optimiser"),
        (["--config", "pipelines/demo"], "demo.yaml:6: stages: found a pipeline, expected a recipe; gpt run runs it"),
    ],
)
def test_mistakes_are_one_line(gpt, micro, tmp_path, words, line):
    (tmp_path / "recipe.yaml").write_text(json.dumps(micro.recipe("pretraining", tmp_path / "run")))
    ended = gpt.run("bench", "recipe.yaml", *words, cwd=tmp_path)
    assert ended.status == 2
    assert line in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("busy", [0.5, 1.0])
def test_what_other_work_slowed_has_no_verdict_and_no_share_above_all(busy):
    """Arithmetic that would take 6.25 times the second that there was, and one step of it."""
    work = Work(flops=10.0, arithmetic=6.25, memory=0.5)
    found = Found(1, "tokens", 5.0, "step", 1, {"forward": 1.0}, {"forward": work}, "float32", 4.0, 1e9, 1e9, busy)
    told = bench.report(found)
    assert "; 1 step in 1.0 s, per step:" in told
    assert "625%" not in told
    assert told.count(">100%") == 4, "of the peak and of the time, in the row and in the sum"
    assert ("held up by arithmetic" in told) == (busy == 1.0)
    assert told.endswith("other work is on this machine.\n") == (busy == 0.5)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "recipe: found none, expected one, such as gpt bench ppo/tiny"),
        (["--trainer.max_steps", "3"], "recipe: found none, expected one"),
        (["hardware/gpu"], "gpu.yaml: found neither a model nor data, as in an overlay, expected a recipe before it: "),
        (["--config", "hardware/ddp"], "ddp.yaml: found neither a model nor data, as in an overlay, expected a recipe"),
        (["--seconds", "3", "pipelines/rounds"], "rounds.yaml:11: round: found a pipeline, expected a recipe; gpt run"),
        (["--config=no/such"], "no/such: no such recipe"),
    ],
)
def test_what_is_no_recipe_is_said(words, line):
    with pytest.raises(UserError, match=line):
        bench.main(words)
