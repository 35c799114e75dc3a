"""Muon whose orthogonalisation keeps its gradients' type, where torch's own computes in bfloat16."""

import lightning.pytorch as L
import torch.optim._muon
from torch import Tensor


class ExactMuon(L.Callback):
    """From when it is set up, all Muon of the process is."""

    def setup(self, *_: object, **__: object) -> None:
        torch.optim._muon._zeropower_via_newtonschulz = orthogonal


def orthogonal(grad: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Newton and Schulz's iteration as of `torch.optim.Muon`."""
    a, b, c = coefficients
    matrix = grad.T if grad.shape[0] > grad.shape[1] else grad
    matrix = matrix / matrix.norm().clamp(min=eps)
    for _ in range(steps):
        square = matrix @ matrix.T
        matrix = a * matrix + (b * square + c * square @ square) @ matrix
    return matrix.T if grad.shape[0] > grad.shape[1] else matrix
