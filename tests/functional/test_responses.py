import torch

from gpt_modules.functional import Counted, gather_responses, response_positions


def test_first_response_token_is_predicted_at_the_prompts_last_position():
    assert response_positions(torch.tensor([1, 4]), 3).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_states_predict_the_tokens_of_the_response():
    # Rows of prompt, response, padding; "state i" is the token that follows position i.
    tokens = torch.tensor([[11, 12, 21, 22, 23, 0], [11, 12, 13, 14, 21, 22]])
    following = tokens.roll(-1, dims=1)
    gathered = gather_responses(following, torch.tensor([2, 4]), 3)
    assert gathered[0].tolist() == [21, 22, 23]
    assert gathered[1, :2].tolist() == [21, 22]


def test_gathers_vectors_and_clamps_to_the_last_state():
    hidden = torch.randn(2, 4, 5)
    gathered = gather_responses(hidden, torch.tensor([2, 4]), 3)
    expected = torch.stack([hidden[0, [1, 2, 3]], hidden[1, [3, 3, 3]]])
    assert torch.equal(gathered, expected)


def test_gradient_reaches_the_gathered_states_once_each():
    hidden = torch.randn(2, 4, 5, requires_grad=True)
    gather_responses(hidden, torch.tensor([2, 4]), 3).sum().backward()
    assert hidden.grad.sum(2).tolist() == [[0, 5, 5, 5], [0, 0, 0, 15]]


def test_padding_the_rows_further_changes_nothing():
    hidden, lengths = torch.randn(2, 6), torch.tensor([1, 3])
    wider = torch.nn.functional.pad(hidden, (0, 4), value=torch.nan)
    assert torch.equal(gather_responses(wider, lengths, 4), gather_responses(hidden, lengths, 4))


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
