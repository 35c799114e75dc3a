"""The next-token loss against whole logits, and answers as text."""

import math

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule

from gpt_modules.backbone import load_pretrained
from gpt_modules.data.batches import PackedBatch, TokenBatch
from gpt_modules.training.language import HeldOutText, decode_responses, next_token_loss, row_losses

INPUTS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 0], [12, 0, 0, 0]])
LABELS = torch.tensor([[6, 7, 8, 4], [-100, 11, 5, -100], [-100, -100, -100, -100]])


@pytest.fixture
def model(micro):
    return load_pretrained(micro.gpt, kind="gpt").eval()


@pytest.fixture(params=["windows", "packed"])
def batch(request):
    if request.param == "windows":
        return TokenBatch(INPUTS, LABELS)
    places = torch.arange(4).expand(3, 4)
    return PackedBatch(INPUTS, LABELS, places, torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]]))


@torch.no_grad()
def by_row(model):
    return [F.cross_entropy(model(INPUTS[row : row + 1])[0], LABELS[row], reduction="sum") for row in range(2)]


def test_the_loss_is_a_sum_over_the_tokens_that_count(model, batch):
    total, count = next_token_loss(model, batch)
    assert count.item() == 6
    torch.testing.assert_close(total, sum(by_row(model)))


def test_a_segment_sees_nothing_of_another(model):
    row = PackedBatch(
        torch.tensor([[5, 6, 9, 10]]),
        torch.tensor([[6, 7, 10, 11]]),
        torch.tensor([[0, 1, 0, 1]]),
        torch.tensor([[1, 1, 2, 2]]),
    )
    apart = [TokenBatch(row.inputs[:, part], row.labels[:, part]) for part in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(next_token_loss(model, row)[0], sum(next_token_loss(model, half)[0] for half in apart))


def test_rows_say_their_own_nats_and_those_without_a_token_nothing(model, batch):
    rows = row_losses(model, batch)
    assert [row["tokens"] for row in rows] == [4, 2]
    assert [row["nats"] for row in rows] == pytest.approx([nats.item() for nats in by_row(model)], rel=1e-5)


def test_answers_are_the_counted_tokens_without_their_end(micro):
    tokenizer = micro.tokenizer
    ids = [*tokenizer.encode(" is good."), tokenizer.eos_id]
    tokens = torch.tensor([ids, ids])
    mask = torch.ones_like(tokens).bool()
    mask[1, -2:] = False
    assert decode_responses(tokenizer, tokens, mask) == [" is good.", tokenizer.decode(ids[:-2])]


def test_perplexity_of_a_guess_among_seven_is_seven_however_many_batches():
    """1,000 batches of 3 tokens: a sum in bf16 would stop growing at 256."""
    held_out, module, said = HeldOutText(), LightningModule(), {}
    module.log_dict = lambda values, **_: said.update(values)
    for _ in range(1000):
        held_out.add(nats=torch.tensor(3 * math.log(7.0)), tokens=torch.tensor(3))
    held_out.add(nats=torch.tensor(0.0), tokens=torch.tensor(0))  # a rank that had only padding
    held_out.log(module, "val")
    assert said == pytest.approx({"val/loss": math.log(7.0), "val/perplexity": 7.0}, rel=1e-6)
