"""The reward model: step 2 of InstructGPT (Ouyang et al. 2022, section 3.5 and appendix C.2)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt_modules.backbone import LoRAConfig, RewardModel
from gpt_modules.data import RewardDataModule
from gpt_modules.data.batches import PromptBatch, RankingBatch
from gpt_modules.errors import expect
from gpt_modules.functional import ranking_losses
from gpt_modules.training import artefacts
from gpt_modules.training.accumulation import StepMean
from gpt_modules.training.callbacks.dashboard import REWARD_LAYOUT
from gpt_modules.training.callbacks.writer import tensorboard
from gpt_modules.training.from_checkpoint import FromCheckpoint
from gpt_modules.training.hyperparameters import arguments, expect_number
from gpt_modules.training.learning import configure, learning_settings, prepare
from gpt_modules.training.lora import ADAPTER, export_merged
from gpt_modules.training.optimizers import OptimizerConfig, ScheduleConfig
from gpt_modules.training.preference_metrics import PreferenceMetrics, StepRatio, right_pairs


class RewardModule(FromCheckpoint):
    """Learns a scalar from ranked answers: every pair of a prompt's K answers, one forward an answer, each prompt
    weighing the same.

    The exported folder carries the bias that makes demonstrations score 0 on average (appendix C.2), and it may carry a
    scale. Neither is in a loss or a metric of preferences: these are of the raw output, whose differences are
    log-odds, in training as in a validation of the exported folder. A reward model that is trained further goes on from
    its raw output; predictions are scores, as PPO sees them.

    Args:
        init_from: folder of the SFT (or pretrained) model, or of a reward model to train further.
        dropout: residual, embedding and attention dropout; left out: as stored.
        unit_scale: also divide by the standard deviation of the demonstrations' scores, so that a coefficient of the KL
            penalty means the same for any reward model. (Ziegler et al. 2019, section 2.2, normalise to mean 0 and
            variance 1 too, but over samples of the policy.)
        lora: low-rank updates learn in place of the trunk, beside the head; merged in the exported folder, with an
            adapter for `peft` beside it.
        optimizer: AdamW's settings; InstructGPT's rate is 9e-6.
        schedule: InstructGPT has a cosine to 10 % over one epoch.
        compile: compile each block with `torch.compile`.
    """

    def __init__(
        self,
        init_from: str,
        dropout: float | None = None,
        unit_scale: bool = False,
        lora: LoRAConfig | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(lr=9e-6, weight_decay=0.0),
        schedule: ScheduleConfig = ScheduleConfig(),
        compile: bool = False,
    ) -> None:
        given = arguments(locals())
        super().__init__()
        found = learning_settings(self, lora, optimizer, schedule)
        self.lora, self.optimizer_config, self.schedule_config = found
        self.save_hyperparameters(given)
        if dropout is not None:
            expect_number("dropout", dropout, "[0, 1)")
        self.held_out = PreferenceMetrics()
        self.step = StepMean()
        self.right = StepRatio("train/accuracy")
        self.model: RewardModel

    @property
    def also_exports(self) -> tuple[str, ...]:
        """What is written beside the export."""
        return () if self.lora is None else (ADAPTER,)

    def configure_model(self) -> None:
        """Open the trunk."""
        artefacts.expect_data(self, RewardDataModule)
        if hasattr(self, "model"):
            return
        self.model = artefacts.open_scorer(
            self.hparams["init_from"], self, **artefacts.dropout_changes(self.hparams["dropout"])
        )
        prepare(self, self.lora)

    def on_fit_start(self) -> None:
        """Refuse what the export could not be centred by."""
        demonstrations = self._demonstrations()
        if self.hparams["unit_scale"]:
            different = {tuple(row.tolist()) for batch in demonstrations for row in batch.tokens}
            expect(len(different) > 1, "unit_scale", len(different), "two different demonstrations to measure it on")

    def prompt_scores(self, batch: RankingBatch) -> Tensor:
        """Raw scores as (P, K); a cell that holds no answer gets that of row 0 and is masked by the caller."""
        return self.model.raw_scores(batch.tokens, batch.lengths)[batch.index.clamp(min=0)]

    def training_step(self, batch: RankingBatch, batch_idx: int) -> Tensor:
        """-log sigmoid of the margin, over the pairs of each prompt, then over the prompts, in the scale of
        `StepMean`.
        """
        scores = self.prompt_scores(batch)
        losses, counted = ranking_losses(scores, batch.ranks, batch.mask)
        self.right.add(*right_pairs(batch, scores))
        return self.step.add(losses.sum(), counted.sum(), len(losses))

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """`train/loss`, the mean over the step's prompts; `train/accuracy`, over its pairs."""
        self.log("train/loss", self.step.close(self))
        self.right.close(self)

    def validation_step(self, batch: RankingBatch, batch_idx: int) -> None:
        """Accuracy and calibration over all untied pairs; the loss over all prompts that have one."""
        self.held_out.add(batch, self.prompt_scores(batch))

    def on_validation_epoch_end(self) -> None:
        """Accuracy, margin, expected calibration error and its figure; and where the model is right, see
        `preference_metrics`.
        """
        self.held_out.log(self, "val")

    def test_step(self, batch: RankingBatch, batch_idx: int) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """The same metrics as `test/...`."""
        self.held_out.log(self, "test")

    def predict_step(self, batch: RankingBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Each prompt's scores beside the ranks that people gave (1 is best)."""
        scores = self.model(batch.tokens, batch.lengths)[batch.index.clamp(min=0)]
        rows = zip(scores, batch.ranks, batch.mask, strict=True)
        return [{"scores": scores[kept].tolist(), "ranks": ranks[kept].tolist()} for scores, ranks, kept in rows]

    def on_train_start(self) -> None:
        """The curves of preferences stand side by side in TensorBoard's custom scalars."""
        writer = tensorboard(self.trainer)
        if writer is not None:
            writer.add_custom_scalars(REWARD_LAYOUT)

    def configure_optimizers(self) -> Any:
        """AdamW and the schedule."""
        return configure(self, self.optimizer_config, self.schedule_config)

    def work(self, batch: RankingBatch) -> tuple[int, str]:
        """Answers of a batch, for the throughput."""
        return batch.tokens.shape[0], "answers"

    @torch.no_grad()
    def centre(self) -> None:
        """Set the model's bias (and scale) so that demonstrations score 0 (with standard deviation 1).

        Raises:
            UserError: they have no standard deviation to be divided by.
        """
        training = self.model.training
        self.model.eval()
        batches = [(batch.tokens.to(self.device), batch.lengths.to(self.device)) for batch in self._demonstrations()]
        raw = torch.cat([self.model.raw_scores(*batch) for batch in batches]).double()
        spread = float(raw.std()) if self.hparams["unit_scale"] else 1.0
        expect(spread > 0, "unit_scale", spread, "demonstrations that do not all score the same")
        self.model.bias.copy_(-raw.mean())
        self.model.scale.fill_(1.0 / spread)
        self.model.train(training)

    def _demonstrations(self) -> list[PromptBatch]:
        batches: list[PromptBatch] = self.trainer.datamodule.demonstrations()  # type: ignore[attr-defined]
        return batches

    def export(self, folder: Path) -> None:
        """Centre, then write the folder; bias and scale are part of it."""
        self.centre()
        export_merged(self, self.model, self.lora, self.hparams["init_from"], folder)
