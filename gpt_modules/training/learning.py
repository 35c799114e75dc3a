"""A pretrained model that goes on learning, whole or by low-rank updates: what SFT, reward model and DPO do alike."""

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as L

from gpt_modules.backbone import GPT, LoRAConfig, RewardModel
from gpt_modules.training import artefacts, optimizers
from gpt_modules.training.hyperparameters import refuse_idle, typed
from gpt_modules.training.lora import learn_updates
from gpt_modules.training.optimizers import OptimizerConfig, ScheduleConfig
from gpt_modules.training.run_length import run_length
from gpt_modules.training.sharding.models import shard


def learning_settings(
    module: L.LightningModule,
    lora: LoRAConfig | Mapping[str, Any] | None,
    optimizer: OptimizerConfig | Mapping[str, Any],
    schedule: ScheduleConfig | Mapping[str, Any],
) -> tuple[LoRAConfig | None, OptimizerConfig, ScheduleConfig]:
    """A constructor's arguments of these names, read.

    Raises:
        UserError: one would change nothing.
    """
    optimizer, schedule = typed(OptimizerConfig, optimizer), typed(ScheduleConfig, schedule)
    refuse_idle(module, optimizer=optimizer, schedule=schedule)
    return None if lora is None else typed(LoRAConfig, lora), optimizer, schedule


def prepare(module: L.LightningModule, lora: LoRAConfig | None) -> None:
    """For the end of `configure_model`: `module.model`, as opened, fits its data, and what learns of it is there.

    Raises:
        UserError: it does not fit, see `artefacts.check_data`, or a rank is not low.
    """
    model: GPT | RewardModel = module.model  # type: ignore[assignment]
    artefacts.check_data(module, model.config)
    if lora is not None:
        learn_updates(module, "model", lora, module.hparams["init_from"])
    if module.hparams["compile"]:
        model.decoder.compile_blocks()
    if module.device_mesh is not None:
        shard(model, module)


def configure(module: L.LightningModule, optimizer: OptimizerConfig, schedule: ScheduleConfig) -> Any:
    """The optimizer of `module.model` and its schedule, in steps, as `configure_optimizers` returns them."""
    model: GPT | RewardModel = module.model  # type: ignore[assignment]
    groups = optimizers.parameter_groups([model], optimizer.weight_decay)
    built = optimizers.build(groups, optimizer, hidden=model.decoder.blocks)
    return optimizers.configure(built, schedule, run_length(module.trainer))
