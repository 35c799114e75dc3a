"""What pretraining and SFT have in common: the next-token loss, learnt from and held out, and samples from prompts."""

from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor

from gpt_modules.backbone import GPT, generate
from gpt_modules.data.batches import MixedBatch, PackedBatch, TokenBatch
from gpt_modules.data.rows.chat import encode_asked
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.functional import linear_cross_entropy
from gpt_modules.storage.comparisons import Prompt
from gpt_modules.training.accumulation import StepMean
from gpt_modules.training.artefacts import datamodule_tokenizer, sampling_generator
from gpt_modules.training.hyperparameters import SEEDS, expect_idle, expect_number
from gpt_modules.training.processes import HeldOut
from gpt_modules.training.sharding.models import gathered


def next_token_loss(model: GPT, batch: TokenBatch | PackedBatch) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropies in nats and the number of tokens that count; logits are never stored whole."""
    packed = (batch.positions, batch.segments) if isinstance(batch, PackedBatch) else ()
    hidden, head = model.hidden_and_head(batch.inputs, *packed)
    total = linear_cross_entropy(hidden.flatten(0, 1), head, batch.labels.flatten())
    return total, (batch.labels != -100).sum()


def step_loss(step: StepMean, model: GPT, batch: TokenBatch | PackedBatch | MixedBatch) -> Tensor:
    """The next-token loss of a micro-batch, in the scale of `step`. Its cells are those that rows may have: the rows
    of unpacked examples are as wide as the longest, and of pretraining windows there are more or fewer, which differs
    between processes.
    """
    first, *beside = parts(batch)
    total, count = next_token_loss(model, first)
    for part in beside:
        more, tokens = next_token_loss(model, part)
        total, count = total + more, count + tokens
    return step.add(total, count, len(first.inputs) * model.config.n_positions)


def parts(batch: TokenBatch | PackedBatch | MixedBatch) -> list[TokenBatch | PackedBatch]:
    """What a model reads of a batch, in passes of their own: demonstrations first, then pretraining windows."""
    return [part for part in batch if part is not None] if isinstance(batch, MixedBatch) else [batch]


class HeldOutText(HeldOut):
    """The mean cross-entropy of held-out tokens: a short last window weighs what it has."""

    def __init__(self) -> None:
        super().__init__("nats", "tokens")

    def read(self, model: GPT, batch: TokenBatch | PackedBatch) -> None:
        """Add a batch."""
        total, count = next_token_loss(model, batch)
        self.add(nats=total, tokens=count)

    def log(self, module: L.LightningModule, stage: str, text: str = "") -> None:
        """`<stage>/<text>loss` in nats a token and `<stage>/<text>perplexity`, its exponential."""
        sums = self.take()
        loss = sums["nats"].sum() / sums["tokens"].sum()
        values = {f"{stage}/{text}loss": float(loss), f"{stage}/{text}perplexity": float(loss.exp())}
        module.log_dict(values, prog_bar=not text, sync_dist=True)  # equal on all; said, as Lightning warns otherwise


@torch.no_grad()
def row_losses(model: GPT, batch: TokenBatch | PackedBatch) -> list[dict[str, Any]]:
    """For each row of a batch: its nats (the sum) and how many tokens they are of."""
    rows = []
    for row in range(len(batch.inputs)):
        total, count = next_token_loss(model, type(batch)(*(field[row : row + 1] for field in batch)))
        if int(count):
            rows.append({"nats": float(total), "tokens": int(count)})
    return rows


def check_samples(prompts: list[str] | None, tokens: int, seed: int, usual: int) -> None:
    """A recipe's prompts to answer, and how: `usual` is the default of `tokens`.

    Raises:
        UserError: a number means nothing, or nobody is asked.
    """
    expect_number("sample_tokens", tokens, "[1, inf)", whole=True)
    expect_number("seed", seed, SEEDS, whole=True)
    if not prompts:
        expect_idle("sample_tokens", tokens, [usual], "there are no sample_prompts")
        expect_idle("seed", seed, [0], "there are no sample_prompts to answer")


def continuation_rows(
    module: L.LightningModule, model: GPT, prompts: list[str] | None, max_new_tokens: int, in_turns: bool = False
) -> list[dict[str, str]]:
    """Each prompt with a sampled continuation (temperature 1 and 0.7), for the sample table. Of a sharded
    model all processes ask, and generate the same. in_turns: each is what a user says, as the chat template has it.
    """
    tokenizer, prompts = datamodule_tokenizer(module), prompts or []
    asked: list[Prompt] = [[{"role": "user", "content": prompt}] if in_turns else prompt for prompt in prompts]
    ids = encode_asked(asked, tokenizer)
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
                eos_id=tokenizer.end_ids,
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
    return [tokenizer.within.decode(row) for row in rows]
