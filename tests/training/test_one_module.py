"""One module in several stages, as a notebook has it."""

import lightning.pytorch as L
import pytest
import torch


@pytest.mark.parametrize("word", ["pretraining", "finetuning", "sft", "reward", "ppo", "maml", "dpo"])
def test_a_module_that_was_validated_is_trained(procedure, tmp_path, word):
    module, data = procedure(word)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = L.Trainer(max_steps=2, accelerator="cpu", devices=1, logger=False, default_root_dir=tmp_path, **quiet)
    if word not in ("finetuning", "reward"):  # whose new heads have nothing to validate
        trainer.validate(module, datamodule=data, verbose=False)
    trainer.fit(module, datamodule=data)
    learnt = {name: value.clone() for name, value in module.state_dict().items()}
    trainer.validate(module, datamodule=data, verbose=False)
    assert all(torch.equal(value, learnt[name]) for name, value in module.state_dict().items()), "not opened anew"
    trainer.fit_loop.epoch_loop.max_steps = 4
    trainer.fit(module, datamodule=data)
    assert trainer.global_step == 4
