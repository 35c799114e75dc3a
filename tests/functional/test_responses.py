import torch

from gpt_modules.functional import Counted, response_positions


def test_first_response_token_is_predicted_at_the_prompts_last_position():
    assert response_positions(torch.tensor([1, 4]), 3).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_states_predict_the_tokens_of_the_response():
    # Rows of prompt, response, padding; "state i" is the token that follows position i.
    tokens = torch.tensor([[11, 12, 21, 22, 23, 0], [11, 12, 13, 14, 21, 22]])
    following, mask = tokens.roll(-1, dims=1), torch.tensor([[True, True, True], [True, True, False]])
    counted = Counted.of(torch.tensor([2, 4]), mask, 6)
    assert following.flatten()[counted.states].tolist() == [21, 22, 23, 21, 22]


def test_states_and_cells_that_count_against_a_literal():
    """Prompts of 2 and 1 tokens in rows of 5; answers of 1 and 3."""
    mask = torch.tensor([[True, False, False], [True, True, True]])
    counted = Counted.of(torch.tensor([2, 1]), mask, 5)
    assert counted.cells.tolist() == [0, 3, 4, 5]
    assert counted.states.tolist() == [1, 5, 6, 7]
    assert counted.spread(torch.tensor([1.0, 2.0, 3.0, 4.0]), mask).tolist() == [[1, 0, 0], [2, 3, 4]]


def test_what_is_spread_takes_its_gradients_from_its_cells():
    values, mask = torch.ones(3, requires_grad=True), torch.tensor([[True, False], [True, True]])
    counted = Counted.of(torch.tensor([2, 3]), mask, 5)
    (counted.spread(values, mask) * torch.tensor([[1.0, 7.0], [2.0, 3.0]])).sum().backward()
    assert values.grad.tolist() == [1, 2, 3]


def test_no_token_counts():
    mask = torch.zeros(2, 3, dtype=torch.bool)
    counted = Counted.of(torch.tensor([1, 1]), mask, 4)
    assert len(counted.states) == 0
    assert counted.spread(torch.randn(0), mask).tolist() == [[0.0] * 3] * 2
