"""Ways to learn a new task from a few examples, compared on the same episodes.

gradient                steps of gradient descent from meta-learned weights, with their inner rates (Finn et al. 2017)
in-context              the examples in the prompt, weights frozen: GPT-3's inner loop (Brown et al. 2020, figure 1.1)
both                    the examples in the prompt of the adapted weights
fine-tuning             AdamW from weights that were not meta-learned, learning rate and steps chosen on other tasks
in-context (baseline)   the examples in the prompt of the weights that fine-tuning begins with

A model is a dictionary of parameters and a function of them and of a set's inputs, as in `functional.adaptation`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from gpt_modules.data.batches import EpisodeBatch, EpisodeSet
from gpt_modules.evaluation.tasks.metrics import Estimate, mean
from gpt_modules.functional import Parameters, inner_gradient, over_tasks, sgd_step, supervised_scores
from gpt_modules.functional.adaptation import Loss

Forward: TypeAlias = Callable[[Parameters, tuple[Tensor, ...]], Tensor]
"""(parameters, the inputs of an `EpisodeSet`) -> outputs."""
Learner: TypeAlias = Callable[[Loss[EpisodeSet], Parameters, EpisodeSet], Iterator[Parameters]]
"""(loss, parameters, support set of one task) -> the parameters after 0, 1, 2, ... steps, without end."""


class Network(NamedTuple):
    """What runs, and the weights it begins with."""

    forward: Forward
    parameters: Parameters


class Trial(NamedTuple):
    """The same N tasks with one number of support examples.

    in_context: the queries of `episodes`, each behind its task's examples; None where there is no such thing or no
    room for it. tuning: other tasks, to choose fine-tuning's settings on.
    """

    support: int
    episodes: EpisodeBatch
    in_context: EpisodeSet | None
    tuning: EpisodeBatch


class Point(NamedTuple):
    """One way to learn, at one number of examples and of steps: means over the tasks.

    loss: nats or squared error of the queries. accuracy: share of right queries; None for numbers. learning_rate: of
    fine-tuning.
    """

    arm: str
    support: int
    steps: int
    loss: Estimate
    accuracy: Estimate | None
    learning_rate: float | None = None


class Settings(NamedTuple):
    """What to look at. steps: of learning, for the curves. finetuning_steps: fine-tuning may take more, where they are
    of use. learning_rates: that it chooses from. tasks_at_once: so many learn together; memory grows with it.
    """

    steps: Sequence[int]
    finetuning_steps: int
    learning_rates: Sequence[float]
    tasks_at_once: int


class Comparison(NamedTuple):
    """by_steps: at the trained number of examples. by_support: after the trained number of steps, fine-tuning after
    its best one.
    """

    by_steps: list[Point]
    by_support: list[Point]


class Choice(NamedTuple):
    """Settings of fine-tuning and what the tuning tasks say of them, mean accuracy and loss."""

    steps: int
    learning_rate: float
    accuracy: float
    loss: float

    @property
    def goodness(self) -> tuple[float, float]:
        """Accuracy first, as it is what the ways are compared by; numbers have none, and leave it to the loss."""
        return self.accuracy, -self.loss


def gradient_descent(rates: Parameters) -> Learner:
    """The inner loop of `functional.adapt`, seen step by step."""

    def learn(loss: Loss[EpisodeSet], parameters: Parameters, support: EpisodeSet) -> Iterator[Parameters]:
        for step in count():
            yield parameters
            parameters = sgd_step(parameters, inner_gradient(loss, parameters, rates, support), rates, step)

    return learn


def adamw(
    lr: float, weight_decay: float = 0.01, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
) -> Learner:
    """AdamW on the whole support set (Loshchilov and Hutter 2019, algorithm 2, as in torch), at a constant rate. Free
    of any state outside, so that many tasks go through it at once.
    """

    def learn(loss: Loss[EpisodeSet], parameters: Parameters, support: EpisodeSet) -> Iterator[Parameters]:
        first = {name: torch.zeros_like(value) for name, value in parameters.items()}
        second = dict(first)
        for step in count(1):
            yield parameters
            gradients = inner_gradient(loss, parameters, parameters, support)
            first = {name: m.lerp(gradients[name], 1 - betas[0]) for name, m in first.items()}
            second = {name: v.lerp(gradients[name].square(), 1 - betas[1]) for name, v in second.items()}
            unbias, unbias_second = 1 - betas[0] ** step, 1 - betas[1] ** step
            parameters = {
                name: (1 - lr * weight_decay) * value
                - lr / unbias * first[name] / ((second[name] / unbias_second).sqrt() + eps)
                for name, value in parameters.items()
            }

    return learn


@torch.no_grad()
def query_scores(
    network: Network,
    learner: Learner,
    support: EpisodeSet,
    queries: Sequence[EpisodeSet],
    steps: Sequence[int],
    tasks_at_once: int,
) -> Tensor:
    """Loss and share of right answers of each task's queries along its learning: (N, sets of queries, steps, 2).

    Args:
        support, queries: of N tasks; all sets of queries are answered with the same weights.
        steps: numbers of steps to look at.
        tasks_at_once: so many learn together; memory grows with it.
    """

    def scores(parameters: Parameters, examples: EpisodeSet) -> tuple[Tensor, Tensor]:
        return supervised_scores(network.forward(parameters, examples.inputs), examples.targets)

    def task(parameters: Parameters, _: Parameters, support: Any, queries: Any) -> Tensor:
        rows = {}
        path = learner(lambda moving, examples: scores(moving, examples)[0], parameters, support)
        for step, moved in zip(range(max(steps) + 1), path, strict=False):
            if step in steps:
                found = [scores(moved, examples) for examples in queries]
                rows[step] = torch.stack([torch.stack([loss, right.mean()]) for loss, right in found])
        return torch.stack([rows[step] for step in steps], 1)

    parts = []
    for start in range(0, len(support.targets), tasks_at_once):
        chunk: tuple[Any, Any] = tree_map(lambda x, at=start: x[at : at + tasks_at_once], (support, tuple(queries)))
        parts.append(over_tasks(task, dict(network.parameters), {}, chunk[0], chunk[1], twice=False))
    return torch.cat(parts).float().cpu()


def compare(
    learned: Network,
    rates: Parameters,
    baseline: Network | None,
    trials: Iterable[Trial],
    trained: tuple[int, int],
    settings: Settings,
) -> Comparison:
    """All ways at all numbers of examples; fine-tuning's settings are chosen anew for each number of them.

    Args:
        baseline: what fine-tuning begins with; None leaves it out.
        trials: of the same tasks, one of them with the trained number of examples.
        trained: support examples and inner steps that the network was meta-learned for.
    """
    support, steps = trained
    by_steps, by_support = list[Point](), list[Point]()
    for trial in trials:
        full = trial.support == support
        wanted = [*settings.steps, steps] if full else [steps]
        points = adapted_points(learned, rates, trial, wanted, settings.tasks_at_once)
        reached = {"gradient": steps, "both": steps} if trial.support else {}
        by_support += [point for point in points if point.steps == reached.get(point.arm, 0)]
        if baseline is not None:
            choices = tune(baseline, trial, settings)
            best = max(choices, key=lambda choice: choice.goodness)
            tuned = finetuned_points(baseline, trial, choices if full else [best], settings.tasks_at_once)
            frozen = baseline_in_context(baseline, trial, settings.tasks_at_once)
            by_support += [*(point for point in tuned if point.steps == best.steps), *frozen]
            points += [*tuned, *frozen]
        by_steps += points if full else []
    return Comparison(by_steps, by_support)


def adapted_points(
    network: Network, rates: Parameters, trial: Trial, steps: Sequence[int], tasks_at_once: int
) -> list[Point]:
    """The ways of a meta-learned network: by gradient, in context, and both, after each number of steps."""
    wanted = sorted({0, *steps}) if trial.support else [0]
    sets = [trial.episodes.query, *([] if trial.in_context is None else [trial.in_context])]
    scores = query_scores(network, gradient_descent(rates), trial.episodes.support, sets, wanted, tasks_at_once)
    points = [_point("gradient", trial, step, scores[:, 0, at]) for at, step in enumerate(wanted)]
    if trial.in_context is not None:
        points.append(_point("in-context", trial, 0, scores[:, 1, 0]))
        points += [_point("both", trial, step, scores[:, 1, at]) for at, step in enumerate(wanted)]
    return points


def baseline_in_context(baseline: Network, trial: Trial, tasks_at_once: int) -> list[Point]:
    """What weights that were not meta-learned make of examples in their prompt; nothing where there is no prompt."""
    if trial.in_context is None:
        return []
    scores = query_scores(baseline, adamw(0.0), trial.episodes.support, [trial.in_context], [0], tasks_at_once)
    return [_point("in-context (baseline)", trial, 0, scores[:, 0, 0])]


def tune(baseline: Network, trial: Trial, settings: Settings) -> list[Choice]:
    """The best learning rate for each number of steps, by the tuning tasks."""
    wanted = sorted({0, *settings.steps, settings.finetuning_steps}) if trial.support else [0]
    support, query = trial.tuning
    found: list[list[Choice]] = [[] for _ in wanted]
    for lr in settings.learning_rates if trial.support else settings.learning_rates[:1]:
        scores = query_scores(baseline, adamw(lr), support, [query], wanted, settings.tasks_at_once)[:, 0].mean(0)
        losses, accuracies = scores.nan_to_num(nan=torch.inf, posinf=torch.inf).unbind(-1)
        for at, step in enumerate(wanted):
            found[at].append(Choice(step, lr, float(accuracies[at]), float(losses[at])))
    return [max(choices, key=lambda choice: choice.goodness) for choices in found]


def finetuned_points(baseline: Network, trial: Trial, choices: Sequence[Choice], tasks_at_once: int) -> list[Point]:
    """Plain fine-tuning with each of the settings, in their order."""
    found = {}
    for lr in {choice.learning_rate for choice in choices}:
        steps = sorted({choice.steps for choice in choices if choice.learning_rate == lr})
        support, query = trial.episodes
        scores = query_scores(baseline, adamw(lr), support, [query], steps, tasks_at_once)
        for at, step in enumerate(steps):
            found[step, lr] = _point("fine-tuning", trial, step, scores[:, 0, at])._replace(learning_rate=lr)
    return [found[choice.steps, choice.learning_rate] for choice in choices]


def _point(arm: str, trial: Trial, steps: int, scores: Tensor) -> Point:
    """scores: (N, 2)."""
    numbers = trial.episodes.query.targets.is_floating_point()
    return Point(arm, trial.support, steps, _over_tasks(scores[:, 0]), None if numbers else _over_tasks(scores[:, 1]))


def _over_tasks(values: Tensor) -> Estimate:
    """A task whose loss has left the range of floats takes the mean with it."""
    return mean(values.tolist()) if bool(values.isfinite().all()) else Estimate(float("inf"), None)
