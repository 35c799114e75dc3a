"""The exponential moving average of a policy's weights (Ouyang et al. 2022, appendix C.4)."""

import copy
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor

from gpt_modules.backbone import GPT
from gpt_modules.errors import UserError, expect
from gpt_modules.training.sharding.models import let_go, shard
from gpt_modules.training.sharding.strategy import refuse_sharding
from gpt_modules.training.sharding.tensors import local, shard_of


class Average:
    """a ← decay · a + (1 - decay) · w after each optimizer step, from a = w; in float32, for bf16 has no 0.992, and a
    step of 0.008 of a small difference is lost in it.

    No module of torch: half precision would round it with the rest. A run keeps it in its checkpoint by `state`.

    Args:
        policy: whose weights it begins as.
    """

    def __init__(self, policy: GPT, decay: float) -> None:
        self.decay = decay
        self._model = copy.deepcopy(policy).float().requires_grad_(False).eval()

    def to(self, device: torch.device) -> None:
        """Where the policy is."""
        self._model.to(device)

    @torch.no_grad()
    def update(self, policy: GPT) -> None:
        """After a step of the policy. A weight that equals its average leaves it alone, to the bit."""
        let_go(self._model, policy)
        weights = [local(parameter).float() for parameter in policy.parameters()]
        torch._foreach_lerp_([local(average) for average in self._model.parameters()], weights, 1.0 - self.decay)

    def shard(self, module: L.LightningModule) -> None:
        """Split it as the policy is.

        Raises:
            UserError: the policy is of half precision, and what is validated another model than the average.
        """
        precision = str(module.trainer.precision)
        if precision in ("bf16-true", "16-true"):
            instead = f"another precision than {precision}, or auto or ddp"
            refuse_sharding(module, "the average is kept in float32", "model.ema", instead)
        shard(self._model, module)

    def model(self, like: GPT) -> GPT:
        """The average as a model in the precision of `like`: what is validated and exported."""
        kind = like.head_weight.dtype
        return self._model if kind == torch.float32 else copy.deepcopy(self._model).to(kind)

    def state(self) -> dict[str, Tensor]:
        """The weights by name."""
        return self._model.state_dict()

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Go on from what `state` gave.

        Raises:
            UserError: there is none, or it is of another model, or not finite; with the name.
        """
        if state is None:
            raise UserError("model.ema: found ema in the recipe, expected none, as the checkpoint has none")
        own = self._model.state_dict()
        expect(state.keys() == own.keys(), "ppo: average", f"{len(state)} tensors", f"the policy's {len(own)}")
        for name, value in state.items():
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            expected = tuple(own[name].shape)
            expect(found == expected, f"ppo: average.{name}", found, f"a tensor of {expected}")
            expect(bool(local(value).isfinite().all()), f"ppo: average.{name}", "NaN or infinity", "finite numbers")
        self._model.load_state_dict({name: shard_of(value, own[name]) for name, value in state.items()})
