"""Losses, metrics and predictions of labelled tasks, by hand and against the definitions."""

import math

import pytest
import torch

from gpt_modules.labelling import Labelling
from gpt_modules.training import labelling_metrics
from gpt_modules.training.labelling_metrics import answered, confusion, measured, prediction_rows, task_loss

CLASSES = Labelling("classification", ("no", "yes"))
LEVELS = Labelling("similarity", levels=(0, 5))
NUMBER = Labelling("regression", mean=10.0, std=2.0)
CHOICE = Labelling("multiple_choice")
NONE = float("nan")


def test_the_loss_of_classes_is_a_mean_over_labelled_rows():
    outputs = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0], [9.0, -9.0]])
    loss = task_loss(outputs, torch.tensor([1, 0, -100]), CLASSES)
    assert loss.item() == pytest.approx((math.log(2.0) - math.log(0.75)) / 2)


def test_the_loss_of_a_number_is_in_standard_deviations():
    outputs = torch.tensor([[1.0], [0.0], [7.0]])
    loss = task_loss(outputs, torch.tensor([10.0, 14.0, NONE]), NUMBER)
    assert loss.item() == pytest.approx((1.0 + 4.0) / 2)


def test_the_loss_of_a_score_is_a_cross_entropy_with_its_neighbours():
    outputs = torch.zeros(2, 6)
    outputs[0, 3] = 2.0
    logprobs = outputs[0].log_softmax(0)
    loss = task_loss(outputs, torch.tensor([3.25, NONE]), LEVELS)
    assert loss.item() == pytest.approx(-(0.75 * logprobs[3] + 0.25 * logprobs[4]).item())


def test_a_batch_without_labels_has_a_loss_of_zero():
    assert task_loss(torch.randn(2, 2), torch.tensor([-100, -100]), CLASSES).item() == 0.0
    assert task_loss(torch.randn(2, 1), torch.tensor([NONE, NONE]), NUMBER).item() == 0.0
    missing = torch.tensor([[1.0, -torch.inf], [-torch.inf, -torch.inf]])
    assert task_loss(missing, torch.tensor([0, -100]), CHOICE).item() == 0.0


def found_by(outputs, labels, task):
    return measured(*answered(outputs, labels, task), task)


def test_accuracy_f1_and_matthews_by_hand():
    """4 true positives, 1 false positive, 2 false negatives, 3 true negatives."""
    decided = [1] * 4 + [1] + [0] * 2 + [0] * 3 + [0]
    labels = [1] * 4 + [0] + [1] * 2 + [0] * 3 + [-100]
    outputs = torch.nn.functional.one_hot(torch.tensor(decided), 2).float()
    found = found_by(outputs, torch.tensor(labels), CLASSES)
    matthews = (4 * 3 - 1 * 2) / math.sqrt(5 * 6 * 4 * 5)
    assert found == pytest.approx({"accuracy": 0.7, "f1": 8 / 11, "matthews": matthews})


def test_three_classes_average_their_f1():
    outputs = torch.eye(3)[[0, 0, 1, 2]]
    found = found_by(outputs, torch.tensor([0, 1, 1, 2]), Labelling("entailment", ("a", "b", "c")))
    assert found["accuracy"] == pytest.approx(0.75)
    assert found["f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)


def test_numbers_are_compared_in_their_own_unit():
    outputs = torch.tensor([[-1.0], [0.0], [1.0], [3.0], [5.0]])
    found = found_by(outputs, torch.tensor([8.0, 10.0, 12.0, 13.0, NONE]), NUMBER)
    assert found["mse"] == pytest.approx(9.0 / 4)
    assert found["spearman"] == pytest.approx(1.0)
    centred, theirs = torch.tensor([-1.75, -0.75, 0.25, 2.25]), torch.tensor([-2.75, -0.75, 1.25, 2.25])
    pearson = (centred @ theirs / (centred.norm() * theirs.norm())).item()
    assert found["pearson"] == pytest.approx(pearson, abs=1e-5)


def test_the_answer_is_right_whatever_the_number_of_answers():
    none = -torch.inf
    outputs = torch.tensor([[1.0, 2.0, none], [0.0, 1.0, 3.0], [2.0, 1.0, none], [none, none, none]])
    assert found_by(outputs, torch.tensor([1, 0, 0, -100]), CHOICE) == pytest.approx({"accuracy": 2 / 3})


def test_predictions_in_words():
    rows = prediction_rows(torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]]), torch.tensor([0, -100]), CLASSES)
    assert rows[0] == {"prediction": "yes", "probabilities": pytest.approx({"no": 0.25, "yes": 0.75}), "label": "no"}
    assert "label" not in rows[1]
    (row,) = prediction_rows(torch.tensor([[0.0, math.log(3.0), -torch.inf]]), torch.tensor([1]), CHOICE)
    assert row == {"prediction": 1, "probabilities": pytest.approx([0.25, 0.75]), "label": 1}
    (row,) = prediction_rows(torch.tensor([[1.5]]), torch.tensor([NONE]), NUMBER)
    assert row == {"prediction": 13.0}


@pytest.mark.parametrize(
    ("outputs", "labels", "alike"),
    [
        ([0.5, 0.5, 0.5], [8.0, 10.0, 12.0], "predictions"),
        ([0.0, 0.5, 1.0], [9.0, 9.0, 9.0], "labels"),
        ([0.5, 0.5, 0.5], [9.0, 9.0, 9.0], "predictions and all labels"),
    ],
)
def test_where_nothing_differs_no_correlation_is_defined(outputs, labels, alike, caplog):
    labelling_metrics._tell_undefined.cache_clear()
    for _ in range(2):
        found = found_by(torch.tensor(outputs)[:, None], torch.tensor(labels), NUMBER)
    assert math.isnan(found["pearson"])
    assert math.isnan(found["spearman"])
    said = torch.tensor(outputs) * NUMBER.std + NUMBER.mean
    assert found["mse"] == pytest.approx((said - torch.tensor(labels)).square().mean().item())
    assert caplog.messages == [f"pearson, spearman: undefined (nan): all {alike} are the same number"]


def test_close_scores_have_a_correlation():
    """Their variance is below what torchmetrics calls zero in single precision."""
    labels = torch.tensor([9.0, 9.001, 9.002])
    found = found_by(torch.tensor([[0.0], [0.0005], [0.001]]), labels, NUMBER)
    assert found["pearson"] == pytest.approx(1.0, abs=1e-4)


def test_nothing_labelled_has_no_metric():
    for task, labels in ((CLASSES, [-100]), (NUMBER, [NONE]), (CHOICE, [-100])):
        found = found_by(torch.zeros(1, 1 if task is NUMBER else 2), torch.tensor(labels), task)
        assert found
        assert all(math.isnan(value) for value in found.values())


def test_rows_of_a_confusion_are_what_is_right():
    decided, right = torch.tensor([0.0, 2.0, 2.0, 1.0]), torch.tensor([0.0, 0.0, 0.0, 2.0])
    assert confusion(decided, right, 3).tolist() == [[1, 0, 2], [0, 0, 0], [0, 1, 0]]


def test_matthews_of_a_constant_answer_is_nought():
    constant = found_by(torch.tensor([[9.0, 0.0]] * 3), torch.tensor([0, 1, 1]), CLASSES)
    assert constant["matthews"] == 0.0
    one_class = found_by(torch.tensor([[9.0, 0.0], [0.0, 9.0]]), torch.tensor([1, 1]), CLASSES)
    assert one_class["matthews"] == 0.0
