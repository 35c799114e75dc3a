"""Optimizers and learning-rate schedules: AdamW with decay on matrices only, Muon, plain gradient descent; schedules
counted in tokens or in steps.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from gpt_modules.errors import UserError
from gpt_modules.training.muon import MuonAdamW


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter 2019), or Muon for the blocks' matrices with AdamW for the rest; or plain gradient
    descent.

    Args:
        lr: peak learning rate of AdamW or of plain gradient descent.
        muon_lr: peak learning rate of Muon; None or 0 leaves every parameter to AdamW. With Muon, only matrices decay.
        betas: decay of the first and second moment; GPT-3 uses (0.9, 0.95), GPT-1 (0.9, 0.999).
        eps: added to the root of the second moment; RLHF codes use 1e-5.
        weight_decay: decoupled decay of tensors with two or more dimensions; biases and gains are never decayed
            (GPT-1, section 4.1). Plain gradient descent takes it as a penalty.
        sgd: plain gradient descent, without momentum: what a meta-learned initialisation was made to be fine-tuned by,
            at about the rate of its inner loop and on all rows at once.
    """

    lr: float = 3e-4
    muon_lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    sgd: bool = False

    def __post_init__(self) -> None:
        if self.sgd and self.muon_lr:
            raise UserError("optimizer: found sgd together with muon_lr, expected one of them")


@dataclass(frozen=True)
class ScheduleConfig:
    """Warm-up from 0, then a shape down to `final` times the peak.

    Args:
        shape: what follows the warm-up.
        warmup: length of the linear warm-up, in `unit`.
        total: where the shape ends, in `unit`, counted from the start of the run; left out: the length of the run.
        final: the fraction of the peak that is left at `total` and after it.
        unit: `tokens` (GPT-3, appendix B), optimizer `steps`, or fractions of the `run` (GPT-1's warm-up over 0.2 % of
            training is 0.002).
    """

    shape: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: float = 0
    total: float | None = None
    final: float = 0.1
    unit: Literal["tokens", "steps", "run"] = "steps"


def lr_factor(progress: float, schedule: ScheduleConfig, total: float) -> float:
    """Multiple of the peak learning rate after `progress` of `total` tokens, steps or runs."""
    if progress < schedule.warmup:
        return progress / schedule.warmup
    if schedule.shape == "constant":
        return 1.0
    rest = total - schedule.warmup
    done = min(1.0, (progress - schedule.warmup) / rest) if rest > 0 else 1.0
    remaining = 1.0 - done if schedule.shape == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return schedule.final + (1.0 - schedule.final) * remaining


def parameter_groups(modules: Iterable[nn.Module], weight_decay: float, **options: Any) -> list[dict[str, Any]]:
    """Two groups, with and without decay; shared tensors are counted once."""
    parameters = list({id(p): p for module in modules for p in module.parameters() if p.requires_grad}.values())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay, **options},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0, **options},
    ]
    return [group for group in groups if group["params"]]


def build(groups: list[dict[str, Any]], config: OptimizerConfig, hidden: Iterable[nn.Module] = ()) -> Optimizer:
    """The optimizer of a configuration.

    Args:
        groups: parameter groups; a group's own `lr` wins over the configuration's.
        hidden: modules whose matrices go to Muon where the configuration asks for it: the decoder's blocks, never
            embeddings or heads.
    """
    matrices = {id(p): p for module in hidden for p in module.parameters() if p.ndim == 2 and p.requires_grad}
    if config.muon_lr:  # what is left has rates at which a decay per step would keep it from growing
        rest = ([p for p in group["params"] if id(p) not in matrices] for group in groups)
        groups = [{**group, "params": params, "weight_decay": 0.0} for group, params in zip(groups, rest, strict=True)]
    kept = [group for group in groups if group["params"]]
    if config.sgd:
        return torch.optim.SGD(kept, lr=config.lr)
    adamw = torch.optim.AdamW(kept, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
    # Fused AdamW can unscale fp16 gradients itself, and for that Lightning refuses to clip under any mixed precision.
    # Without the mark gradients are unscaled before the clip, which is what clipping needs.
    adamw._step_supports_amp_scaling = False
    if not config.muon_lr:
        return adamw
    if not matrices:
        raise UserError("optimizer.muon_lr: given, but this procedure has no block matrices for Muon; leave it out")
    return MuonAdamW(torch.optim.Muon(matrices.values(), lr=config.muon_lr, weight_decay=config.weight_decay), adamw)


def configure(
    optimizer: Optimizer,
    schedule: ScheduleConfig,
    total_steps: float,
    tokens: tuple[Callable[[], float], float] | None = None,
) -> dict[str, Any]:
    """What `configure_optimizers` returns: an optimizer and a schedule that Lightning steps after each optimizer step.

    Args:
        total_steps: optimizer steps of the run, `inf` when only time ends it.
        tokens: how many will be seen once the next step is done, and how many in the whole run, over all devices;
            needed when the schedule counts tokens.
    """
    if schedule.unit == "tokens" and tokens is None:
        raise UserError(
            "schedule.unit: found 'tokens', expected 'steps' or 'run': "
            "this procedure has no fixed number of tokens in a step"
        )
    # The factor of a step counts that step's own tokens, so that the first step of a warm-up moves.
    if schedule.unit == "tokens" and tokens is not None:
        (reached, run), per_step = tokens, 1.0
    else:
        reached, run, per_step = None, total_steps, 1.0 / total_steps if schedule.unit == "run" else 1.0
    total = run * per_step if schedule.total is None else schedule.total
    if not math.isfinite(total) and schedule.shape != "constant":
        raise UserError(
            "schedule.total: not given, and the run has no end (trainer.max_steps or max_epochs); give one of them"
        )
    scheduler = LambdaLR(
        optimizer, lambda step: lr_factor(reached() if reached else (step + 1) * per_step, schedule, total)
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
