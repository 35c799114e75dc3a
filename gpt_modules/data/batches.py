"""The batches that loaders hand to the training modules, one NamedTuple a kind.

Conventions shared by all of them: token tensors are int64; padding is on the right and holds id 0; masks are bool and
True counts; a label to ignore is -100. `labels[b, t]` is the token to predict AT position t (the token that follows
`inputs[b, t]`), so nobody shifts anything. Which cells are padding is never read off the ids: no id means padding.
"""

from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

IGNORE = -100


class TokenBatch(NamedTuple):
    """Windows of running text (pretraining), or examples one a row.

    inputs (B, T): token ids. labels (B, T): the next token, or -100.
    """

    inputs: Int[Tensor, "B T"]
    labels: Int[Tensor, "B T"]


class PackedBatch(NamedTuple):
    """Several examples a row (SFT).

    inputs, labels (B, T): as in `TokenBatch`. positions (B, T): 0, 1, 2, ... starting anew with every example.
    segments (B, T): 1 for the first example of a row, 2 for the next, ...; 0 on padding. A token may see only earlier
    tokens of its own segment.
    """

    inputs: Int[Tensor, "B T"]
    labels: Int[Tensor, "B T"]
    positions: Int[Tensor, "B T"]
    segments: Int[Tensor, "B T"]


class MixedBatch(NamedTuple):
    """Demonstrations and windows of pretraining text beside them (SFT); None: this batch of this process has none."""

    demonstrations: TokenBatch | PackedBatch
    pretraining: TokenBatch | PackedBatch | None


class RankingBatch(NamedTuple):
    """P prompts with up to K ranked answers each (reward model, DPO), one row of tokens an answer.

    tokens (N, T): prompt + answer + eos, right-padded. lengths (N,): tokens that count in each row. index (P, K): the
    row of each answer in `tokens`, -1 where a prompt has fewer than K. ranks (P, K): lower is better, equal is a tie.
    mask (P, K): True where an answer exists. Of the vote, where that is known: scores (P, K): 1 to 7 (7 is best), 0 for
    none; labelers (P,): their numbers in a table of the data, -1 for nobody; rounds (P,): of comparisons, -1 for none.
    prompt_lengths (N,): tokens of each row that are the prompt's. numbers (P, K): the place of each answer among all
    answers of the data, the same in every epoch.
    """

    tokens: Int[Tensor, "N T"]
    lengths: Int[Tensor, " N"]
    index: Int[Tensor, "P K"]  # type: ignore[assignment]  # shadows tuple.index, which nobody calls
    ranks: Int[Tensor, "P K"]
    mask: Bool[Tensor, "P K"]
    scores: Int[Tensor, "P K"]
    labelers: Int[Tensor, " P"]
    rounds: Int[Tensor, " P"]
    prompt_lengths: Int[Tensor, " N"]
    numbers: Int[Tensor, "P K"]

    def answer_lengths(self) -> Int[Tensor, "P K"]:
        """Tokens of each answer, its end among them; those of some other one where there is none."""
        return (self.lengths - self.prompt_lengths)[self.index.clamp(min=0)]


class PromptBatch(NamedTuple):
    """Prompts to answer (PPO).

    tokens (B, T): right-padded. lengths (B,): tokens of each prompt, at least 1. numbers (B,): the place of each among
    all the prompts of a rollout or a validation, whichever process it is on: what its answer's noise is drawn from.
    rows (B,): which row of the data each is from, as `PPODataModule.column` counts them.
    """

    tokens: Int[Tensor, "B T"]
    lengths: Int[Tensor, " B"]
    numbers: Int[Tensor, " B"]
    rows: Int[Tensor, " B"]


class LabelledBatch(NamedTuple):
    """B labelled examples (fine-tuning), each of one row of tokens or of several: both orders of a pair, or one row an
    answer.

    tokens (N, T): [start] ... [extract], right-padded. lengths (N,): tokens that count in each row. index (B, S): the
    rows of each example in `tokens`, -1 where an example has fewer than S. labels (B,): the class or the right answer
    (-100: none), or for tasks with numbers the number (NaN: none).
    """

    tokens: Int[Tensor, "N T"]
    lengths: Int[Tensor, " N"]
    index: Int[Tensor, "B S"]  # type: ignore[assignment]
    labels: Int[Tensor, " B"] | Float[Tensor, " B"]


class EpisodeSet(NamedTuple):
    """Examples of one task, or with a leading dimension N of several tasks: what a model reads and what it should say.

    inputs: the arguments of the model's forward: (tokens,) of a `GPT`, (tokens, lengths, index) of a `LabellingModel`,
    (x,) of a regression. targets: int64, the token after each (B, T) or the class (B,), -100 where nothing is asked; or
    float, what the output should be.
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor


class EpisodeBatch(NamedTuple):
    """N tasks (meta-learning): a support set each to adapt on, and a query set to be judged by."""

    support: EpisodeSet
    query: EpisodeSet
