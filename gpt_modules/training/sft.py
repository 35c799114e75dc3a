"""Supervised fine-tuning on demonstrations: step 1 of InstructGPT (Ouyang et al. 2022, section 3.5 and appendix
C.1).
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from gpt_modules.backbone import GPT, LoRAConfig
from gpt_modules.data import PretrainingDataModule, SFTDataModule
from gpt_modules.data.batches import MixedBatch, PackedBatch, TokenBatch
from gpt_modules.training import artefacts
from gpt_modules.training.accumulation import StepMean
from gpt_modules.training.from_checkpoint import FromCheckpoint
from gpt_modules.training.hyperparameters import arguments, expect_number
from gpt_modules.training.language import HeldOutText, check_samples, continuation_rows, parts, row_losses, step_loss
from gpt_modules.training.learning import configure, learning_settings, prepare
from gpt_modules.training.lora import ADAPTER, export_merged
from gpt_modules.training.optimizers import OptimizerConfig, ScheduleConfig


class SFTModule(FromCheckpoint):
    """Trains a pretrained GPT on prompt and response, with the loss on the response and its end-of-text token only.

    Where the data has pretraining text beside the demonstrations, all tokens of its windows are learnt, too (appendix
    C.3), and what is left of it is measured.

    Args:
        init_from: folder (or hub name) of the pretrained model.
        dropout: on the residual path, 0.2 in InstructGPT (appendix C.1); embedding and attention dropout stay as
            pretrained. Left out: so does this.
        lora: low-rank updates learn in place of the model; merged in the exported folder, with an adapter for
            `peft` beside it.
        optimizer: AdamW's settings; InstructGPT's rate is 9.65e-6 at 1.3B and 6B.
        schedule: InstructGPT has no warm-up and a cosine to 10 %.
        compile: compile each block with `torch.compile`.
        sample_prompts: prompts to answer after each validation; where the data is in turns, what a user says.
        sample_tokens: longest answer shown.
        seed: of the samples.
    """

    def __init__(
        self,
        init_from: str,
        dropout: float | None = None,
        lora: LoRAConfig | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(lr=1e-5),
        schedule: ScheduleConfig = ScheduleConfig(),
        compile: bool = False,
        sample_prompts: list[str] | None = None,
        sample_tokens: int = 48,
        seed: int = 0,
    ) -> None:
        given = arguments(locals())
        super().__init__()
        found = learning_settings(self, lora, optimizer, schedule)
        self.lora, self.optimizer_config, self.schedule_config = found
        self.save_hyperparameters(given)
        expect_number("dropout", dropout or 0.0, "[0, 1)")
        check_samples(sample_prompts, sample_tokens, seed, usual=48)
        self.held_out, self.held_out_pretraining = HeldOutText(), HeldOutText()
        self.step = StepMean()
        self.model: GPT

    @property
    def also_exports(self) -> tuple[str, ...]:
        """What is written beside the export."""
        return () if self.lora is None else (ADAPTER,)

    def configure_model(self) -> None:
        """Open the pretrained folder."""
        artefacts.expect_data(self, SFTDataModule, PretrainingDataModule)
        if hasattr(self, "model"):
            return
        dropout = self.hparams["dropout"]
        changes = {} if dropout is None else {"resid_pdrop": dropout}
        self.model = artefacts.open_gpt(None, self.hparams["init_from"], **changes)
        prepare(self, self.lora)

    def training_step(self, batch: PackedBatch | TokenBatch | MixedBatch, batch_idx: int) -> Tensor:
        """Cross-entropy of the batch's response tokens and pretraining tokens, in the scale of `StepMean`."""
        return step_loss(self.step, self.model, batch)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """`train/loss`, the mean over the tokens that the step learns."""
        self.log("train/loss", self.step.close(self))

    def validation_step(self, batch: PackedBatch | TokenBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Weighted by response tokens; the second loader has held-out pretraining text."""
        (self.held_out_pretraining if dataloader_idx else self.held_out).read(self.model, batch)

    def on_validation_epoch_end(self, stage: str = "val") -> None:
        """`val/loss` in nats a response token and `val/perplexity`; of pretraining text `val/pretraining_loss` and
        `val/pretraining_perplexity`.
        """
        self.held_out.log(self, stage)
        if artefacts.pretraining_text(self) is not None:
            self.held_out_pretraining.log(self, stage, "pretraining_")

    def test_step(self, batch: PackedBatch | TokenBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        """The same as `test/...`."""
        self.on_validation_epoch_end("test")

    def predict_step(self, batch: PackedBatch | TokenBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Nats and counted tokens of each row."""
        return row_losses(self.model, batch)

    def configure_optimizers(self) -> Any:
        """AdamW and the schedule, in steps: packed rows hold a varying number of response tokens."""
        return configure(self, self.optimizer_config, self.schedule_config)

    def work(self, batch: PackedBatch | TokenBatch | MixedBatch) -> tuple[int, str]:
        """Cells of the rows; what packing leaves empty is a few per cent."""
        return sum(part.inputs.numel() for part in parts(batch)), "tokens"

    def flops_per_token(self) -> float:
        """Of a training step."""
        return self.model.config.flops_per_token(self.trainer.datamodule.context)  # type: ignore[attr-defined]

    def sample_rows(self) -> list[dict[str, str]]:
        """Answers to the recipe's prompts, asked in the form that the data has."""
        in_turns: bool = self.trainer.datamodule.in_turns  # type: ignore[attr-defined]
        given = self.hparams
        return continuation_rows(self, self.model, given["sample_prompts"], given["sample_tokens"], in_turns)

    def export(self, folder: Path) -> None:
        """Write config.json, model.safetensors and the tokenizer."""
        export_merged(self, self.model, self.lora, self.hparams["init_from"], folder)
