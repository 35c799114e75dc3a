"""Pretraining in shards takes the steps of one device, from the same first weights, and a run may go on from either's
checkpoints; recomputed activations change nothing but memory.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from launcher import run_script

from gpt_modules.backbone import GPT, load_pretrained
from gpt_modules.training.callbacks.checkpointing import VerifiedCheckpointIO
from gpt_modules.training.sharding.files import INDEX, shard_name

OVERLAY = Path(__file__).parents[1] / "recipes" / "hardware" / "fsdp2.yaml"
SHARDED = ["--config", str(OVERLAY), "--trainer.accelerator", "cpu", "--trainer.devices"]
CLOSE = 1e-4  # of weights that each step moves by up to 1e-2: sums in another order, on any processor
NO_DROPOUT = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0)


def checkpoint(root, step):
    return VerifiedCheckpointIO().load_checkpoint(root / "checkpoints" / f"step={step:08d}.ckpt")


def differences(first, second):
    """The largest in weights and in optimizer state, both of whole tensors under the same names."""

    def largest(left, right):
        if isinstance(left, torch.Tensor):
            assert left.shape == right.shape
            return (left.double() - right.double()).abs().max().item()
        if isinstance(left, dict | list):
            assert len(left) == len(right)
            keys = left if isinstance(left, dict) else range(len(left))
            return max((largest(left[key], right[key]) for key in keys), default=0.0)
        assert left == right
        return 0.0

    return [largest(first[name], second[name]) for name in ("state_dict", "optimizer_states")]


@pytest.fixture(scope="module")
def recipe(micro, tmp_path_factory):
    """recipe(name, model settings, **changes): a folder for a run of 8 steps, and its recipe beside it."""
    folder = tmp_path_factory.mktemp("fsdp")

    def write(name, model, **changes):
        root = folder / name
        sizes = {"trainer__max_epochs": 2, "trainer__limit_train_batches": 4, "trainer__limit_val_batches": 1}
        document = micro.recipe("pretraining", root, checkpoint__keep=100, **{**sizes, **changes})
        arguments = document["model"]["init_args"]
        arguments |= model
        # A key's bias has no gradient but rounding, which Adam would blow up to a whole step.
        arguments["optimizer"] |= {"eps": 1e-5}
        root.with_suffix(".yaml").write_text(json.dumps(document))
        return root

    return write


@pytest.fixture(scope="module")
def runs(micro, gpt, recipe):
    """The folders of one process and of two, which hold shards of unequal height, with the same global batch."""
    config = {**micro.config().to_dict(), **NO_DROPOUT, "vocab_size": micro.vocab_size + 1, "n_positions": 33}
    one = recipe("one", {"config": config}, data__batch_size=8)
    two = recipe("two", {"config": config, "recompute": True}, data__batch_size=4)
    assert gpt.run("fit", "--config", one.with_suffix(".yaml")).status == 0
    assert gpt.run("fit", "--config", two.with_suffix(".yaml"), *SHARDED, "2", ranks=2).status == 0
    return one, two


@pytest.mark.slow
def test_shards_take_the_steps_of_one_device(runs):
    one, two = runs
    for step in (2, 8):
        assert max(differences(checkpoint(one, step), checkpoint(two, step))) < CLOSE
    before, after = ([json.loads((root / "summary.json").read_text())[when]["val/loss"] for root in runs]
                     for when in ("before", "after"))  # fmt: skip
    assert before[0] == pytest.approx(before[1], abs=1e-6)
    assert after[0] == pytest.approx(after[1], abs=CLOSE)
    assert after[0] < before[0] - 0.1


@pytest.mark.slow
def test_the_export_of_shards_is_a_whole_model(runs):
    _, two = runs
    stored = checkpoint(two, 8)["state_dict"]
    for name, value in load_pretrained(two / "export", kind="gpt").state_dict().items():
        assert torch.equal(value, stored[f"model.{name}"]), name


@pytest.mark.slow
def test_a_run_goes_on_from_a_checkpoint_of_shards(runs, gpt):
    """On as many devices to the bit, on one device as it would have gone there."""
    one, two = runs
    words = ["--ckpt_path", two / "checkpoints" / "step=00000004.ckpt", "--trainer.default_root_dir"]
    again, alone = two.with_name("again"), two.with_name("alone")
    assert gpt.run("fit", "--config", two.with_suffix(".yaml"), *words, again, *SHARDED, "2", ranks=2).status == 0
    assert differences(checkpoint(again, 8), checkpoint(two, 8)) == [0.0, 0.0]
    assert gpt.run("fit", "--config", one.with_suffix(".yaml"), *words, alone).status == 0
    assert max(differences(checkpoint(alone, 8), checkpoint(two, 8))) < CLOSE


@pytest.mark.slow
def test_shards_go_on_with_another_global_batch_as_one_device_does(runs, gpt):
    """The place in the data is known before the length of the run, and with it the schedule, is."""
    one, two = runs
    words = ["--ckpt_path", two / "checkpoints" / "step=00000002.ckpt", "--trainer.limit_train_batches", "1.0"]
    words += ["--model.schedule.final", "0.0", "--trainer.default_root_dir"]
    other, alone = two.with_name("other"), two.with_name("other-alone")
    shards = ["--data.batch_size", "2", *SHARDED, "2"]
    assert gpt.run("fit", "--config", two.with_suffix(".yaml"), *words, other, *shards, ranks=2).status == 0
    assert gpt.run("fit", "--config", one.with_suffix(".yaml"), *words, alone, "--data.batch_size", "4").status == 0
    last = max(int(path.stem.removeprefix("step=")) for path in (alone / "checkpoints").glob("step=*.ckpt"))
    assert last > 8
    assert max(differences(checkpoint(other, last), checkpoint(alone, last))) < CLOSE


@pytest.mark.slow
def test_processes_refuse_as_one_what_one_of_them_cannot_read_and_find_the_checkpoint_before_it(runs, gpt, tmp_path):
    """The second one's rows are damaged."""
    _, two = runs
    root = tmp_path / "damaged"
    shutil.copytree(two / "checkpoints", root / "checkpoints")
    last = root / "checkpoints" / "step=00000008.ckpt"
    (last / shard_name(1, 2)).write_bytes(b"damaged")
    words = ["fit", "--config", two.with_suffix(".yaml"), *SHARDED, "2", "--trainer.default_root_dir", root]
    for told, status, lines in (
        (last, 2, [f"error: {last / shard_name(1, 2)}: damaged, its digest does not match {INDEX}"]),
        (
            "last",
            0,
            [
                f"{last}: damaged (digest does not match); trying the one before it",
                f"going on from step 6; the checkpoints of later steps, 8, are now in {root / 'checkpoints' / 'left'}",
            ],
        ),
    ):
        assert gpt.run(*words, "--ckpt_path", told, ranks=2).status == status
        errors = [line for name in ("stderr", "stderr.1") for line in (gpt.folder / name).read_text().splitlines()]
        found = [line for line in errors if "damaged (" in line or "damaged, " in line or "going on" in line]
        found = [line.partition("UserWarning: ")[2] or line for line in found if "rank_zero_warn" not in line]
        assert found == lines
    assert differences(checkpoint(root, 8), checkpoint(two, 8)) == [0.0, 0.0]


@pytest.mark.slow
def test_one_shard_is_the_model_with_muon_and_dropout_from_a_folder(micro, gpt, recipe):
    model = {"config": None, "init_from": str(micro.gpt), "optimizer": {"lr": 1e-2, "muon_lr": 0.02}}
    whole, shard = recipe("whole", model), recipe("shard", {**model, "recompute": True})
    assert gpt.run("fit", "--config", whole.with_suffix(".yaml")).status == 0
    words = ["fit", "--config", shard.with_suffix(".yaml"), *SHARDED, "1"]
    ended = gpt.run(*words)
    assert ended.status == 0
    assert ended.stderr.count("trainer.strategy: fsdp2 on one device splits nothing") == 1
    assert max(differences(checkpoint(whole, 8), checkpoint(shard, 8))) < CLOSE
    again = shard.with_name("shard-again")
    resume = ["--ckpt_path", whole / "checkpoints" / "step=00000006.ckpt", "--trainer.default_root_dir", again]
    assert gpt.run(*words, *resume).status == 0
    assert max(differences(checkpoint(whole, 8), checkpoint(again, 8))) < CLOSE


BY_HAND = """
import sys
from pathlib import Path

import lightning.pytorch as L
from gpt_modules import DecoderConfig, PretrainingDataModule, PretrainingModule

folder, source, tokenizer = sys.argv[1:]
data = PretrainingDataModule(source, tokenizer=tokenizer, context=16, batch_size=4, cache_dir=folder + "/cache")
config = DecoderConfig(vocab_size=data.tokenizer.vocab_size, n_positions=16, n_layer=1, n_head=1, n_embd=8)
module = PretrainingModule(config)

def trainer(steps):
    given = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 1}
    return L.Trainer(accelerator="cpu", devices=2, strategy="fsdp2", max_steps=steps, default_root_dir=folder, **given)

first = trainer(2)
first.fit(module, datamodule=data)
second = trainer(3)
second.fit(module, datamodule=data, ckpt_path=first.checkpoint_callback.best_model_path, weights_only=True)
assert (second.global_step, second.world_size) == (3, 2)
module.export(Path(folder) / "export")
"""


@pytest.mark.slow
def test_shards_by_a_trainer_of_ones_own(micro, tmp_path):
    """With Lightning's callbacks and none of ours: trained, kept, gone on with, exported."""
    (tmp_path / "by_hand.py").write_text(BY_HAND)
    run_script(tmp_path / "by_hand.py", tmp_path, micro.pretraining, micro.gpt)
    last = next((tmp_path / "checkpoints").glob("*step=3.ckpt"))
    stored = VerifiedCheckpointIO().load_checkpoint(last)["state_dict"]
    for name, value in load_pretrained(tmp_path / "export", kind="gpt").state_dict().items():
        assert torch.equal(value, stored[f"model.{name}"]), name


@pytest.mark.slow
def test_what_does_not_shard_says_so(micro, gpt, recipe, tmp_path):
    document = micro.recipe("maml", tmp_path / "maml")
    (tmp_path / "maml.yaml").write_text(json.dumps(document))
    ended = gpt.run("fit", "--config", tmp_path / "maml.yaml", "--trainer.strategy", "fsdp2")
    assert (ended.status, ended.stderr.count("\n")) == (2, 1)
    assert (
        "trainer.strategy: found FSDP2Strategy beside MAMLModule, expected auto or ddp: every task adapts"
        in ended.stderr
    )
    plain = recipe("plain", {}, trainer__strategy={"class_path": "ModelParallelStrategy", "init_args": {
        "data_parallel_size": 1, "tensor_parallel_size": 1}})  # fmt: skip
    ended = gpt.run("fit", "--config", plain.with_suffix(".yaml"))
    assert ended.status == 2
    assert "trainer.strategy: found ModelParallelStrategy, expected fsdp2" in ended.stderr


def loss_and_gradients(model, tokens):
    """Of a training step with dropout, and the bytes that were kept for its backward pass."""
    saved = []

    def keep(tensor):
        saved.append(tensor.nbytes)
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(tokens).square().mean()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return loss, gradients, sum(saved)


@pytest.mark.parametrize("attention", [("dense",), ("dense", "banded")])
def test_recomputed_activations_change_nothing_but_memory(micro, attention):
    model = GPT(micro.config(attention=attention, window=4)).train()
    tokens = torch.randint(0, micro.vocab_size, (2, 32))
    loss, gradients, kept = loss_and_gradients(model, tokens)
    assert not torch.equal(model(tokens), model(tokens)), "dropout is on"
    model.decoder.recompute = True
    again, others, fewer = loss_and_gradients(model, tokens)
    assert torch.equal(loss, again)
    assert all(torch.equal(left, right) for left, right in zip(gradients, others, strict=True))
    blocks = len(model.decoder.blocks)
    embedded = tokens.numel() * model.config.n_embd * 4
    assert kept - fewer > blocks * 10 * embedded, "a block keeps its input, and no more"
