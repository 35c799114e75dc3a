"""Muon for the matrices inside the blocks, AdamW for everything else, as one optimizer that automatic optimisation
accepts.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer


class MuonAdamW(Optimizer):
    """Two optimizers behind one `step`; their groups are shared, so that a schedule or a clip reaches both.

    Muon (Jordan et al. 2024) orthogonalises the momentum of a matrix; embeddings, biases and gains are AdamW's. On
    short runs over little text it needs about half the steps of AdamW alone. torch's orthogonalises in bfloat16, to
    which a gradient that was summed in another order, on more processes, may round otherwise: four steps at rates of
    0.02 and 0.01 led 2e-3 apart, and 2e-7 where it computes in float32 (`tests/test_ddp.py`).

    Args:
        muon: the optimizer of the hidden matrices.
        adamw: the optimizer of the rest.
    """

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW) -> None:
        self.parts: dict[str, Optimizer] = {"muon": muon, "adamw": adamw}
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self._share_groups()

    def _share_groups(self) -> None:
        self.param_groups = [group for part in self.parts.values() for group in part.param_groups]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both; the closure, which does the backward pass, runs once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts.values():
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Both states by name."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both; their groups are new objects afterwards."""
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])
        self._share_groups()
