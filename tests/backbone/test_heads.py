"""The heads: spread at the start, shapes of the outputs, what dropout strikes."""

import pytest
import torch

from gpt_modules.backbone import ClassificationHead, MultipleChoiceHead, ScalarHead, SimilarityHead


def test_variance_at_the_start_is_one_over_width_and_one() -> None:
    torch.manual_seed(0)
    head = ScalarHead(8191)
    assert head.linear.weight.var().item() == pytest.approx(1 / 8192, rel=0.05)
    assert head.linear.bias.item() == 0.0


@pytest.mark.parametrize("shape", [(), (3,), (3, 4)])
def test_one_number_for_each_state(shape: tuple[int, ...]) -> None:
    assert ScalarHead(5)(torch.ones(*shape, 5)).shape == shape


def test_heads_of_tasks_have_one_matrix_of_std_002() -> None:
    torch.manual_seed(0)
    for head in (ClassificationHead(4096, 3, 0.1), SimilarityHead(4096, 3, 0.1), MultipleChoiceHead(4096, 0.1)):
        (weight,) = head.parameters()
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_outputs_are_products_with_the_matrix() -> None:
    states = torch.randn(5, 2, 8)
    classify, compare, choose = ClassificationHead(8, 3, 0.0), SimilarityHead(8, 3, 0.0), MultipleChoiceHead(8, 0.0)
    torch.testing.assert_close(classify(states[:, :1]), states[:, 0] @ classify.linear.weight.T)
    torch.testing.assert_close(compare(states), (states[:, 0] + states[:, 1]) @ compare.linear.weight.T)
    torch.testing.assert_close(compare(states), compare(states.flip(1)))
    torch.testing.assert_close(choose(states), (states * choose.linear.weight[0]).sum(2))


def test_dropout_is_there_in_training_only() -> None:
    for head, rows in ((ClassificationHead(64, 1, 0.5), 1), (SimilarityHead(64, 1, 0.5), 2)):
        states = torch.randn(200, rows, 64)
        exact = head.eval()(states)
        dropped = torch.stack([head.train()(states) for _ in range(2)])
        assert not torch.equal(dropped[0], dropped[1])
        assert (dropped.mean(0) - exact).mean().abs() < 0.05
        assert torch.equal(head.eval()(states), exact)


def test_answers_of_an_example_share_a_dropout_mask_and_examples_do_not() -> None:
    head = MultipleChoiceHead(64, 0.5)
    scores = head(torch.randn(4, 1, 64).expand(4, 3, 64))
    assert torch.equal(scores[:, 0], scores[:, 1])
    assert torch.equal(scores[:, 0], scores[:, 2])
    same = head(torch.ones(4, 1, 64))
    assert len(set(same.flatten().tolist())) == 4


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_heads_multiply_in_float32_whatever_the_precision(kind):
    """512 scores in bf16 would share some hundred values; float64 stays float64."""
    head, hidden = ScalarHead(16), torch.randn(512, 16)
    exact = head(hidden)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = head(hidden.to(kind))
    assert scores.dtype == torch.float32
    assert len(scores.unique()) > 500
    torch.testing.assert_close(scores, head(hidden.to(kind).float()))
    torch.testing.assert_close(scores, exact, atol=0.05, rtol=0.0)
    assert head.double()(hidden.double()).dtype == torch.float64
