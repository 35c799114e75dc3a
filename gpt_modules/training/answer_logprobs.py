"""Log-probabilities of whole answers: under a policy that learns, and under a frozen reference that reads each answer
once.
"""

from collections.abc import Iterator, Sequence

import lightning.pytorch as L
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gpt_modules.backbone import GPT, model_digest
from gpt_modules.data.batches import RankingBatch
from gpt_modules.data.collate import pad_right
from gpt_modules.data.reward import Answer, Comparisons
from gpt_modules.errors import UserError
from gpt_modules.functional import linear_logprobs
from gpt_modules.training import artefacts
from gpt_modules.training.processes import in_order
from gpt_modules.training.rl.frozen import REFERENCE
from gpt_modules.training.rl.rollout import inference
from gpt_modules.training.rl.terms import check_tokenizer
from gpt_modules.training.rl.unchanged import check_unchanged
from gpt_modules.training.sharding.models import is_sharded, shard

CELLS = 2**13  # tokens of a forward pass of the reference, padding included


def answer_logprobs(
    model: GPT, tokens: Int[Tensor, "N T"], prompt_lengths: Int[Tensor, "N"], lengths: Int[Tensor, "N"]
) -> Float[Tensor, "N"]:
    """log π(answer | prompt) of right-padded rows in nats, a sum over the answer's tokens and its end token, in
    float32. Prompts have at least one token; logits are formed for what is summed only.
    """
    places = torch.arange(1, tokens.shape[1], device=tokens.device)
    counted = (places >= prompt_lengths.unsqueeze(1)) & (places < lengths.unsqueeze(1))
    row, column = counted.nonzero(as_tuple=True)
    # The state at each column predicts the next token.
    states = model.hidden(tokens[:, :-1], read=row * counted.shape[1] + column)
    logprobs, _ = linear_logprobs(states, model.head_weight, tokens[row, column + 1])
    cells = torch.zeros(counted.shape, dtype=logprobs.dtype, device=logprobs.device)
    return cells.index_put((row, column), logprobs).sum(1)


class ReferenceLogprobs:
    """What a frozen model says of the answers of the data.

    It is opened to read all of them at once, and let go: learning needs no second model in memory. How the answers are
    put into batches follows from the data alone, so that a value depends neither on the batch that asks for it nor on
    the number of processes, and a resumed run finds the values that it had. A checkpoint holds none of them and knows
    the model by its SHA-256.

    Args:
        folder: of the model.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.digests: dict[str, str | None] = {}
        self.recorded: dict[str, str | None] = {}  # of a checkpoint that the run goes on from
        self._values: dict[Comparisons, Tensor] = {}

    def read(self, module: L.LightningModule, *sets: Comparisons) -> None:
        """Read the answers that have not been read; called by all processes.

        Raises:
            UserError: the model cannot be opened, is another than it was, or cannot read the answers.
        """
        new = [answers for answers in sets if answers not in self._values]
        if not new:
            return
        model = self._open(module)
        with inference(module):
            self._values |= {answers: self._read(module, model, answers.answers) for answers in new}

    def of(self, answers: Comparisons, batch: RankingBatch) -> Float[Tensor, "P K"]:
        """The log-probabilities of a batch's answers; where there is none, that of some other one."""
        return self._values[answers].to(batch.numbers.device)[batch.numbers]

    def _open(self, module: L.LightningModule) -> GPT:
        model = artefacts.open_gpt(None, self.folder, **artefacts.dropout_changes(0.0))
        found = {REFERENCE: model_digest(model)}
        check_unchanged(found, self.recorded | self.digests)
        self.digests = dict(found)
        if self.folder != module.hparams["init_from"]:
            self._check(module, model)
        converted: GPT = module.trainer.precision_plugin.convert_module(model)  # type: ignore[assignment]
        if module.device_mesh is not None:
            shard(converted.requires_grad_(False), module)
        return converted.to(module.device).eval()

    def _check(self, module: L.LightningModule, model: GPT) -> None:
        """It reads what the policy reads, and has room for it."""
        tokenizer, config = artefacts.datamodule_tokenizer(module), model.config
        check_tokenizer(self.folder, tokenizer)
        if config.vocab_size < tokenizer.vocab_size:
            found = f"a vocabulary of {config.vocab_size}"
            raise UserError(f"{self.folder}: found {found}, expected at least the tokenizer's {tokenizer.vocab_size}")
        longest, found = module.trainer.datamodule.longest_row()  # type: ignore[attr-defined]
        if longest > config.n_positions:
            expected = f"at most n_positions = {config.n_positions} of the reference, {self.folder}"
            raise UserError(f"data.context: found {found}, expected {expected}")

    def _read(self, module: L.LightningModule, model: GPT, answers: Sequence[Answer]) -> Float[Tensor, "A"]:
        every, world = list(pieces([len(answer.tokens) for answer in answers])), module.trainer.world_size

        def values(piece: Sequence[int]) -> Tensor:
            tokens = pad_right([answers[i].tokens for i in piece])
            counts = torch.tensor([(answers[i].prompt_length, len(answers[i].tokens)) for i in piece])
            rows = (tensor.to(module.device) for tensor in (tokens, *counts.unbind(1)))
            return answer_logprobs(model, *rows).cpu()

        own = every[module.global_rank :: world]
        found = [torch.zeros(0), *map(values, own)]
        if is_sharded(model) and len(own) * world < len(every):  # one call less than others, who need its shards
            values(every[0])
        numbers = torch.tensor([i for piece in own for i in piece], dtype=torch.long)
        (logprobs,) = in_order(numbers, [torch.cat(found)])
        return logprobs.to(module.device)


def pieces(lengths: Sequence[int]) -> Iterator[list[int]]:
    """All rows, shortest first, as many together as make at most `CELLS` cells, or one that has more."""
    piece: list[int] = []
    for i in np.argsort(lengths, kind="stable").tolist():
        if piece and (len(piece) + 1) * lengths[i] > CELLS:
            yield piece
            piece = []
        piece.append(i)
    if piece:
        yield piece
