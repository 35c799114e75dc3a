"""A module by itself, from a checkpoint of its run: it is the one that wrote it, and measures as that did."""

import inspect

import lightning.pytorch as L
import pytest
import torch

from gpt_modules import training
from gpt_modules.backbone import LoRAConfig
from gpt_modules.data import EpisodicDataModule
from gpt_modules.data.episodes.ways import LabelledClasses
from gpt_modules.errors import UserError
from gpt_modules.training import FinetuningModule, MAMLModule
from gpt_modules.training.callbacks.checkpointing import VerifiedCheckpointIO, digest_path
from gpt_modules.training.sharding.files import finish_folder, parted, shard_name, write_part

QUIET = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}


def in_shards(checkpoint, folder):
    """The same checkpoint as a folder, of one process."""
    folder.with_suffix(".new").mkdir()
    rest, parts = parted(checkpoint, lambda value: value if isinstance(value, torch.Tensor) and value.ndim else None)
    digests = {shard_name(0, 1): write_part(folder.with_suffix(".new"), shard_name(0, 1), parts)}
    finish_folder(folder.with_suffix(".new"), folder, digest_path(folder), rest, digests)
    return folder


@pytest.fixture(autouse=True)
def as_users_have_it(monkeypatch):
    """A checkpoint keeps plain data, which a constructor takes and its annotations, that tests check, do not say."""
    for kind in (getattr(training, name) for name in training.__all__):
        monkeypatch.setattr(kind, "__init__", inspect.unwrap(kind.__init__))


@pytest.mark.parametrize("form", ["file", "shards"])
@pytest.mark.parametrize(
    ("word", "settings"),
    [
        *((word, {}) for word in ("pretraining", "finetuning", "sft", "reward", "ppo", "maml", "dpo")),
        ("finetuning", {"freeze": 1}),
        ("finetuning", {"lora": LoRAConfig(2)}),
        ("finetuning", {"init_from": None, "config": "micro"}),
    ],
    ids=str,
)
def test_a_module_is_opened_from_what_its_run_wrote(procedure, fit, micro, tmp_path, word, settings, form):
    settings = settings | ({"config": micro.config()} if "config" in settings else {})
    module, data = procedure(word, **settings)
    trainer = fit(module, data, max_steps=2, limit_val_batches=1, plugins=[VerifiedCheckpointIO()])
    path = tmp_path / "step=00000002.ckpt"
    trainer.save_checkpoint(path)
    if form == "shards":
        path = in_shards(torch.load(path, weights_only=True), tmp_path / "shards")
    opened = type(module).load_from_checkpoint(path)
    assert opened.hparams == module.hparams
    assert opened.state_dict().keys() == module.state_dict().keys()
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in opened.state_dict().items())
    learns = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in opened.named_parameters() if parameter.requires_grad} == learns
    says, own = (L.Trainer(**QUIET).validate(of, datamodule=data, verbose=False) for of in (opened, module))
    assert says == own


def test_a_classifier_of_tasks_is_opened_by_itself(fit, micro, tmp_path):
    families = [LabelledClasses(str(micro.labelled), ways=2)]
    sizes = {"support": 2, "query": 2, "tasks": 2, "steps": 2, "validation_tasks": 2, "context": 32}
    data = EpisodicDataModule(families, tokenizer=str(micro.gpt), objective="classification", **sizes)
    module = MAMLModule(str(micro.gpt))
    fit(module, data, max_steps=1).save_checkpoint(tmp_path / "one.ckpt")
    opened = MAMLModule.load_from_checkpoint(tmp_path / "one.ckpt")
    assert opened.network.task == module.network.task
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in opened.state_dict().items())


def test_a_network_of_ones_own_is_given_again(tmp_path):
    module = MAMLModule(network=torch.nn.Linear(1, 1))
    module.configure_model()
    checkpoint = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    torch.save({**checkpoint, "pytorch-lightning_version": L.__version__}, tmp_path / "one.ckpt")
    with pytest.raises(UserError, match=r"^network: found 'Linear', expected the module itself, as in network=\.\.\.$"):
        MAMLModule.load_from_checkpoint(tmp_path / "one.ckpt")
    opened = MAMLModule.load_from_checkpoint(tmp_path / "one.ckpt", network=torch.nn.Linear(1, 1))
    assert torch.equal(opened.network.weight, module.network.weight)


def test_the_tokens_of_a_task_may_be_others_than_the_last(procedure, fit, micro, tmp_path):
    """Of a vocabulary with spare rows: those alone learn where the rest is frozen, from whichever checkpoint."""
    config = micro.config(vocab_size=micro.vocab_size + 8)
    module, data = procedure("finetuning", init_from=None, config=config, freeze=0)
    fit(module, data, max_steps=1).save_checkpoint(tmp_path / "one.ckpt")
    opened = FinetuningModule.load_from_checkpoint(tmp_path / "one.ckpt")
    before = opened.model.decoder.wte.weight.detach().clone()
    fit(opened, data, max_steps=1)
    moved = (opened.model.decoder.wte.weight != before).any(1).nonzero().flatten().tolist()
    assert set(moved) <= set(data.tokenizer.task_ids)
    assert moved


def test_a_trainer_of_ones_own_goes_on_from_shards(procedure, fit, tmp_path):
    """Without a strategy that shards, by the plugin alone: to where it comes from the file."""
    module, data = procedure("sft")
    fit(module, data, max_steps=1).save_checkpoint(tmp_path / "one.ckpt")
    folder = in_shards(torch.load(tmp_path / "one.ckpt", weights_only=True), tmp_path / "shards")
    ends = []
    for path in (tmp_path / "one.ckpt", folder):
        torch.manual_seed(0)
        module, data = procedure("sft")
        settings = {"max_epochs": 9, "max_steps": 2, "plugins": [VerifiedCheckpointIO()]}
        assert fit(module, data, ckpt_path=path, **settings).global_step == 2
        ends.append(module.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_a_damaged_folder_is_one_line(procedure, fit, tmp_path):
    module, data = procedure("sft")
    fit(module, data, max_steps=1).save_checkpoint(tmp_path / "one.ckpt")
    folder = in_shards(torch.load(tmp_path / "one.ckpt", weights_only=True), tmp_path / "shards")
    (folder / "index.json").write_text("{}")
    with pytest.raises(UserError, match=r"shards: damaged, its digest does not match"):
        type(module).load_from_checkpoint(folder)
