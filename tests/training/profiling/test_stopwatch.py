"""A run is measured after it has warmed up, what it does is counted once, and it ends there."""

import pytest

from gpt_modules.data import PretrainingDataModule
from gpt_modules.training import PretrainingModule
from gpt_modules.training.profiling.phases import Phases
from gpt_modules.training.profiling.stopwatch import WARMUP, Stopwatch


@pytest.fixture
def data(micro):
    files = (str(micro.pretraining), micro.again(micro.pretraining))
    return PretrainingDataModule(*files, tokenizer=str(micro.gpt), context=16, batch_size=8)


def measured(fit, module, data, **trainer):
    stopwatch = Stopwatch(Phases(), seconds=1e-9)
    run = fit(
        module, data, max_epochs=20, callbacks=[stopwatch], profiler=stopwatch.phases, limit_val_batches=0, **trainer
    )
    return run, stopwatch.found


def test_operations_are_those_of_the_formula(fit, data, micro):
    config = micro.config(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    run, found = measured(fit, PretrainingModule(config), data)
    assert run.global_step == WARMUP["step"] + 1 + 1, "warm-up, measured, counted"
    assert (found.unit, found.amount, found.piece, found.pieces) == ("tokens", 8 * 16, "step", 1)
    per_token = config.flops_per_token(16)
    attention = 2 * config.n_layer * config.n_embd * 16  # a product: queries by keys, or weights by values
    head = 2 * config.vocab_size * config.n_embd  # whose gradients are formed with its logits
    assert found.work["forward"].flops == pytest.approx(8 * 16 * (per_token / 3 + 2 * head))
    # Fused attention makes its weights once more.
    assert found.work["backward"].flops == pytest.approx(8 * 16 * (per_token * 2 / 3 - 2 * head + attention))
    assert set(found.seconds) >= {"forward", "backward", "optimizer", "data"}
    assert 0 < found.busy < 3


def test_a_step_is_one_of_the_optimizer(fit, data, micro):
    run, found = measured(fit, PretrainingModule(micro.config()), data, accumulate_grad_batches=2)
    assert run.global_step == WARMUP["step"] + 1 + 1
    assert found.amount == 2 * 8 * 16


def test_a_run_that_is_too_short_is_not_measured(fit, data, micro):
    assert measured(fit, PretrainingModule(micro.config()), data, max_steps=WARMUP["step"] + 1)[1] is None
