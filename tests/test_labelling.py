"""What a labelled task is: its outputs, its names, and there and back as plain values."""

import json

import pytest

from gpt_modules.errors import UserError
from gpt_modules.labelling import Labelling

TASKS = {
    Labelling("classification", ("no", "yes")): (2, False),
    Labelling("entailment", ("a", "b", "c")): (3, False),
    Labelling("similarity", levels=(0, 5)): (6, True),
    Labelling("classification", levels=(-2, 2)): (5, True),
    Labelling("multiple_choice"): (1, False),
    Labelling("regression", mean=3.0, std=2.0): (1, True),
}


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_outputs_and_numbers(task):
    assert (task.n_outputs, task.numeric) == TASKS[task]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_plain_values_and_back(task):
    assert Labelling.from_dict(json.loads(json.dumps(task.to_dict()))) == task


def test_classes_that_are_only_numbered_take_any_names_of_their_number():
    numbered = Labelling("classification", ("0", "1"))
    assert [numbered.unnamed, Labelling(labels=("1", "0")).unnamed, Labelling("regression").unnamed] == [
        True, False, False]  # fmt: skip
    assert numbered.is_named_by(Labelling("classification", ("no", "yes")))
    assert not numbered.is_named_by(Labelling("classification", ("no", "yes", "so"))), "three are not two"
    assert not numbered.is_named_by(Labelling("entailment", ("no", "yes"))), "nor is it another kind"
    assert not Labelling("classification", ("no", "yes")).is_named_by(numbered)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (
            {"kind": "poetry"},
            "task.kind: found 'poetry', expected one of classification, entailment, similarity, multiple_choice, "
            "regression",
        ),
        ({"labels": ["a", "b", "a"]}, "task.labels: found ['a', 'b', 'a'], expected each name once"),
        ({"std": 0.0}, "task.std: found 0.0, expected a number above 0"),
        ({"std": float("nan")}, "task.std: found nan, expected a number that is finite"),
        (
            {"levels": [2, 2]},
            "task.levels: found [2, 2] for classification, expected two rising whole numbers",
        ),
        (
            {"kind": "regression", "levels": [0, 5]},
            "task.levels: found [0, 5] for regression, which has none, expected them for similarity, entailment or "
            "classification",
        ),
        ({"sort": 1}, "task.sort: unknown key, expected one of kind, labels, levels, mean, std"),
    ],
)
def test_refusals(values, line, monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # it would speak first
    with pytest.raises(UserError) as caught:
        Labelling.from_dict(values)
    assert str(caught.value) == line
