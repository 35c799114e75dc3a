"""The draw against the distribution it inverts, and weights that come back from their other layout untouched."""

import pytest
import torch

from gpt_modules.backbone import GPT, DecoderConfig
from gpt_modules.backbone.decoding.step import LONG_ENOUGH, SamplingRule, choose, draw, input_major, is_whole


@pytest.mark.parametrize("vocab", [5, 256, 700])
def test_frequencies_are_the_probabilities(vocab: int) -> None:
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(vocab, generator=generator) ** 4
    probs = probs / probs.sum()
    uniform = torch.rand(2, 40_000, generator=generator, dtype=torch.float64)
    counts = draw(probs.expand(40_000, -1), uniform).bincount(minlength=vocab)
    chi_square = ((counts - 40_000 * probs) ** 2 / (40_000 * probs)).sum().item()
    assert chi_square < vocab - 1 + 5 * (2 * vocab) ** 0.5  # five standard deviations


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1.0 - 2**-53])
@pytest.mark.parametrize("place", [0, 255, 256, 511, 512, 599])
def test_the_only_possible_token_is_drawn_at_both_ends_of_the_scale(uniform: float, place: int) -> None:
    probs = torch.zeros(1, 600)
    probs[0, place] = 1.0
    assert draw(probs, torch.full((2, 1), uniform, dtype=torch.float64)).item() == place


def test_hand_worked_draw() -> None:
    probs = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).expand(4, 4)
    within = torch.tensor([0.05, 0.15, 0.59, 0.61], dtype=torch.float64)
    assert draw(probs, torch.stack([torch.zeros(4, dtype=torch.float64), within])).tolist() == [0, 1, 2, 3]


def test_log_probability_is_that_of_the_filtered_distribution() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(64, 4)
    uniform = torch.rand(2, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens, logprobs = choose(logits, uniform, SamplingRule(temperature=0.5, top_k=2))
    # Two tokens stay, 2 / 0.5 = 4 and 1 / 0.5 = 2: probabilities 1 / (1 + e^-2) and its complement.
    expected = torch.where(tokens == 0, 0.8807971, 0.1192029).log()
    torch.testing.assert_close(logprobs, expected, rtol=1e-5, atol=1e-5)
    assert set(tokens.tolist()) == {0, 1}


def test_greedy_reports_the_models_own_log_probability() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    tokens, logprobs = choose(logits, torch.zeros(2, 1, dtype=torch.float64), SamplingRule(temperature=0.0))
    assert tokens.tolist() == [1]
    torch.testing.assert_close(logprobs, torch.log_softmax(logits, dim=1)[:, 1])


@pytest.mark.parametrize("steps", [1, LONG_ENOUGH])
def test_weights_come_back_to_their_own_memory(steps: int) -> None:
    model = GPT(DecoderConfig(vocab_size=31, n_positions=12, n_layer=1, n_head=2, n_embd=16)).eval()
    before = [(parameter.data_ptr(), parameter.stride()) for parameter in model.parameters()]
    logits = model(torch.tensor([[1, 2]])).detach()

    def use() -> None:
        with input_major(model, steps) as head:
            assert torch.equal(head, model.head_weight.t())
            torch.testing.assert_close(model(torch.tensor([[1, 2]])).detach(), logits)
            raise InterruptedError

    with pytest.raises(InterruptedError):
        use()
    assert [(parameter.data_ptr(), parameter.stride()) for parameter in model.parameters()] == before


def test_weights_that_lie_elsewhere_are_not_whole() -> None:
    model = GPT(DecoderConfig(vocab_size=31, n_positions=12, n_layer=1, n_head=2, n_embd=16))
    assert is_whole(model)

    class Sharded(torch.nn.Parameter):
        """Known by its type, as torch's own."""

    model.decoder.blocks[0].mlp.fc.weight = Sharded(model.decoder.blocks[0].mlp.fc.weight.data)
    assert not is_whole(model)
    with input_major(model, LONG_ENOUGH) as head:
        assert head.data_ptr() == model.head_weight.data_ptr()
