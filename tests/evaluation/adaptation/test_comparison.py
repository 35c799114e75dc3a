"""Ways to learn a task, on models whose answers are known."""

import copy
from functools import partial

import pytest
import torch

from gpt_modules.backbone import GPT, DecoderConfig
from gpt_modules.data.batches import IGNORE, EpisodeBatch, EpisodeSet
from gpt_modules.evaluation.adaptation.comparison import (
    Choice,
    Network,
    Settings,
    Trial,
    adamw,
    adapted_points,
    compare,
    finetuned_points,
    gradient_descent,
    query_scores,
    tune,
)
from gpt_modules.functional import adapt, supervised_scores

SETTINGS = Settings([0, 1, 2], 3, (0.01, 0.1), 2)


def line():
    """y = w x from w = 0, on the tasks y = t x for t = 1, 2, 3: a point at x = 1 to learn from, one at x = 2 to judge
    by. The loss (w - t)² is at its minimum after one step of 1 / 2.
    """
    slopes = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    points = [EpisodeSet((torch.full((3, 1, 1), x),), x * slopes) for x in (1.0, 2.0)]
    network = Network(lambda parameters, inputs: inputs[0] * parameters["w"], {"w": torch.zeros(1)})
    return network, {"w": torch.tensor([0.5])}, Trial(1, EpisodeBatch(*points), None, EpisodeBatch(*points))


def tokens(tasks=5, support=3, query=2, seed=0):
    """Rows of random tokens, of which the last two have targets; the queries in context are other rows."""
    generator = torch.Generator().manual_seed(seed)

    def rows(count, length):
        ids = torch.randint(0, 9, (tasks, count, length + 1), generator=generator)
        targets = ids[..., 1:].clone()
        targets[..., : length - 2] = IGNORE
        return EpisodeSet((ids[..., :-1],), targets)

    episodes, in_context = EpisodeBatch(rows(support, 4), rows(query, 4)), rows(query, 12)
    return Trial(support, episodes, in_context, EpisodeBatch(rows(support, 4), rows(query, 4)))


def decoder():
    torch.manual_seed(1)
    model = GPT(DecoderConfig(vocab_size=9, n_positions=16, n_layer=1, n_head=2, n_embd=8)).eval()
    parameters = {name: 5 * value.detach() for name, value in model.named_parameters()}
    return Network(partial(torch.func.functional_call, model), parameters)


def by_name(points):
    return {(point.arm, point.support, point.steps): point for point in points}


def test_one_step_solves_a_line():
    """Before it the tasks' losses are 4, 16 and 36: mean 56 / 3, standard error 28 / 3."""
    network, rates, trial = line()
    before, after = adapted_points(network, rates, trial, [1], tasks_at_once=2)
    assert (before.arm, before.support, before.steps, after.steps) == ("gradient", 1, 0, 1)
    assert before.loss == pytest.approx((56 / 3, 28 / 3), rel=1e-6)
    assert after.loss == (0.0, 0.0)
    assert before.accuracy is None, "numbers are not right or wrong"


def test_gradient_descent_step_by_step_is_the_inner_loop():
    network, trial = decoder(), tokens()
    rates = {name: torch.tensor([0.3, 0.1]) for name in network.parameters}

    def loss(parameters, examples):
        return supervised_scores(network.forward(parameters, examples.inputs), examples.targets)[0]

    support = EpisodeSet((trial.episodes.support.inputs[0][0],), trial.episodes.support.targets[0])
    path = gradient_descent(rates)(loss, network.parameters, support)
    for steps, found in zip(range(4), path, strict=False):
        expected = adapt(loss, network.parameters, rates, support, steps)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value)


def test_adamw_is_torchs():
    torch.manual_seed(2)
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
    x, y = torch.randn(6, 3), torch.randn(6, 1)
    mine = {name: value.detach().clone() for name, value in model.named_parameters()}
    forward = partial(torch.func.functional_call, copy.deepcopy(model))
    path = adamw(0.05, weight_decay=0.1)(
        lambda parameters, examples: (forward(parameters, examples.inputs) - examples.targets).square().mean(),
        mine,
        EpisodeSet((x,), y),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    for _, found in zip(range(7), path, strict=False):
        for name, value in model.named_parameters():
            torch.testing.assert_close(found[name], value.detach(), rtol=1e-5, atol=1e-6)
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("learner", [adamw(0.05), gradient_descent({"decoder.wte.weight": torch.tensor([0.3])})])
def test_tasks_learn_alone_whoever_learns_beside_them(learner):
    network, trial = decoder(), tokens()
    support, query = trial.episodes
    scores = [query_scores(network, learner, support, [query, trial.in_context], [0, 2], at_once)
              for at_once in (1, 2, 5)]  # fmt: skip
    assert scores[0].shape == (5, 2, 2, 2)
    for other in scores[1:]:
        torch.testing.assert_close(other, scores[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(scores[0][:, :, 0, 0], scores[0][:, :, 1, 0]), "two steps change the loss"


def test_scores_of_frozen_weights_are_the_models():
    network, trial = decoder(), tokens()
    query = trial.episodes.query
    found = query_scores(network, adamw(0.1), trial.episodes.support, [query], [0], 2)[:, 0, 0]
    for task, (loss, right) in enumerate(found):
        logits = network.forward(network.parameters, (query.inputs[0][task],))
        asked = query.targets[task] != IGNORE
        expected = torch.nn.functional.cross_entropy(logits[asked], query.targets[task][asked])
        torch.testing.assert_close(loss, expected)
        assert right == ((logits.argmax(-1) == query.targets[task]) | ~asked).all(1).float().mean()


def test_ways_agree_where_they_are_the_same():
    """Without a step, adapting is reading; without an example, so is everything."""
    network, trial = decoder(), tokens()
    rates = {name: torch.tensor([0.1]) for name in network.parameters}
    nothing = tree(trial, 0)
    found = compare(network, rates, network, [nothing, trial], (3, 1), SETTINGS)
    points, alone = by_name(found.by_steps), by_name(found.by_support)
    assert points["both", 3, 0][3:] == points["in-context", 3, 0][3:] == points["in-context (baseline)", 3, 0][3:]
    assert points["gradient", 3, 0].loss == points["fine-tuning", 3, 0].loss
    assert points["gradient", 3, 1].loss != points["gradient", 3, 0].loss
    assert alone["gradient", 3, 1] == points["gradient", 3, 1], "both figures show the same tasks"
    arms = ("gradient", "in-context", "both", "fine-tuning", "in-context (baseline)")
    assert len({(alone[arm, 0, 0].loss, alone[arm, 0, 0].accuracy) for arm in arms}) == 1


def tree(trial, support):
    """The trial with its first so many examples, and plain queries in context where there are none."""

    def cut(batch):
        examples = EpisodeSet((batch.support.inputs[0][:, :support],), batch.support.targets[:, :support])
        return EpisodeBatch(examples, batch.query)

    return Trial(support, cut(trial.episodes), trial.episodes.query, cut(trial.tuning))


def test_a_comparison_has_every_way_at_every_size():
    network, trial = decoder(), tokens()
    rates = {name: torch.tensor([0.1]) for name in network.parameters}
    smaller = tree(trial, 2)._replace(in_context=None)
    found = compare(network, rates, network, [smaller, trial], (3, 2), SETTINGS)
    steps = [(point.arm, point.steps) for point in found.by_steps]
    adapted = [("gradient", step) for step in (0, 1, 2)] + [("in-context", 0)] + [("both", step) for step in (0, 1, 2)]
    assert steps == adapted + [("fine-tuning", step) for step in (0, 1, 2, 3)] + [("in-context (baseline)", 0)]
    sizes = [(point.arm, point.support) for point in found.by_support]
    assert sizes == [("gradient", 2), ("fine-tuning", 2), ("gradient", 3), ("in-context", 3), ("both", 3),
                     ("fine-tuning", 3), ("in-context (baseline)", 3)]  # fmt: skip
    without = compare(network, rates, None, [trial], (3, 2), SETTINGS)
    assert {point.arm for point in without.by_steps} == {"gradient", "in-context", "both"}


def test_fine_tuning_chooses_what_served_other_tasks_best():
    """From w = 0, AdamW moves by its rate a step: 2 is the mean slope, and one step of 2 is best of these."""
    network, _, trial = line()
    settings = Settings([1], 2, (0.01, 2.0, 1e30), 3)
    choices = tune(network, trial, settings)
    assert [(choice.steps, choice.learning_rate) for choice in choices[1:]] == [(1, 2.0), (2, 2.0)]
    assert choices[1].loss == pytest.approx(8 / 3, rel=1e-4)
    (point,) = finetuned_points(network, trial, [choices[1]], 2)
    assert (point.arm, point.steps, point.learning_rate) == ("fine-tuning", 1, 2.0)
    assert point.loss.value == pytest.approx(8 / 3, rel=1e-4)


def test_accuracy_chooses_before_loss():
    right, sure = Choice(1, 0.1, accuracy=0.6, loss=2.0), Choice(1, 0.2, accuracy=0.5, loss=1.0)
    tied = Choice(1, 0.3, accuracy=0.6, loss=1.5)
    assert max([right, sure, tied], key=lambda choice: choice.goodness) is tied


def test_a_loss_beyond_floats_is_infinite_and_has_no_error():
    network, _, trial = line()
    (point,) = finetuned_points(network, trial, [Choice(1, 1e30, 0.0, 0.0)], 3)
    assert point.loss == (float("inf"), None)
