"""What stands out in a run's rollouts: a line where something makes learning pointless."""

import logging
from collections.abc import Mapping

from lightning_utilities.core.rank_zero import rank_zero_only

from gpt_modules.errors import expect

log = logging.getLogger(__name__)

FEW_END = 0.05  # of a rollout's responses
SAMPLER_KL = 1e-3  # nats a token; NeMo-RL's bound


class RolloutWatch:
    """Looks at each rollout's numbers.

    `shown`: what the progress bar shows until the next one.
    """

    def __init__(self, max_new_tokens: int, missing_eos_score: float | None) -> None:
        self.max_new_tokens, self.missing_eos_score = max_new_tokens, missing_eos_score
        self.shown: dict[str, float] = {}
        self._told_endless = self._told_sampler = self._told_alike = False

    def look(self, numbers: Mapping[str, float], episodes: int) -> None:
        """The numbers of a rollout of so many episodes, as they are logged."""
        self.shown = {"score": numbers["objective/score"], "kl": numbers["objective/kl"]}
        if getattr(rank_zero_only, "rank", 0) == 0:
            self._warn_of_endless(numbers["response/ended"], episodes)
            self._warn_of_sampler(numbers["sampler/kl"], numbers["sampler/max_prob_error"])
            self._warn_of_alike(numbers.get("objective/groups_without_spread", 0.0))

    def _warn_of_endless(self, ended: float, episodes: int) -> None:
        """Once: where (nearly) no response ends, the reward has no say."""
        if self.missing_eos_score is None or ended >= FEW_END or self._told_endless:
            return
        self._told_endless = True
        log.warning(
            "missing_eos_score: %d of %d responses ended; the others score %s, whatever the reward says. Expected more "
            "than max_new_tokens: %d, a model that ends its answers, or null here, which trusts the reward",
            *(round(ended * episodes), episodes, self.missing_eos_score, self.max_new_tokens),
        )

    def _warn_of_alike(self, share: float) -> None:
        """Once: answers that all score alike are no better than one another."""
        if share < 1.0 or self._told_alike:
            return
        self._told_alike = True
        log.warning(
            "objective/groups_without_spread: the answers to each prompt of a rollout all score alike: it teaches "
            "nothing; expected prompts whose answers differ in it, or more data.answers"
        )

    def _warn_of_sampler(self, kl: float, error: float) -> None:
        """Once: answers drawn from another distribution than the one that is trained are off-policy."""
        if kl <= SAMPLER_KL or self._told_sampler:
            return
        self._told_sampler = True
        log.warning(
            "sampler/kl: found %.2g nats a token between sampler and policy (a probability differs by up to %.2g), "
            "expected at most %g: half precision, or a sampler that does not draw from the policy",
            *(kl, error, SAMPLER_KL),
        )


def refuse_idle_policy(warmup: int, iterations: float) -> None:
    """Called before the first step.

    Args:
        iterations: of the run, `inf` where only time ends it.

    Raises:
        UserError: the critic warms up for all of them, and the policy would never learn.
    """
    less = f"less than the run's {iterations:g} iterations, or the policy never learns"
    expect(not 0 < iterations <= warmup, "critic.warmup", warmup, f"{less}; a critic alone does at optimizer.lr 0")
