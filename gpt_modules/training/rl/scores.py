"""What a reward says of a response, made into what the policy is trained on. In this order, whatever is asked for:

1. normalise: the mean of past scores off, their standard deviation divided by;
2. clip;
3. a response that did not come to its end has `missing_eos_score` in place of all that (Stiennon et al. 2020, code):
   a number in units of what is optimised;
4. the length penalty comes off, of every response: one that was cut off is the longest.

`score` in every metric and in the frontier is what the reward says; `optimised_score` is what is left after step 4.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gpt_modules.errors import expect
from gpt_modules.storage.documents import Count
from gpt_modules.training.hyperparameters import expect_number

Normaliser = Literal["reference", "running"]


@dataclass(frozen=True)
class ScoresConfig:
    """How scores become what is optimised.

    Args:
        normalise: `reference`: a gain and a bias, once before the first rollout, such that answers of the reference
            score 0 in the mean with variance 1 (Ziegler et al. 2019, section 2.2); `running`: by mean and standard
            deviation of all rollouts so far, the present one among them; None: not.
        samples: answers of the reference by which gain and bias are found.
        clip: a score beyond plus or minus this is taken as this. DeepSpeed-Chat: 5.
        length_penalty: taken off for each token of a response beyond `free_length`. DAPO's soft overlong punishment (Yu
            et al. 2025, equation 13) is 1 / L_cache beyond max_new_tokens - L_cache.
        free_length: tokens that cost nothing.
    """

    normalise: Normaliser | None = None
    samples: int = 256
    clip: float | None = None
    length_penalty: float = 0.0
    free_length: int = 0

    def __post_init__(self) -> None:
        expect_number("scores.samples", self.samples, "[2, inf)", whole=True)
        if self.clip is not None:
            expect_number("scores.clip", self.clip, "(0, inf)")
        expect_number("scores.length_penalty", self.length_penalty, "[0, inf)")
        expect_number("scores.free_length", self.free_length, "[0, inf)", whole=True)

    def idle(self) -> dict[str, str]:
        """What finds a gain that is not asked for, and what is free where nothing costs."""
        samples = {} if self.normalise == "reference" else {"samples": "scores.normalise is not reference"}
        return samples | ({} if self.length_penalty else {"free_length": "scores.length_penalty is 0"})


class Moments(NamedTuple):
    """Mean and deviation of the scores that were seen, in Python's numbers: 64 bits, and the same on every process.

    of: what they are of, see `ScoresConfig.normalise`.
    seen: how many there were.
    squares: the sum of the squared distances to the mean.
    """

    of: Normaliser | None = None
    seen: Count = 0
    mean: float = 0.0
    squares: float = 0.0

    @property
    def deviation(self) -> float:
        """The standard deviation, biased as `tf.nn.moments`; 1 where there is none to divide by."""
        return math.sqrt(self.squares / self.seen) if self.squares else 1.0

    def joined(self, scores: Float[Tensor, "B"]) -> "Moments":
        """Those of these scores too (Chan et al. 1979, equation 2.1)."""
        new, count = scores.double().cpu(), self.seen + len(scores)
        mean = float(new.mean())
        apart = mean - self.mean
        squares = self.squares + float((new - mean).square().sum()) + apart**2 * self.seen * len(new) / count
        return self._replace(seen=count, mean=self.mean + apart * len(new) / count, squares=squares)

    def normalised(self, scores: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
        """Scores in these units; as they are before any was seen."""
        return (scores - self.mean) / self.deviation if self.seen else scores


def optimised(
    scores: Float[Tensor, "B"],
    ended: Tensor,
    lengths: Int[Tensor, "B"],
    config: ScoresConfig,
    moments: Moments,
    missing_eos_score: float | None,
) -> Float[Tensor, "B"]:
    """What is trained on: the four steps above."""
    found = moments.normalised(scores)
    if config.clip is not None:
        found = found.clamp(-config.clip, config.clip)
    if missing_eos_score is not None:
        found = torch.where(ended, found, missing_eos_score)
    return found - config.length_penalty * (lengths - config.free_length).clamp_min(0)


def first_moments(moments: Moments, config: ScoresConfig, draw: Callable[[int], Float[Tensor, "B"]]) -> Moments:
    """Those of the next rollout, as far as it is not needed for them: they begin anew where the recipe normalises
    otherwise, and those of the reference's answers are found (Ziegler et al. 2019, section 2.2).

    Args:
        draw: scores of answers of the reference, the first and any further batch of them.
    """
    if moments.of != config.normalise:
        moments = Moments(config.normalise)
    if config.normalise != "reference" or moments.seen:
        return moments
    found = [draw(0)]
    while sum(map(len, found)) < config.samples:
        found.append(draw(len(found)))
    return expect_spread(moments.joined(torch.cat(found)[: config.samples]))


def expect_spread(moments: Moments) -> Moments:
    """Raises:
    UserError: the reference's answers all score alike: no gain gives them variance 1.
    """
    found = f"{moments.seen} answers of the reference that all score {moments.mean:g}"
    expect(moments.squares > 0, "model.scores.normalise", found, "scores that differ, or null here")
    return moments
