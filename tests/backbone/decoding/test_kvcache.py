"""Tokens given in any pieces, padded or not, equal one forward over all, in both ways of addressing the cache."""

import dataclasses

import pytest
import torch

from gpt_modules.backbone import GPT, DecoderConfig, KVCache

DENSE = DecoderConfig(vocab_size=31, n_positions=16, n_layer=2, n_head=2, n_embd=16).without_dropout()
# Windows that ten tokens overflow once and several times, and one that they never fill.
BANDED = [dataclasses.replace(DENSE, attention=("banded", "dense"), window=window) for window in (1, 3, 7, 16)]
# Keys are turned before they are kept, in fewer heads than queries.
TURNED = dataclasses.replace(
    DENSE, n_head=4, n_kv_head=2, positions="rotary", norm_kind="rms", mlp="swiglu", tied=False
)
CONFIGS = [DENSE, *BANDED, TURNED, dataclasses.replace(TURNED, attention=("banded", "dense"), window=3)]
TOKENS = torch.randint(31, (3, 10), generator=torch.Generator().manual_seed(0))
MASK = torch.arange(10)[None] >= torch.tensor([[0], [3], [2]])


@pytest.fixture(params=CONFIGS, ids=lambda config: f"{config.attention[0]}-{config.window}-{config.positions}")
def config(request: pytest.FixtureRequest) -> DecoderConfig:
    return request.param


@pytest.fixture
def model(config: DecoderConfig) -> GPT:
    return GPT(config)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("first", [1, 4, 9])
def test_one_token_at_a_time(model: GPT, static: bool, padded: bool, first: int) -> None:
    if padded and first == 1:
        first = 5
    cache = KVCache(model.config, 3, 12, static=static)
    mask = MASK if padded else torch.ones_like(MASK)
    whole = model(TOKENS, attention_mask=mask)
    pieces = [model(TOKENS[:, :first], attention_mask=mask[:, :first] if padded else None, cache=cache)]
    pieces += [model(TOKENS[:, at : at + 1], cache=cache) for at in range(first, 10)]
    torch.testing.assert_close(torch.cat(pieces, dim=1)[mask], whole[mask])


@pytest.mark.parametrize("cuts", [[3], [5], [4, 5, 8]])
@pytest.mark.parametrize("padded", [False, True])
def test_pieces_of_several_tokens(model: GPT, cuts: list[int], padded: bool) -> None:
    cache = KVCache(model.config, 3, 10)
    mask = MASK if padded else torch.ones_like(MASK)
    whole = model(TOKENS, attention_mask=mask)
    parts = [slice(start, stop) for start, stop in zip([0, *cuts], [*cuts, 10], strict=True)]
    pieces = [model(TOKENS[:, part], attention_mask=mask[:, part] if padded else None, cache=cache) for part in parts]
    torch.testing.assert_close(torch.cat(pieces, dim=1)[mask], whole[mask])


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("rows", [[0, 2], [2, 0, 2]], ids=["fewer", "in another order"])
def test_rows_kept_go_on_as_if_alone(model: GPT, static: bool, rows: list[int]) -> None:
    cache, kept = KVCache(model.config, 3, 12, static=static), torch.tensor(rows)
    model(TOKENS[:, :6], attention_mask=MASK[:, :6], cache=cache)
    cache.keep(kept)
    after = [model(TOKENS[kept, at : at + 1], cache=cache) for at in range(6, 10)]
    whole = model(TOKENS, attention_mask=MASK)
    torch.testing.assert_close(torch.cat(after, dim=1), whole[kept, 6:])


@pytest.mark.parametrize("at", [6, 7])
def test_rewinding_forgets_one_token(model: GPT, at: int) -> None:
    cache = KVCache(model.config, 3, 12, static=True)
    model(TOKENS[:, :6], attention_mask=MASK[:, :6], cache=cache)
    for before in range(6, at):
        model(TOKENS[:, before : before + 1], cache=cache)
    model(TOKENS[:, 2:3], cache=cache)
    cache.rewind()
    after = [model(TOKENS[:, now : now + 1], cache=cache) for now in range(at, 10)]
    torch.testing.assert_close(torch.cat(after, dim=1), model(TOKENS, attention_mask=MASK)[:, at:])


def test_a_full_cache_refuses(model: GPT) -> None:
    cache = KVCache(model.config, 3, 5)
    with pytest.raises(ValueError, match="no room for 6 tokens"):
        model(TOKENS[:, :6], cache=cache)
    model(TOKENS[:, :5], cache=cache)
    with pytest.raises(ValueError, match="no room for one more"):
        model(TOKENS[:, :1], cache=cache)


@pytest.mark.parametrize("static", [False, True])
def test_memory_of_banded_layers_does_not_grow_with_the_text(static: bool) -> None:
    config = dataclasses.replace(DENSE, n_positions=4096, n_layer=4, attention=("dense", "banded"), window=8)
    cache = KVCache(config, 2, 4096, static=static)
    held = [keys.nbytes + values.nbytes for keys, values in zip(cache.keys, cache.values, strict=True)]
    a_token = 2 * 2 * 16 * 4  # key and value, of two rows, 16 wide, in float32
    assert held == [4096 * a_token, 8 * a_token] * 2


@pytest.mark.parametrize("room", [4, 6, 0])
def test_a_forked_prefix_goes_on_in_rows_of_unequal_length(model: GPT, room: int) -> None:
    cache, prefix, lengths = KVCache(model.config, 1, 6), TOKENS[:1, :6], [4, 1, 3]
    model.hidden(prefix, cache=cache)
    for _ in range(2):  # the original serves again
        hidden = model.hidden(TOKENS[:, 6:], cache=cache.fork(3, room))
        for row, length in enumerate(lengths):
            alone = model.hidden(torch.cat([prefix, TOKENS[row : row + 1, 6 : 6 + length]], dim=1))
            torch.testing.assert_close(hidden[row, :length], alone[0, 6:])


def test_a_fork_goes_on_token_by_token_beside_its_original(model: GPT) -> None:
    cache, mask = KVCache(model.config, 1, 7), torch.arange(6)[None] >= 2
    model.hidden(TOKENS[:1, :6], attention_mask=mask, cache=cache)
    forked = cache.fork(3, 4)
    after = [model.hidden(TOKENS[:, at : at + 1], cache=forked) for at in range(6, 10)]
    rows = torch.cat([TOKENS[:1, 2:6].expand(3, -1), TOKENS[:, 6:]], dim=1)
    torch.testing.assert_close(torch.cat(after, dim=1), model.hidden(rows)[:, 4:])
    torch.testing.assert_close(model.hidden(TOKENS[:1, 6:7], cache=cache), model.hidden(rows)[:1, 4:5])


@pytest.mark.parametrize("room", [4, 0])
def test_every_row_of_a_batch_forks(model: GPT, room: int) -> None:
    cache = KVCache(model.config, 3, 6)
    model.hidden(TOKENS[:, :6], attention_mask=MASK[:, :6], cache=cache)
    hidden = model.hidden(TOKENS[:, 6:].repeat_interleave(2, 0), cache=cache.fork(2, room))
    whole = model.hidden(TOKENS, attention_mask=MASK)[:, 6:]
    torch.testing.assert_close(hidden, whole.repeat_interleave(2, 0))


def test_a_fork_may_have_more_room_than_its_original_had(model: GPT) -> None:
    # The original's capacity, not the window, bounds its banded layers; the fork's are wider.
    cache = KVCache(model.config, 1, 4)
    model.hidden(TOKENS[:1, :4], cache=cache)
    forked = cache.fork(1, 6)
    after = [model.hidden(TOKENS[:1, at : at + 1], cache=forked) for at in range(4, 10)]
    torch.testing.assert_close(torch.cat(after, dim=1), model.hidden(TOKENS[:1])[:, 4:])


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("width", [1, 3, 5])  # three rows of 5 are more than the 11 tokens they have in common
def test_rows_of_a_fork_without_room_do_not_see_one_another(model: GPT, padding: int, width: int) -> None:
    tokens = torch.randint(31, (3, 16), generator=torch.Generator().manual_seed(2))
    tokens[:, :11] = tokens[0, :11]
    mask = torch.arange(16)[None].expand(3, -1) >= padding
    cache = KVCache(model.config, 1, 11)
    model.hidden(tokens[:1, :11], attention_mask=mask[:1, :11] if padding else None, cache=cache)
    hidden = model.hidden(tokens[:, 11 : 11 + width], cache=cache.fork(3))
    whole = model.hidden(tokens[:, : 11 + width], attention_mask=mask[:, : 11 + width])
    torch.testing.assert_close(hidden, whole[:, 11:])


def test_a_fork_without_room_reads_single_tokens_keeps_none_and_ends_with_its_original(model: GPT) -> None:
    cache = KVCache(model.config, 1, 10)
    model.hidden(TOKENS[:1, :6], cache=cache)
    forked = cache.fork(3)
    for tokens in (TOKENS[:, 6:7], TOKENS[:, 8:9]):
        whole = torch.cat([TOKENS[:1, :6].expand(3, -1), tokens], dim=1)
        torch.testing.assert_close(model.hidden(tokens, cache=forked), model.hidden(whole)[:, 6:])
    model.hidden(TOKENS[:1, 6:8], cache=cache)
    with pytest.raises(ValueError, match="fork of a cache of 6 tokens: the cache has gone on to 8"):
        model.hidden(TOKENS[:, 6:], cache=forked)


def test_a_static_cache_does_not_fork() -> None:
    with pytest.raises(ValueError, match="found a static cache"):
        KVCache(DENSE, 1, 6, static=True).fork(3, 4)
