"""A CUDA device on paper: whether a step waits for one is seen on a machine that has none.

Inside `device()`, a tensor that says `cuda` is one of the CPU in disguise. Everything is computed, so that whole fits
go through; what would make the host wait for a device is written down with the place that asked for it, and an operator
that meets tensors of both is refused. (Fake tensors of torch say `cuda` as well, but its engine differentiates none of
them in a build for the CPU, and they have no numbers for a rollout to go on with.)

What waits: a number read (`item`, `tolist`, `bool`), a shape that depends on numbers (`nonzero`, an index of bools), a
copy to the host, and a copy from it that blocks or is not of pinned memory. What is not seen: which kernels run, and
how fast.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import gpt_modules

CUDA = torch.device("cuda", 0)
PACKAGE = Path(gpt_modules.__file__).parent
aten = torch.ops.aten
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)

MEETINGS = (Tensor.copy_, torch._has_compatible_shallow_copy_type)


class OnDevice(Tensor):
    """A tensor of the CPU, `host`, that says it is on a device."""

    host: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, real: Tensor) -> "OnDevice":
        made: OnDevice = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, real.shape, real.stride(), real.storage_offset(), dtype=real.dtype, device=real.device
        )
        made.host = real
        return made

    device = property(lambda _: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda _: True)  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of `device()`")

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """Torch sees a CPU on both sides."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if device is None or device.type == "cuda":
            return super().to(dtype=dtype) if dtype is not None else self
        return self.cpu().to(dtype or self.dtype)

    def cpu(self, *_: Any) -> Tensor:  # type: ignore[override]
        """A copy to the host."""
        Device.note()
        return self.detach().host.clone()  # type: ignore[attr-defined]

    def tolist(self) -> Any:
        """As of the copy."""
        return self.cpu().tolist()


class Device(TorchDispatchMode):
    """`waits`: how often each place made the host wait, (file, function) -> times: the innermost function of the
    package that asked, or where none did the innermost one outside of torch.

    `calls`: the operators that ran, by name.
    """

    waits: Counter[tuple[str, str]]

    def __init__(self) -> None:
        super().__init__()
        Device.waits, self.calls = Counter(), Counter[str]()

    @classmethod
    def note(cls) -> None:
        """Write down that somebody waits."""
        cls.waits[_asker()] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = [isinstance(one, OnDevice) for one in tensors]
        up = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda"
        if not any(there) and not up:
            return func(*args, **kwargs)
        self.calls[str(func)] += 1
        self._look(func, args, kwargs, there)
        found = func(*tree_map(_real, args), **tree_map(_real, kwargs))
        if func is aten.copy_.default and not there[0]:
            return args[0]
        return _disguised(found, args, func)

    def _look(self, func: Any, args: Any, kwargs: Any, there: list[bool]) -> None:
        if func is aten._to_copy.default or func is aten.copy_.default:
            blocks = not kwargs.get("non_blocking", len(args) > 2 and args[2])
            down, up = there == [False, True], there in ([False], [True, False])
            source = args[1] if func is aten.copy_.default else args[0]
            if down or (up and (blocks or not hasattr(source, "pinned"))):
                self.note()
            return
        if func in INDEXED:
            if any(index is not None and index.dtype == torch.bool for index in args[1]):
                self.note()
        elif torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags:
            self.note()


class _Meeting(TorchFunctionMode):
    """What is asked of tensors of both. Operators that torch composes of others make tensors of the CPU in between."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        if func is Tensor.quantile and isinstance(
            args[0], OnDevice
        ):  # it waits on a CPU alone, to look at its argument
            return OnDevice(args[0].host.quantile(*args[1:], **kwargs))
        hosts = [one for one in leaves if isinstance(one, Tensor) and not isinstance(one, OnDevice) and one.dim()]
        if hosts and any(isinstance(one, OnDevice) for one in leaves) and func not in MEETINGS:
            if any(map(torch._C._functorch.is_functorch_wrapped_tensor, hosts)):
                return func(*args, **kwargs)  # what stands under it comes by on its own
            assert func in (Tensor.__getitem__, Tensor.__setitem__), (
                f"{func}: two devices meet: {[one.shape for one in hosts]} of the host"
            )
            Device.note()
        return func(*args, **kwargs)


def _real(value: Any) -> Any:
    if isinstance(value, OnDevice):
        return value.host
    return torch.device("cpu") if isinstance(value, torch.device) else value


def _disguised(found: Any, args: Any, func: Any) -> Any:
    """Results on the device; what was changed in place is the very tensor that came."""
    came = {id(one.host): one for one in tree_leaves(args) if isinstance(one, OnDevice)}

    def of(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return came.get(id(value)) if id(value) in came else OnDevice(value)

    return tree_map(of, found)


def _asker() -> tuple[str, str]:
    frame: Any = sys._getframe(2)
    places = []
    while frame is not None:
        places.append((Path(frame.f_code.co_filename), frame.f_code.co_qualname))
        frame = frame.f_back
    for file, name in places:
        if file.is_relative_to(PACKAGE):
            return str(file.relative_to(PACKAGE)), name
    return next(("/".join(f.parts[-3:]), name) for f, name in places if "torch" not in f.parts and f != Path(__file__))


class _Autocast(torch.autocast):
    """That of a CUDA device is that of the CPU in disguise."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu", *args, **kwargs)


def _pin(tensor: Tensor) -> Tensor:
    assert not isinstance(tensor, OnDevice)
    made = tensor.clone()
    made.pinned = True  # type: ignore[attr-defined]
    return made


def _grouped(lists: Any, with_indices: bool = False, own: Any = torch._C._group_tensors_by_device_and_dtype) -> Any:
    """By the devices that tensors say they are on."""
    groups = own(lists, with_indices)
    return {(of[0][0][0].device, dtype): of for (_, dtype), of in groups.items()}


@contextmanager
def device() -> Iterator[Device]:
    """A device on paper, on which autocast takes place."""
    with ExitStack() as stack:
        for name in ("is_autocast_enabled", "get_autocast_dtype"):
            own = getattr(torch, name)
            stack.enter_context(patch(f"torch.{name}", lambda _="cpu", own=own: own("cpu")))
        overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrite)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor` makes one of the host, then copies it
        stack.enter_context(patch("torch.autocast", _Autocast))
        stack.enter_context(patch("torch.cuda._lazy_init"))
        stack.enter_context(patch("gpt_modules.data.loader.pins", return_value=True))
        stack.enter_context(patch("torch.Tensor.pin_memory", _pin))
        stack.enter_context(patch("torch.cuda.get_device_name", return_value="NVIDIA H100 80GB HBM3"))
        stack.enter_context(patch("torch._C._group_tensors_by_device_and_dtype", _grouped))
        stack.enter_context(_Meeting())
        yield stack.enter_context(Device())


class OnPaper(CPUAccelerator):
    """An accelerator for the Trainer whose only device is such a one."""

    def setup_device(self, device: torch.device) -> None:
        """Nothing."""


def on_paper(precision: str = "bf16-mixed") -> dict[str, Any]:
    """Arguments of a Trainer."""
    accelerator = OnPaper()
    return {"accelerator": accelerator, "strategy": SingleDeviceStrategy(CUDA), "devices": 1, "precision": precision}
