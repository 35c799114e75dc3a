import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from gpt_modules.functional import filter_logits


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(0.7, None, None), (1.0, 5, None), (1.3, None, 0.8), (0.5, 20, 0.9)]
)
def test_agrees_with_transformers(temperature, top_k, top_p):
    logits = torch.randn(8, 100)
    expected = TemperatureLogitsWarper(temperature)(None, logits)
    expected = expected if top_k is None else TopKLogitsWarper(top_k)(None, expected)
    expected = expected if top_p is None else TopPLogitsWarper(top_p)(None, expected)
    torch.testing.assert_close(filter_logits(logits, temperature, top_k, top_p), expected)


def test_nucleus_by_hand():
    probs = torch.tensor([[0.1, 0.5, 0.15, 0.25]])
    kept = filter_logits(probs.log(), top_p=0.7).isfinite()
    assert kept.tolist() == [[False, True, False, True]]
    assert filter_logits(probs.log(), top_p=1e-6).isfinite().tolist() == [[False, True, False, False]]


def test_a_nucleus_is_never_empty():
    probs = torch.tensor([[0.1, 0.5, 0.15, 0.25]])
    for top_p in (1e-46, 1e-300, 5e-324):  # 0 in float32
        assert filter_logits(probs.log(), top_p=top_p).isfinite().tolist() == [[False, True, False, False]]


def test_top_p_counts_what_top_k_left():
    probs = torch.tensor([[0.4, 0.3, 0.2, 0.1]])
    # Of the two that top-k leaves the first has 4/7, which reaches 0.5; of all four it would not.
    assert filter_logits(probs.log(), top_k=2, top_p=0.5).isfinite().tolist() == [[True, False, False, False]]


def test_the_nucleus_ends_with_the_token_that_reaches_p():
    kept = filter_logits(torch.zeros(1, 4), top_p=0.5).isfinite()
    assert kept.sum() == 2, "a quarter and a quarter are a half, exactly"


def test_all_that_has_a_probability_is_all_of_the_nucleus_of_one():
    """However the sum of the first ones is rounded."""
    logits = torch.cat([torch.zeros(1), torch.full((1000,), -30.0)])[None]
    assert torch.equal(filter_logits(logits, top_p=1.0), logits)


def test_the_least_that_can_be_asked_for_is_one_token():
    assert filter_logits(torch.tensor([[1.0, 3.0, 2.0]]), top_k=1).isfinite().tolist() == [[False, True, False]]


def test_no_filter_is_the_logits_in_float32_and_they_stay():
    logits = torch.randn(2, 9).bfloat16()
    before = logits.clone()
    assert torch.equal(filter_logits(logits, top_k=50, top_p=1.0), logits.float())
    filter_logits(logits, 0.5, 2, 0.5)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("temperature", [1e-20, 1e-38, 5e-324])
def test_without_heat_only_the_most_likely_tokens_are_left(temperature):
    """The limit of softmax(z / T) as T falls to 0; ties share it, and nothing overflows."""
    logits = torch.tensor([[3e4, -2.0, 3e4, 2.9e4], [-1.0, -9.0, -3e4, -8.0], [0.0, -torch.inf, 0.0, -torch.inf]])
    expected = [[0.5, 0.0, 0.5, 0.0], [1.0, 0.0, 0.0, 0.0], [0.5, 0.0, 0.5, 0.0]]
    for settings in ({}, {"top_k": 3}, {"top_p": 0.9}):
        assert filter_logits(logits, temperature, **settings).softmax(1).tolist() == expected


IMPOSSIBLE = [("temperature", value) for value in (0.0, -1.0, torch.nan, torch.inf)]
IMPOSSIBLE += [("top_k", 0), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.5), ("top_p", torch.nan)]


@pytest.mark.parametrize(("name", "value"), IMPOSSIBLE)
def test_impossible_settings_are_refused(name, value):
    wrong = {name: value}
    with pytest.raises(ValueError, match="expected a finite temperature > 0, top_k >= 1, 0 < top_p <= 1"):
        filter_logits(torch.randn(1, 4), **wrong)
