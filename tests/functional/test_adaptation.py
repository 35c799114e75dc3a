"""Meta-gradients against finite differences, the package `higher` and naive loops, in float64."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from gpt_modules.backbone import GPT, DecoderConfig
from gpt_modules.data.batches import EpisodeSet
from gpt_modules.functional import adapt, adaptation, meta_gradient, supervised_scores

Named = dict[str, Tensor]
TASKS = 5


class World(NamedTuple):
    """A module, its loss of an `EpisodeSet`, and the support and query sets of 5 tasks."""

    module: nn.Module
    loss: Callable[[Mapping[str, Tensor], EpisodeSet], Tensor]
    support: EpisodeSet
    query: EpisodeSet

    @property
    def parameters(self) -> Named:
        return {name: value.detach().clone() for name, value in self.module.named_parameters()}

    def rates(self, rate: float = 0.3) -> Named:
        """A number for all steps, a different one for each name."""
        return {name: torch.tensor([rate / (1 + i)], dtype=torch.float64) for i, name in enumerate(self.parameters)}

    def task(self, i: int) -> tuple[EpisodeSet, EpisodeSet]:
        return tuple(EpisodeSet((part.inputs[0][i],), part.targets[i]) for part in self[2:])  # type: ignore[return-value]


def world(module: nn.Module, support: EpisodeSet, query: EpisodeSet) -> World:
    def loss(parameters: Mapping[str, Tensor], examples: EpisodeSet) -> Tensor:
        outputs = functional_call(module, dict(parameters), examples.inputs)
        if examples.targets.is_floating_point():
            return (outputs - examples.targets).square().mean()
        return supervised_scores(outputs, examples.targets)[0]

    return World(module, loss, support, query)


def mlp() -> World:
    module = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    sets = [EpisodeSet((x,), torch.sin(3 * x.sum(-1, keepdim=True))) for x in torch.randn(2, TASKS, 7, 2).double()]
    return world(module, *sets)


def decoder(layers: int = 1) -> World:
    """Tied embeddings, layer norms in the middle of things, and rows of unequal length."""
    module = GPT(DecoderConfig(vocab_size=11, n_positions=8, n_layer=layers, n_head=2, n_embd=8)).double().eval()
    with torch.no_grad():
        for value in module.parameters():
            value += 0.3 * torch.randn_like(value)
    sets = []
    for tokens in torch.randint(11, (2, TASKS, 4, 7)):
        asked = torch.arange(6) < torch.randint(1, 7, (TASKS, 4, 1))
        sets.append(EpisodeSet((tokens[..., :-1],), torch.where(asked, tokens[..., 1:], -100)))
    return world(module, *sets)


WORLDS = pytest.mark.parametrize("make", [mlp, decoder])


def outer_loss(given: World, parameters: Named, rates: Named, steps: int) -> float:
    """Mean query loss after gradient descent, by autograd and a loop: no derivative of it is needed."""
    losses = []
    for i in range(TASKS):
        support, query = given.task(i)
        theta = {name: value.clone().requires_grad_() for name, value in parameters.items()}
        for step in range(steps):
            gradients = torch.autograd.grad(given.loss(theta, support), list(theta.values()))
            theta = {
                name: (value - rates[name][min(step, len(rates[name]) - 1)] * g if name in rates else value)
                .detach()
                .requires_grad_()
                for (name, value), g in zip(theta.items(), gradients, strict=True)
            }
        losses.append(given.loss(theta, query).item())
    return sum(losses) / TASKS


def slopes(
    function: Callable[[Named], float], at: Named, gradients: Named, h: float = 1e-5
) -> Iterator[tuple[float, float]]:
    """(derivative by central differences, by `gradients`) along a random direction of each tensor, and of all."""
    directions = {name: torch.randn_like(value) for name, value in at.items()}
    for chosen in ([name] for name in at):
        ahead, behind = (
            function(
                {name: value + sign * h * directions[name] if name in chosen else value for name, value in at.items()}
            )
            for sign in (1, -1)
        )
        expected = sum((gradients[name] * directions[name]).sum().item() for name in chosen)
        yield (ahead - behind) / (2 * h), expected


def assert_slopes(function: Callable[[Named], float], at: Named, gradients: Named) -> None:
    pairs = list(slopes(function, at, gradients))
    largest = max(abs(expected) for _, expected in pairs)
    assert largest > 1e-4
    for found, expected in pairs:
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-6 * largest)


def distance(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Of two sets of gradients, as a share of the second's norm."""
    assert found.keys() == expected.keys()
    apart = sum((found[name] - value).square().sum().item() for name, value in expected.items())
    return (apart / sum(value.square().sum().item() for value in expected.values())) ** 0.5


@WORLDS
@pytest.mark.parametrize("at_once", [None, 1])
def test_second_order_meta_gradient_is_that_of_finite_differences(make: Any, at_once: int | None) -> None:
    given = make()
    rates, parameters = given.rates(), given.parameters
    found = meta_gradient(given.loss, parameters, rates, *given[2:], steps=2, tasks_at_once=at_once)
    assert found.rates == {}
    assert found.query_loss.item() == pytest.approx(outer_loss(given, parameters, rates, 2), rel=1e-6)
    assert_slopes(lambda moved: outer_loss(given, moved, rates, 2), parameters, found.gradients)


def with_higher(given: World, rate: float, steps: int) -> Named:
    """The mean meta-gradient by the package `higher` (Grefenstette et al. 2019)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        higher = pytest.importorskip("higher")
    module = given.module
    optimizer = torch.optim.SGD(module.parameters(), lr=rate)
    total = {name: torch.zeros_like(value) for name, value in module.named_parameters()}
    for i in range(TASKS):
        support, query = given.task(i)
        with sdpa_kernel(SDPBackend.MATH), higher.innerloop_ctx(module, optimizer) as (copy, inner):
            for _ in range(steps):
                inner.step(_plain_loss(copy(*support.inputs), support.targets))
            value = _plain_loss(copy(*query.inputs), query.targets)
            gradients = torch.autograd.grad(value, list(copy.parameters(time=0)))
        for name, gradient in zip(total, gradients, strict=True):
            total[name] += gradient / TASKS
    return total


def _plain_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    if targets.is_floating_point():
        return F.mse_loss(outputs, targets)
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


@WORLDS
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_meta_gradient_is_that_of_higher(make: Any, steps: int) -> None:
    given = make()
    rates = {name: torch.tensor([0.2], dtype=torch.float64) for name in given.parameters}
    found = meta_gradient(given.loss, given.parameters, rates, *given[2:], steps=steps)
    assert distance(found.gradients, with_higher(given, 0.2, steps)) < 1e-6


@pytest.mark.parametrize("algorithm", ["maml", "fomaml", "reptile"])
def test_tasks_at_once_change_memory_and_nothing_else(algorithm: Any) -> None:
    given = decoder(layers=2)
    options: dict[str, Any] = {"steps": 2, "algorithm": algorithm, "learn_rates": algorithm != "reptile"}
    looped, *others = (
        meta_gradient(given.loss, given.parameters, given.rates(), *given[2:], tasks_at_once=size, **options)
        for size in (1, 2, 3, None)
    )
    for other in others:
        assert distance(other.gradients, looped.gradients) < 1e-10
        assert other.query_loss.item() == pytest.approx(looped.query_loss.item(), rel=1e-6)
        if looped.rates:
            assert distance(other.rates, looped.rates) < 1e-10


def test_layer_norm_under_vmap_is_why_there_are_exact_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    given = decoder()
    right, wrong = (_meta_gradient_with(given, plain, monkeypatch) for plain in (None, nullcontext))
    apart = distance(wrong, right)
    if apart < 1e-10:
        pytest.skip("this torch has the second derivative of layer norm under vmap: _PlainNorms can go")
    assert apart > 1e-4


def _meta_gradient_with(given: World, plain: Any, monkeypatch: pytest.MonkeyPatch) -> Named:
    if plain is not None:
        monkeypatch.setattr(adaptation, "_PlainNorms", plain)
    return meta_gradient(given.loss, given.parameters, given.rates(), *given[2:], steps=2).gradients


@WORLDS
def test_fomaml_is_the_query_gradient_at_the_adapted_parameters(make: Any) -> None:
    given = make()
    rates, parameters = given.rates(), given.parameters
    expected = {name: torch.zeros_like(value) for name, value in parameters.items()}
    for i in range(TASKS):
        support, query = given.task(i)
        theta = {name: value.clone().requires_grad_() for name, value in parameters.items()}
        for _ in range(2):
            gradients = torch.autograd.grad(given.loss(theta, support), list(theta.values()))
            theta = {
                name: (value - rates[name] * gradient).detach().requires_grad_()
                for (name, value), gradient in zip(theta.items(), gradients, strict=True)
            }
        gradients = torch.autograd.grad(given.loss(theta, query), list(theta.values()))
        for name, gradient in zip(expected, gradients, strict=True):
            expected[name] += gradient / TASKS
    options: dict[str, Any] = {"steps": 2, "algorithm": "fomaml"}
    found = meta_gradient(given.loss, parameters, rates, *given[2:], **options).gradients
    assert distance(found, expected) < 1e-10
    assert distance(found, meta_gradient(given.loss, parameters, rates, *given[2:], steps=2).gradients) > 1e-2


def test_first_and_second_order_agree_where_the_inner_loss_is_linear() -> None:
    def loss(parameters: Mapping[str, Tensor], examples: tuple[Tensor, Tensor]) -> Tensor:
        x, asked = examples
        straight = x @ parameters["w"]
        return torch.where(asked, straight.square(), straight).mean()  # support: linear in w, query: not

    x, w = torch.randn(2, TASKS, 3, 4).double(), {"w": torch.randn(4).double()}
    asked = torch.tensor([False, True]).reshape(2, 1, 1).expand(2, TASKS, 3)
    sets = [(x[side], asked[side]) for side in (0, 1)]
    first, second = (
        meta_gradient(loss, w, {"w": torch.tensor([0.4], dtype=torch.float64)}, *sets, steps=3, algorithm=algorithm)
        for algorithm in ("fomaml", "maml")
    )
    assert distance(first.gradients, second.gradients) < 1e-12


@pytest.mark.parametrize("make", [mlp, decoder])
def test_reptile_interpolates_towards_what_sgd_finds(make: Any) -> None:
    given, steps, lr, epsilon = make(), 3, 0.1, 0.25
    parameters = given.parameters
    ends = []
    for i in range(TASKS):
        halves = given.task(i)
        given.module.load_state_dict(parameters)
        optimizer = torch.optim.SGD(given.module.parameters(), lr=lr)
        for step in range(steps):
            part = halves[step % 2]
            optimizer.zero_grad()
            _plain_loss(given.module(*part.inputs), part.targets).backward()
            optimizer.step()
        ends.append(given.parameters)
    rates = {name: torch.tensor([lr], dtype=torch.float64) for name in parameters}
    found = meta_gradient(given.loss, parameters, rates, *given[2:], steps=steps, algorithm="reptile").gradients
    moved = {name: value - epsilon * found[name] for name, value in parameters.items()}
    means = {name: torch.stack([end[name] for end in ends]).mean(0) for name in parameters}
    expected = {name: value + epsilon * (means[name] - value) for name, value in parameters.items()}
    assert distance(moved, expected) < 1e-10
    assert distance(parameters, expected) > 1e-4


def test_what_has_no_rate_stays_and_is_still_learned_by_the_outer_loop() -> None:
    given = mlp()
    head = {name: rate for name, rate in given.rates().items() if name.startswith("2.")}
    parameters, (support, _) = given.parameters, given.task(0)
    adapted = adapt(given.loss, parameters, head, support, steps=2)
    assert all(torch.equal(adapted[name], value) == (name not in head) for name, value in parameters.items())
    found = meta_gradient(given.loss, parameters, head, *given[2:], steps=2).gradients
    assert all(gradient.abs().max() > 1e-6 for gradient in found.values())
    assert_slopes(lambda moved: outer_loss(given, moved, head, 2), parameters, found)


@pytest.mark.parametrize("form", ["per step", "element-wise", "too few steps"])
@pytest.mark.parametrize("algorithm", ["maml", "fomaml"])
def test_gradients_of_learned_rates(form: str, algorithm: Any) -> None:
    given, steps = mlp(), 3
    shapes: dict[str, Callable[[Tensor], tuple[int, ...]]] = {
        "per step": lambda value: (steps,),
        "element-wise": lambda value: (1, *value.shape),
        "too few steps": lambda value: (2,),
    }
    rates = {name: 0.1 + 0.1 * torch.rand(shapes[form](value)).double() for name, value in given.parameters.items()}
    options: dict[str, Any] = {"steps": steps, "algorithm": algorithm, "learn_rates": True}
    found = meta_gradient(given.loss, given.parameters, rates, *given[2:], **options)
    assert {name: rate.shape for name, rate in found.rates.items()} == {
        name: rate.shape for name, rate in rates.items()
    }
    if algorithm == "maml":
        assert_slopes(lambda moved: outer_loss(given, given.parameters, moved, steps), rates, found.rates)
    elif form == "per step":  # the last step's rate moves the end and no gradient on the way: first order is exact
        last = {name: torch.zeros(steps).double().index_fill(0, torch.tensor([steps - 1]), 1.0) for name in rates}
        ends = {name: rate * last[name] for name, rate in found.rates.items()}
        exact = {name: rate * last[name] for name, rate in _exact_rates(given, rates, steps).items()}
        assert distance(ends, exact) < 1e-10


def _exact_rates(given: World, rates: Named, steps: int) -> Named:
    return meta_gradient(given.loss, given.parameters, rates, *given[2:], steps=steps, learn_rates=True).rates


def test_no_steps_are_joint_training() -> None:
    given = decoder()
    theta = {name: value.requires_grad_() for name, value in given.parameters.items()}
    value = sum(given.loss(theta, given.task(i)[1]) for i in range(TASKS)) / TASKS
    expected = dict(zip(theta, torch.autograd.grad(value, list(theta.values())), strict=True))  # type: ignore[arg-type]
    for algorithm in ("maml", "fomaml"):
        found = meta_gradient(given.loss, given.parameters, given.rates(), *given[2:], steps=0, algorithm=algorithm)  # type: ignore[arg-type]
        assert distance(found.gradients, expected) < 1e-10


def graph(tensor: Tensor) -> set[str]:
    """The kinds of operations that a result can be differentiated through."""
    seen, waiting = set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [parent for parent, _ in node.next_functions]
    return {node.name() for node in seen}


def test_first_order_keeps_no_graph_of_the_inner_loss() -> None:
    given = mlp()
    theta = {name: value.requires_grad_() for name, value in given.parameters.items()}
    adapted = {
        first: adapt(given.loss, theta, given.rates(), given.task(0)[0], steps=3, first_order=first)["2.weight"]
        for first in (True, False)
    }
    assert any("Tanh" in kind for kind in graph(adapted[False]))
    # θ - α₀g - α₁g - α₂g, and nothing that holds an activation.
    assert graph(adapted[True]) <= {"SubBackward0", "torch::autograd::AccumulateGrad"}
    assert torch.equal(*adapted.values())


def test_second_order_is_what_is_meant_by_default() -> None:
    given = mlp()
    theta = {name: value.requires_grad_() for name, value in given.parameters.items()}
    adapted = adapt(given.loss, theta, given.rates(), given.task(0)[0], steps=1)
    assert any("Tanh" in kind for kind in graph(adapted["2.weight"]))
    maml, default = (
        meta_gradient(given.loss, given.parameters, given.rates(), *given[2:], steps=2, **options)  # type: ignore[arg-type]
        for options in ({"algorithm": "maml", "learn_rates": False, "tasks_at_once": None}, {})
    )
    assert distance(default.gradients, maml.gradients) == 0.0
    assert default.rates == {}


@pytest.mark.parametrize("given", ["nothing", "weight", "bias", "both"])
def test_the_plain_layer_norm_is_layer_norm(given: str) -> None:
    x = 1e-3 * torch.randn(4, 2, 3, dtype=torch.float64)  # so small that eps matters
    affine = {name: torch.randn(2, 3, dtype=torch.float64) for name in ("weight", "bias") if given in (name, "both")}
    for options in (affine, {**affine, "eps": 1e-3}):
        expected = F.layer_norm(x, (2, 3), **options)  # type: ignore[arg-type]
        with adaptation.exact_kernels(twice=True, batched=True):
            found = F.layer_norm(x, (2, 3), **options)  # type: ignore[arg-type]
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_plain_rms_norm_is_rms_norm(weighted: bool) -> None:
    x = 1e-3 * torch.randn(4, 2, 3, dtype=torch.float64)
    weight = torch.randn(2, 3, dtype=torch.float64) if weighted else None
    for eps in (None, 1e-3):
        expected = F.rms_norm(x, (2, 3), weight, eps)
        with adaptation.exact_kernels(twice=True, batched=True):
            found = F.rms_norm(x, (2, 3), weight, eps)
        torch.testing.assert_close(found, expected)


class Tied(nn.Module):
    """Two layers that share a matrix, registered under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.tanh(self.first(x)))
        return out


def test_a_tensor_of_two_names_is_one_parameter() -> None:
    x, y = torch.randn(2, 2, TASKS, 6, 3).double()
    given = world(Tied().double(), EpisodeSet((x[0],), y[0]), EpisodeSet((x[1],), y[1]))
    assert set(given.parameters) == {"first.weight", "first.bias", "second.bias"}

    def by_hand(parameters: Mapping[str, Tensor], examples: EpisodeSet) -> Tensor:
        weight, inner, outer = parameters["first.weight"], parameters["first.bias"], parameters["second.bias"]
        hidden = torch.tanh(examples.inputs[0] @ weight.T + inner)
        return (hidden @ weight.T + outer - examples.targets).square().mean()

    found, expected = (
        meta_gradient(loss, given.parameters, given.rates(), *given[2:], steps=2).gradients
        for loss in (given.loss, by_hand)
    )
    assert distance(found, expected) < 1e-10


class Kernels(TorchDispatchMode):
    """The names of all that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("algorithm", "steps", "at_once", "fused", "own_norm"),
    [
        ("fomaml", 2, 1, True, True),
        ("reptile", 2, 1, True, True),
        ("maml", 0, 1, True, True),
        ("maml", 2, 1, False, True),
        ("maml", 2, None, False, False),
        ("fomaml", 2, None, False, True),
    ],
)
def test_fast_kernels_wherever_they_have_the_derivatives(
    algorithm: Any, steps: int, at_once: int | None, fused: bool, own_norm: bool
) -> None:
    given = decoder()
    options: dict[str, Any] = {"steps": steps, "algorithm": algorithm, "tasks_at_once": at_once}
    with Kernels() as kernels:
        meta_gradient(given.loss, given.parameters, given.rates(), *given[2:], **options)
    assert any("flash_attention" in name for name in kernels.names) == fused
    assert ("native_layer_norm" in kernels.names) == own_norm
    assert "mm" in kernels.names


@pytest.mark.parametrize("algorithm", ["maml", "fomaml", "reptile"])
@pytest.mark.parametrize("at_once", [None, 1])
def test_what_the_loss_does_not_read_has_a_gradient_of_zero(algorithm: Any, at_once: int | None) -> None:
    given = mlp()
    parameters = {**given.parameters, "unread": torch.ones(3, dtype=torch.float64)}
    options: dict[str, Any] = {"steps": 2, "algorithm": algorithm, "tasks_at_once": at_once}
    found = meta_gradient(given.loss, parameters, given.rates(), *given[2:], **options).gradients
    assert torch.equal(found["unread"], torch.zeros(3, dtype=torch.float64))


def test_noise_of_tasks_that_go_together_is_different() -> None:
    def noise(parameters: Mapping[str, Tensor], *_: Any) -> Tensor:
        return torch.rand_like(parameters["w"])

    empty = torch.zeros(TASKS, 1)
    drawn = adaptation.over_tasks(noise, {"w": torch.zeros(4)}, {}, empty, empty, twice=False)
    assert drawn.shape == (TASKS, 4)
    assert len(drawn.unique()) == drawn.numel()


@pytest.mark.parametrize("algorithm", ["maml", "fomaml", "reptile"])
def test_arguments_are_left_alone(algorithm: Any) -> None:
    given, rates = decoder(), decoder().rates()
    parameters = {name: nn.Parameter(value) for name, value in given.parameters.items()}
    tensors = [*parameters.values(), *rates.values(), *(t for part in given[2:] for t in (*part.inputs, part.targets))]
    before = [(tensor.detach().clone(), tensor._version, tensor.requires_grad) for tensor in tensors]
    meta_gradient(given.loss, parameters, rates, *given[2:], steps=2, algorithm=algorithm)
    for tensor, (value, version, required) in zip(tensors, before, strict=True):
        assert torch.equal(tensor, value)
        assert (tensor._version, tensor.requires_grad, tensor.grad) == (version, required, None)


@pytest.mark.parametrize("algorithm", ["maml", "fomaml", "reptile"])
@pytest.mark.parametrize("at_once", [None, 1])
def test_autocast_comes_close(algorithm: Any, at_once: int | None) -> None:
    given = decoder()
    given.module.float()
    rates = {name: rate.float() for name, rate in given.rates().items()}

    def found() -> Named:
        options: dict[str, Any] = {"steps": 2, "algorithm": algorithm, "tasks_at_once": at_once}
        return meta_gradient(given.loss, given.parameters, rates, *given[2:], **options).gradients

    exact = found()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = found()
    assert all(value.dtype == torch.float32 for value in rounded.values())
    assert distance(rounded, exact) < 0.1  # bfloat16 has 8 bits
