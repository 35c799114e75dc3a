"""What a model does, as a table of texts in TensorBoard."""

import inspect
from typing import Protocol, runtime_checkable

import lightning.pytorch as L

from gpt_modules.training.callbacks.writer import markdown_table, tensorboard
from gpt_modules.training.hyperparameters import expect_idle
from gpt_modules.training.sharding.models import is_sharded

SAMPLES = ("sample_prompts", "sample_tokens", "seed")  # what a module may ask for, and how


@runtime_checkable
class Samples(Protocol):
    """A module that can show what it does, as rows of a table."""

    def sample_rows(self) -> list[dict[str, str]]:
        """Rows with equal keys."""


class SampleTable(L.Callback):
    """Writes the module's sample texts to TensorBoard's text tab after each validation.

    Args:
        enabled: off for runs that should not spend time on it.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse prompts that nobody will answer.

        Raises:
            UserError: the table is off.
        """
        prompts, parameters = pl_module.hparams.get("sample_prompts"), inspect.signature(type(pl_module)).parameters
        if prompts and not self.enabled and "sample_prompts" in parameters:
            default = parameters["sample_prompts"].default
            expect_idle("sample_prompts", prompts, [default], "samples.enabled is false")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """One table a validation, at the run's step."""
        writer = tensorboard(trainer)
        if not self.enabled or not isinstance(pl_module, Samples) or trainer.sanity_checking:
            return
        if writer is None and not is_sharded(pl_module):
            return
        rows = pl_module.sample_rows()  # of a sharded model on every process: each holds a part of it
        if writer is not None:
            writer.add_text("samples", markdown_table(rows), trainer.global_step)
