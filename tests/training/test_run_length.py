"""A run has the steps that it made and those that are left, and its schedule ends with it."""

import math
import random
import types

import lightning.pytorch as L
import pytest
import torch

from gpt_modules.training.accumulation import BatchConfig
from gpt_modules.training.callbacks.checkpointing import ExactCheckpoint, RandomState, VerifiedCheckpointIO
from gpt_modules.training.callbacks.resuming import Resumption
from gpt_modules.training.optimizers import ScheduleConfig
from gpt_modules.training.run_length import Place, place_of, run_length

TO_NOTHING = ScheduleConfig(shape="linear", final=0.0)
PEAK = 1e-2


class Rates(L.Callback):
    """The learning rate of each step, as Adam had it, and the steps whose weights were validated."""

    def __init__(self):
        self.taken, self.validated = [], []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.taken.append(optimizer.param_groups[0]["lr"])

    def on_validation_end(self, trainer, module):
        self.validated.append(trainer.global_step)


@pytest.fixture
def go(procedure, fit, tmp_path):
    """go(word, batch size, folder, checkpoint=None, model={}, **trainer settings): Trainer and rates."""

    def run(word, size, folder, checkpoint=None, model=None, **settings):
        torch.manual_seed(0)
        module, data = procedure(word, schedule=TO_NOTHING, **(model or {}))
        setattr(data, "tasks" if word == "maml" else "batch_size", size)
        rates = Rates()
        trainer = fit(
            module,
            data,
            callbacks=[Resumption(), RandomState(), ExactCheckpoint(1, keep=1000), rates],
            plugins=[VerifiedCheckpointIO()],
            default_root_dir=tmp_path / folder,
            enable_checkpointing=True,
            ckpt_path=checkpoint,
            **{"max_epochs": 2, "limit_val_batches": 0, **settings},
        )
        return trainer, rates.taken

    return run


def validated(trainer):
    return next(one.validated for one in trainer.callbacks if isinstance(one, Rates))


def examples(trainer):
    return len(trainer.train_dataloader.examples)


@pytest.mark.slow
@pytest.mark.parametrize("then", [3, 10, 25])
@pytest.mark.parametrize("word", ["pretraining", "finetuning", "sft", "reward", "dpo"])
def test_a_run_that_goes_on_with_another_global_batch_falls_to_the_end_of_its_schedule(go, tmp_path, word, then):
    """Each example is seen once an epoch, but for what does not fill a batch: no epoch is cut short, none comes twice.

    The first epoch may have been over, as what was left did not fill a batch of the old size; or it is over,
    as it fills none of the new.
    """
    size = 12
    first, _ = go(word, size, "first", max_steps=2)
    count = examples(first)
    checkpoint = tmp_path / "first" / "checkpoints" / "step=00000002.ckpt"
    trainer, rates = go(word, then, "second", checkpoint)
    left = count - 2 * size
    total = 2 + (left // then if left >= size else 0) + count // then
    assert trainer.global_step == total
    assert rates == pytest.approx([PEAK * (1 - step / total) for step in range(2, total)])
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.0


@pytest.mark.slow
def test_an_epoch_of_which_less_than_a_batch_is_left_is_over(go, tmp_path):
    """Whether a batch of the new size comes as often or more often an epoch than those that were used."""
    first, _ = go("sft", 12, "first", max_epochs=1)
    count, made = examples(first), first.global_step
    left = count - made * 12
    for then in (left + 1, count - 12 * (made - 1) + 1):
        trainer, rates = go("sft", then, f"to-{then}", tmp_path / "first/checkpoints" / f"step={made - 1:08d}.ckpt")
        rest = (count - 12 * (made - 1)) // then
        assert trainer.global_step == made - 1 + rest + count // then
        assert len(rates) == rest + count // then
        assert trainer.current_epoch == 2


VALIDATING = {"limit_val_batches": 1, "num_sanity_val_steps": 0}


@pytest.mark.slow
@pytest.mark.parametrize("word", ["pretraining", "finetuning", "sft", "reward", "dpo"])
@pytest.mark.parametrize(
    ("size", "settings"), [(1000, {}), (6, {"limit_train_batches": 2})], ids=["nothing fills a batch", "a lower limit"]
)
def test_an_epoch_that_is_over_on_resuming_is_validated_once(go, tmp_path, word, size, settings):
    first, _ = go(word, 6, "first", max_steps=2, **VALIDATING)
    checkpoint = tmp_path / "first/checkpoints/step=00000002.ckpt"
    assert validated(first) == []
    trainer, _ = go(word, min(size, examples(first)), "second", checkpoint, **VALIDATING, **settings)
    assert validated(trainer) == [2, trainer.global_step]
    assert trainer.current_epoch == 2


@pytest.mark.slow
def test_weights_that_were_validated_are_not_validated_anew(go, tmp_path):
    """In the middle of an epoch, or at its end, where a larger limit goes on with it."""
    go("sft", 6, "first", max_steps=2, val_check_interval=2, **VALIDATING)
    checkpoint = tmp_path / "first/checkpoints/step=00000002.ckpt"
    again, _ = go("sft", 6, "lower", checkpoint, limit_train_batches=2, **VALIDATING)
    assert validated(again) == [again.global_step]
    go("sft", 6, "limited", max_epochs=1, limit_train_batches=2, **VALIDATING)
    whole, _ = go("sft", 6, "whole", tmp_path / "limited/checkpoints/step=00000002.ckpt", **VALIDATING)
    each = examples(whole) // 6
    assert validated(whole) == [each, 2 * each]


@pytest.mark.slow
def test_an_epoch_that_was_limited_goes_on_without_the_limit(go, tmp_path):
    """Lightning had it for over."""
    go("finetuning", 12, "first", max_epochs=1, limit_train_batches=2)
    trainer, rates = go("finetuning", 12, "second", tmp_path / "first/checkpoints/step=00000002.ckpt")
    whole = examples(trainer) // 12
    assert whole > 2
    assert (trainer.global_step, len(rates)) == (2 * whole, 2 * whole - 2)


@pytest.mark.slow
def test_a_run_that_is_counted_in_tokens_ends_at_them(go, tmp_path):
    model = {"batch": BatchConfig(tokens=128), "max_tokens": 1500.0}
    go("pretraining", 8, "first", model={**model, "max_tokens": 300.0}, max_epochs=-1)
    checkpoint = tmp_path / "first" / "checkpoints" / "step=00000003.ckpt"
    changed = {"batch": BatchConfig(tokens=64), "max_tokens": 1500.0}
    trainer, rates = go("pretraining", 4, "second", checkpoint, changed, max_epochs=-1)
    assert trainer.lightning_module.tokens_seen == 3 * 128 + 18 * 64 == 1536
    assert (trainer.global_step, trainer.max_steps, len(rates)) == (21, 21, 18)
    assert rates == pytest.approx([PEAK * (1 - step / 21) for step in range(3, 21)])


@pytest.mark.slow
def test_batches_that_are_put_together_otherwise_make_other_steps(go, tmp_path):
    first, _ = go("sft", 5, "first", max_steps=2)
    batches = examples(first) // 5
    checkpoint = tmp_path / "first" / "checkpoints" / "step=00000002.ckpt"
    trainer, rates = go("sft", 5, "second", checkpoint, accumulate_grad_batches=2)
    total = 2 + math.ceil((batches - 2) / 2) + math.ceil(batches / 2)
    assert trainer.global_step == total
    assert rates == pytest.approx([PEAK * (1 - step / total) for step in range(2, total)])


class Running(L.Trainer):
    """What a Trainer knows of its place, and nothing that trains."""

    global_step = num_training_batches = train_dataloader = max_epochs = None
    max_steps, limit_train_batches, accumulate_grad_batches = -1, 1.0, 1

    def __init__(self, begun, used, **known):
        read, epoch = (types.SimpleNamespace(current=types.SimpleNamespace(ready=number)) for number in (used, begun))
        loop = types.SimpleNamespace(epoch_progress=epoch, epoch_loop=types.SimpleNamespace(batch_progress=read))
        connector = types.SimpleNamespace(_loaded_checkpoint={})
        vars(self).update(fit_loop=loop, _checkpoint_connector=connector, **known)


def loader(whole, over=False):
    return types.SimpleNamespace(whole=whole, over=over)


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        (Running(0, 0, global_step=0, num_training_batches=5, train_dataloader=loader(5), max_epochs=3), 15),
        # 4 of 6 batches were read in as many steps; epochs of 3 follow.
        (Running(1, 4, global_step=4, num_training_batches=6, train_dataloader=loader(3), max_epochs=2), 9),
        # Less than a batch is left: however many are in a whole epoch, the next one follows.
        (Running(1, 4, global_step=4, num_training_batches=7, train_dataloader=loader(7, over=True), max_epochs=2), 11),
        (Running(2, 5, global_step=9, num_training_batches=5, train_dataloader=loader(5, over=True), max_epochs=2), 9),
        (Running(1, 1, global_step=1, num_training_batches=5, train_dataloader=[], max_epochs=2), 10),
        (Running(1, 1, global_step=1, num_training_batches=5, train_dataloader=[], max_epochs=2, max_steps=7), 7),
        (Running(1, 1, global_step=1, num_training_batches=5, train_dataloader=[], max_epochs=-1, max_steps=7), 7),
        (Running(1, 1, global_step=1, num_training_batches=5, train_dataloader=[], max_epochs=-1), math.inf),
        (Running(1, 1, global_step=1, num_training_batches=math.inf, train_dataloader=[], max_epochs=2), math.inf),
        (Running(0, 0, global_step=0, num_training_batches=5, train_dataloader=[], max_epochs=0), 5),
        # Half of an epoch of 7, and steps of two batches: 2 and 2.
        (Running(0, 0, global_step=0, num_training_batches=3, train_dataloader=loader(7), max_epochs=2,
                 limit_train_batches=0.5, accumulate_grad_batches=2), 4),
        (Running(1, 2, global_step=1, num_training_batches=3, train_dataloader=loader(7), max_epochs=2,
                 limit_train_batches=3, accumulate_grad_batches=2), 4),
        # The last batch made a step of its own.
        (Running(1, 3, global_step=2, num_training_batches=3, train_dataloader=loader(3, over=True), max_epochs=2,
                 accumulate_grad_batches=2), 4),
        (Running(0, 0, global_step=0, num_training_batches=math.inf, train_dataloader=[], max_epochs=2,
                 limit_train_batches=0), 0),
    ],
)  # fmt: skip
def test_steps_of_a_run_by_hand(trainer, expected):
    assert run_length(trainer) == expected


def test_what_is_being_restored_counts_before_the_loops_know_it():
    trainer = Running(0, 0, global_step=0, num_training_batches=6, train_dataloader=loader(3), max_epochs=2)
    current = {
        name: {"current": {"ready": number}}
        for name, number in (("epoch_progress", 1), ("epoch_loop.batch_progress", 4))
    }
    trainer._checkpoint_connector._loaded_checkpoint = {"global_step": 5, "loops": {"fit_loop": current}}
    assert place_of(trainer) == Place(steps=5, used=4, batches=6, whole=3, epochs=1)
    assert run_length(trainer) == 10


def read_of(batches, limit):
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def steps_by_hand(word, trainer, at, before, after):
    """Of a run of three epochs of `before`, (examples a batch, settings), that goes on from step `at` with `after`."""
    (size, settings), (size_now, now) = before, after
    count, together = len(trainer.train_dataloader.examples), now["accumulate_grad_batches"]
    whole = {one: trainer.datamodule.steps if word == "maml" else count // one for one in (size, size_now)}
    of_old = read_of(whole[size], settings["limit_train_batches"])
    an_epoch = math.ceil(of_old / settings["accumulate_grad_batches"])
    epoch = (at - 1) // an_epoch
    made = min(of_old, (at - epoch * an_epoch) * settings["accumulate_grad_batches"])
    left = count - made * size
    length = whole[size_now] if word == "maml" else made + left // size_now
    over = made >= read_of(length, now["limit_train_batches"])
    over = over or (word != "maml" and left < max(size, size_now))
    length = made if over else read_of(length, now["limit_train_batches"])
    rest = length // together - made // together + (length % together > 0) if not over else 0
    return at + rest + (2 - epoch) * math.ceil(read_of(whole[size_now], now["limit_train_batches"]) / together)


@pytest.mark.slow
@pytest.mark.parametrize("draw", range(10))
def test_whatever_changes_on_the_way_every_epoch_has_its_steps_and_the_schedule_its_end(go, tmp_path, draw):
    """Batch, accumulation, limit, and when it validates, drawn at random; from several steps of each run."""
    chance = random.Random(draw)
    word = chance.choice(["pretraining", "finetuning", "sft", "reward", "dpo", "maml"])

    def drawn():
        sizes = [1, 2, 4] if word == "maml" else [3, 5, 7, 12, 20]
        values = {"accumulate_grad_batches": [1, 2, 3], "val_check_interval": [1.0, 0.5, 1],
                  "check_val_every_n_epoch": [1, 2], "limit_train_batches": [1.0, 1.0, 0.5, 2, 3]}  # fmt: skip
        return chance.choice(sizes), {name: chance.choice(of) for name, of in values.items()}

    before, after = drawn(), drawn()
    first, _ = go(word, before[0], "first", max_epochs=3, **VALIDATING, **before[1])
    steps = first.global_step
    for at in sorted({2, steps // 3, steps // 2, steps - 1} & {*range(1, steps)}):
        checkpoint = tmp_path / "first/checkpoints" / f"step={at:08d}.ckpt"
        trainer, rates = go(word, after[0], f"from-{at}", checkpoint, max_epochs=3, **VALIDATING, **after[1])
        total = steps_by_hand(word, first, at, before, after)
        assert (trainer.global_step, len(rates), trainer.current_epoch) == (total, total - at, 3)
        assert rates == pytest.approx([PEAK * (1 - step / total) for step in range(at, total)])


@pytest.mark.slow
@pytest.mark.parametrize("together", [1, 3])
def test_what_is_logged_of_a_step_is_logged_at_it(go, tmp_path, together):
    """Lightning counts logged steps by batches of today's accumulation, and lost one at a resume."""
    go("sft", 6, "first", max_steps=4)
    checkpoint = tmp_path / "first/checkpoints/step=00000004.ckpt"
    trainer, _ = go("sft", 6, "second", checkpoint, accumulate_grad_batches=together)
    logged = {step for name, step, _ in trainer.logger.points if name == "train/loss"}
    assert logged == {*range(4, trainer.global_step)}


@pytest.mark.slow
@pytest.mark.parametrize("later", [{"limit_val_batches": 0}, {"check_val_every_n_epoch": 2}])
def test_an_epoch_that_was_validated_at_its_end_has_no_batch_more_where_it_would_not_be_now(go, tmp_path, later):
    first, _ = go("sft", 6, "first", **VALIDATING)
    checkpoint = tmp_path / f"first/checkpoints/step={first.global_step // 2:08d}.ckpt"
    again, rates = go("sft", 6, "again", checkpoint, **{**VALIDATING, **later})
    assert (again.global_step, len(rates)) == (first.global_step, first.global_step // 2)
    assert again.current_epoch == 2


@pytest.mark.slow
@pytest.mark.parametrize("then", [1, 4])
def test_an_iteration_of_ppo_that_follows_has_all_its_steps(fit, ppo, tmp_path, then):
    """Whether there are fewer of them than those of the iteration before, or more: none is taken for made."""
    callbacks = [Resumption(), ExactCheckpoint(1, keep=9)]
    kept = {"enable_checkpointing": True, "default_root_dir": tmp_path}
    fit(*ppo(minibatches=2), callbacks=callbacks, **kept)
    checkpoint = tmp_path / "checkpoints" / "step=00000002.ckpt"
    rates = Rates()
    trainer = fit(
        *ppo(minibatches=then), callbacks=[Resumption(), ExactCheckpoint(1, keep=9), rates], max_epochs=3,
        ckpt_path=checkpoint, **kept,
    )  # fmt: skip
    assert (trainer.global_step, len(rates.taken)) == (2 + 2 * then, 2 * then)
    assert rates.validated == [2 + then, 2 + 2 * then]
    assert trainer.lightning_module.iteration == 2
