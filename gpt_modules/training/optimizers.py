"""Optimizers and learning-rate schedules: AdamW with decay on matrices only, Muon, plain gradient descent; schedules
counted in tokens or in steps.
"""

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from gpt_modules.errors import UserError, expect
from gpt_modules.training.hyperparameters import expect_number
from gpt_modules.training.muon import MuonAdamW
from gpt_modules.training.tf_adam import EpsilonHatAdamW

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter 2019), or Muon for the blocks' matrices with AdamW for the rest; or plain gradient
    descent.

    Args:
        lr: peak learning rate of AdamW or of plain gradient descent. At 0 a run measures and learns nothing, a control,
            and says so.
        muon_lr: peak learning rate of Muon; None or 0 leaves every parameter to AdamW. With Muon, only matrices decay.
            Where low-rank updates learn, the matrices are their factors.
        betas: decay of the first and second moment; GPT-3 uses (0.9, 0.95), GPT-1 (0.9, 0.999).
        eps: added to the root of the second moment; RLHF codes use 1e-5.
        eps_hat: add it to the root of the uncorrected moment, as TensorFlow's Adam does and with it the codes of
            Ziegler et al. 2019: shorter steps at first, see `EpsilonHatAdamW`.
        weight_decay: decoupled decay of tensors with two or more dimensions; biases and gains are never decayed
            (GPT-1, section 4.1). Plain gradient descent takes it as a penalty.
        sgd: plain gradient descent, without momentum: what a meta-learned initialisation was made to be fine-tuned by,
            at about the rate of its inner loop and on all rows at once.
    """

    lr: float = 3e-4
    muon_lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    eps_hat: bool = False
    weight_decay: float = 0.1
    sgd: bool = False

    def __post_init__(self) -> None:
        expect_number("optimizer.lr", self.lr, "[0, inf)")
        expect_number("optimizer.muon_lr", self.muon_lr or 0.0, "[0, inf)")
        expect(len(self.betas) == 2, "optimizer.betas", list(self.betas), "two numbers")
        for beta in self.betas:
            expect_number("optimizer.betas", beta, "[0, 1)")
        expect_number("optimizer.eps", self.eps, "(0, inf)")
        expect_number("optimizer.weight_decay", self.weight_decay, "[0, inf)")
        if self.sgd and self.muon_lr:
            raise UserError("optimizer: found sgd together with muon_lr, expected one of them")

    def idle(self) -> dict[str, str]:
        """Moments, where there are none."""
        return dict.fromkeys(("betas", "eps", "eps_hat"), "sgd has no moments") if self.sgd else {}


@dataclass(frozen=True)
class ScheduleConfig:
    """A linear warm-up to the peak, then a shape down to `final` times it.

    No step is wasted: the first one of a warm-up from 0 already moves, and a shape is read at the beginning of a step,
    so that the one after the last would have `final`.

    Args:
        shape: what follows the warm-up.
        warmup: length of the warm-up, in `unit`.
        warmup_start: the fraction of the peak that the first step has: 0.1 for PPO in InstructGPT (Ouyang et al. 2022,
            appendix C.4: from a tenth of the peak, over 10 iterations); left at 0, a first part of the way up.
        total: where the shape ends, in `unit`, counted from the start of the run; left out: the length of the run, of
            one that goes on with another global batch what was made and what is left.
        final: the fraction of the peak that is left at `total` and after it.
        unit: `tokens` (GPT-3, appendix B), optimizer `steps`, or fractions of the `run` (GPT-1's warm-up over 0.2 % of
            training is 0.002).
    """

    shape: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: float = 0
    warmup_start: float = 0.0
    total: float | None = None
    final: float = 0.1
    unit: Literal["tokens", "steps", "run"] = "steps"

    def __post_init__(self) -> None:
        expect_number("schedule.warmup", self.warmup, "[0, 1]" if self.unit == "run" else "[0, inf)")
        expect_number("schedule.warmup_start", self.warmup_start, "[0, 1]")
        if self.total is not None:
            expect_number("schedule.total", self.total, "(0, inf)")
            expected = f"at least the warm-up's {self.warmup:g}"
            expect(self.total >= self.warmup, "schedule.total", self.total, expected)
        expect_number("schedule.final", self.final, "[0, 1]")

    def idle(self) -> dict[str, str]:
        """The end of a way that does not fall, the beginning of one that does not climb."""
        level = dict.fromkeys(("total", "final"), "the shape is constant") if self.shape == "constant" else {}
        return level if self.warmup else {**level, "warmup_start": "there is no warmup"}


def lr_factor(before: float, after: float, schedule: ScheduleConfig, total: float) -> float:
    """Multiple of the peak learning rate in a step that leads from `before` to `after` of `total` tokens, steps or
    runs.
    """
    start = schedule.warmup_start
    climbed = after if start == 0.0 else before  # from 0, the first step would stay where it is
    if climbed < schedule.warmup:
        return start + (1.0 - start) * climbed / schedule.warmup
    if schedule.shape == "constant":
        return 1.0
    rest = total - schedule.warmup
    done = min(1.0, max(0.0, before - schedule.warmup) / rest) if rest > 0 else 1.0
    remaining = 1.0 - done if schedule.shape == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return schedule.final + (1.0 - schedule.final) * remaining


class Schedule(LambdaLR):
    """A schedule whose state is its place alone: a resumed run goes on there, with the peak and the shape of its recipe
    now.
    """

    def state_dict(self) -> dict[str, Any]:
        """Optimizer steps taken."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to that place, and give every group its rate there."""
        self.last_epoch = int(state_dict["last_epoch"])
        self._step_count = self.last_epoch + 1
        factors = [factor(self.last_epoch) for factor in self.lr_lambdas]
        self._last_lr = [base * factor for base, factor in zip(self.base_lrs, factors, strict=True)]
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate


def keep_settings(optimizer: Optimizer) -> None:
    """Restoring gives `optimizer` what it had accumulated; rates, decays and betas stay those of the recipe."""
    for part in optimizer.parts.values() if isinstance(optimizer, MuonAdamW) else [optimizer]:
        part.register_load_state_dict_pre_hook(_accumulated)


_ADAMW = {"step", "exp_avg", "exp_avg_sq"}
_MOMENTUM = {"momentum_buffer"}
_ACCUMULATES = {"AdamW": _ADAMW, "EpsilonHatAdamW": _ADAMW, "Muon": _MOMENTUM, "SGD": _MOMENTUM}


def _accumulated(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """`state` with the settings of `optimizer`.

    Raises:
        UserError: it is the state of another algorithm, or of other parameters.
    """
    kind, stored = type(optimizer).__name__, state.get("param_groups")
    found = [len(group["params"]) for group in stored] if isinstance(stored, list) else list(state)
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    expect(found == sizes, "optimizer_states", found, f"{kind} over groups of {sizes} parameters")
    assert stored is not None
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in stored for number in group["params"]]
    if kind in _ACCUMULATES:
        shapes = {number: parameter.shape for number, parameter in zip(numbers, parameters, strict=True)}
        _check_entries(kind, state["state"], shapes)
    groups = [{**own, "params": group["params"]} for own, group in zip(optimizer.param_groups, stored, strict=True)]
    return {**state, "param_groups": groups}


def _check_entries(kind: str, entries: dict[Any, dict[str, Any]], shapes: dict[Any, torch.Size]) -> None:
    expect(bool(entries) or kind == "SGD", "optimizer_states", "no moments", f"those of {kind}")
    for number, entry in entries.items():
        names = _ACCUMULATES[kind] & set(entry) if kind == "SGD" else _ACCUMULATES[kind]
        expect(set(entry) == names, f"optimizer_states: {number}", sorted(entry), f"{sorted(names)} of {kind}")
        for name, value in entry.items():
            expected = () if name == "step" else tuple(shapes.get(number, ()))
            shape = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            fits = shape == expected or (kind == "SGD" and value is None)
            expect(fits, f"optimizer_states: {number}: {name}", shape, f"a tensor of {expected}")


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
        settings = {"name": "adamw", "weight_decay": 0.0}
        groups = [{**group, "params": params, **settings} for group, params in zip(groups, rest, strict=True)]
    kept = [group for group in groups if group["params"]]
    if config.sgd:
        return torch.optim.SGD(kept, lr=config.lr)
    muon = _muon(list(matrices.values()), config) if config.muon_lr else None
    if muon is not None and not kept:  # low-rank updates of matrices, and nothing else
        return muon
    kind = EpsilonHatAdamW if config.eps_hat else torch.optim.AdamW
    adamw = kind(kept, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
    # Fused AdamW can unscale fp16 gradients itself, and for that Lightning refuses to clip under any mixed precision.
    # Without the mark gradients are unscaled before the clip, which is what clipping needs.
    adamw._step_supports_amp_scaling = False
    return adamw if muon is None else MuonAdamW(muon, adamw)


def _tell_of_rest(optimizer: Optimizer) -> None:
    """A rate of 0 is a control; who did not mean one learns of it before the first step."""
    still = sorted({str(group.get("name", "the model")) for group in optimizer.param_groups if not group["lr"]})
    if still and getattr(rank_zero_only, "rank", 0) == 0:
        log.warning("model.optimizer.lr: 0 for %s, which stays as it is: a control, in which it learns nothing", still)


def _muon(matrices: list[nn.Parameter], config: OptimizerConfig) -> torch.optim.Muon:
    if not matrices:
        raise UserError("optimizer.muon_lr: given, but this procedure has no block matrices for Muon; leave it out")
    assert config.muon_lr is not None
    learned = [{"params": matrices, "name": "muon"}]
    return torch.optim.Muon(learned, lr=config.muon_lr, weight_decay=config.weight_decay)


def configure(
    optimizer: Optimizer,
    schedule: ScheduleConfig,
    total_steps: float,
    tokens: tuple[Callable[[], tuple[float, float]], float] | None = None,
    rests: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """What `configure_optimizers` returns: an optimizer and a schedule that Lightning steps after each optimizer step.
    Both keep the recipe's settings when a checkpoint is restored.

    Args:
        total_steps: optimizer steps of the run, `inf` when only time ends it.
        tokens: how many are seen before and after the next step, and how many in the whole run, over all devices;
            needed when the schedule counts tokens.
        rests: steps of the run that a group of parameters, by its `name`, has at a rate of 0 before its schedule
            begins; no schedule of tokens has them.
    """
    if schedule.unit == "tokens" and tokens is None:
        raise UserError(
            "schedule.unit: found 'tokens', expected 'steps' or 'run': "
            "this procedure has no fixed number of tokens in a step"
        )
    if schedule.unit == "tokens" and tokens is not None:
        (place, run), per_step = tokens, 1.0
    else:
        place, run, per_step = None, total_steps, 1.0 / max(1.0, total_steps) if schedule.unit == "run" else 1.0
    endless = "the run has no end (trainer.max_steps or max_epochs)"
    if schedule.unit == "run" and not math.isfinite(run):
        raise UserError(f"schedule.unit: found 'run', expected 'steps': {endless} to have fractions")
    rests = rests or {}
    left = run - max(rests.values(), default=0)
    if not math.isfinite(run if schedule.total is None else schedule.total) and schedule.shape != "constant":
        raise UserError(f"schedule.total: not given, and {endless}; give one of them")
    if schedule.warmup > left * per_step and getattr(rank_zero_only, "rank", 0) == 0:
        message = "schedule.warmup: %g %s in a run of %g: its rate never comes to optimizer.lr"
        log.warning(message, schedule.warmup, schedule.unit, left * per_step)

    def factor(step: int, rest: int) -> float:
        taken = step - rest
        total = (run - rest) * per_step if schedule.total is None else schedule.total
        before, after = place() if place else (taken * per_step, (taken + 1) * per_step)
        return 0.0 if taken < 0 else lr_factor(before, after, schedule, total)

    _tell_of_rest(optimizer)
    keep_settings(optimizer)
    factors: list[Callable[[int], float]] = [
        partial(factor, rest=rests.get(group.get("name", ""), 0)) for group in optimizer.param_groups
    ]
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": Schedule(optimizer, factors), "interval": "step"}}
