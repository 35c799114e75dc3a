"""Rows of unequal length in one step, against each in a batch of its own."""

import pytest
import torch

from gpt_modules.backbone import GPT, DecoderConfig, KVCache
from gpt_modules.backbone.decoding.apart import RowCaches

PROMPTS = [[3], [5, 9, 2, 11, 30, 8], [1, 1, 4], [7, 22, 36, 15]]


def make(**changes):
    torch.manual_seed(1)
    sizes = {"vocab_size": 37, "n_positions": 40, "n_layer": 2, "n_head": 2, "n_embd": 16}
    return GPT(DecoderConfig(**{**sizes, **changes})).double().eval()


def read(model, prompt):
    cache = KVCache(model.config, 1, 40, dtype=torch.float64)
    model.hidden(torch.tensor([prompt]), cache=cache)
    return cache


@pytest.mark.parametrize("changes", [{}, {"norm": "post"}, {"attention": ("dense", "banded"), "window": 3}])
@torch.no_grad()
def test_a_step_of_many_is_the_step_of_each(changes):
    model = make(**changes)
    caches, tokens = [read(model, prompt) for prompt in PROMPTS], [list(prompt) for prompt in PROMPTS]
    for new in range(5):
        step = torch.tensor([[new + row] for row in range(4)])
        hidden = model.hidden(torch.cat([step, torch.zeros(2, 1, dtype=torch.long)]), cache=RowCaches(caches, blank=2))
        for row, so_far in enumerate(tokens):
            so_far.append(new + row)
            torch.testing.assert_close(hidden[row, 0], model.hidden(torch.tensor([so_far]))[0, -1])
        assert hidden.isfinite().all()


def test_rows_apart_read_one_token_each():
    model = make()
    caches = RowCaches([read(model, prompt) for prompt in PROMPTS])
    with pytest.raises(ValueError, match="found 2 tokens at once, expected one of each row"):
        model.hidden(torch.zeros(4, 2, dtype=torch.long), cache=caches)
