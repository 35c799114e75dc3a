"""What a comparison leaves behind."""

import json

import pytest

from gpt_modules.errors import UserError
from gpt_modules.evaluation.adaptation.comparison import Comparison, Point, Settings
from gpt_modules.evaluation.adaptation.report import (
    comparison_figures,
    finetuned_baseline,
    how_finetuned,
    metric_values,
    write_comparison,
)
from gpt_modules.evaluation.tasks.metrics import Estimate

GRADIENT = Point("gradient", 4, 1, Estimate(2.0, 0.1), Estimate(0.5, 0.2))
READING = Point("in-context (baseline)", 4, 0, Estimate(3.0, None), None)
TUNED = Point("fine-tuning", 4, 10, Estimate(float("inf"), None), Estimate(0.25, None), 0.01)
POINTS = [GRADIENT, READING, TUNED]


def test_scalars_by_way_and_metric():
    assert metric_values(POINTS) == {
        "adaptation/gradient_accuracy": 0.5,
        "adaptation/gradient_loss": 2.0,
        "adaptation/in_context_baseline_loss": 3.0,
        "adaptation/fine_tuning_accuracy": 0.25,
        "adaptation/fine_tuning_loss": float("inf"),
    }


def test_the_baseline_is_fine_tuning_by_accuracy_or_of_numbers_by_loss():
    assert finetuned_baseline(POINTS) == {"val/accuracy": {"name": "(fine-tuning)", "value": 0.25}}
    numbers = TUNED._replace(accuracy=None, loss=Estimate(1.5, None))
    assert finetuned_baseline([numbers]) == {"val/loss": {"name": "(fine-tuning)", "value": 1.5}}
    assert finetuned_baseline([GRADIENT]) == {}


def test_limits_that_fine_tuning_met_are_said():
    settings = Settings([0, 5], 10, [0.001, 0.01], 1)
    assert how_finetuned(POINTS, settings, 7, None) == (
        "fine-tuning: AdamW from the weights that the run began with, rate (of 0.001, 0.01) and steps (up to 10) "
        "chosen on 7 training tasks; with 4 examples 0.01 (the largest) and 10 (the most)"
    )  # fmt: skip
    within = how_finetuned([TUNED._replace(steps=5, learning_rate=0.001)], settings, 7, "runs/a/export")
    assert within.startswith("fine-tuning: AdamW from runs/a/export, ")
    assert within.endswith("with 4 examples 0.001 and 5")
    assert how_finetuned([GRADIENT], settings, 7, None).startswith("fine-tuning: left out, as no checkpoint was given")


def test_a_file_of_plain_values(tmp_path):
    found = Comparison([TUNED], [GRADIENT])
    write_comparison(tmp_path / "run", found, (4, 1), {"tasks": 20, "tuning_tasks": 7, "seed": 0}, ["a note"])
    written = json.loads((tmp_path / "run/adaptation.json").read_text())
    assert written["trained"] == {"support": 4, "steps": 1}
    assert (written["tasks"], written["tuning_tasks"], written["seed"], written["notes"]) == (20, 7, 0, ["a note"])
    assert written["by_steps"][0]["loss"] == {"value": None, "standard_error": None}, "JSON knows no infinity"
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: found a file, expected a folder to write to"):
        write_comparison(tmp_path / "file", found, (4, 1), {}, [])


def test_figures_by_steps_and_by_examples():
    (first, by_steps), (second, by_support) = comparison_figures(Comparison(POINTS, POINTS), (4, 1))
    assert (first, second) == ("steps", "support")
    assert by_steps.axes[0].get_xlabel() == "inner steps"
    assert by_support.axes[0].get_xlabel() == "support examples"
    assert by_steps.get_suptitle() == "4 examples"
    assert by_support.get_suptitle() == "1 inner step, fine-tuning after its best"
