"""A decoder without torch's modules around it, for steps in which these cost more than a product does.

A module is called through a look for hooks, and finds each of its parts in a dictionary of its own: a third of the
dispatch of a step on a CPU. A stand-in has the methods of a module, the very functions, and its parts as plain
attributes. So a decoder is written once, and what its stand-in gives is what it gives, bit for bit.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from gpt_modules.backbone.decoder import MLP, Block, CausalSelfAttention, Decoder, Dropout
from gpt_modules.backbone.linear import Linear
from gpt_modules.backbone.models import GPT
from gpt_modules.backbone.norms import LayerNorm, RMSNorm

_WRITTEN_HERE = (GPT, Decoder, Block, CausalSelfAttention, MLP, RMSNorm)


def bare(module: nn.Module) -> Any:
    """What gives the same as `module` in evaluation, with the parameters that it has now: a stand-in, or the module
    itself where a call of it does more than compute, or it is not known.
    """
    if _is_watched(module):
        return module
    kind: Any = type(module)
    if isinstance(module, _WRITTEN_HERE) and kind.__module__ in {own.__module__ for own in _WRITTEN_HERE}:
        return _stand_in(kind)(module)  # not of a user's class, whose `super()` wants an instance
    if type(module) is nn.ModuleList:
        return [bare(part) for part in module]
    return _FUNCTIONS.get(type(module), lambda same: same)(module)


def _is_watched(module: nn.Module) -> bool:
    own = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return bool(own or torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks)


@functools.cache
def _stand_in(kind: type[nn.Module]) -> Any:
    """A class with the methods of `kind` and none of torch's."""
    methods: dict[str, Any] = {}
    for base in reversed(kind.__mro__[: kind.__mro__.index(nn.Module)]):
        methods |= {name: value for name, value in vars(base).items() if inspect.isfunction(value)}

    def take_parts(self: Any, module: nn.Module) -> None:
        vars(self).update({name: value for name, value in vars(module).items() if not name.startswith("_")})
        vars(self).update(module.named_parameters(recurse=False))
        vars(self).update({name: bare(part) for name, part in module.named_children()})

    return type(kind.__name__, (), {**methods, "__init__": take_parts, "__call__": methods["forward"]})


def _linear(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    weight, bias = layer.weight, layer.bias
    return lambda x: F.linear(x, weight, bias)


def _layer_norm(norm: LayerNorm) -> Callable[[Tensor], Tensor]:
    shape, weight, bias, eps = norm.normalized_shape, norm.weight, norm.bias, norm.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)


def _dropout(_: nn.Dropout) -> Callable[[Tensor], Tensor]:
    return lambda x: x


_FUNCTIONS: dict[type[nn.Module], Callable[[Any], Any]] = {
    Linear: _linear,
    LayerNorm: _layer_norm,
    Dropout: _dropout,
}
