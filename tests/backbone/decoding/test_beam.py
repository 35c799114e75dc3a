"""Beam search against `transformers`, against all continuations there are, and against itself in other company."""

import dataclasses
import itertools
from types import ModuleType

import pytest
import torch

from gpt_modules.backbone import GPT, DecoderConfig, beam_search, generate
from gpt_modules.backbone.folders.weightmap import to_transformers
from gpt_modules.errors import UserError

VOCAB = 23
CONFIG = DecoderConfig(vocab_size=VOCAB, n_positions=48, n_layer=2, n_head=2, n_embd=16).without_dropout()
PROMPTS = [[3], [5, 9, 2, 11, 20, 8], [1, 1, 4], [7, 22, 16, 15]]


def make(config: DecoderConfig = CONFIG, seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    model = GPT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def answers(model: GPT, prompts: list[list[int]], **settings: float) -> list[list[int]]:
    out = beam_search(model, prompts, **{"max_new_tokens": 10, "eos_id": 4, **settings})
    return [row[mask].tolist() for row, mask in zip(out.tokens, out.mask, strict=True)]


def log_probability(model: GPT, prompt: list[int], answer: list[int]) -> float:
    logprobs = model(torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1].log_softmax(1)
    return logprobs[torch.arange(len(answer)), torch.tensor(answer)].sum().item()


def test_width_one_is_greedy() -> None:
    for seed in range(3):
        model = make(seed=seed)
        out = generate(model, PROMPTS, max_new_tokens=10, eos_id=4, temperature=0.0)
        found = beam_search(model, PROMPTS, max_new_tokens=10, eos_id=4, width=1)
        assert torch.equal(found.tokens, out.tokens)
        assert torch.equal(found.mask, out.mask)
        torch.testing.assert_close(found.logprobs, out.logprobs)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("eos_id", [4, None])
def test_transformers_agrees_where_the_penalties_are_the_same(
    seed: int, eos_id: int | None, transformers: ModuleType
) -> None:
    model = make(seed=seed)
    sizes = {"vocab_size": VOCAB, "n_positions": 48, "n_layer": 2, "n_head": 2, "n_embd": 16}
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=None)).eval()
    theirs.load_state_dict(to_transformers(model.state_dict(), CONFIG, "gpt"), strict=False)
    found = answers(model, PROMPTS, eos_id=eos_id, length_penalty=0.0)
    for prompt, answer in zip(PROMPTS, found, strict=True):
        settings = {"num_beams": 4, "length_penalty": 0.0, "max_new_tokens": 10, "eos_token_id": eos_id}
        tokens = torch.tensor([prompt])
        out = theirs.generate(
            tokens, attention_mask=torch.ones_like(tokens), do_sample=False, pad_token_id=0, **settings
        )
        assert answer == out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_search_wide_enough_finds_the_best_of_all(length_penalty: float, seed: int) -> None:
    eos_id, vocab, steps = 2, 5, 3
    model = make(dataclasses.replace(CONFIG, vocab_size=vocab), seed)
    others = [token for token in range(vocab) if token != eos_id]
    starts = [list(start) for length in range(steps) for start in itertools.product(others, repeat=length)]
    possible = [[*start, eos_id] for start in starts]
    possible += [list(answer) for answer in itertools.product(others, repeat=steps)]
    for prompt in ([1], [0, 3, 4]):
        scores = [
            log_probability(model, prompt, answer) / ((5 + len(answer)) / 6) ** length_penalty for answer in possible
        ]
        settings = {"max_new_tokens": steps, "eos_id": eos_id, "width": vocab**steps}
        found = answers(model, [prompt], length_penalty=length_penalty, **settings)
        assert found == [possible[scores.index(max(scores))]]


@pytest.mark.parametrize("attention", [("dense",), ("banded", "dense")])
def test_company_changes_no_answer_and_log_probabilities_are_the_models(attention: tuple[str, ...]) -> None:
    model = make(DecoderConfig.from_dict({**CONFIG.to_dict(), "attention": list(attention), "window": 3}), seed=1)
    together = beam_search(model, PROMPTS, max_new_tokens=10, eos_id=4)
    found = answers(model, PROMPTS)
    assert found == [answers(model, [prompt])[0] for prompt in PROMPTS]
    assert len({len(answer) for answer in found}) > 1  # some end earlier, and leave the batch
    for prompt, answer, logprobs in zip(PROMPTS, found, together.logprobs, strict=True):
        assert logprobs.sum().item() == pytest.approx(log_probability(model, prompt, answer), abs=1e-4)


def test_ties_go_to_the_smaller_token() -> None:
    model = GPT(CONFIG).eval()
    with torch.no_grad():
        model.head_weight.zero_()  # all tokens alike, always
    assert answers(model, [[1], [2, 3]], eos_id=None, max_new_tokens=5) == [[0] * 5] * 2
    assert answers(model, [[1]], eos_id=0, length_penalty=0.0) == [[0]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "width: found 0, expected at least 1"),
        ({"length_penalty": -0.1}, "length_penalty: found -0.1, expected 0 or more"),
        ({"max_new_tokens": 0}, "max_new_tokens: found 0, expected at least 1"),
    ],
)
def test_refusals(settings: dict[str, float], message: str) -> None:
    with pytest.raises(UserError) as caught:
        answers(make(), PROMPTS, **settings)
    assert str(caught.value) == message


def test_several_ends_are_each_the_end_of_a_hypothesis() -> None:
    """Against all continuations there are, of which none goes on behind an end."""
    model, ends, steps, penalty = make(dataclasses.replace(CONFIG, vocab_size=5), seed=3), (2, 4), 4, 0.6
    for prompt in ([0], [1, 3], [2, 2, 0]):
        scores = {}
        for answer in itertools.product(range(5), repeat=steps):
            stop = next((place + 1 for place, token in enumerate(answer) if token in ends), steps)
            said = answer[:stop]
            if said not in scores:
                scores[said] = log_probability(model, prompt, list(said)) / ((5 + stop) / 6) ** penalty
        found = beam_search(model, [prompt], max_new_tokens=steps, eos_id=ends, width=5**3, length_penalty=penalty)
        assert tuple(found.tokens[found.mask].tolist()) == max(scores, key=scores.__getitem__)
