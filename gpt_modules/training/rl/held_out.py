"""What validation and test say of answers to held-out prompts, and of held-out pretraining text, by each model that is
measured.
"""

from collections.abc import Sequence

import lightning.pytorch as L
import torch
from torch import Tensor

from gpt_modules.backbone import GPT
from gpt_modules.data.batches import PackedBatch, TokenBatch
from gpt_modules.errors import UserError
from gpt_modules.training.language import HeldOutText
from gpt_modules.training.processes import HeldOut, gathered, joined
from gpt_modules.training.rl.rollout import Scored
from gpt_modules.training.rl.shaping import DIVERSITY, diversity

MEASURED = ("score", "optimised_score", "reward", "kl", "length", "ended", "repetition")  # of each answer
SHAPED = ("optimised_score", "reward")  # of these, what has a scale only once there are moments to normalise by
SPREAD = "reward_spread"  # too, where an ensemble rewards
PRETRAINING = "pretraining_"
_TAKEN = {*MEASURED, SPREAD, *DIVERSITY, "score_std", "temperature", f"{PRETRAINING}loss", f"{PRETRAINING}perplexity"}
_NO_ANSWER = (torch.zeros(0, 0, dtype=torch.long), torch.zeros(0, 0, dtype=torch.bool))  # of a process without rows


class HeldOutAnswers:
    """Numbers of answers, batch after batch; read together, over all processes.

    Args:
        prefixes: of the metrics' names, one for each model that answers; that of the exported one is empty.
        monitors: names of the scores that are only watched.
        spread: whether an ensemble rewards.
        terms: names of the reward's terms, if it has several.

    Raises:
        UserError: a monitor has the name of another metric.
    """

    def __init__(
        self, prefixes: Sequence[str], monitors: Sequence[str], spread: bool, terms: Sequence[str] = ()
    ) -> None:
        taken = ("score/", *filter(None, prefixes))
        ours = sorted(name for name in monitors if name in _TAKEN or name.startswith(taken))
        for name in ours:
            raise UserError(f"monitors.{name}: found the name of a metric of PPO, expected another")
        names = [*MEASURED, *([SPREAD] if spread else []), *(f"score/{name}" for name in terms), *monitors]
        self.prefixes = prefixes
        self._numbers = {prefix: HeldOut(*names) for prefix in prefixes}
        self._answers: dict[str, list[tuple[Tensor, Tensor]]] = {prefix: [] for prefix in prefixes}
        self._text = {prefix: HeldOutText() for prefix in prefixes}

    def __len__(self) -> int:
        """Answers of this process that nobody has taken yet."""
        return sum(len(mask) for answers in self._answers.values() for _, mask in answers)

    def add(self, prefix: str, scored: Scored, **numbers: Tensor) -> None:
        """A batch of a model's answers, with the numbers (B,) of each."""
        self._numbers[prefix].add(**numbers)
        self._answers[prefix].append((scored.responses.cpu(), scored.mask.cpu()))

    def read(self, prefix: str, model: GPT, batch: TokenBatch | PackedBatch) -> None:
        """A batch of pretraining text."""
        self._text[prefix].read(model, batch)

    def take(self) -> dict[str, float]:
        """Means over all answers, the scores' standard deviation, and the answers' diversity; the next `add` begins
        anew. Called by all processes.
        """
        values: dict[str, float] = {}
        for prefix, numbers in self._numbers.items():
            columns = numbers.take()
            found = {name: column.mean() for name, column in columns.items()}
            found["score_std"] = columns["score"].std(unbiased=False)
            parts = zip(_NO_ANSWER, *self._answers[prefix], strict=True)
            found |= diversity(*gathered([joined(columns) for columns in parts]))
            self._answers[prefix].clear()
            values |= {prefix + name: float(value) for name, value in found.items()}
        return values

    def log_text(self, module: L.LightningModule, stage: str) -> None:
        """`<stage>/pretraining_loss` and `<stage>/pretraining_perplexity`, whose rise is the alignment tax."""
        for prefix, text in self._text.items():
            text.log(module, stage, prefix + PRETRAINING)
