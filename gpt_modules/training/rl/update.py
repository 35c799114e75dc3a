"""An optimizer step's losses on a part of a rollout, and the statistics that tell whether they are healthy."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from gpt_modules.functional import clipped_value_loss, kl_loss, ppo_clip_loss, token_mean
from gpt_modules.training.rl.settings import ClipConfig
from gpt_modules.training.rl.shaping import Rollout


class Outputs(NamedTuple):
    """What the models say now of a rollout's response tokens.

    logprobs: (B, R) of the tokens, with gradient.
    entropy: (B, R) of the policy's distributions, nats.
    values: (B, R) of the states before the tokens, with gradient; None without a critic.
    """

    logprobs: Float[Tensor, "B R"]
    entropy: Float[Tensor, "B R"]
    values: Float[Tensor, "B R"] | None = None


class Penalty(NamedTuple):
    """The distance to the reference as a term of the loss: which estimate of it, and its weight."""

    kind: Literal["k2", "k3"]
    coef: float


def update_loss(
    outputs: Outputs,
    rollout: Rollout,
    clip: ClipConfig,
    normaliser: float,
    sequences: float | None = None,
    penalty: Penalty | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """Clipped policy loss, plus the clipped value loss where there is a critic, and the distance to the reference where
    there is a penalty; over response tokens, or over `sequences` means of them. With the statistics by name.

    All are shares of means over the whole optimizer step; `normaliser` and `sequences` as of `Experience`.
    """
    mask, means = rollout.mask, {"normaliser": normaliser, "sequences": sequences}
    policy = ppo_clip_loss(
        outputs.logprobs, rollout.logprobs, rollout.advantages, mask, clip.ratio, clip_high=clip.ratio_high, **means
    )
    loss: Tensor = policy.loss
    shares = {
        "loss/policy": policy.loss,
        "policy/approx_kl": policy.approx_kl,
        "policy/clip_fraction": policy.clip_fraction,
        "policy/ratio": policy.ratio_mean,
        "policy/entropy": token_mean(outputs.entropy, mask, normaliser),
    }
    if outputs.values is not None:
        assert rollout.values is not None
        assert rollout.returns is not None
        value = clipped_value_loss(outputs.values, rollout.values, rollout.returns, mask, clip.value, normaliser)
        loss = loss + clip.value_coef * value.loss
        shares |= {"loss/value": value.loss, "value/clip_fraction": value.clip_fraction}
    if penalty is not None:
        assert rollout.ref_logprobs is not None
        distance = kl_loss(outputs.logprobs, rollout.ref_logprobs, mask, penalty.kind, **means)
        loss = loss + penalty.coef * distance
        shares["loss/kl"] = distance
    return loss, {"train/loss": loss, **shares}


class StepStatistics:
    """Statistics of an optimizer step, from the shares that its micro-batches and its processes have of them."""

    def __init__(self) -> None:
        self._shares: list[dict[str, Tensor]] = []

    def add(self, shares: dict[str, Float[Tensor, ""]]) -> None:
        """Of a micro-batch; the same names in the same order on every process. A name that only some micro-batches
        have is 0 in the others.
        """
        self._shares.append({name: share.detach() for name, share in shares.items()})

    def close(self, strategy: Strategy) -> dict[str, Tensor]:
        """The mean over micro-batches and processes, by name; the next `add` begins another step."""
        names = list(dict.fromkeys(name for shares in self._shares for name in shares))
        sums = [torch.stack([shares[name] for shares in self._shares if name in shares]).sum() for name in names]
        means = torch.stack(sums) / len(self._shares)
        self._shares = []
        return dict(zip(names, strategy.reduce(means, reduce_op="mean"), strict=True))
