"""What SFT, the reward model and DPO do alike. (LoRA: `test_lora`.)"""

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from conftest import write_rows

from gpt_modules.backbone import LoRAConfig
from gpt_modules.data import RewardDataModule
from gpt_modules.errors import UserError
from gpt_modules.training import DPOModule, RewardModule, SFTModule
from gpt_modules.training.optimizers import OptimizerConfig, ScheduleConfig

MODULES = {"sft": SFTModule, "reward": RewardModule, "dpo": DPOModule}
each_module = pytest.mark.parametrize("kind", MODULES.values(), ids=MODULES)


@each_module
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"optimizer": OptimizerConfig(sgd=True, eps=1.0)},
            "optimizer.eps: found 1.0, expected it left at 1e-08: sgd has no moments",
        ),
        (
            {"schedule": ScheduleConfig(warmup_start=0.5)},
            "schedule.warmup_start: found 0.5, expected it left at 0.0: there is no warmup",
        ),
    ],
)
def test_what_it_cannot_follow_is_refused_by_its_name(kind, given, message):
    with pytest.raises(UserError) as error:
        kind("folder", **given)
    assert str(error.value) == message


@each_module
@pytest.mark.parametrize("asked", [True, False])
def test_blocks_are_compiled_where_that_is_asked_for(micro, monkeypatch, kind, asked):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda block: compiled.append(block))
    module = kind(str(micro.gpt), compile=asked)
    module.configure_model()
    assert compiled == (list(module.model.decoder.blocks) if asked else [])
    opened = module.model
    module.configure_model()
    assert module.model is opened, "Lightning asks again in every stage"


@each_module
def test_an_adapter_lies_beside_the_export_where_there_are_updates(kind):
    assert kind("folder").also_exports == ()
    assert kind("folder", lora=LoRAConfig(rank=2)).also_exports == ("adapter",)


@each_module
def test_the_rate_of_a_step_is_the_schedules_and_only_matrices_decay(micro, monkeypatch, kind):
    """Linear from 0.5 to 0 over the run's 4 steps."""
    optimizer, schedule = OptimizerConfig(lr=0.5, weight_decay=0.25), ScheduleConfig("linear", final=0.0)
    module = kind(str(micro.gpt), optimizer=optimizer, schedule=schedule)
    module.configure_model()
    module._trainer = L.Trainer(accelerator="cpu", max_epochs=-1, max_steps=4, logger=False, enable_checkpointing=False)
    monkeypatch.setattr(L.Trainer, "train_dataloader", [])
    configured = module.configure_optimizers()
    built, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    for group in built.param_groups:
        assert {parameter.ndim > 1 for parameter in group["params"]} == {group["weight_decay"] == 0.25}
    assert sum(len(group["params"]) for group in built.param_groups) == len(list(module.model.parameters()))
    rates = []
    for _ in range(4):
        rates.append(built.param_groups[0]["lr"])
        built.step()
        scheduler.step()
    assert rates == [0.5, 0.375, 0.25, 0.125]


class InOrder:
    """A loader of these batches; Lightning takes a list for several loaders."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


@pytest.mark.parametrize(
    ("kind", "given"), [(RewardModule, {"dropout": 0.0}), (DPOModule, {}), (DPOModule, {"rpo_alpha": 2.0})]
)
def test_an_accumulated_step_of_comparisons_is_the_step_of_one_batch(fit, micro, tmp_path, kind, given):
    """Prompts of 2 and of 3 answers, and a last window of 1 batch in place of 4. (Of tokens: `test_accumulation`.)"""
    rows = [
        {"prompt": f"the film {n}", "responses": [" a", " b" * n, " c"][: 2 + n % 2], "ranking": [1, 2, 3][: 2 + n % 2]}
        for n in range(1, 21)
    ]
    file, other = write_rows(tmp_path / "rows.jsonl", rows), write_rows(tmp_path / "held_out.jsonl", rows[:1])
    other.write_text(other.read_text().replace("film 1", "plot 1"))
    found = []
    for size, accumulate in ((4, 4), (16, 1)):
        sizes = {"context": 32, "batch_size": size, "cache_dir": str(tmp_path)}
        data = RewardDataModule(str(file), str(other), tokenizer=str(micro.gpt), **sizes)
        data.setup("fit")
        sgd = {"optimizer": OptimizerConfig(lr=0.1, weight_decay=0.0, sgd=True), "schedule": ScheduleConfig("constant")}
        module = kind(str(micro.gpt), **sgd, **given)
        batches = [data.train_examples.batch(0, np.arange(i, min(20, i + size))) for i in range(0, 20, size)]
        data.train_dataloader = lambda batches=batches: InOrder(batches)
        torch.manual_seed(0)  # of a new head
        trainer = fit(module, data, accumulate_grad_batches=accumulate)
        assert trainer.global_step == 2
        names = ("loss", "accuracy", "nll") if "rpo_alpha" in given else ("loss", "accuracy")
        logged = [trainer.logger.values(f"train/{name}") for name in names]
        found.append((module.model.state_dict(), logged))
    (parts, logged), (whole, expected) = found
    assert {len(values) for values in expected} == {2}
    assert logged == [pytest.approx(values, abs=1e-5) for values in expected]
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=0.0, atol=1e-6)
