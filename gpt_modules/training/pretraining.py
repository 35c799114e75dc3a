"""Language-model pretraining (GPT-1, section 3.1; GPT-2; GPT-3): predict the next token of text."""

from pathlib import Path
from typing import Any

import lightning.pytorch as L
from torch import Tensor
from torchmetrics import MeanMetric

from gpt_modules.backbone import GPT, DecoderConfig
from gpt_modules.data.batches import PackedBatch, TokenBatch
from gpt_modules.training import artefacts, optimizers
from gpt_modules.training.hyperparameters import arguments, typed
from gpt_modules.training.language import continuation_rows, next_token_loss, perplexity, row_losses
from gpt_modules.training.optimizers import OptimizerConfig, ScheduleConfig


class PretrainingModule(L.LightningModule):
    """Trains a GPT on windows of text and reports perplexity on held-out text.

    Args:
        config: the decoder to build; the recipe shows every size.
        init_from: a folder to go on from in place of `config`.
        optimizer: AdamW's settings.
        schedule: learning rate over the run; `unit: tokens` counts tokens over all devices.
        compile: compile each block with `torch.compile`.
        sample_prompts: texts to continue after each validation.
        sample_tokens: length of these continuations.
        seed: of the samples.
    """

    def __init__(
        self,
        config: DecoderConfig | None = None,
        init_from: str | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(),
        schedule: ScheduleConfig = ScheduleConfig(),
        compile: bool = False,
        sample_prompts: list[str] | None = None,
        sample_tokens: int = 32,
        seed: int = 0,
    ) -> None:
        given = arguments(locals())
        super().__init__()
        self.config = None if config is None else typed(DecoderConfig, config)
        self.optimizer_config = typed(OptimizerConfig, optimizer)
        self.schedule_config = typed(ScheduleConfig, schedule)
        self.save_hyperparameters(given)
        self.val_loss = MeanMetric()
        self.model: GPT

    def configure_model(self) -> None:
        """Build or open the model; here and not in `__init__`, so that a user's mistake surfaces as one line."""
        if hasattr(self, "model"):
            return
        self.model = artefacts.open_gpt(self.config, self.hparams["init_from"])
        if self.hparams["compile"]:
            self.model.decoder.compile_blocks()

    def on_fit_start(self) -> None:
        """Refuse a tokenizer with more tokens than the model."""
        artefacts.check_vocabulary(self, self.model.config)

    def training_step(self, batch: TokenBatch | PackedBatch, batch_idx: int) -> Tensor:
        """Mean cross-entropy over the batch's tokens."""
        total, count = next_token_loss(self.model, batch)
        loss = total / count
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: TokenBatch | PackedBatch, batch_idx: int) -> None:
        """Token-weighted, so that a short last window does not weigh more."""
        total, count = next_token_loss(self.model, batch)
        self.val_loss.update(total / count.clamp(min=1), count)

    def on_validation_epoch_end(self) -> None:
        """`val/loss` in nats a token and `val/perplexity`."""
        self._log_perplexity("val")

    def test_step(self, batch: TokenBatch | PackedBatch, batch_idx: int) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """`test/loss` and `test/perplexity`."""
        self._log_perplexity("test")

    def _log_perplexity(self, stage: str) -> None:
        loss = self.val_loss.compute()
        self.val_loss.reset()
        self.log_dict({f"{stage}/loss": loss, f"{stage}/perplexity": perplexity(loss)}, prog_bar=True)

    def predict_step(self, batch: TokenBatch | PackedBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Nats and counted tokens of each row."""
        return row_losses(self.model, batch)

    def configure_optimizers(self) -> Any:
        """AdamW and the schedule."""
        groups = optimizers.parameter_groups([self.model], self.optimizer_config.weight_decay)
        optimizer = optimizers.build(groups, self.optimizer_config, hidden=self.model.decoder.blocks)
        return optimizers.configure(
            optimizer,
            self.schedule_config,
            self.trainer.estimated_stepping_batches,
            self._tokens_per_step,
        )

    def _tokens_per_step(self) -> int:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        return int(data.batch_size * data.context * self.trainer.accumulate_grad_batches * self.trainer.world_size)

    def work(self, batch: TokenBatch | PackedBatch) -> tuple[int, str]:
        """Tokens of a batch, for the throughput."""
        return batch.inputs.numel(), "tokens"

    def flops_per_token(self) -> float:
        """Of a training step: 6 per matrix parameter and 12 L d T for attention."""
        return self.model.config.flops_per_token(self.trainer.datamodule.context)  # type: ignore[attr-defined]

    def sample_rows(self) -> list[dict[str, str]]:
        """Continuations of the recipe's prompts."""
        return continuation_rows(self, self.model, self.hparams["sample_prompts"], self.hparams["sample_tokens"])

    def export(self, folder: Path) -> None:
        """Write config.json, model.safetensors and the tokenizer."""
        artefacts.export(self, self.model, folder)
