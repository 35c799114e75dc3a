"""How fast the machine would let a step be: an operation takes no less than its arithmetic, and no less than its bytes
(the roofline of Williams et al. 2009).
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from gpt_modules.training.processes import as_one

aten = torch.ops.aten
# Products of a score matrix: queries by keys and weights by values; backwards the first again and four gradients.
_ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: (0, 2),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: (1, 5),
}

_ADDED_PRODUCTS = {aten.addmm_, aten.baddbmm_}  # to the first argument
_COLLECTIVE = {"c10d", "_c10d_functional"}  # what processes do together, in torch's two forms
_READ_IN_PART = {aten.embedding, aten.index_select, aten.index, aten.gather}
_WRITTEN_IN_PART = {aten.index_copy_, aten.index_put_, aten._index_put_impl_, aten.scatter_, aten.index_add_}


@dataclass
class Work:
    """Of a phase. flops: of products of matrices. moved: bytes that operations read and write. arithmetic, memory: the
    seconds that the peak lets them take, of operations which arithmetic and which bytes hold up. collectives: the
    seconds that what processes do together takes once all have come, each waited for, which in a run may be behind
    other work.
    """

    flops: float = 0.0
    moved: float = 0.0
    arithmetic: float = 0.0
    memory: float = 0.0
    collectives: float = 0.0


class Roofline(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts, while it is entered, what every operation must do; an eager run only, for a compiled one hides them.

    Args:
        peak: FLOP/s of products of a type.
        copied: bytes a second that the memory gives, read and written.
        phase: which one an operation belongs to.
    """

    supports_higher_order_operators = True

    def __init__(self, peak: Callable[[torch.dtype], float], copied: float, phase: Callable[[], str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak, self.copied, self.phase = peak, copied, phase
        self.work: defaultdict[str, Work] = defaultdict(Work)
        self.calls: list[tuple[str, float]] = []  # of collectives: the phase, and how long this process was in it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, in its parts where it has some, and count it."""
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # what it comes to on this process is seen next
        kwargs = kwargs or {}
        if getattr(func, "namespace", None) in _COLLECTIVE:
            return self._together(func, args, kwargs)
        if isinstance(func, torch._ops.OpOverload) and func._overloadpacket not in flop_registry:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        flops, moved = _flops(func, args, kwargs, result), _moved(func, (args, kwargs), result)
        if flops or moved:
            self._add(flops, moved, next(_tensors(result), torch.empty(0)).dtype)
        return result

    def _together(self, func: Any, args: Any, kwargs: Any) -> Any:
        started = time.perf_counter()
        result = func(*args, **kwargs)
        for handle in tree_leaves(result):
            if isinstance(handle, torch.ScriptObject):
                handle.wait()  # type: ignore[attr-defined]
        if any(tensor.is_cuda for tensor in _tensors((args, kwargs))):
            torch.cuda.synchronize()
        self.calls.append((self.phase(), time.perf_counter() - started))
        return result

    def close(self) -> dict[str, Work]:
        """What was counted, by phase. Called by all processes: who comes last to a call waits for nobody."""
        everyone = as_one(lambda: [seconds for _, seconds in self.calls])
        for (phase, _), seconds in zip(self.calls, zip(*everyone, strict=False), strict=False):
            self.work[phase].collectives += min(seconds)
        return dict(self.work)

    def _add(self, flops: float, moved: float, dtype: torch.dtype) -> None:
        arithmetic, memory = flops / self.peak(dtype) if flops else 0.0, moved / self.copied
        work = self.work[self.phase()]
        work.flops += flops
        work.moved += moved
        if arithmetic >= memory:
            work.arithmetic += arithmetic
        else:
            work.memory += memory


def _flops(func: Any, args: Any, kwargs: Any, result: Any) -> float:
    packet = getattr(func, "_overloadpacket", func)
    if packet in _ATTENTION:
        first, products = _ATTENTION[packet]
        batch, heads, queries, size = args[first].shape
        return float(2 * products * batch * heads * queries * args[first + 1].shape[2] * size)
    if packet in _ADDED_PRODUCTS:
        _, left, right, *_ = args
        return float(2 * left.numel() * right.shape[-1])
    if packet in flop_registry:
        return float(flop_registry[packet](*args, **kwargs, out_val=result))
    return 0.0


def _moved(func: Any, given: Any, result: Any) -> int:
    """Bytes of what an operation is given and of what it makes; a view moves none."""
    inputs, outputs = list(_tensors(given)), list(_tensors(result))
    packet = getattr(func, "_overloadpacket", func)
    if packet in _READ_IN_PART:
        return 2 * sum(map(_size, outputs))
    if packet in _WRITTEN_IN_PART:
        return 2 * _size(inputs[-1])
    written = isinstance(func, torch._ops.OpOverload) and func._schema.is_mutable
    stored = {of.untyped_storage()._cdata for of in inputs}
    if not written and outputs and all(of.untyped_storage()._cdata in stored for of in outputs):
        return 0
    return sum(map(_size, inputs)) + sum(map(_size, outputs))


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _size(tensor: Tensor) -> int:
    """What is stored of it: a tensor that is expanded is read from less than it shows."""
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())
