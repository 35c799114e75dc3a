"""Language-model pretraining (GPT-1, section 3.1; GPT-2; GPT-3): predict the next token of text."""

import math
from pathlib import Path
from typing import Any

from torch import Tensor

from gpt_modules.backbone import GPT, DecoderConfig
from gpt_modules.data import PretrainingDataModule, SFTDataModule
from gpt_modules.data.batches import PackedBatch, TokenBatch
from gpt_modules.errors import UserError
from gpt_modules.training import artefacts, optimizers
from gpt_modules.training.accumulation import BatchConfig, StepMean, TokenClock, begin_step
from gpt_modules.training.callbacks.writer import log_interval
from gpt_modules.training.from_checkpoint import FromCheckpoint
from gpt_modules.training.hyperparameters import arguments, expect_number, refuse_idle, typed
from gpt_modules.training.language import HeldOutText, check_samples, continuation_rows, row_losses, step_loss
from gpt_modules.training.optimizers import OptimizerConfig, ScheduleConfig
from gpt_modules.training.run_length import Place, place_of, run_length
from gpt_modules.training.sharding.models import shard


class PretrainingModule(FromCheckpoint):
    """Trains a GPT on windows of text and reports perplexity on held-out text.

    Args:
        config: the decoder to build; the recipe shows every size.
        init_from: a folder to go on from in place of `config`.
        optimizer: AdamW's settings.
        schedule: learning rate over the run; `unit: tokens` counts tokens over all devices.
        batch: tokens of an optimizer step over all devices, in place of `trainer.accumulate_grad_batches`.
        max_tokens: tokens after which the run ends, in place of `trainer.max_steps`.
        compile: compile each block with `torch.compile`.
        recompute: recompute activations in the backward pass instead of storing them: a third more work, a fraction of
            the memory, the same numbers.
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
        batch: BatchConfig | None = None,
        max_tokens: float | None = None,
        compile: bool = False,
        recompute: bool = False,
        sample_prompts: list[str] | None = None,
        sample_tokens: int = 32,
        seed: int = 0,
    ) -> None:
        given = arguments(locals())
        super().__init__()
        self.config = None if config is None else typed(DecoderConfig, config)
        self.optimizer_config = typed(OptimizerConfig, optimizer)
        self.schedule_config = typed(ScheduleConfig, schedule)
        refuse_idle(self, optimizer=self.optimizer_config, schedule=self.schedule_config)
        self.batch_config = None if batch is None else typed(BatchConfig, batch)
        self.save_hyperparameters(given)
        expect_number("max_tokens", 1 if max_tokens is None else max_tokens, "(0, inf)")
        check_samples(sample_prompts, sample_tokens, seed, usual=32)
        self.held_out = HeldOutText()
        self.tokens_seen = 0  # by all devices, since the first step of the run
        self.step = StepMean()
        self.clock: TokenClock
        self.model: GPT

    def configure_model(self) -> None:
        """Build or open the model; here and not in `__init__`, so that a user's mistake surfaces as one line."""
        artefacts.expect_data(self, PretrainingDataModule, SFTDataModule)
        if hasattr(self, "model"):
            return
        sharded = self.device_mesh is not None
        self.model = artefacts.open_gpt(self.config, self.hparams["init_from"], blank=sharded)
        artefacts.check_data(self, self.model.config)
        self.model.decoder.recompute = self.hparams["recompute"]
        self.model.decoder.expect_one_width()
        if self.hparams["compile"]:
            self.model.decoder.compile_blocks()
        if sharded:
            shard(self.model, self)

    def on_train_batch_start(self, batch: TokenBatch | PackedBatch, batch_idx: int) -> None:
        """The first micro-batch of a step decides how many follow."""
        if self.batch_config is not None and self.step.empty:
            begin_step(self.trainer, self.clock.micro_batches(self.tokens_seen))

    def training_step(self, batch: TokenBatch | PackedBatch, batch_idx: int) -> Tensor:
        """Cross-entropy of the batch's tokens, in the scale of `StepMean`."""
        self.tokens_seen += batch.inputs.numel() * self.trainer.world_size
        return step_loss(self.step, self.model, batch)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """`train/loss`, the mean over the step's tokens; the number of tokens so far, and what sources they are of."""
        self.log("train/loss", self.step.close(self))
        if (self.trainer.global_step + 1) % log_interval(self.trainer):
            return  # numbers of the host are copied to the device to be logged: not in every step
        self.log("train/tokens", float(self.tokens_seen))
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, PretrainingDataModule):
            self.log_dict({f"mix/{name}": value for name, value in data.realised_mix().items()})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The tokens seen: what schedules go by."""
        checkpoint["tokens_seen"] = self.tokens_seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore them."""
        expect_number("tokens_seen", checkpoint["tokens_seen"], "[0, inf)", whole=True)
        self.tokens_seen = checkpoint["tokens_seen"]

    def validation_step(self, batch: TokenBatch | PackedBatch, batch_idx: int) -> None:
        """Token-weighted, so that a short last window does not weigh more."""
        self.held_out.read(self.model, batch)

    def on_validation_epoch_end(self) -> None:
        """`val/loss` in nats a token and `val/perplexity`."""
        self.held_out.log(self, "val")

    def test_step(self, batch: TokenBatch | PackedBatch, batch_idx: int) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """`test/loss` and `test/perplexity`."""
        self.held_out.log(self, "test")

    def predict_step(self, batch: TokenBatch | PackedBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Nats and counted tokens of each row."""
        return row_losses(self.model, batch)

    def configure_optimizers(self) -> Any:
        """The optimizer and its schedule; from here on the run's length in steps is known."""
        place = place_of(self.trainer)
        self.clock = clock = self._clock(place)
        if (budget := self._budget(place)) is None:
            steps = run_length(self.trainer)
        else:
            steps = self.trainer.fit_loop.epoch_loop.max_steps = clock.steps(budget)
        groups = optimizers.parameter_groups([self.model], self.optimizer_config.weight_decay)
        optimizer = optimizers.build(groups, self.optimizer_config, hidden=self.model.decoder.blocks)
        tokens = (lambda: (self.tokens_seen, clock.after_next(self.tokens_seen)), clock.tokens(steps))
        return optimizers.configure(optimizer, self.schedule_config, steps, tokens)

    def _clock(self, place: Place) -> TokenClock:
        trainer, data = self.trainer, self.trainer.datamodule  # type: ignore[attr-defined]
        if self.batch_config is not None and trainer.accumulate_grad_batches != 1:
            found = f"found {trainer.accumulate_grad_batches} beside model.batch"
            raise UserError(f"trainer.accumulate_grad_batches: {found}, expected one of them")
        micro_batch = data.batch_size * data.context * trainer.world_size
        if self.batch_config is not None and micro_batch > (smallest := self.batch_config.at(0)):
            found = f"found {data.batch_size} windows of {data.context} tokens on {trainer.world_size} devices"
            raise UserError(f"data.batch_size: {found}, expected no more than the first step's {smallest:g} tokens")
        together, left = trainer.accumulate_grad_batches, place.batches - place.used
        return TokenClock(micro_batch, together, place.whole, self.batch_config, place.steps, self.tokens_seen, left)

    def _budget(self, place: Place) -> float | None:
        """Tokens after which the run ends, where Lightning's own count of steps does not say it."""
        trainer, given = self.trainer, self.hparams["max_tokens"]
        if given is not None and trainer.max_steps != -1:
            raise UserError(f"trainer.max_steps: found {trainer.max_steps} beside max_tokens, expected one of them")
        if given is not None or self.batch_config is None or trainer.max_steps != -1:
            return None if given is None else float(given)
        if math.isinf(place.epochs):
            return None
        left = place.batches - place.used + place.epochs * place.whole
        return self.tokens_seen + left * self.clock.micro_batch

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
