"""Schedules against values worked by hand; decay where the papers put it."""

import copy
import dataclasses
import functools
import math

import pytest
import torch
from torch import nn

from gpt_modules.errors import UserError
from gpt_modules.training.optimizers import (
    OptimizerConfig,
    ScheduleConfig,
    build,
    configure,
    keep_settings,
    lr_factor,
    parameter_groups,
)

ONE = torch.ones(1)
BETAS = ((0.5, 0.5), (0.9, 0.99))


def between(progress, schedule, total):
    """The factor of a step so small that it begins where it ends."""
    return lr_factor(progress, progress, schedule, total)


@pytest.mark.parametrize(
    ("progress", "expected"), [(0, 0.0), (50, 0.5), (100, 1.0), (600, 0.55), (1100, 0.1), (5000, 0.1)]
)
def test_cosine_after_warmup(progress, expected):
    schedule = ScheduleConfig(shape="cosine", warmup=100, final=0.1)
    assert between(progress, schedule, 1100) == pytest.approx(expected)


def test_linear_is_half_way_down_and_constant_stays():
    assert between(500, ScheduleConfig(shape="linear", final=0.0), 1000) == pytest.approx(0.5)
    assert between(10**9, ScheduleConfig(shape="constant", warmup=10), math.inf) == 1.0


def test_gpt3_small_in_tokens():
    schedule = ScheduleConfig(shape="cosine", warmup=375e6, total=260e9, final=0.1, unit="tokens")
    assert between(187.5e6, schedule, 260e9) == pytest.approx(0.5)
    assert between(130e9, schedule, 260e9) == pytest.approx(0.55, abs=2e-3)
    assert between(290e9, schedule, 260e9) == pytest.approx(0.1)


def rates(optimizer_and_scheduler, steps, taken=None):
    optimizer, scheduler = optimizer_and_scheduler["optimizer"], optimizer_and_scheduler["lr_scheduler"]["scheduler"]
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if taken is not None:
            taken.append(1)
        scheduler.step()
    return found


def adamw():
    return build(parameter_groups([nn.Linear(2, 2)], 0.1), OptimizerConfig(lr=1.0))


def test_every_step_of_a_line_to_0_moves_the_weights():
    assert rates(configure(adamw(), ScheduleConfig(shape="linear", final=0.0), 5), 6) == pytest.approx(
        [1.0, 0.8, 0.6, 0.4, 0.2, 0.0]
    )
    assert rates(configure(adamw(), ScheduleConfig(shape="linear", warmup=2, final=0.0), 6), 7) == pytest.approx(
        [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    )


def test_a_warmup_from_a_tenth_of_the_peak():
    schedule = ScheduleConfig(shape="constant", warmup=10, warmup_start=0.1)
    assert rates(configure(adamw(), schedule, 12), 12) == pytest.approx([*(0.1 + 0.09 * i for i in range(10)), 1, 1])


def test_tokens_and_steps_give_the_same_rates():
    taken = []
    by_steps = configure(adamw(), ScheduleConfig(warmup=4, unit="steps"), 10)
    by_tokens = configure(
        adamw(),
        ScheduleConfig(warmup=4 * 512, unit="tokens"),
        10,
        (lambda: (512 * sum(taken), 512 * (1 + sum(taken))), 10 * 512),
    )
    assert rates(by_steps, 10) == pytest.approx(rates(by_tokens, 10, taken))
    assert rates(configure(adamw(), ScheduleConfig(warmup=4), 10), 4) == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_a_schedule_in_steps_follows_no_tokens():
    still = (lambda: (0.0, 512.0), 5 * 512)
    line = ScheduleConfig(shape="linear", final=0.0)
    assert rates(configure(adamw(), line, 5, still), 5) == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_what_is_left_out_is_gpt3s():
    """Brown et al. 2020, appendix B; the rate is that of the 350M model, table 2.1."""
    optimizer, schedule = OptimizerConfig(), ScheduleConfig()
    assert (optimizer.lr, optimizer.betas, optimizer.eps, optimizer.weight_decay) == (3e-4, (0.9, 0.95), 1e-8, 0.1)
    assert (schedule.shape, schedule.final, schedule.unit) == ("cosine", 0.1, "steps")
    assert not optimizer.sgd
    assert not schedule.warmup


def test_an_endless_run_needs_a_total():
    with pytest.raises(UserError, match=r"schedule\.total"):
        configure(adamw(), ScheduleConfig(shape="cosine"), math.inf)


def test_an_endless_run_has_no_fractions():
    """A warm-up over a tenth of it would stay at rate 0."""
    with pytest.raises(UserError, match=r"^schedule\.unit: found 'run', expected 'steps': the run has no end"):
        configure(adamw(), ScheduleConfig(shape="constant", warmup=0.1, unit="run"), math.inf)


def test_decay_spares_biases_and_gains_and_counts_shared_tensors_once():
    module = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    decayed, spared = parameter_groups([module, module[0]], 0.1)
    assert [p.ndim for p in decayed["params"]] == [2]
    assert decayed["weight_decay"] == 0.1
    assert sorted(p.ndim for p in spared["params"]) == [1, 1, 1]
    assert spared["weight_decay"] == 0.0


def test_frozen_parameters_are_left_out():
    module = nn.Linear(3, 3).requires_grad_(False)
    assert parameter_groups([module], 0.1) == []


def test_decay_is_decoupled_from_the_gradient():
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = build([{"params": [weight], "weight_decay": 0.5}], OptimizerConfig(lr=0.1))
    weight.grad = torch.zeros(2, 2)
    optimizer.step()
    assert torch.allclose(weight.detach(), torch.full((2, 2), 1 - 0.1 * 0.5))


def muon_case():
    torch.manual_seed(0)
    embedding, block = nn.Embedding(5, 4), nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    config = OptimizerConfig(lr=0.1, muon_lr=0.02)
    optimizer = build(parameter_groups([embedding, block], 0.1), config, hidden=[block])
    return embedding, block, optimizer


def one_step(embedding, block, optimizer):
    optimizer.zero_grad()
    block(embedding(torch.arange(5))).square().sum().backward()
    optimizer.step()


def test_muon_takes_the_blocks_matrices_and_adamw_the_rest():
    embedding, block, optimizer = muon_case()
    of_muon = [p for group in optimizer.parts["muon"].param_groups for p in group["params"]]
    of_adamw = [p for group in optimizer.parts["adamw"].param_groups for p in group["params"]]
    assert [p is block[0].weight for p in of_muon] == [True]
    assert {id(p) for p in of_adamw} == {id(p) for p in (embedding.weight, block[0].bias, *block[1].parameters())}
    before = [p.detach().clone() for p in (*embedding.parameters(), *block.parameters())]
    one_step(embedding, block, optimizer)
    assert all(
        not torch.equal(old, new)
        for old, new in zip(before, (*embedding.parameters(), *block.parameters()), strict=True)
    )


def test_a_schedule_reaches_both_and_a_restored_state_goes_on_exactly():
    embedding, block, optimizer = muon_case()
    configure(optimizer, ScheduleConfig(shape="constant", warmup=2), 10)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.05, 0.05])
    one_step(embedding, block, optimizer)
    twin_embedding, twin_block, twin = muon_case()
    twin_embedding.load_state_dict(embedding.state_dict())
    twin_block.load_state_dict(block.state_dict())
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for case in ((embedding, block, optimizer), (twin_embedding, twin_block, twin)):
        one_step(*case)
    assert torch.equal(embedding.weight, twin_embedding.weight)
    assert torch.equal(block[0].weight, twin_block[0].weight)
    twin.param_groups[0]["lr"] = 0.0
    assert twin.parts["muon"].param_groups[0]["lr"] == 0.0


def test_muon_without_blocks_is_a_users_mistake():
    with pytest.raises(UserError, match="muon_lr"):
        build(parameter_groups([nn.Linear(2, 2)], 0.1), OptimizerConfig(muon_lr=0.02))


def test_where_only_matrices_learn_muon_is_alone():
    block = nn.Linear(2, 2, bias=False)
    optimizer = build(parameter_groups([block], 0.1), OptimizerConfig(lr=0.1, muon_lr=0.02), hidden=[block])
    assert type(optimizer) is torch.optim.Muon
    (group,) = optimizer.param_groups
    assert (group["params"], group["lr"], group["weight_decay"]) == ([block.weight], 0.02, 0.1)


def test_a_rate_of_zero_for_muon_leaves_all_to_adamw():
    """The command line cannot say `null` to a recipe's number."""
    block = nn.Linear(2, 2)
    optimizer = build(parameter_groups([block], 0.1), OptimizerConfig(lr=0.1, muon_lr=0.0), hidden=[block])
    assert type(optimizer) is torch.optim.AdamW


@pytest.mark.parametrize(
    ("config", "named", "told"),
    [
        (OptimizerConfig(lr=0.0), None, "['the model']"),
        (OptimizerConfig(lr=0.0, sgd=True, weight_decay=0.0), "policy", "['policy']"),
        (OptimizerConfig(lr=0.0, muon_lr=0.02), None, "['adamw']"),
        (OptimizerConfig(lr=0.1), None, None),
    ],
)
def test_a_rate_of_zero_is_told(caplog, config, named, told):
    block = nn.Linear(2, 2)
    groups = parameter_groups([block], config.weight_decay, **({"name": named} if named else {}))
    configure(build(groups, config, hidden=[block]), ScheduleConfig(), 10)
    lines = [line for line in caplog.messages if line.startswith("model.optimizer.lr: 0 for ")]
    assert lines == (
        []
        if told is None
        else [f"model.optimizer.lr: 0 for {told}, which stays as it is: a control, in which it learns nothing"]
    )


def test_plain_gradient_descent():
    layer = torch.nn.Linear(3, 2)
    before, optimizer = (
        layer.weight.detach().clone(),
        build(parameter_groups([layer], 0.0), OptimizerConfig(lr=0.5, weight_decay=0.0, sgd=True)),
    )
    for _ in range(2):  # no momentum: the same gradient, the same step
        layer.weight.grad, layer.bias.grad = torch.ones_like(layer.weight), torch.zeros_like(layer.bias)
        optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), before - 1.0)
    with pytest.raises(UserError, match="sgd together with muon_lr"):
        OptimizerConfig(sgd=True, muon_lr=0.01)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (OptimizerConfig, {"lr": -1.0}, "optimizer.lr: found -1.0, expected a number in [0, inf)"),
        (OptimizerConfig, {"muon_lr": -1.0}, "optimizer.muon_lr: found -1.0, expected a number in [0, inf)"),
        (OptimizerConfig, {"betas": (0.9, 1.0)}, "optimizer.betas: found 1.0, expected a number in [0, 1)"),
        (OptimizerConfig, {"eps": 0.0}, "optimizer.eps: found 0.0, expected a number in (0, inf)"),
        (OptimizerConfig, {"weight_decay": -0.1}, "optimizer.weight_decay: found -0.1, expected a number in [0, inf)"),
        (ScheduleConfig, {"warmup": -1.0}, "schedule.warmup: found -1.0, expected a number in [0, inf)"),
        (ScheduleConfig, {"warmup": 2.0, "unit": "run"}, "schedule.warmup: found 2.0, expected a number in [0, 1]"),
        (ScheduleConfig, {"warmup_start": 2.0}, "schedule.warmup_start: found 2.0, expected a number in [0, 1]"),
        (ScheduleConfig, {"total": 0.0}, "schedule.total: found 0.0, expected a number in (0, inf)"),
        (ScheduleConfig, {"warmup": 5, "total": 4}, "schedule.total: found 4, expected at least the warm-up's 5"),
        (ScheduleConfig, {"final": 1.5}, "schedule.final: found 1.5, expected a number in [0, 1]"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(kind, values, message):
    with pytest.raises(UserError) as error:
        kind(**values)
    assert str(error.value) == message


def test_the_ends_of_an_interval_are_taken():
    OptimizerConfig(lr=0.0, muon_lr=0.0, betas=(0.0, 0.0), weight_decay=0.0)
    ScheduleConfig(warmup=5, warmup_start=1.0, total=5, final=1.0)
    ScheduleConfig(warmup=1.0, unit="run", final=0.0)


def test_settings_are_shared_and_so_are_constant():
    for settings in (OptimizerConfig(), ScheduleConfig()):
        with pytest.raises(dataclasses.FrozenInstanceError):
            settings.final = settings.lr = 1.0


def test_what_a_setting_leaves_without_effect():
    assert OptimizerConfig().idle() == {}
    assert OptimizerConfig(sgd=True).idle() == dict.fromkeys(("betas", "eps", "eps_hat"), "sgd has no moments")
    assert ScheduleConfig(warmup=1).idle() == {}
    assert ScheduleConfig().idle() == {"warmup_start": "there is no warmup"}
    level = {"total": "the shape is constant", "final": "the shape is constant"}
    assert ScheduleConfig(shape="constant", warmup=1).idle() == level
    assert ScheduleConfig(shape="constant").idle() == {**level, "warmup_start": "there is no warmup"}


def test_a_step_over_the_peak_has_the_peak_and_one_over_the_end_what_is_left():
    line = ScheduleConfig(shape="linear", warmup=100, total=200, final=0.2)
    assert [lr_factor(before, before + 60, line, 200) for before in (60, 160, 220)] == pytest.approx([1.0, 0.52, 0.2])
    assert [between(progress, ScheduleConfig(warmup=10, final=0.2), 10) for progress in (5, 10, 11)] == [0.5, 0.2, 0.2]


def test_a_schedule_in_runs_is_that_in_steps():
    by_run = ScheduleConfig(shape="linear", warmup=0.2, total=0.8, final=0.5, unit="run")
    by_steps = ScheduleConfig(shape="linear", warmup=2, total=8, final=0.5)
    expected = pytest.approx([0.5, 1, 1, *(1 - i / 12 for i in range(1, 6)), 0.5, 0.5])
    assert rates(configure(adamw(), by_run, 10), 10) == expected == rates(configure(adamw(), by_steps, 10), 10)
    assert rates(configure(adamw(), ScheduleConfig(shape="linear", final=0.0, unit="run"), 4), 5) == pytest.approx(
        [1.0, 0.75, 0.5, 0.25, 0.0]
    )


def test_a_total_given_ends_the_way_of_an_endless_run():
    line = ScheduleConfig(shape="linear", total=4, final=0.0)
    assert rates(configure(adamw(), line, math.inf), 5) == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])
    flat = ScheduleConfig(shape="constant", warmup=2)
    assert rates(configure(adamw(), flat, math.inf), 3) == pytest.approx([0.5, 1.0, 1.0])


def test_tokens_that_a_procedure_does_not_count_are_refused():
    with pytest.raises(UserError) as error:
        configure(adamw(), ScheduleConfig(unit="tokens"), 10)
    assert str(error.value) == (
        "schedule.unit: found 'tokens', expected 'steps' or 'run': "
        "this procedure has no fixed number of tokens in a step"
    )


def test_lightning_steps_the_schedule_after_each_optimizer_step():
    assert configure(adamw(), ScheduleConfig(), 10)["lr_scheduler"]["interval"] == "step"


def test_a_restored_schedule_goes_on_at_its_place_with_the_rates_of_its_recipe():
    def line(*peaks):
        groups = [{"params": [nn.Parameter(torch.ones(2))], "weight_decay": 0.0, "lr": peak} for peak in peaks]
        return configure(build(groups, OptimizerConfig()), ScheduleConfig(shape="linear", final=0.0), 10)

    first, then = line(1.0, 0.5), line(2.0, 4.0)
    rates(first, 2)
    state = first["lr_scheduler"]["scheduler"].state_dict()
    assert state == {"last_epoch": 2}
    scheduler = then["lr_scheduler"]["scheduler"]
    scheduler.load_state_dict(state)
    expected = [pytest.approx([2 * factor, 4 * factor]) for factor in (0.8, 0.7)]
    found = [group["lr"] for group in then["optimizer"].param_groups]
    assert found == scheduler.get_last_lr() == expected[0]
    scheduler.step()  # no step of the optimizer: a scaler of gradients leaves out those that overflow
    assert [group["lr"] for group in then["optimizer"].param_groups] == expected[1]


def kept(make, *shapes, **settings):
    """An optimizer over parameters of these shapes, whose settings are kept."""
    optimizer = make([nn.Parameter(torch.ones(shape)) for shape in shapes], **settings)
    keep_settings(optimizer)
    return optimizer


def moved(optimizer):
    """Its state after a step."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.full_like(parameter, 0.5)
    optimizer.step()
    return copy.deepcopy(optimizer.state_dict())


def test_moments_are_restored_and_settings_stay():
    state = moved(kept(torch.optim.AdamW, (2, 2), (3,), lr=1.0, betas=(0.5, 0.5), eps=1.0, weight_decay=0.5))
    settings = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-3, "weight_decay": 0.25}
    optimizer = kept(torch.optim.AdamW, (2, 2), (3,), **settings)
    optimizer.load_state_dict(state)
    (group,) = optimizer.param_groups
    assert {name: group[name] for name in settings} == settings
    matrix, gain = (optimizer.state[parameter] for parameter in group["params"])
    assert torch.equal(matrix["exp_avg"], torch.full((2, 2), 0.25))
    assert torch.equal(gain["exp_avg_sq"], torch.full((3,), 0.125))
    assert (matrix["step"], gain["step"]) == (1, 1)


def test_what_is_configured_keeps_its_settings():
    optimizer, other = (
        build([{"params": [nn.Parameter(ONE.clone())]}], OptimizerConfig(betas=betas)) for betas in BETAS
    )
    configure(other, ScheduleConfig(), 10)
    other.load_state_dict(moved(optimizer))
    assert other.param_groups[0]["betas"] == BETAS[1]


def test_moments_of_muon_are_restored_and_settings_stay():
    _, block, optimizer = muon_case()
    keep_settings(optimizer)
    embedding = optimizer.parts["adamw"].param_groups[0]["params"][0]
    stored = muon_case()
    one_step(*stored)
    state = copy.deepcopy(stored[2].state_dict())
    for part in state.values():
        for group in part["param_groups"]:
            group |= {"lr": 7.0, "weight_decay": 7.0}
    optimizer.load_state_dict(state)
    assert [group["lr"] for group in optimizer.param_groups] == [0.02, 0.1, 0.1]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0, 0.0]
    parts = optimizer.parts
    of_muon, of_adamw = parts["muon"].state[block[0].weight], parts["adamw"].state[embedding]
    assert torch.equal(of_muon["momentum_buffer"], state["muon"]["state"][0]["momentum_buffer"])
    assert torch.equal(of_adamw["exp_avg"], state["adamw"]["state"][0]["exp_avg"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"param_groups": [{"params": [0]}, {"params": [1]}]},
         ": found [1, 1], expected AdamW over groups of [2] parameters"),
        ({"param_groups": None}, ": found ['state', 'param_groups'], expected AdamW over groups of [2] parameters"),
        ({"state": {}}, ": found 'no moments', expected those of AdamW"),
        ({"state": {7: {"exp_avg": ONE, "exp_avg_sq": ONE, "step": ONE}}},
         ": 7: exp_avg: found (1,), expected a tensor of ()"),
    ],
)  # fmt: skip
def test_a_state_of_another_optimizer_is_refused(change, message):
    state = moved(kept(torch.optim.AdamW, (2, 2), (3,)))
    with pytest.raises(UserError) as error:
        kept(torch.optim.AdamW, (2, 2), (3,)).load_state_dict(state | change)
    assert str(error.value) == f"optimizer_states{message}"


@pytest.mark.parametrize(
    ("kind", "number", "change", "message"),
    [
        ("AdamW", 0, {"more": 1}, "0: found ['exp_avg', 'exp_avg_sq', 'more', 'step'], "
         "expected ['exp_avg', 'exp_avg_sq', 'step'] of AdamW"),
        ("AdamW", 1, {"exp_avg": torch.ones(2)}, "1: exp_avg: found (2,), expected a tensor of (3,)"),
        ("AdamW", 0, {"exp_avg_sq": None}, "0: exp_avg_sq: found 'NoneType', expected a tensor of (2, 2)"),
        ("AdamW", 0, {"step": torch.ones(1)}, "0: step: found (1,), expected a tensor of ()"),
        ("SGD", 0, {"exp_avg": None}, "0: found ['exp_avg', 'momentum_buffer'], expected ['momentum_buffer'] of SGD"),
        ("SGD", 1, {"momentum_buffer": torch.ones(2)}, "1: momentum_buffer: found (2,), expected a tensor of (3,)"),
    ],
)  # fmt: skip
def test_moments_that_are_not_this_optimizers_are_refused(kind, number, change, message):
    make = {"AdamW": torch.optim.AdamW, "SGD": functools.partial(torch.optim.SGD, momentum=0.5)}[kind]
    state = moved(kept(make, (2, 2), (3,)))
    state["state"][number] |= change
    with pytest.raises(UserError) as error:
        kept(make, (2, 2), (3,)).load_state_dict(state)
    assert str(error.value) == f"optimizer_states: {message}"


def test_a_momentum_of_another_shape_is_not_muons():
    state = moved(kept(torch.optim.Muon, (2, 2)))
    with pytest.raises(UserError, match=r"^optimizer_states: 0: momentum_buffer: found \(2, 2\), .* of \(2, 3\)$"):
        kept(torch.optim.Muon, (2, 3)).load_state_dict(state)


def test_gradient_descent_is_restored_with_a_momentum_or_without():
    for settings in ({}, {"momentum": 0.5}):
        state = moved(kept(torch.optim.SGD, (2, 2), lr=0.1, **settings))
        for number in list(state["state"]):
            optimizer = kept(torch.optim.SGD, (2, 2), lr=0.2, **settings)
            optimizer.load_state_dict({**state, "state": {number: state["state"][number]}})
            assert optimizer.param_groups[0]["lr"] == 0.2
    fresh = kept(torch.optim.SGD, (2, 2), lr=0.1).state_dict()
    kept(torch.optim.SGD, (2, 2), lr=0.2).load_state_dict({**fresh, "state": {}})
    for nothing in ({}, {"momentum_buffer": None}):
        kept(torch.optim.SGD, (2, 2), lr=0.2).load_state_dict({**fresh, "state": {0: nothing}})


def test_an_optimizer_of_the_users_own_is_restored_as_it_says():
    optimizer = kept(torch.optim.Adagrad, (2, 2), lr=0.2)
    optimizer.load_state_dict(moved(kept(torch.optim.Adagrad, (2, 2), lr=0.1)))
    assert optimizer.param_groups[0]["lr"] == 0.2
    assert torch.equal(optimizer.state[optimizer.param_groups[0]["params"][0]]["sum"], torch.full((2, 2), 0.25))


def test_groups_carry_their_options_and_need_parameters():
    (only,) = parameter_groups([nn.LayerNorm(3)], 0.1, lr=0.5)
    assert (only["lr"], only["weight_decay"], len(only["params"])) == (0.5, 0.0, 2)
    matrices, gains = parameter_groups([nn.Conv1d(1, 1, 1)], 0.1, lr=0.5)
    assert (matrices["params"][0].ndim, matrices["lr"], gains["lr"]) == (3, 0.5, 0.5)


def test_adamw_has_the_betas_and_the_eps_asked_for():
    """Two steps by hand: gradients 1 and 0; at betas (0.5, 0) and eps 1 they move by lr / 2 and lr / 3."""
    weight = nn.Parameter(torch.zeros(1))
    groups = [{"params": [weight], "weight_decay": 0.0}, {"params": [], "weight_decay": 0.5}]
    optimizer = build(groups, OptimizerConfig(lr=0.6, betas=(0.5, 0.0), eps=1.0))
    assert len(optimizer.param_groups) == 1
    found = []
    for gradient in (1.0, 0.0):
        weight.grad = torch.tensor([gradient])
        optimizer.step()
        found.append(weight.item())
    assert found == pytest.approx([-0.3, -0.5])


def test_gradients_are_unscaled_before_lightning_clips_them():
    optimizer = build(parameter_groups([nn.Linear(2, 2)], 0.1), OptimizerConfig())
    assert not optimizer._step_supports_amp_scaling
    assert optimizer.defaults["fused"]


def test_with_muon_only_its_matrices_decay_and_frozen_ones_are_nobodys():
    block = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    block[1].weight.requires_grad_(False)
    config = OptimizerConfig(lr=0.3, muon_lr=0.02, weight_decay=0.2)
    optimizer = build(parameter_groups([block, nn.Embedding(3, 2)], 0.2), config, hidden=block)
    found = [(len(group["params"]), group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert found == [(1, 0.02, 0.2), (1, 0.3, 0.0), (2, 0.3, 0.0)]


def test_gradient_descent_has_the_penalty_of_its_groups():
    weight = nn.Parameter(torch.ones(1))
    optimizer = build([{"params": [weight], "weight_decay": 0.5}], OptimizerConfig(lr=0.1, sgd=True))
    weight.grad = torch.zeros(1)
    optimizer.step()
    assert weight.item() == pytest.approx(1 - 0.1 * 0.5)


def test_a_warm_up_that_the_run_does_not_end_is_told(caplog):
    """As of a recipe whose data were replaced by a few rows."""
    configure(adamw(), ScheduleConfig(shape="linear", warmup=4, final=0.0), 4)
    configure(adamw(), ScheduleConfig(shape="constant", warmup=4), math.inf)
    assert not caplog.messages
    configure(adamw(), ScheduleConfig(shape="linear", warmup=20, final=0.0), 4)
    assert caplog.messages == ["schedule.warmup: 20 steps in a run of 4: its rate never comes to optimizer.lr"]
