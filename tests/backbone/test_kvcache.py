"""Tokens given in any pieces, padded or not, equal one forward over all, in both ways of addressing the cache."""

import pytest
import torch

from gpt_modules.backbone import GPT, DecoderConfig, KVCache

CONFIG = DecoderConfig(vocab_size=31, n_positions=16, n_layer=2, n_head=2, n_embd=16).without_dropout()
TOKENS = torch.randint(31, (3, 10), generator=torch.Generator().manual_seed(0))
MASK = torch.arange(10)[None] >= torch.tensor([[0], [3], [2]])


def make() -> GPT:
    torch.manual_seed(0)
    return GPT(CONFIG)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("first", [1, 4, 9])
def test_one_token_at_a_time(static: bool, padded: bool, first: int) -> None:
    if padded and first == 1:
        first = 5
    model, cache = make(), KVCache(CONFIG, 3, 12, static=static)
    mask = MASK if padded else torch.ones_like(MASK)
    whole = model(TOKENS, attention_mask=mask)
    pieces = [model(TOKENS[:, :first], attention_mask=mask[:, :first] if padded else None, cache=cache)]
    pieces += [model(TOKENS[:, at : at + 1], cache=cache) for at in range(first, 10)]
    torch.testing.assert_close(torch.cat(pieces, dim=1)[mask], whole[mask])


@pytest.mark.parametrize("cut", [3, 5])
def test_pieces_of_several_tokens(cut: int) -> None:
    model, cache = make(), KVCache(CONFIG, 3, 10)
    whole = model(TOKENS, attention_mask=MASK)
    pieces = [
        model(TOKENS[:, part], attention_mask=MASK[:, part], cache=cache) for part in (slice(cut), slice(cut, 10))
    ]
    torch.testing.assert_close(torch.cat(pieces, dim=1)[MASK], whole[MASK])


@pytest.mark.parametrize("static", [False, True])
def test_rows_kept_go_on_as_if_alone(static: bool) -> None:
    model, cache, kept = make(), KVCache(CONFIG, 3, 12, static=static), torch.tensor([0, 2])
    model(TOKENS[:, :6], attention_mask=MASK[:, :6], cache=cache)
    cache.keep(kept)
    after = [model(TOKENS[kept, at : at + 1], cache=cache) for at in range(6, 10)]
    whole = model(TOKENS, attention_mask=MASK)
    torch.testing.assert_close(torch.cat(after, dim=1), whole[kept, 6:])


def test_rewinding_forgets_one_token() -> None:
    model, cache = make(), KVCache(CONFIG, 3, 12, static=True)
    model(TOKENS[:, :6], attention_mask=MASK[:, :6], cache=cache)
    model(TOKENS[:, 2:3], cache=cache)
    cache.rewind()
    torch.testing.assert_close(model(TOKENS[:, 6:7], cache=cache), model(TOKENS, attention_mask=MASK)[:, 6:7])


def test_a_full_cache_refuses() -> None:
    model, cache = make(), KVCache(CONFIG, 3, 5)
    with pytest.raises(ValueError, match="no room for 6 tokens"):
        model(TOKENS[:, :6], cache=cache)
    model(TOKENS[:, :5], cache=cache)
    with pytest.raises(ValueError, match="no room for one more"):
        model(TOKENS[:, :1], cache=cache)
