"""A CUDA device on paper: whether a step waits for one is seen on a machine that has none.

Inside `device()`, a tensor that says `cuda` is one of the CPU in disguise. Everything is computed, so that whole fits
go through; what would make the host wait for a device is written down with the place that asked for it, and an operator
that meets tensors of both is refused. (Fake tensors of torch say `cuda` as well, but its engine differentiates none of
them in a build for the CPU, and they have no numbers for a rollout to go on with.)

What waits: a number read (`item`, `tolist`, `bool`), a shape that depends on numbers (`nonzero`, an index of bools), a
copy to the host, a copy from it that blocks or is not of pinned memory, and a capture. A CUDA graph on paper asks again
what was asked once, of the same memory: what changes from step to step and is no tensor stays as it was. What is not
seen: which kernels run, and how fast.
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
from gpt_modules.backbone import lora

CUDA = torch.device("cuda", 0)
PACKAGE = Path(gpt_modules.__file__).parent
aten = torch.ops.aten
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
UNORDERED = (aten.cumsum.default, aten.cumsum_.default, aten.histc.default, aten.put_.default, aten.median.dim)

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

    def _take(self, value: "OnDevice") -> None:
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.host = value.host

    data = property(Tensor.data.__get__, _take)  # type: ignore[assignment,attr-defined]
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

    `calls`: the operators that ran, by name. `graph`: the one that is captured.
    """

    waits: Counter[tuple[str, str]]
    graph: "Graph | None" = None

    def __init__(self) -> None:
        super().__init__()
        Device.waits, self.calls = Counter(), Counter[str]()

    @classmethod
    def note(cls) -> None:
        """Write down that somebody waits."""
        assert cls.graph is None, f"{_asker()} waits for the device inside of a capture"
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
        real = tree_map(_real, args), tree_map(_real, kwargs)
        if Device.graph is not None:
            Device.graph.keep(func, *real)
        found = func(*real[0], **real[1])
        if Device.graph is not None:
            Device.graph.asked.append((func, *real, found))
        if func is aten.copy_.default and not there[0]:
            return args[0]
        return _disguised(found, args, func)

    def _look(self, func: Any, args: Any, kwargs: Any, there: list[bool]) -> None:
        if torch.are_deterministic_algorithms_enabled() and func in UNORDERED and (
            kwargs.get("dtype") or args[0].dtype
        ).is_floating_point:  # fmt: skip
            raise RuntimeError(f"{func} does not have a deterministic implementation")
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


class Graph:
    """In place of `torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, Any, Any, Any]] = []
        self.kept: list[tuple[Tensor, Tensor]] = []
        self.replays = 0

    def keep(self, func: Any, args: Any, kwargs: Any) -> None:
        """What an operator is about to change: a capture only writes down."""
        if func._schema.is_mutable:
            self.kept += [(one, one.clone()) for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]

    def forget(self) -> None:
        """The capture is over."""
        while self.kept:
            changed, before = self.kept.pop()
            changed.copy_(before)

    def replay(self) -> None:
        """Into the tensors that the capture made."""
        self.replays += 1
        for func, args, kwargs, made in self.asked:
            found = func(*args, **kwargs)
            for old, new in zip(tree_leaves(made), tree_leaves(found), strict=True):
                if isinstance(old, Tensor) and old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.copy_(new)


@contextmanager
def _capture(graph: Graph, stream: Any, capture_error_mode: str) -> Iterator[None]:
    """In place of `torch.cuda.graph`, which waits until the device has come to rest."""
    Device.note()
    Device.graph = graph
    try:
        yield
    finally:
        Device.graph = None
        graph.forget()


class _Meeting(TorchFunctionMode):
    """What is asked of tensors of both. Operators that torch composes of others make tensors of the CPU in between."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == Tensor.device.__get__:  # type: ignore[attr-defined]
            return _innermost(args[0]).device
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


def _innermost(tensor: Tensor) -> Tensor:
    """Of one that a functorch transform has wrapped, what it stands for."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


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


def _is_whole(model: torch.nn.Module) -> bool:
    return all(type(parameter) in (torch.nn.Parameter, OnDevice) for parameter in model.parameters())


@contextmanager
def _noted(_: torch.nn.Module) -> Iterator[None]:
    """No such tensor can be indexed in inference mode."""
    with torch.inference_mode(False), torch.no_grad():
        yield


class _Shared:
    """Models that share all weights with one that is moved: a device moves their memory, paper makes new tensors."""

    def __init__(self) -> None:
        self.pairs: list[tuple[Any, Any]] = []

    def base_of(self, model: Any) -> Any:
        """As of `backbone.lora`."""
        self.pairs.append((lora.base_of(model), model))
        return self.pairs[-1][0]

    def follow(self) -> None:
        """Once the model has been moved."""
        for base, model in self.pairs:
            base.__dict__.update(lora.base_of(model).requires_grad_(False).eval().__dict__)


class _Strategy(SingleDeviceStrategy):
    """One such device."""

    shared: _Shared | None = None

    def model_to_device(self) -> None:
        """And what shares its memory."""
        super().model_to_device()
        if _Strategy.shared is not None:
            _Strategy.shared.follow()


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
        for name in ("Stream", "current_stream", "stream"):
            stack.enter_context(patch(f"torch.cuda.{name}"))
        stack.enter_context(patch("torch.cuda.CUDAGraph", Graph))
        stack.enter_context(patch("torch.cuda.graph", _capture))
        for room in ("step", "generation"):
            stack.enter_context(patch(f"gpt_modules.backbone.decoding.{room}.is_whole", _is_whole))
        for room in ("generation", "beam"):
            stack.enter_context(patch(f"gpt_modules.backbone.decoding.{room}.without_graphs", _noted))
        stack.enter_context(patch.object(_Strategy, "shared", _Shared()))
        stack.enter_context(patch("gpt_modules.training.rl.learners.base_of", _Strategy.shared.base_of))
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
    return {"accelerator": accelerator, "strategy": _Strategy(CUDA), "devices": 1, "precision": precision}
