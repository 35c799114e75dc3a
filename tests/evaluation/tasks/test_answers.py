"""Where an answer ends, and what beams are compared by, against all answers that a small model can give."""

import itertools

import pytest
import torch

from gpt_modules.backbone import GPT, DecoderConfig
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.evaluation.tasks.answers import write_answers
from gpt_modules.evaluation.tasks.definitions import task_from

STEPS, PENALTY = 4, 0.6


@pytest.fixture
def world():
    """Five tokens: <unk>, a new line, a, b, and the end token, in an order of their own; a model of random weights."""
    tokenizer = Tokenizer.train(["ab\n"], 5, kind="characters")
    assert tokenizer.vocab_size == 5
    sizes = {"vocab_size": 5, "n_positions": 16, "n_layer": 1, "n_head": 1, "n_embd": 8}
    return GPT(DecoderConfig(**sizes).without_dropout()).eval(), tokenizer


def task(**keys):
    return task_from({"name": "quiz", "kind": "generate", "source": "x", "max_new_tokens": STEPS, **keys})


def all_answers(model, prompt, ends):
    """Answer -> its score, for each that ends at the first end, or at the last step."""
    scores = {}
    for answer in itertools.product(range(5), repeat=STEPS):
        stop = next((place + 1 for place, token in enumerate(answer) if token in ends), STEPS)
        if answer[:stop] in scores:
            continue
        row = torch.tensor([[*prompt, *answer[:stop]]])
        logprobs = model(row)[0, len(prompt) - 1 : -1].log_softmax(-1).gather(1, row[0, len(prompt) :, None])
        scores[answer[:stop]] = logprobs.sum().item() / ((5 + stop) / 6) ** PENALTY
    return scores


@torch.no_grad()
def test_beams_are_compared_up_to_the_end_token_and_to_a_stop_of_one_token(world):
    """What a hypothesis would say after its end token, on its way to a new line, is no part of its score."""
    model, tokenizer = world
    newline, ended = tokenizer.encode("\n")[0], set()
    for seed in (0, 9, 14, 15, 25):  # of the last four, hypotheses that go on behind the end token would win
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
        prompt = tokenizer.encode("ab")
        scores = all_answers(model, prompt, (newline, tokenizer.eos_id))
        best = max(scores, key=scores.__getitem__)
        expected = tokenizer.decode([token for token in best if token not in (newline, tokenizer.eos_id)]).strip()
        (found,) = write_answers(task(beams=125, length_penalty=PENALTY), [prompt], model, tokenizer, 0, 8192)
        assert found == (expected, best[-1] in (newline, tokenizer.eos_id))
        ended.add(best[-1] if len(best) < STEPS else None)
    assert tokenizer.eos_id in ended, "one of them ends with the end token, and early"


@torch.no_grad()
def test_an_answer_ends_before_a_stop_of_several_tokens_too(world):
    model, tokenizer = world
    a, b = (tokenizer.encode(letter)[0] for letter in "ab")
    for parameter in model.parameters():
        parameter.zero_()
    model.decoder.ln_f.bias[0] = 1.0
    model.head_weight[a, 0] = 1.0  # "a", always
    assert write_answers(task(stop=["aa"]), [[b], [a, b]], model, tokenizer, 0, 1) == [("", True), ("", True)]
    assert write_answers(task(stop=["ab"]), [[b]], model, tokenizer, 0, 8192) == [("a" * STEPS, False)]
