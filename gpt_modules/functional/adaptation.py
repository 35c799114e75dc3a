"""Learning to adapt by gradient: the inner loops of MAML and its relatives, and the gradients of their outer loops.

A model is a dictionary of parameters θ and a function `loss(parameters, batch)`; a task i is a support set D to adapt
on and a query set D' to be judged by. All is written on `torch.func`, for any differentiable function; nothing is
cloned, and tied parameters are one entry of the dictionary.

The rates of the inner loop are tensors (S, ...) by name: one entry a step, the last one serving all later steps, each
one number or as many as the parameter has. What has no rate is not adapted. So one form covers them all:

    MAML      Finn et al. 2017, algorithm 2       one fixed number for every name
    ANIL      Raghu et al. 2020, section 3        names of the head only
    Meta-SGD  Li et al. 2017, algorithm 1         (1, *shape), learned
    MAML++    Antoniou et al. 2019, section 4     (steps,) for every name, learned: rates by layer and step
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

T = TypeVar("T")
BatchT = TypeVar("BatchT")
Parameters: TypeAlias = Mapping[str, Tensor]
Loss: TypeAlias = Callable[[Parameters, BatchT], Tensor]
Algorithm = Literal["maml", "fomaml", "reptile"]


class MetaGradient(NamedTuple):
    """What an outer step needs, as means over the tasks.

    gradients: by name, shaped as the parameters. rates: likewise for the inner rates; empty where they are not learned.
    query_loss: () after adaptation; under Reptile, which has no query set, before the last inner step.
    """

    gradients: dict[str, Tensor]
    rates: dict[str, Tensor]
    query_loss: Tensor


def sgd_step(parameters: Parameters, gradients: Parameters, rates: Parameters, step: int) -> dict[str, Tensor]:
    """θ - α ∘ g for the names that have a rate; the others as they are."""
    return {
        name: value - rates[name][min(step, len(rates[name]) - 1)] * gradients[name] if name in rates else value
        for name, value in parameters.items()
    }


def inner_gradient(loss: Loss[BatchT], parameters: Parameters, rates: Parameters, batch: BatchT) -> dict[str, Tensor]:
    """∇L(θ) with respect to the parameters that have a rate."""
    fixed = {name: value for name, value in parameters.items() if name not in rates}
    adapted = {name: value for name, value in parameters.items() if name in rates}
    gradients: dict[str, Tensor] = torch.func.grad(lambda moving: loss({**fixed, **moving}, batch))(adapted)
    return gradients


def adapt(
    loss: Loss[BatchT],
    parameters: Parameters,
    rates: Parameters,
    support: BatchT,
    steps: int,
    first_order: bool = False,
) -> dict[str, Tensor]:
    """θ after `steps` of gradient descent on the support set: θ_{j+1} = θ_j - α ∘ ∇L_D(θ_j) (Finn et al. 2017, eq. 1).

    Differentiable with respect to `parameters` and `rates`. `first_order`: inner gradients count as constants, so that
    dθ_s/dθ is the identity and no graph of an inner step is kept; rates still get their gradient.
    """
    parameters = dict(parameters)
    for step in range(steps):
        at = {name: value.detach() for name, value in parameters.items()} if first_order else parameters
        parameters = sgd_step(parameters, inner_gradient(loss, at, rates, support), rates, step)
    return parameters


def meta_gradient(
    loss: Loss[BatchT],
    parameters: Parameters,
    rates: Parameters,
    support: BatchT,
    query: BatchT,
    steps: int,
    algorithm: Algorithm = "maml",
    learn_rates: bool = False,
    tasks_at_once: int | None = None,
) -> MetaGradient:
    """The gradient of an outer step over N tasks.

    maml      1/N Σᵢ ∇_θ L_{D'ᵢ}(θᵢˢ), through the inner steps (Finn et al. 2017, algorithm 2)
    fomaml    the same with inner gradients as constants (ibid., section 5.2)
    reptile   θ - 1/N Σᵢ θᵢˢ: plain gradient descent with rate ε interpolates, θ + ε (mean θᵢˢ - θ) (Nichol et al.
              2018, algorithm 2). It has no query set: the inner steps alternate between the two halves of the data,
              since it is the product of gradients on different minibatches that it learns from (ibid., section 5.1)

    With no steps, maml is joint training on all tasks, which cannot do better than their mean.

    Args:
        support, query: batches whose tensors have a leading dimension of N tasks; the loss sees one task's.
        tasks_at_once: so many go through the model together, by `vmap`; 1 loops. Memory grows with it, the result is
            the same. None: all.
    """
    leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    rate_leaves = {name: value.detach().requires_grad_(learn_rates) for name, value in rates.items()}
    count = len(tree_leaves(support)[0])
    total = [torch.zeros_like(value) for value in (*leaves.values(), *(rate_leaves.values() if learn_rates else ()))]
    wide = torch.promote_types(total[0].dtype, torch.float32)  # whatever a run in half precision makes without a type
    query_loss = torch.zeros((), dtype=wide, device=total[0].device)

    def task(parameters: Parameters, rates: Parameters, support: BatchT, query: BatchT) -> Tensor:
        return loss(adapt(loss, parameters, rates, support, steps, algorithm == "fomaml"), query)

    for chunk in _chunks((support, query), tasks_at_once or count):
        share = len(tree_leaves(chunk)[0]) / count
        if algorithm == "reptile":
            value, gradients = _reptile(loss, leaves, rate_leaves, *chunk, steps)
        else:
            value = over_tasks(task, leaves, rate_leaves, *chunk, twice=steps > 0 and algorithm == "maml").mean()
            wanted = [*leaves.values(), *(rate_leaves.values() if learn_rates else ())]
            gradients = list(torch.autograd.grad(value, wanted, materialize_grads=True))
        torch._foreach_add_(total, gradients, alpha=share)
        query_loss += share * value.detach()
    names = iter(total)
    return MetaGradient({name: next(names) for name in leaves}, dict(zip(rates, names, strict=False)), query_loss)


def over_tasks(
    function: Callable[[Parameters, Parameters, BatchT, BatchT], T],
    parameters: Parameters,
    rates: Parameters,
    support: BatchT,
    query: BatchT,
    twice: bool,
) -> T:
    """What `function` gives for each task, stacked: several tasks go through it at once, by `vmap`; one goes alone.

    `twice`: the result will be differentiated through an inner gradient.
    """
    if len(tree_leaves(support)[0]) > 1:
        with exact_kernels(twice, batched=True):
            batched = torch.vmap(function, (None, None, 0, 0), randomness="different")
            together: T = batched(parameters, rates, support, query)
            return together
    alone_support, alone_query = (tree_map(lambda tensor: tensor[0], batch) for batch in (support, query))
    with exact_kernels(twice, batched=False):
        stacked: T = tree_map(lambda tensor: tensor[None], function(parameters, rates, alone_support, alone_query))
        return stacked


@contextmanager
def exact_kernels(twice: bool, batched: bool) -> Iterator[None]:
    """Leaves out the kernels that have no derivative of their gradient, or under `vmap` a wrong one.

    No fused attention can be differentiated twice, and on the CPU none has a rule for `vmap`. Layer norm's gradient
    under `vmap` takes its mean and variance for constants when it is differentiated (pytorch/functorch issue 534): no
    error, and meta-gradients some per cent off.
    """
    with ExitStack() as stack:
        if twice or batched:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if twice and batched:
            stack.enter_context(_PlainNorms())
        yield


class _PlainNorms(TorchFunctionMode):
    """`F.layer_norm` and `F.rms_norm`, whoever calls them, out of operations with derivatives of any order."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        function = _PLAIN.get(func, func)
        return function(*args, **(kwargs or {}))


def _layer_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    axes = tuple(range(-len(shape), 0))
    centred = x - x.mean(axes, keepdim=True)
    y = centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _rms_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None, eps: float | None) -> Tensor:
    least = torch.finfo(x.dtype).eps if eps is None else eps
    y = x * torch.rsqrt(x.square().mean(tuple(range(-len(shape), 0)), keepdim=True) + least)
    return y if weight is None else y * weight


_PLAIN: dict[Any, Callable[..., Tensor]] = {F.layer_norm: _layer_norm, F.rms_norm: _rms_norm}


def _chunks(batch: T, size: int) -> Iterator[T]:
    count = len(tree_leaves(batch)[0])
    for start in range(0, count, size):
        yield tree_map(lambda tensor, start=start: tensor[start : start + size], batch)


def _reptile(
    loss: Loss[BatchT], parameters: Parameters, rates: Parameters, support: BatchT, query: BatchT, steps: int
) -> tuple[Tensor, list[Tensor]]:
    """The mean loss after adaptation, on the half that the last step did not see, and θ - mean θˢ by name."""
    fixed = {name: value.detach() for name, value in parameters.items()}

    def task(parameters: Parameters, rates: Parameters, support: BatchT, query: BatchT) -> tuple[Tensor, Parameters]:
        halves = (support, query)
        for step in range(steps):
            gradients = inner_gradient(loss, parameters, rates, halves[step % 2])
            parameters = sgd_step(parameters, gradients, rates, step)
        return loss(parameters, halves[steps % 2]), parameters

    with torch.no_grad():
        value, adapted = over_tasks(task, fixed, rates, support, query, twice=False)
        return value.mean(), [value - adapted[name].mean(0) for name, value in fixed.items()]
