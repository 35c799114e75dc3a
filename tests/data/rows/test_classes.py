"""Classes by their rows, by their names, and by a model that has them."""

import json

import pytest

from gpt_modules.data.rows.classes import agreed, check_names, measured, named_by, saved_task
from gpt_modules.errors import UserError
from gpt_modules.labelling import Labelling


def test_classes_of_rows_are_sorted_and_their_labels_become_numbers():
    rows = [{"label": name} for name in ("so", "bad", "so", "good")]
    assert named_by(rows, "classification", "a.csv") == Labelling("classification", ("bad", "good", "so"))
    assert [row["label"] for row in rows] == [2, 0, 2, 1]
    numbers = [{"label": 1.0}, {"label": 4.0}]
    assert named_by(numbers, "regression", "a.csv") == Labelling("regression")
    assert [row["label"] for row in numbers] == [1.0, 4.0]


def test_numbers_are_measured_where_they_are_learnt():
    rows = [{"label": 1.0}, {"label": 4.0}, {"label": None}]
    found = measured(Labelling("regression"), rows, "a.csv")
    assert (found.mean, found.std) == (2.5, 1.5)
    classes = Labelling("classification", ("a", "b"))
    assert measured(classes, rows, "a.csv") is classes
    with pytest.raises(UserError, match=r"^a\.csv: label: found the same number in all rows, expected others$"):
        measured(Labelling("regression"), rows[:1] * 2, "a.csv")


def test_a_models_classes_hold_unless_others_are_named():
    saved = Labelling("classification", ("no", "yes"))
    assert agreed(Labelling(), saved, "runs/a") is saved
    assert agreed(Labelling(labels=("no", "yes")), saved, "runs/a") is saved
    with pytest.raises(UserError) as caught:
        agreed(Labelling(labels=("yes", "no")), saved, "runs/a")
    assert str(caught.value) == "labels: found ['yes', 'no'], expected those of runs/a, ['no', 'yes']"


def test_only_a_task_models_folder_has_classes(tmp_path):
    task = Labelling("classification", ("no", "yes"))
    assert saved_task(str(tmp_path)) is None
    for kind, expected in (("task", task), ("reward", None)):
        config = {"n_layer": 1, "gpt_modules": {"kind": kind, "task": task.to_dict()}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert saved_task(str(tmp_path)) == expected
    assert saved_task("~nobody-of-this-name/model") is None


def test_names_of_numbers_are_refused():
    check_names("similarity", None, [0, 5])
    for kind, labels, levels in (("regression", ["a", "b"], None), ("classification", ["a", "b"], [0, 5])):
        with pytest.raises(UserError, match=r"^labels: found \['a', 'b'\] for a task with numbers, expected none$"):
            check_names(kind, labels, levels)
