"""A comparison as text and as JSON."""

import json

from gpt_modules.evaluation.adaptation.comparison import Comparison, Point
from gpt_modules.evaluation.adaptation.table import adaptation_table, comparison_values
from gpt_modules.evaluation.tasks.metrics import Estimate


def comparison():
    gradient = [Point("gradient", 8, step, Estimate(2.0 - step, 0.1), Estimate(step / 2, 0.05)) for step in (0, 1)]
    reading = Point("in-context", 8, 0, Estimate(1.5, 0.25), Estimate(0.25, None))
    tuned = Point("fine-tuning", 8, 10, Estimate(float("inf"), None), Estimate(0.125, 0.03), 0.001)
    return Comparison([*gradient, reading, tuned], [gradient[1], reading._replace(support=4), tuned])


def test_a_table():
    expected = """\
query accuracy after so many steps on 8 examples (20 tasks)
                         0              1             10
gradient     0.000 ± 0.050  0.500 ± 0.050
in-context           0.250
fine-tuning                                0.125 ± 0.030

query loss after so many steps on 8 examples (20 tasks)
                         0              1   10
gradient     2.000 ± 0.100  1.000 ± 0.100
in-context   1.500 ± 0.250
fine-tuning                                inf

query accuracy after 1 step on so many examples, fine-tuning after its best (20 tasks)
                 4              8
gradient            0.500 ± 0.050
in-context   0.250
fine-tuning         0.125 ± 0.030

query loss after 1 step on so many examples, fine-tuning after its best (20 tasks)
                         4              8
gradient                    1.000 ± 0.100
in-context   1.500 ± 0.250
fine-tuning                           inf

a note
another"""
    assert adaptation_table(comparison(), (8, 1), 20, ["a note", "another"]) == expected


def test_numbers_have_no_accuracy():
    points = [Point("gradient", 8, 1, Estimate(123456.0, 0.5), None)]
    table = adaptation_table(Comparison(points, points), (8, 1), 20)
    assert "accuracy" not in table
    assert table.splitlines()[2] == "gradient  1.2e+05 ± 0.500"


def test_json_has_no_infinity():
    values = json.loads(json.dumps(comparison_values(comparison()), allow_nan=False))
    assert values["by_steps"][0] == {
        "arm": "gradient",
        "support": 8,
        "steps": 0,
        "loss": {"value": 2.0, "standard_error": 0.1},
        "accuracy": {"value": 0.0, "standard_error": 0.05},
    }
    assert values["by_steps"][3]["loss"] == {"value": None, "standard_error": None}
    assert values["by_steps"][3]["learning_rate"] == 0.001
    assert [point["support"] for point in values["by_support"]] == [8, 4, 8]
