"""GPT-1 fine-tuned: a decoder with the language model's head and, beside it, one for a labelled task.

Source: Radford et al. 2018, sections 3.2 and 3.3. Where the original code differs from the paper, this follows the
paper: token and position embeddings are two matrices, so that the output softmax of the auxiliary loss runs over tokens
only, and dropout falls on embedded tokens, not on the table.
"""

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gpt_modules.backbone.config import DecoderConfig
from gpt_modules.backbone.decoder import Decoder
from gpt_modules.backbone.heads import ClassificationHead, MultipleChoiceHead, SimilarityHead
from gpt_modules.backbone.models import GPT, output_matrix
from gpt_modules.errors import UserError
from gpt_modules.labelling import Labelling


class LabellingModel(nn.Module):
    """Rows of tokens that end in the extract token -> outputs of a labelled task.

    Args:
        classifier_dropout: on the states that the task's head reads.

    Raises `UserError` for a task without outputs, or a dropout outside [0, 1).
    """

    def __init__(self, config: DecoderConfig, task: Labelling, classifier_dropout: float = 0.1) -> None:
        super().__init__()
        self.config, self.task, self.classifier_dropout = config, task, classifier_dropout
        self.decoder = Decoder(config)
        if not config.tied:
            self.lm_head = output_matrix(config)
        self.head = _head(task, config.n_embd, classifier_dropout)

    def drop_before_head(self, classifier_dropout: float) -> None:
        """Change the dropout on the states that the task's head reads."""
        self.classifier_dropout = self.head.drop.p = classifier_dropout

    @property
    def head_weight(self) -> Float[Tensor, "V C"]:
        """The language model's output matrix, for the auxiliary loss."""
        return self.decoder.wte.weight if self.config.tied else self.lm_head.weight

    def hidden(self, tokens: Int[Tensor, "N T"]) -> Float[Tensor, "N T C"]:
        """The decoder's hidden states of right-padded rows; both losses read them."""
        out: Tensor = self.decoder(tokens)
        return out

    def outputs(
        self, hidden: Float[Tensor, "N T C"], lengths: Int[Tensor, "N"], index: Int[Tensor, "B S"]
    ) -> Float[Tensor, "B L"]:
        """Outputs (B, n_outputs), float32, from the states at the last of each row's `lengths` tokens.

        `index`: the rows of each example, -1 where it has fewer than S. For multiple choice (B, S), with -inf where
        there is no answer. An example without any row gives finite numbers that nobody reads.
        """
        rows = torch.arange(len(hidden), device=hidden.device)
        # One state of zeros at the end, for -1 to point at.
        states = nn.functional.pad(hidden[rows, lengths - 1], (0, 0, 0, 1))
        out: Tensor = self.head(states[index]).float()
        if self.task.kind != "multiple_choice":
            return out
        missing = index < 0
        # -inf throughout would make the softmax NaN, and the gradient with it, even of an example that is ignored.
        return out.masked_fill(missing & ~missing.all(1, keepdim=True), -torch.inf)

    def forward(
        self, tokens: Int[Tensor, "N T"], lengths: Int[Tensor, "N"], index: Int[Tensor, "B S"]
    ) -> Float[Tensor, "B L"]:
        """`outputs` of `hidden`."""
        return self.outputs(self.hidden(tokens), lengths, index)

    @classmethod
    def from_gpt(
        cls,
        gpt: GPT,
        task: Labelling,
        special_ids: tuple[int, ...],
        init_layers: int | None = None,
        classifier_dropout: float = 0.1,
    ) -> "LabellingModel":
        """A task model whose trunk is a copy of `gpt`'s and whose head is fresh; same device and type.

        Args:
            special_ids: tokens that are new to the model. The embedding grows until it has a row for each, and their
                rows start at N(0, 0.02).
            init_layers: how many blocks to copy, from the lowest; the rest starts fresh. Embeddings are copied in any
                case, a final layer norm only with all blocks. None copies all (Radford et al. 2018, figure 2).

        Raises `UserError` for more layers than there are.
        """
        depth = gpt.config.n_layer
        layers = depth if init_layers is None else init_layers
        if not 0 <= layers <= depth:
            raise UserError(f"init_layers: found {layers}, expected a number of layers between 0 and {depth}")
        vocab_size = max(gpt.config.vocab_size, *(number + 1 for number in special_ids), 0)
        config = dataclasses.replace(gpt.config, vocab_size=vocab_size)
        model = cls(config, task, classifier_dropout).to(gpt.head_weight.device, gpt.head_weight.dtype)
        _copy_trunk(gpt.decoder, model.decoder, layers)
        _copy_rows(gpt.decoder.wte, model.decoder.wte, special_ids)
        if not config.tied:
            _copy_rows(gpt.lm_head, model.lm_head, special_ids)
        return model


def _head(task: Labelling, n_embd: int, dropout: float) -> ClassificationHead | MultipleChoiceHead:
    if task.n_outputs < 1:
        raise UserError("labels: found none, expected the names of the task's classes")
    if not 0.0 <= dropout < 1.0:
        raise UserError(f"classifier_dropout: found {dropout}, expected a probability in [0, 1)")
    if task.kind == "multiple_choice":
        return MultipleChoiceHead(n_embd, dropout)
    head = SimilarityHead if task.kind == "similarity" else ClassificationHead
    return head(n_embd, task.n_outputs, dropout)


def _copy_trunk(old: Decoder, new: Decoder, layers: int) -> None:
    pairs = [*zip(old.embeddings[1:], new.embeddings[1:], strict=True)]
    pairs += [(old.blocks[layer], new.blocks[layer]) for layer in range(layers)]
    if old.config.norm == "pre" and layers == old.config.n_layer:
        pairs.append((old.ln_f, new.ln_f))
    for theirs, ours in pairs:
        ours.load_state_dict(theirs.state_dict())


@torch.no_grad()
def _copy_rows(old: nn.Embedding | nn.Linear, new: nn.Embedding | nn.Linear, special_ids: tuple[int, ...]) -> None:
    drawn = new.weight[list(special_ids)]
    new.weight[: len(old.weight)] = old.weight
    new.weight[list(special_ids)] = drawn
