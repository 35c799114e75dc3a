"""Answers as texts, with the scores that they were given."""

import torch

from gpt_modules.training.rl.answers import predictions, side_by_side
from gpt_modules.training.rl.rollout import Scored
from gpt_modules.training.rl.sequences import Sequences

PROMPTS = ["the film", "a story is good and"]


def scored(micro, responses, scores, prompts=PROMPTS):
    """Responses that end with the end of a text, right-padded with a token that would show."""
    tokenizer = micro.tokenizer
    pairs = [(tokenizer.encode(p), [*tokenizer.encode(r), tokenizer.eos_id])
             for p, r in zip(prompts, responses, strict=True)]  # fmt: skip
    width = max(len(prompt) + len(response) for prompt, response in pairs)
    tokens = torch.full((len(pairs), width), tokenizer.encode("x")[0])
    for row, (prompt, response) in zip(tokens, pairs, strict=True):
        row[: len(prompt) + len(response)] = torch.tensor([*prompt, *response])
    starts = torch.tensor([len(prompt) for prompt, _ in pairs])
    ends = torch.tensor([len(prompt) + len(response) for prompt, response in pairs])
    unread = torch.full((len(pairs), 1), torch.nan)
    sequences = Sequences(tokens, starts, ends, unread[:, 0], unread[:, 0])
    return Scored(sequences, unread, unread, unread, unread, unread, torch.tensor(scores), unread, unread, unread)


def test_each_row_is_its_prompt_its_response_and_its_score(micro):
    answers = scored(micro, [" is good and fine.", ""], [0.5, -2.25])
    assert predictions(answers, micro.tokenizer) == [
        {"prompt": "the film", "response": " is good and fine.", "score": 0.5},
        {"prompt": "a story is good and", "response": "", "score": -2.25},
    ]


def test_models_stand_beside_one_another_in_their_order(micro):
    answers = {
        "before": scored(micro, [" is dull.", " bad."], [-0.125, 1.0]),
        "after": scored(micro, [" is great.", " lovely."], [2.0 / 3.0, 1234.5]),
    }
    table = side_by_side(answers, micro.tokenizer)
    assert [list(line.items()) for line in table] == [
        [("prompt", "the film"), ("before", " is dull."), ("before score", "-0.12"), ("after", " is great."),
         ("after score", "0.67")],
        [("prompt", "a story is good and"), ("before", " bad."), ("before score", "1.00"), ("after", " lovely."),
         ("after score", "1234.50")],
    ]  # fmt: skip


def test_no_answers_are_no_table(micro):
    assert side_by_side({}, micro.tokenizer) == []
