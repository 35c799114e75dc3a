"""What pretraining and SFT have in common: the next-token loss of a batch, and samples from prompts."""

from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor

from gpt_modules.backbone import GPT, generate
from gpt_modules.data.batches import PackedBatch, TokenBatch
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.functional import linear_cross_entropy
from gpt_modules.training.artefacts import datamodule_tokenizer, sampling_generator
from gpt_modules.training.sharding import gathered


def next_token_loss(model: GPT, batch: TokenBatch | PackedBatch) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropies in nats and the number of tokens that count; logits are never stored whole."""
    if isinstance(batch, PackedBatch):
        hidden = model.hidden(batch.inputs, batch.positions, batch.segments)
    else:
        hidden = model.hidden(batch.inputs)
    total = linear_cross_entropy(hidden.flatten(0, 1), model.head_weight, batch.labels.flatten())
    return total, (batch.labels != -100).sum()


@torch.no_grad()
def row_losses(model: GPT, batch: TokenBatch | PackedBatch) -> list[dict[str, Any]]:
    """For each row of a batch: its nats (the sum) and how many tokens they are of."""
    rows = []
    for row in range(len(batch.inputs)):
        total, count = next_token_loss(model, type(batch)(*(field[row : row + 1] for field in batch)))
        if int(count):
            rows.append({"nats": float(total), "tokens": int(count)})
    return rows


def continuation_rows(
    module: L.LightningModule, model: GPT, prompts: list[str] | None, max_new_tokens: int
) -> list[dict[str, str]]:
    """Each prompt with a sampled continuation (temperature 1 and 0.7), for the sample table. Of a sharded
    model all processes ask, and generate the same.
    """
    tokenizer, prompts = datamodule_tokenizer(module), prompts or []
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    room = model.decoder.config.n_positions - max((len(row) for row in ids), default=0)
    if not ids or room < 1:
        return []
    columns = {}
    with gathered(model) as whole:
        for purpose, temperature in enumerate((1.0, 0.7)):
            generator = sampling_generator(module, purpose)
            sampled = generate(
                whole,
                ids,
                max_new_tokens=min(max_new_tokens, room),
                eos_id=tokenizer.eos_id,
                temperature=temperature,
                generator=generator,
            )
            columns[f"temperature {temperature}"] = decode_responses(tokenizer, sampled.tokens, sampled.mask)
    return [
        {"prompt": prompt} | {name: texts[row] for name, texts in columns.items()} for row, prompt in enumerate(prompts)
    ]


def decode_responses(tokenizer: Tokenizer, tokens: Tensor, mask: Tensor) -> list[str]:
    """Texts of the counted tokens, without the end-of-text token."""
    rows = [row[keep].tolist() for row, keep in zip(tokens.cpu(), mask.cpu(), strict=True)]
    return [tokenizer.decode(row) for row in rows]


def perplexity(mean_loss: Tensor) -> Tensor:
    """exp of the token-weighted mean cross-entropy in nats."""
    return torch.exp(mean_loss)
