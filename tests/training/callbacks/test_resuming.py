"""What a resumed run's recipe says holds from its first step, is named, or is refused."""

import copy
import dataclasses
import logging
import re

import lightning.pytorch as L
import pytest
import torch
from torch import nn

from gpt_modules.backbone import GPT, save_pretrained
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError
from gpt_modules.storage.summary import read_summary
from gpt_modules.training.callbacks.checkpointing import ExactCheckpoint, RandomState, VerifiedCheckpointIO
from gpt_modules.training.callbacks.export import ExportBest
from gpt_modules.training.callbacks.resuming import Resumption, changed_content, differences, going_on
from gpt_modules.training.callbacks.summary import RunSummary
from gpt_modules.training.inner_loop import InnerLoop
from gpt_modules.training.optimizers import OptimizerConfig, ScheduleConfig
from gpt_modules.training.ppo import ClipConfig, KLConfig

CUT, END = 2, 4


class Change(L.Callback):
    """Does something to a run at the step where another one is cut off."""

    def __init__(self, change):
        self.change = change

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == CUT:
            self.change(trainer, module)


@pytest.fixture
def run(procedure, fit, tmp_path):
    """run(word, model arguments, change=None, checkpoint=None, **trainer settings): the module after four steps."""

    def go(word, arguments, change=None, checkpoint=None, **settings):
        torch.manual_seed(0)
        module, data = procedure(word, **arguments)
        changes = [Change(change)] if change is not None else []
        callbacks = [Resumption(), RandomState(), RunSummary(), ExportBest(), ExactCheckpoint(1, 100), *changes]
        saved = {"enable_checkpointing": True, "plugins": [VerifiedCheckpointIO()]}
        steps = {"max_steps": END, "max_epochs": -1, "limit_val_batches": 0}
        fit(module, data, callbacks=callbacks, ckpt_path=checkpoint, **{**saved, **steps, **settings})
        return module

    return go


def groups(**settings):
    def change(trainer, module):
        for group in trainer.optimizers[0].param_groups:
            group.update({name: value for name, value in settings.items() if group.get(name) != 0.0})
        if "lr" in settings:
            scheduler = trainer.lr_scheduler_configs[0].scheduler
            scheduler.base_lrs = [settings["lr"]] * len(scheduler.base_lrs)
            rates(scheduler.lr_lambdas[0])(trainer, module)

    return change


def rates(factor):
    """From here on each group has its base rate times `factor(step)`."""

    def change(trainer, module):
        scheduler = trainer.lr_scheduler_configs[0].scheduler
        scheduler.lr_lambdas = [factor] * len(scheduler.base_lrs)
        for group, base in zip(trainer.optimizers[0].param_groups, scheduler.base_lrs, strict=True):
            group["lr"] = base * factor(scheduler.last_epoch)

    return change


def dropout(trainer, module):
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.6
        if hasattr(part, "dropout") and isinstance(part.dropout, float):
            part.dropout = 0.6


def one_layer_slower(trainer, module):
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    depths = sorted(set(scheduler.base_lrs), reverse=True)
    scheduler.base_lrs = [1e-2 * 0.25 ** depths.index(base) for base in scheduler.base_lrs]
    rates(scheduler.lr_lambdas[0])(trainer, module)


def muon(trainer, module):
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    scheduler.base_lrs = [0.05, *scheduler.base_lrs[1:]]
    rates(scheduler.lr_lambdas[0])(trainer, module)


def attribute(**settings):
    def change(trainer, module):
        for name, value in settings.items():
            setattr(module, name, value)

    return change


def recipe(**settings):
    def change(trainer, module):
        module.recipe = dataclasses.replace(module.recipe, **settings)

    return change


def inner_rates(trainer, module):
    for rate in module.inner_rates.values():
        rate.data.fill_(0.3)


def adam(**changes):
    return {"optimizer": OptimizerConfig(**{"lr": 1e-2, **changes})}


FLAT = ScheduleConfig(shape="constant")
LINE = ScheduleConfig(shape="linear", final=0.0, total=10)
SGD = OptimizerConfig(lr=0.1, weight_decay=0.0, sgd=True)
FIXED = {"inner": InnerLoop(1, 0.1), "schedule": FLAT}
PENALTY = {"kl": KLConfig(coef=0.1), "schedule": FLAT}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "before", "after", "change"),
    [
        ("pretraining", adam(), adam(lr=3e-3), groups(lr=3e-3)),
        ("pretraining", adam(), adam(weight_decay=0.5), groups(weight_decay=0.5)),
        ("pretraining", adam(), adam(betas=(0.5, 0.6)), groups(betas=(0.5, 0.6))),
        ("pretraining", adam(), adam(eps=1e-2), groups(eps=1e-2)),
        ("pretraining", {"schedule": FLAT}, {"schedule": LINE}, rates(lambda step: 1 - step / 10)),
        ("pretraining", adam(muon_lr=0.02), adam(muon_lr=0.05), muon),
        ("finetuning", {"layer_decay": 0.5}, {"layer_decay": 0.25}, one_layer_slower),
        ("finetuning", {"dropout": 0.1}, {"dropout": 0.6, "classifier_dropout": 0.6}, dropout),
        ("sft", adam(), adam(lr=3e-3), groups(lr=3e-3)),
        ("sft", {"optimizer": SGD}, {"optimizer": OptimizerConfig(lr=0.3, weight_decay=0.0, sgd=True)}, groups(lr=0.3)),
        ("reward", adam(weight_decay=0.0), adam(lr=3e-3, weight_decay=0.0), groups(lr=3e-3)),
        ("maml", {**FIXED}, {**FIXED, "inner": InnerLoop(1, 0.3)}, inner_rates),
        ("maml", {**FIXED}, {**FIXED, "inner": InnerLoop(2, 0.1)}, attribute(inner=InnerLoop(2, 0.1))),
        ("ppo", adam(), adam(lr=3e-3), groups(lr=3e-3)),
        ("ppo", PENALTY, {**PENALTY, "kl": KLConfig(coef=2.0)}, attribute(kl_coef=2.0)),
        ("ppo", {}, {"clip": ClipConfig(0.01, 0.01, 3.0)}, recipe(clip=ClipConfig(0.01, 0.01, 3.0))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_changed_setting_holds_from_the_step_of_the_checkpoint(run, tmp_path, word, before, after, change):
    steps = {"max_steps": 6 if word == "ppo" else END}  # PPO: two of the next rollout
    changed = run(word, before, change, default_root_dir=tmp_path / "changed", **steps)
    untouched = run(word, before, default_root_dir=tmp_path / "before", **steps)
    cut_off = tmp_path / "before" / "checkpoints" / f"step={CUT:08d}.ckpt"
    resumed = run(word, after, checkpoint=cut_off, default_root_dir=tmp_path / "after", **steps)
    moved = False
    for name, value in changed.named_parameters():
        assert torch.equal(resumed.get_parameter(name), value), name
        moved |= not torch.equal(untouched.get_parameter(name), value)
    assert moved, "the change would not have shown"


@pytest.mark.slow
def test_a_changed_clip_and_a_longer_run_hold(run, tmp_path):
    run("sft", {}, default_root_dir=tmp_path / "one")
    saved = tmp_path / "one" / "checkpoints" / f"step={END:08d}.ckpt"
    module = run(
        "sft", {}, checkpoint=saved, max_steps=END + 1, gradient_clip_val=1e-9, default_root_dir=tmp_path / "two"
    )
    assert module.global_step == END + 1


@pytest.fixture
def cut_off(run, tmp_path):
    """A checkpoint of SFT at step 4."""
    run("sft", {}, default_root_dir=tmp_path / "one")
    return tmp_path / "one" / "checkpoints" / f"step={END:08d}.ckpt"


def test_every_difference_is_named_in_one_line(run, cut_off, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "gpt_modules.training.callbacks.resuming"):
        run("sft", {**adam(lr=1e-5), "dropout": 0.3}, checkpoint=cut_off, default_root_dir=tmp_path / "two")
    assert caplog.messages == [
        "going on from step 4 with model.dropout 0.3 (None in the checkpoint), "
        "model.optimizer.lr 1e-05 (0.01 in the checkpoint)"
    ]


def test_nothing_is_said_where_nothing_differs(run, cut_off, tmp_path, caplog):
    run("sft", {}, checkpoint=cut_off, default_root_dir=tmp_path / "two")
    assert not [message for message in caplog.messages if "going on" in message]


def test_another_content_of_the_same_file_is_named_and_its_best_is_none(procedure, micro, fit, tmp_path, caplog):
    files = {name: tmp_path / f"{name}.jsonl" for name in ("train", "validation")}
    rows = micro.sft.read_text().splitlines(keepends=True)

    def go(word, checkpoint=None, **settings):
        module, data = procedure("sft")
        data.train_source, data.validation_source = map(str, files.values())
        best = ExportBest("val/loss")
        callbacks = [Resumption(), RunSummary(), best, ExactCheckpoint(1, 100)]
        usual = {"max_epochs": 2, "default_root_dir": tmp_path / "run", "plugins": [VerifiedCheckpointIO()]}
        caplog.clear()
        with caplog.at_level(logging.WARNING, "gpt_modules"):
            fit(module, data, callbacks=callbacks, ckpt_path=checkpoint, enable_checkpointing=True, **usual, **settings)
        return best, [message for message in caplog.messages if "going on" in message or "export" in message]

    files["train"].write_text("".join(rows[:20]))
    files["validation"].write_text("".join(rows[20:26]))
    first, said = go("first")
    saved = max((tmp_path / "run" / "checkpoints").glob("step=*.ckpt"))
    assert not said
    assert go("again", saved)[1] == []
    files["train"].write_text("".join(rows[:19]))
    _, said = go("train", saved)
    assert len(said) == 1
    assert re.fullmatch(
        r"going on from step \d+ with data\.train with other content, SHA-256 \w{8} \(\w{8} in the checkpoint\)",
        said[0],
    )
    files["train"].write_text("".join(rows[:20]))
    files["validation"].write_text("".join(rows[26:30]))
    other, said = go("validation", saved)
    assert "data.validation with other content" in said[-1]
    assert said[:-1] == ["export: validated on other data than before; the best from here on counts"]
    assert other.metrics["val/loss"] != first.metrics["val/loss"], "measured anew, though no step was left"
    assert read_summary(tmp_path / "run").after["val/loss"] == pytest.approx(other.metrics["val/loss"])


def test_a_part_that_is_held_out_changes_with_its_source(procedure, micro, tmp_path):
    for word in ("pretraining", "finetuning", "sft", "reward", "ppo", "maml", "dpo"):
        _, data = procedure(word)
        assert set(data.content) >= {"train", "validation"}, word
    digests = []
    for rows in ("ab", "ac"):
        (tmp_path / "rows.jsonl").write_text("".join(rows))
        _, data = procedure("sft")
        data.train_source = str(tmp_path / "rows.jsonl")
        digests.append(data.content)
    assert changed_content(*digests, []).keys() == {"data.train"}
    assert changed_content(*digests, ["data.train"]) == {}
    assert changed_content(None, digests[1], []) == {}


@pytest.mark.parametrize(
    ("word", "arguments", "message"),
    [
        ("reward", {}, r"model\.class_path: found 'SFTModule', expected the recipe's RewardModule"),
        ("sft", adam(muon_lr=0.02), r"model\.optimizer\.muon_lr: found Muon switched, expected the checkpoint's None"),
        ("sft", {"optimizer": SGD}, r"model\.optimizer\.sgd: found True, expected the checkpoint's False"),
    ],
)
def test_what_cannot_change_is_refused(run, cut_off, tmp_path, word, arguments, message):
    with pytest.raises(UserError, match=message) as error:
        run(word, arguments, checkpoint=cut_off, default_root_dir=tmp_path / "two")
    assert "\n" not in str(error.value)


def test_another_form_of_the_model_is_refused_though_all_shapes_agree(run, micro, tmp_path):
    run("pretraining", {}, default_root_dir=tmp_path / "one")
    saved = tmp_path / "one" / "checkpoints" / f"step={END:08d}.ckpt"
    with pytest.raises(UserError, match=r"^model\.config\.n_head: found 4, expected the checkpoint's 2"):
        run("pretraining", {"config": micro.config(n_head=4)}, checkpoint=saved, default_root_dir=tmp_path / "two")


def test_another_tokenizer_of_equal_size_is_refused(run, cut_off, micro, procedure, fit, tmp_path):
    texts = [line[::-1] for line in micro.pretraining.read_text().splitlines()]
    other = Tokenizer.train(texts, micro.vocab_size)
    model = GPT(micro.config(vocab_size=max(micro.vocab_size, other.vocab_size)))
    save_pretrained(tmp_path / "other", model, tokenizer_json=other.to_json())
    module, data = procedure("sft", init_from=str(tmp_path / "other"))
    data.tokenizer_name = str(tmp_path / "other")
    settings = {"plugins": [VerifiedCheckpointIO()], "callbacks": [Resumption()], "ckpt_path": cut_off}
    with pytest.raises(UserError, match=r"^data\.tokenizer: found another tokenizer, expected the checkpoint's"):
        fit(module, data, **settings)


def test_sections_that_one_side_does_not_know_are_no_difference():
    stored = {"model.lr": 1.0, "model.config": None, "trainer.max_steps": 5, "trainer.default_root_dir": "a"}
    now = {"model.lr": 1.0, "model.config.n_layer": 2, "export.monitor": "val/loss"}
    assert differences(stored, now) == {"model.config.n_layer": (None, 2)}
    assert differences({"a.b": [1]}, {"a.b": [1]}) == {}


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [("2", 2, True), (16, "16", True), ("2", 3, False), ("auto", 2, False), (None, "None", False), (0.1, 0.2, False)],
)
def test_a_number_and_its_text_are_no_difference(before, after, same):
    """`trainer.devices` is text of the command line, and a number of a file."""
    assert (differences({"trainer.devices": before}, {"trainer.devices": after}) == {}) == same


@pytest.mark.parametrize("key", ["limit_val_batches", "limit_train_batches", "overfit_batches", "val_check_interval"])
def test_one_batch_is_not_all_of_them(key):
    for before, after in ((1, 1.0), (1.0, 1)):
        assert differences({f"trainer.{key}": before}, {f"trainer.{key}": after}) == {f"trainer.{key}": (before, after)}
    assert differences({f"trainer.{key}": 1}, {f"trainer.{key}": "1"}) == {}


@pytest.mark.parametrize(
    ("before", "after", "same"), [(1, 1.0, True), (True, 1, False), (0, False, False), (False, 0.0, False)]
)
def test_elsewhere_a_number_is_what_it_counts_and_no_yes_or_no(before, after, same):
    assert (differences({"model.lr": before}, {"model.lr": after}) == {}) == same


def test_long_values_are_told_from_where_they_part():
    callbacks = [{"class_path": "gpt_modules.evaluation.NgramBaseline", "init_args": {"order": 3}}]
    line = going_on(5, {"trainer.callbacks": (callbacks, [*callbacks, {"class_path": "Mine"}])}, set())
    before, after = "...args': {'order': 3}}]", "...args': {'order': 3}}, {'class_path': 'Mine'}]"
    assert line == f"going on from step 5 with trainer.callbacks {after} ({before} in the checkpoint)"
    far = going_on(5, {"x": ("a" * 80, "a" * 70 + "b" * 80)}, set())
    assert far == f"going on from step 5 with x ...{'a' * 20}{'b' * 34}... (...{'a' * 30} in the checkpoint)"


def test_a_long_line_counts_what_it_leaves_out():
    line = going_on(3, {f"data.key{i}": ("x" * 100, i) for i in range(20)}, set())
    assert len(line) <= 400
    assert line.endswith(" more changes")
    begun = going_on(3, {"model.inner.lr": (0.1, 0.2)}, {"model.inner.lr"})
    assert (
        begun == "going on from step 3 with model.inner.lr 0.2 (0.1 in the checkpoint, which has been learned or read)"
    )


GONE = object()
MUTATIONS = [
    (("state_dict",), GONE),
    (("state_dict", "model.decoder.wte.weight"), torch.zeros(2, 2)),
    (("state_dict", "model.decoder.wte.weight"), "oops"),
    (("global_step",), "oops"),
    (("loops", "fit_loop", "epoch_progress", "current", "ready"), 1.5),
    (("loops",), GONE),
    (("callbacks", "RandomState"), GONE),
    (("callbacks", "RandomState", "ranks"), []),
    (("callbacks", "RandomState", "ranks", 0, "python", 1), None),
    (("callbacks", "ExportBest", "validated"), None),
    (("optimizer_states",), []),
    (("optimizer_states", 0, "state", 3, "exp_avg"), None),
    (("optimizer_states", 0, "state", 3, "exp_avg"), torch.full((16,), torch.nan)),
    (("optimizer_states", 0, "param_groups"), []),
    (("lr_schedulers", 0, "last_epoch"), None),
    (("optimizer_states", 0, "state", 3), GONE),
    (("optimizer_states", 0, "state"), {}),
    (("SFTDataModule",), None),
    (("SFTDataModule",), GONE),
    (("SFTDataModule", "loader"), GONE),
    (("SFTDataModule", "loader"), None),
    (("SFTDataModule", "loader", "epoch"), GONE),
    (("SFTDataModule", "loader", "epoch"), "one"),
    (("SFTDataModule", "loader", "examples"), GONE),
    (("SFTDataModule", "loader", "examples"), [1]),
    (("SFTDataModule", "loader", "size"), None),
    (("SFTDataModule", "loader", "of"), [1]),
    (("content",), None),
    (("content",), GONE),
    (("callbacks", "ExportBest"), None),
    (("callbacks", "ExportBest"), {}),
]
PPO_MUTATIONS = [
    (("ppo", "frozen"), -5, "ppo.frozen: found -5, expected a mapping of keys"),
    (("ppo", "frontier"), [[1]], r"ppo.frontier\[1\]: found 1 values, expected 2"),
    (("ppo", "frontier"), ["x"], r"ppo.frontier\[1\]: found 'x', expected a list"),
    (("ppo", "iteration"), GONE, "ppo.iteration: missing, expected a whole number"),
    (("ppo", "experience"), None, "ppo: experience: found None, expected a mapping of keys"),
    (("ppo", "experience", "parts"), None, "ppo: experience.parts: found None, expected a list"),
    (("ppo", "experience", "position"), 99, "ppo: experience.position: found 99, expected 1 to 3"),
    (("ppo", "experience", "rollout"), None, "ppo: experience.position: found 1, expected 0 where there is no rollout"),
    (("ppo", "experience", "rollout", "mask"), [], "ppo: experience.rollout: found "),
    (("ppo", "experience", "rollout", "logprobs"), torch.zeros(2, 2), "ppo: experience.rollout: found "),
]


def mutated(checkpoint, place, value):
    """A copy with one part replaced or taken out."""
    copied = part = copy.deepcopy(checkpoint)
    for key in place[:-1]:
        part = part[key]
    if value is GONE:
        del part[place[-1]]
    else:
        part[place[-1]] = value
    return copied


@pytest.mark.slow
def test_a_checkpoint_with_a_part_of_another_form_is_one_line(run, cut_off, tmp_path):
    """With a digest that verifies: whoever wrote it meant it."""
    checkpoint, path = torch.load(cut_off, weights_only=True), tmp_path / "mutated.ckpt"
    for place, value in MUTATIONS:
        VerifiedCheckpointIO().save_checkpoint(mutated(checkpoint, place, value), path)
        with pytest.raises(UserError) as error:
            run("sft", {}, checkpoint=path, max_steps=END + 1, default_root_dir=tmp_path / "two")
        assert len(str(error.value)) < 700, place
        assert str(path) in str(error.value), place


@pytest.mark.slow
def test_a_part_of_ppo_of_another_form_is_one_line(run, tmp_path):
    run("ppo", {}, default_root_dir=tmp_path / "one")
    saved, path = tmp_path / "one" / "checkpoints" / f"step={1:08d}.ckpt", tmp_path / "mutated.ckpt"
    checkpoint = torch.load(saved, weights_only=True)
    for place, value, message in PPO_MUTATIONS:
        VerifiedCheckpointIO().save_checkpoint(mutated(checkpoint, place, value), path)
        with pytest.raises(UserError, match=message) as error:
            run("ppo", {}, checkpoint=path, default_root_dir=tmp_path / "two")
        assert str(path) in str(error.value), place
