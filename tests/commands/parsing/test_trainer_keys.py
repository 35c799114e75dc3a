"""Values that the Trainer would take and stumble over later; what it refuses is told by key."""

import math
import os
import types
from datetime import timedelta

import lightning.pytorch as L
import pytest
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator

from gpt_modules.commands.parsing.composition import compose
from gpt_modules.commands.parsing.trainer_keys import (
    BOUNDS,
    check_environment,
    check_precision,
    check_processes,
    check_strategy,
    check_values,
    keep_whole_numbers,
    refuse_half_weights,
    refused_key,
    refused_later,
)
from gpt_modules.errors import UserError

NOTHING = compose([])


def parsed(seed=0, **trainer):
    return {"seed_everything": seed, "trainer": trainer, "model": {}}


def refusal(ask, *arguments):
    with pytest.raises(UserError) as refused:
        ask(*arguments)
    line = str(refused.value)
    assert "\n" not in line
    assert len(line) <= 400
    return line


LIMITED = ["limit_val_batches", "limit_test_batches", "limit_predict_batches"]
# key -> values that fit and values that do not
EDGES = {
    **dict.fromkeys(("max_steps", "max_epochs"), ([1, -1, 2**63 - 1], [0, -2, 2**63])),
    "max_time": (["00:00:00:01", "foo", {"minutes": 1}, timedelta(seconds=1)],
                 ["00:00:00:00", {}, {"hours": 0}, {"hours": 1, "minutes": -90}, timedelta(0)]),
    **dict.fromkeys(("min_steps", "min_epochs", "reload_dataloaders_every_n_epochs"), ([0, 1, 2**63 - 1], [-1, 2**63])),
    **dict.fromkeys(("num_nodes", "log_every_n_steps", "accumulate_grad_batches", "check_val_every_n_epoch"),
                    ([1, 2**63 - 1], [0, -1, 2**63])),
    "num_sanity_val_steps": ([-1, 0, 5], [-2, 2**63]),
    "fast_dev_run": ([True, False, 0, 3], [-1, 2**63]),
    "gradient_clip_val": ([0, 0.0, 1e-9, 5], [-1, -1e-9]),
    "gradient_clip_algorithm": (["norm", "value"], ["Norm", "", 3]),
    "val_check_interval": ([1, 50, 1.0, 0.25, "00:15:00"], [0, -1, 0.0, 1.5, -0.5]),
    **dict.fromkeys(LIMITED, ([0, 7, 0.0, 1.0, 0.5], [-1, 1.5, -0.1, 2**63])),
    "limit_train_batches": ([1, 7, 1.0, 0.5], [0, 0.0, -1, 1.5, -0.1, 2**63]),  # what was not trained is no result
    "overfit_batches": ([0, 0.0], [1, 0.5, 1.0, -1]),
}  # fmt: skip


def test_every_bound_has_its_edges_here():
    assert set(EDGES) == set(BOUNDS)


@pytest.mark.parametrize("key", EDGES)
def test_the_edges_of_a_bound(key):
    fitting, others = EDGES[key]
    for value in [None, *fitting]:
        check_values(parsed(**{key: value}), NOTHING)
    for value in others:
        told = refusal(check_values, parsed(**{key: value}), NOTHING)
        assert told == f"trainer.{key}: found {value!r}, expected {BOUNDS[key].expected}"


def test_a_bound_is_told_where_the_value_was_said(tmp_path):
    (tmp_path / "r.yaml").write_text("trainer:\n  max_epochs: 3\n  max_steps: 0\n")
    recipe = compose(["-c", str(tmp_path / "r.yaml")])
    told = refusal(check_values, parsed(max_epochs=3, max_steps=0), recipe)
    assert told == f"{tmp_path}/r.yaml:3: trainer.max_steps: found 0, expected 1 or more, or -1 for no limit"


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_number_that_is_not_finite_is_found_wherever_it_stands(value):
    config = {**parsed(), "model": {"init_args": {"rates": [0.1, {"deep": (1, value)}]}}}
    told = refusal(check_values, config, NOTHING)
    assert told == f"model.rates.1.deep.1: found {value}, expected a finite number"


@pytest.mark.parametrize(("said", "parsed", "kept"), [("1", 1.0, 1), (2, 2.0, 2), ("1.0", 1.0, 1.0), (0.5, 0.5, 0.5)])
def test_a_whole_number_of_batches_is_no_share(said, parsed, kept):
    config = {"trainer": {"limit_val_batches": parsed}}
    keep_whole_numbers(config, compose(["--trainer.limit_val_batches", str(said)]))
    found = config["trainer"]["limit_val_batches"]
    assert (found, type(found)) == (kept, type(kept))


def test_sixty_is_no_base_for_numbers():
    told = refusal(check_values, parsed(max_steps=90), compose(["--trainer.max_steps", "1:30"]))
    assert told == "--trainer.max_steps: found '1:30', expected a number"


@pytest.mark.parametrize("seed", [0, 2**32 - 1, True, False])
def test_a_seed(seed):
    check_values(parsed(seed), NOTHING)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_is_none(seed):
    assert refusal(check_values, parsed(seed), NOTHING) == f"seed_everything: found {seed}, expected 0 to 4294967295"


@pytest.mark.parametrize("name", ["WORLD_SIZE", "LOCAL_RANK", "SLURM_NTASKS"])
@pytest.mark.parametrize("value", ["many", "", "-1", "1.0", "9999999999"])
def test_junk_of_a_launcher_is_told(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    told = refusal(check_environment)
    assert told == f"environment: {name}: found {value!r}, expected a launcher's whole number"
    monkeypatch.setenv(name, "2")
    check_environment()


def test_processes_on_a_cpu_are_as_many_as_it_has_cores_or_eight(monkeypatch):
    for cores, most in ((2, 8), (64, 64), (None, 8)):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        trainer = types.SimpleNamespace(accelerator=CPUAccelerator(), num_devices=most)
        check_processes(trainer, NOTHING)
        trainer.num_devices += 1
        told = refusal(check_processes, trainer, compose(["--trainer.devices", str(most + 1)]))
        expected = f"found {most + 1} processes on the CPU, expected at most {most} on this machine"
        assert told == f"--trainer.devices: {expected}"
    check_processes(types.SimpleNamespace(accelerator=CUDAAccelerator(), num_devices=1000), NOTHING)


class DeepSpeedStrategy:
    """Lightning's needs what no test has."""


@pytest.mark.parametrize(
    "asked", ["auto", "ddp", "fsdp2", "ddp_spawn", "nonsense", {"class_path": "a.DDPStrategy"}, None]
)
def test_other_strategies_are_the_trainers_to_refuse(asked):
    check_strategy(asked, NOTHING)


@pytest.mark.parametrize("name", ["deepspeed", "deepspeed_stage_3_offload", "fsdp", "fsdp_cpu_offload", "FSDPStrategy"])
def test_a_strategy_that_keeps_its_gradients_to_itself_is_refused(name):
    """Of a class with its arguments by the class."""
    recipe = compose(["--trainer.strategy", name])
    asked = {"class_path": f"lightning.pytorch.strategies.{name}", "init_args": {}} if name[0] == "F" else name
    told = refusal(check_strategy, asked, recipe)
    found = asked["class_path"] if isinstance(asked, dict) else asked
    assert told.startswith(f"--trainer.strategy: found {found!r}, expected auto, ddp or fsdp2, ")


def of_precision(asked):
    return L.Trainer(accelerator="cpu", precision=asked, logger=False, enable_checkpointing=False)


def test_float16_that_lightning_makes_bfloat16_is_refused():
    """As it does on a CPU; where a device has it, it runs."""
    with pytest.warns(match="not supported on CPU"):
        trainer = of_precision("16-mixed")
    for asked in ("16-mixed", "16", 16):
        told = refusal(check_precision, trainer, asked, compose(["--trainer.precision", str(asked)]))
        expected = "expected bf16-mixed (which Lightning would run) or 32-true"
        assert told == f"--trainer.precision: found {asked} on a CPU, {expected}"
        check_precision(types.SimpleNamespace(precision="16-mixed"), asked, NOTHING)


@pytest.mark.parametrize("asked", [None, "32-true", "bf16-mixed", "16-true"])
def test_any_other_precision_is_what_runs(asked):
    check_precision(of_precision(asked), asked, NOTHING)


def test_float16_weights_learn_nothing_and_are_refused():
    told = refusal(refuse_half_weights, of_precision("16-true"), compose(["--trainer.precision", "16-true"]))
    assert told.startswith(
        "--trainer.precision: found 16-true, expected bf16-mixed, bf16-true, 16-mixed on a GPU, or 32-true: "
    )
    for precision in ("32-true", "bf16-true", "bf16-mixed"):
        refuse_half_weights(of_precision(precision), NOTHING)


def refuse(*pairs):
    """A Trainer that cannot be built with any of these values."""

    def build(given):
        for key, value in pairs:
            if given.get(key) == value:
                raise ValueError(f"no {value}\n  for anybody")

    return build


def test_the_key_is_the_one_without_which_it_can_be_built():
    recipe = compose(["--trainer.devices", "2", "--trainer.strategy", "foo", "--trainer.max_time", "3"])
    given = {"max_steps": 5, "devices": "2", "strategy": "foo", "max_time": "3"}
    told = refused_key(ValueError("no foo\n  for anybody"), given, refuse(("strategy", "foo")), recipe)
    assert str(told) == "--trainer.strategy: found 'foo', which is refused: no foo for anybody"


def test_a_key_that_the_error_names_is_tried_first():
    recipe = compose(["--trainer.devices", "2", "--trainer.strategy", "foo"])
    given = {"devices": "2", "strategy": "foo"}
    told = refused_key(ValueError("strategy and device do not fit"), given, lambda given: None, recipe)
    assert str(told).startswith("--trainer.strategy: found 'foo'")
    told = refused_key(ValueError("they do not fit"), given, lambda given: None, recipe)
    assert str(told).startswith("--trainer.devices: found '2'"), "in the order of the arguments"


def test_where_no_single_key_is_to_blame_none_is_named():
    given, build = {"a": 1, "b": 1}, refuse(("a", 1), ("b", 1))
    recipe = compose(["--trainer.a", "1", "--trainer.b", "1"])
    assert str(refused_key(ValueError("x" * 1000), given, build, recipe)) == f"trainer: {'x' * 200} ..."
    assert str(refused_key(ValueError(), {}, build, NOTHING)) == "trainer: ValueError"


def of_lightning(message):
    """An error that Lightning raises, with its own frames."""
    try:
        L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", min_steps="no number", max_epochs=1).fit(
            3
        )
    except Exception as error:
        error.args = (message,)
        return error


def test_what_lightning_refuses_later_is_told_by_the_key_that_it_names():
    recipe = compose(["--trainer.devices", "2", "--trainer.val_check_interval", "500"])
    error = of_lightning("`val_check_interval` (500) must be\nless than (3)")
    assert str(refused_later(error, recipe)) == (
        "--trainer.val_check_interval: found '500', which is refused: `val_check_interval` (500) must be less than (3)"
    )
    assert str(refused_later(of_lightning("`strategy` is odd"), recipe)) == "trainer: `strategy` is odd"


def test_any_other_failure_is_no_key_of_the_trainer():
    with pytest.raises(ValueError, match="devices") as raised:
        raise ValueError("devices")
    assert refused_later(raised.value, compose(["--trainer.devices", "2"])) is None


def test_code_that_lies_in_a_folder_called_lightning_is_not_lightnings(tmp_path):
    path = tmp_path / "lightning" / "mine.py"
    with pytest.raises(ValueError, match="devices") as raised:
        exec(compile("raise ValueError('devices')", path, "exec"), {"__name__": "mine"})
    assert refused_later(raised.value, compose(["--trainer.devices", "2"])) is None
