"""Steps counted in tokens: micro-batches and devices change nothing but rounding, and the ramp is the paper's."""

import dataclasses
import math

import lightning.pytorch as L
import numpy as np
import pytest
import torch

from gpt_modules.backbone import LoRAConfig
from gpt_modules.data import PretrainingDataModule, SFTDataModule
from gpt_modules.errors import UserError
from gpt_modules.training import PretrainingModule, SFTModule
from gpt_modules.training.accumulation import BatchConfig, StepMean, TokenClock, begin_step
from gpt_modules.training.inner_loop import InnerLoop
from gpt_modules.training.optimizers import OptimizerConfig, ScheduleConfig

PLAIN = OptimizerConfig(lr=1e-2, eps=1e-4, weight_decay=0.1)
ONE = torch.ones(1)
GPT3_SMALL = BatchConfig(tokens=524_288, start=32_768, ramp=4e9)


def weights(module):
    return torch.cat([parameter.detach().flatten() for parameter in module.model.parameters()])


@pytest.fixture
def pretrained(fit, micro, tmp_path):
    """pretrained(windows a micro-batch, model settings, **trainer settings): module and trainer after the fit."""

    def run(batch_size, arguments=None, **settings):
        torch.manual_seed(0)
        config = dataclasses.replace(micro.config().without_dropout(), n_positions=16)
        module = PretrainingModule(config, optimizer=PLAIN, **(arguments or {}))
        sizes = {"context": 16, "batch_size": batch_size, "cache_dir": str(tmp_path / "cache")}
        data = PretrainingDataModule(
            str(micro.pretraining), tokenizer=str(micro.gpt), isolate_documents=True, validation_fraction=0.2, **sizes
        )
        return module, fit(module, data, **{"max_steps": 6, "max_epochs": -1, "gradient_clip_val": 0.5, **settings})

    return run


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_with_unequal_tokens_are_one_big_batch(pretrained, parts):
    """Isolated documents leave out a label at each border, so that windows count differently."""
    whole, trainer = pretrained(8)
    apart, other = pretrained(8 // parts, accumulate_grad_batches=parts)
    assert torch.allclose(weights(whole), weights(apart), atol=2e-6)
    assert trainer.logger.values("train/loss") == pytest.approx(other.logger.values("train/loss"), abs=1e-5)


class Still(L.Callback):
    """No dropout at all."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        module.eval()


def test_the_same_for_demonstrations_of_unequal_length(fit, micro, tmp_path):
    found = []
    for batch_size, parts in ((4, 1), (1, 4)):
        sizes = {"context": 32, "batch_size": batch_size, "cache_dir": str(tmp_path / "cache")}
        module = SFTModule(str(micro.gpt), optimizer=PLAIN)
        fit(module, SFTDataModule(str(micro.sft), tokenizer=str(micro.gpt), **sizes), accumulate_grad_batches=parts,
            max_steps=3, callbacks=[Still()])  # fmt: skip
        found.append(weights(module))
    assert torch.allclose(*found, atol=2e-6)


class Epoch:
    """These batches, in this order."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


@pytest.mark.slow
@pytest.mark.parametrize(
    "word",
    ["finetuning", "reward", "reward with LoRA", "sft", "sft with LoRA", "pretraining", "maml", "reptile", "dpo"],
)
def test_a_step_of_any_procedure_is_that_of_one_batch_and_so_is_the_last_of_an_epoch(procedure, fit, word):
    """Five examples, two a step: the last has one, and would count half as a mean over two micro-batches."""
    arguments = {
        "pretraining": {},
        "finetuning": {"dropout": 0.0, "classifier_dropout": 0.0},
        "reptile": {"inner": InnerLoop(2, 0.1), "algorithm": "reptile"},
        "maml": {"inner": InnerLoop(2, 0.1)},
        "dpo": {},
    }.get(word, {"dropout": 0.0, "lora": LoRAConfig(rank=2) if "LoRA" in word else None})
    word = word.removesuffix(" with LoRA")
    plain = OptimizerConfig(lr=0.1, weight_decay=0.0, sgd=word != "reptile")
    found = []
    for together, micro_batches in ((1, [[0, 1], [2, 3], [4]]), (2, [[0], [1], [2], [3], [4]])):
        torch.manual_seed(0)
        flat = ScheduleConfig(shape="constant")
        module, data = procedure("maml" if word == "reptile" else word, optimizer=plain, schedule=flat, **arguments)
        own = data.train_dataloader
        data.train_dataloader = lambda own=own, micro_batches=micro_batches: Epoch(
            [own().examples.batch(0, np.array(rows)) for rows in micro_batches]
        )
        fit(module, data, accumulate_grad_batches=together, limit_val_batches=0, callbacks=[Still()])
        assert module.trainer.global_step == 3
        found.append(torch.cat([parameter.detach().flatten() for parameter in module.parameters()]))
    assert (found[0] - found[1]).abs().max() < 1e-5  # MAML's second derivatives round by up to 3e-6


def test_the_ramp_is_gpt3s():
    assert [GPT3_SMALL.at(seen) for seen in (0, 2e9, 4e9, 9e9)] == [32_768, 8 * 32_768, 524_288, 524_288]
    clock = TokenClock(micro_batch=4 * 2048, accumulate=1, epoch=math.inf, batch=GPT3_SMALL)
    assert [clock.micro_batches(seen) for seen in (0, 2 * 10**9, 10**10)] == [4, 32, 64]
    # Steps grow linearly with the tokens seen, so there are ramp / (end - start) ln(end / start) of them in the ramp.
    expected = 4e9 / (524_288 - 32_768) * math.log(16) + 6e9 / 524_288
    assert clock.steps(10e9) == pytest.approx(expected, rel=0.03)  # in whole multiples of the start
    assert clock.tokens(clock.steps(10e9)) == pytest.approx(10e9, abs=524_288)


def test_one_device_and_eight_see_the_same_schedule():
    one, eight = (TokenClock(n * 2 * 2048, 1, math.inf, GPT3_SMALL) for n in (1, 8))
    for steps in (1, 100, 10_000, 30_000):
        assert one.tokens(steps) == eight.tokens(steps)
    assert one.micro_batches(0) == 8 * eight.micro_batches(0) == 8


def test_a_run_follows_the_ramp_and_ends_by_tokens(pretrained):
    schedule = ScheduleConfig(shape="linear", warmup=200, total=2000, final=0.1, unit="tokens")
    batch = BatchConfig(tokens=8 * 16, start=2 * 16, ramp=600)
    module, trainer = pretrained(
        1, {"batch": batch, "max_tokens": 1200, "schedule": schedule}, max_steps=-1, gradient_clip_val=None
    )
    tokens = trainer.logger.values("train/tokens")
    taken = [after - before for before, after in zip([0, *tokens], tokens, strict=False)]
    for before, size in zip([0, *tokens], taken, strict=False):
        wanted = min(128, 32 * round((32 + 96 * before / 600) / 32))
        assert size in range(16, wanted + 1, 16), "only an epoch's last step is shorter"
    assert taken[:5] == [32, 32, 32, 32, 64]
    assert tokens[-2] < 1200 <= tokens[-1] == module.tokens_seen
    assert trainer.global_step == len(tokens) == trainer.max_steps
    # The rate after the last step is that of the step that would follow.
    (group, *_) = trainer.optimizers[0].param_groups
    assert group["lr"] == pytest.approx(1e-2 * (0.1 + 0.9 * (1 - (module.tokens_seen - 200) / 1800)))


def test_steps_counted_in_tokens_are_lightnings_own(pretrained):
    constant, _ = pretrained(2, accumulate_grad_batches=4)
    by_tokens, _ = pretrained(2, {"batch": BatchConfig(tokens=8 * 16)})
    assert torch.allclose(weights(constant), weights(by_tokens), atol=2e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tokens": 0}, "batch: tokens: found 0, expected at least 1"),
        ({"tokens": math.inf}, "batch: tokens: found inf, expected at least 1"),
        ({"tokens": 8, "start": 0.5, "ramp": 5}, "batch: start: found 0.5, expected 1 to tokens = 8"),
        ({"tokens": 8, "start": 4, "ramp": math.inf}, "batch: ramp: found inf, expected more than 0 with a start"),
        ({"tokens": 8, "ramp": -1.0}, "batch: ramp: found -1, expected more than 0 with a start, none without"),
        ({"tokens": 8, "ramp": math.nan}, "batch: ramp: found nan, expected more than 0 with a start"),
        ({"tokens": 8, "start": 9, "ramp": 5}, r"batch: start: found 9, expected 1 to tokens = 8"),
        ({"tokens": 8, "start": 4}, r"batch: ramp: found 0, expected more than 0 with a start"),
        ({"tokens": 8, "ramp": 4}, r"batch: ramp: found 4, expected more than 0 with a start, none without"),
    ],
)
def test_impossible_batches(values, message):
    with pytest.raises(UserError, match=message):
        BatchConfig(**values)


def test_two_settings_of_one_thing_are_refused(pretrained):
    with pytest.raises(UserError, match=r"trainer\.accumulate_grad_batches: found 2 beside model"):
        pretrained(2, {"batch": BatchConfig(tokens=128)}, accumulate_grad_batches=2)
    with pytest.raises(UserError, match=r"trainer\.max_steps: found 6 beside max_tokens"):
        pretrained(2, {"max_tokens": 100.0})


def test_a_micro_batch_larger_than_the_first_step_is_refused(pretrained):
    with pytest.raises(UserError, match=r"data\.batch_size: found 4 windows of 16 tokens on 1 devices.* 32 tokens"):
        pretrained(4, {"batch": BatchConfig(tokens=128, start=32, ramp=1000)})


def test_the_ends_of_an_interval_are_taken():
    for start in (1, 8):
        assert BatchConfig(tokens=8, start=start, ramp=0.5).at(0) == start
    assert BatchConfig(tokens=1).at(10**9) == 1


def test_settings_are_shared_and_so_are_constant():
    with pytest.raises(dataclasses.FrozenInstanceError):
        BatchConfig(tokens=1).tokens = 2


def test_a_ramp_goes_in_multiples_of_its_start_and_ends_at_all_tokens():
    batch = BatchConfig(tokens=100, start=30, ramp=10)
    assert [batch.at(seen) for seen in (0, 5, 9, 10, 11)] == [30, 60, 90, 100, 100]


def test_an_epochs_last_step_takes_what_is_left():
    clock = TokenClock(micro_batch=10, accumulate=2, epoch=3)
    assert [clock.tokens(steps) for steps in range(6)] == [0, 20, 30, 50, 60, 80]
    assert [clock.steps(total) for total in (0, 20, 21, 30, 31, 60)] == [0, 1, 2, 2, 3, 4]
    assert (clock.after_next(0), clock.after_next(60)) == (20, 80)
    assert [clock.tokens(steps) for steps in (math.inf, -1)] == [math.inf, math.inf]
    assert TokenClock(micro_batch=10, accumulate=2, epoch=0).steps(5) == 0
    assert TokenClock(micro_batch=10, accumulate=2, epoch=1).steps(15) == 2


def test_a_step_has_a_micro_batch_however_large():
    assert TokenClock(100, 1, math.inf, BatchConfig(tokens=10)).after_next(7) == 107


def test_a_step_ends_so_many_micro_batches_after_it_begins():
    """The third to the sixth of an epoch; gradients of the step before are gone."""
    trainer, weight = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu"), torch.nn.Parameter(ONE)
    weight.grad = ONE
    trainer.optimizers = [torch.optim.SGD([weight])]
    trainer.fit_loop.epoch_loop.batch_progress.current.ready = 3  # counted before it is trained on
    begin_step(trainer, 4)
    assert trainer.accumulate_grad_batches == 6
    assert weight.grad is None


class Ranks:
    """What of a trainer a step's mean asks for, on ranks whose batches are alike."""

    def __init__(self, world_size, accumulate_grad_batches):
        self.world_size, self.accumulate_grad_batches = world_size, accumulate_grad_batches
        self.strategy = self

    def reduce(self, value, reduce_op):
        assert reduce_op == "sum"
        return value * self.world_size


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("parts", [[(4.0, 1, 8)], [(4.0, 2, 8), (6.0, 3, 8), (0.0, 0, 4)], [(0.0, 0, 4)]])
def test_gradients_and_loss_become_those_of_the_mean(ranks, parts):
    """Sums of `s w` over n tokens: their mean is s / n at w = 1, and so is its gradient; of no tokens both are 0.
    Gradients come as Lightning leaves them, divided by the micro-batches and a mean over ranks.
    """
    module, step = L.LightningModule(), StepMean()
    module.weight, module.unused = torch.nn.Parameter(ONE.clone()), torch.nn.Parameter(ONE.clone())
    module._trainer = Ranks(ranks, len(parts))
    for _ in range(2):
        assert step.empty
        for total, count, cells in parts:
            (step.add((total * module.weight).sum(), torch.tensor(count), cells) / len(parts)).backward()
            assert not step.empty
        loss = step.close(module)
        expected = sum(total for total, _, _ in parts) / max(1, sum(count for _, count, _ in parts))
        assert (loss.item(), loss.dtype, loss.requires_grad) == (pytest.approx(expected), torch.float32, False)
        assert module.weight.grad.item() == pytest.approx(expected)
        module.weight.grad = None


def test_losses_keep_the_range_of_half_precision():
    """A sum over many cells, by the cells of the step's first micro-batch."""
    step = StepMean()
    assert [step.add(torch.tensor(6e5), torch.tensor(9), cells).item() for cells in (6, 3)] == [1e5, 1e5]
