"""Fine-tuning on a labelled task: GPT-1's second stage (Radford et al. 2018, sections 3.2, 3.3 and 4.1)."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gpt_modules.backbone import DecoderConfig, LabellingModel, LoRAConfig, add_lora
from gpt_modules.data import FinetuningDataModule
from gpt_modules.data.batches import IGNORE, LabelledBatch
from gpt_modules.errors import UserError
from gpt_modules.functional import linear_cross_entropy, row_mean_weights
from gpt_modules.labelling import Labelling
from gpt_modules.training import artefacts, labelling_metrics, optimizers
from gpt_modules.training.accumulation import StepMean
from gpt_modules.training.callbacks.figures import confusion_figure
from gpt_modules.training.callbacks.writer import tensorboard
from gpt_modules.training.from_checkpoint import FromCheckpoint
from gpt_modules.training.hyperparameters import arguments, expect_idle, expect_number, refuse_idle, typed
from gpt_modules.training.optimizers import OptimizerConfig, ScheduleConfig
from gpt_modules.training.processes import HeldOut
from gpt_modules.training.run_length import run_length
from gpt_modules.training.sharding.models import shard
from gpt_modules.training.trainable import freeze, groups_by_depth, learn_rows

SHOWN_ROWS = 8


class FinetuningModule(FromCheckpoint):
    """Trains a pretrained GPT with a new head, and goes on predicting the text: L3 = L2 + lm_coef * L1 (equation 5).

    What the DataModule calls its task decides on the head, the loss and the metrics. The head has no bias, as in the
    paper (equation 3); the original code has one. Its first step has a rate of 0, and its decay is scheduled with the
    rate; here the schedule is the paper's, and AdamW is torch's. The auxiliary loss is, as in that code, a mean over
    each row's tokens and then over rows.

    Args:
        init_from: folder (or hub name) of the pretrained model, or of a task model to go on with: of the same task, or
            meta-learned for as many classes.
        config: a decoder to begin from scratch with, in place of `init_from`.
        init_layers: take the embeddings and the lowest so many blocks from the pretrained model, the rest fresh (the
            paper's figure 2); left out: all.
        lm_coef: λ, the weight of the auxiliary loss; 0.5 in the paper.
        dropout: residual, embedding and attention dropout, as the paper has it; left out: as pretrained, or as
            `config` says.
        classifier_dropout: before the head.
        freeze: keep the embeddings and the lowest so many blocks as they are; the new tokens still learn.
        layer_decay: each layer below the head learns at this multiple of the rate of the one above.
        lora: low-rank updates in place of the matrices; merged in the exported folder.
        optimizer: the paper's rate is 6.25e-5.
        schedule: the paper's is linear to 0 after a warm-up over 0.2 % of the run.
        compile: compile each block with `torch.compile`.
    """

    def __init__(
        self,
        init_from: str | None = None,
        config: DecoderConfig | None = None,
        init_layers: int | None = None,
        lm_coef: float = 0.5,
        dropout: float | None = None,
        classifier_dropout: float = 0.1,
        freeze: int | None = None,
        layer_decay: float = 1.0,
        lora: LoRAConfig | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(lr=6.25e-5, betas=(0.9, 0.999), weight_decay=0.01),
        schedule: ScheduleConfig = ScheduleConfig(shape="linear", warmup=0.002, final=0.0, unit="run"),
        compile: bool = False,
    ) -> None:
        given = arguments(locals())
        super().__init__()
        self.config = None if config is None else typed(DecoderConfig, config)
        self.lora = None if lora is None else typed(LoRAConfig, lora)
        self.optimizer_config = typed(OptimizerConfig, optimizer)
        self.schedule_config = typed(ScheduleConfig, schedule)
        refuse_idle(self, optimizer=self.optimizer_config, schedule=self.schedule_config)
        self.save_hyperparameters(given)
        expect_number("lm_coef", lm_coef, "[0, inf)")
        expect_number("dropout", dropout or 0.0, "[0, 1)")
        expect_number("classifier_dropout", classifier_dropout, "[0, 1)")
        expect_number("init_layers", init_layers or 0, "[0, inf)", whole=True)
        expect_number("freeze", freeze or 0, "[0, inf)", whole=True)
        expect_number("layer_decay", layer_decay, "(0, 1]")
        if self.optimizer_config.muon_lr:
            one_of_them = "optimizer.muon_lr has one rate for all blocks (--model.optimizer.muon_lr 0 leaves it out)"
            expect_idle("layer_decay", layer_decay, [1.0], one_of_them)
        self.held_out, self.answers = HeldOut("loss", "labelled", "lm_loss", "examples"), HeldOut("decided", "right")
        self.step = StepMean()
        self._shares: list[Tensor] = []  # of the step's micro-batches: sums of both losses, and what they are over
        self.task_ids: tuple[int, ...] = ()  # of the tokens around a row, once there is a model
        self.model: LabellingModel

    @property
    def data(self) -> Any:
        """The run's FinetuningDataModule."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    @property
    def task(self) -> Labelling:
        """What the data says it is."""
        return self.model.task

    def configure_model(self) -> None:
        """Open the pretrained model and give it the task's head and tokens. Without a Trainer, whose data say which
        these are, a checkpoint does.
        """
        artefacts.expect_data(self, FinetuningDataModule)
        if not hasattr(self, "model") and self._trainer is not None:
            self._make(self.data.task_spec, self.data.tokenizer.task_ids)

    def _make(self, task: Labelling, task_ids: tuple[int, int, int]) -> None:
        self.task_ids, self.model = task_ids, self._open(task, task_ids)
        artefacts.check_data(self, self.model.config)
        self._choose_what_learns()
        if self.hparams["compile"]:
            self.model.decoder.compile_blocks()
        if self.device_mesh is not None:
            shard(self.model, self)
        for matrix in self._vocabulary() if self._rows_alone else []:
            learn_rows(matrix, task_ids)
        if not self.hparams["lm_coef"] and not self.model.config.tied:  # the only loss that reads it
            self.model.lm_head.requires_grad_(False)

    def _open(self, task: Labelling, special_ids: tuple[int, int, int]) -> LabellingModel:
        source = artefacts.open_source(
            self.config, self.hparams["init_from"], **artefacts.dropout_changes(self.hparams["dropout"])
        )
        if self.hparams["init_from"] is None or isinstance(source, LabellingModel):
            why = "a decoder from scratch is fresh throughout" if self.config else "a task model is taken whole"
            expect_idle("init_layers", self.hparams["init_layers"], [None], why)
        if isinstance(source, LabellingModel):
            source.drop_before_head(self.hparams["classifier_dropout"])
            if source.task.is_named_by(task):
                source.task = task
            if source.task.to_dict() != task.to_dict():
                raise UserError(
                    f"{self.hparams['init_from']}: found a model of the task {source.task}, expected one of {task}"
                )
            return source
        artefacts.refuse_random_head(self)
        if min(special_ids) > source.config.vocab_size:
            raise UserError(
                f"model: found a model of {source.config.vocab_size} tokens, "
                f"expected at least the tokenizer's {min(special_ids)}"
            )
        return LabellingModel.from_gpt(
            source, task, special_ids, self.hparams["init_layers"], self.hparams["classifier_dropout"]
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The task and its tokens: the weights do not say what their outputs mean."""
        checkpoint["task"], checkpoint["task_ids"] = self.task.to_dict(), list(self.task_ids)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse classes with other names; numbers keep the mean and spread that the head has learnt."""
        stored = Labelling.from_dict(checkpoint["task"])
        if not hasattr(self, "model"):
            rows = len(checkpoint["state_dict"]["model.decoder.wte.weight"])
            start, delimiter, extract = checkpoint.get("task_ids") or range(rows - 3, rows)  # earlier ones lack them
            self._make(stored, (start, delimiter, extract))
        if dataclasses.replace(stored, mean=self.task.mean, std=self.task.std) != self.task:
            raise UserError(f"--ckpt_path: found a model of the task {stored}, expected one of {self.task}")
        self.model.task = stored

    def _choose_what_learns(self) -> None:
        decoder = self.model.decoder
        if self.lora is not None:
            add_lora(decoder, self.lora)
        if self.hparams["freeze"] is not None:
            freeze(decoder, self.hparams["freeze"])

    @property
    def _rows_alone(self) -> bool:
        """Whether of the vocabulary only the new tokens learn."""
        return self.lora is not None or self.hparams["freeze"] is not None

    def _vocabulary(self) -> list[nn.Embedding | nn.Linear]:
        """The matrices that have a row for each token: the embedding, and an output matrix of its own."""
        return [self.model.decoder.wte, *([] if self.model.config.tied else [self.model.lm_head])]

    def losses(self, batch: LabelledBatch) -> tuple[Tensor, Tensor, Tensor]:
        """(outputs, L2, L1) as losses: what the head says, how wrong that is, and the nats a token of the text."""
        hidden = self.model.hidden(batch.tokens)
        outputs = self.model.outputs(hidden, batch.lengths, batch.index)
        lm_loss = self._lm_loss(hidden, batch) if self.hparams["lm_coef"] else outputs.new_zeros(())
        return outputs, labelling_metrics.task_loss(outputs, batch.labels, self.task), lm_loss

    def _lm_loss(self, hidden: Tensor, batch: LabelledBatch) -> Tensor:
        """Every token after the first is predicted, the delimiter and the extract token too: a mean over a row's
        tokens, over an example's rows, over examples.
        """
        places = torch.arange(1, batch.tokens.shape[1], device=hidden.device)
        counted = places < batch.lengths[:, None]
        labels = batch.tokens[:, 1:].masked_fill(~counted, IGNORE)
        weights = row_mean_weights(counted) * _row_shares(batch)[:, None]
        states = hidden[:, :-1].flatten(0, 1)
        return linear_cross_entropy(states, self.model.head_weight, labels.flatten(), row_weights=weights.flatten())

    def training_step(self, batch: LabelledBatch, batch_idx: int) -> Tensor:
        """L2 + lm_coef * L1, in the scale of `StepMean`."""
        _, loss, lm_loss = self.losses(batch)
        labelled, examples = labelling_metrics.has_label(batch.labels, self.task).sum(), _examples(batch).sum()
        self._shares.append(torch.stack([loss * labelled, lm_loss * examples, labelled, examples]).detach())
        total = loss * labelled + self.hparams["lm_coef"] * lm_loss * examples
        return self.step.add(total, labelled, len(batch.labels))

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """`train/loss`, the mean over the step's labelled examples, and the two that it is the sum of."""
        self.log("train/loss", self.step.close(self))
        sums = self.trainer.strategy.reduce(torch.stack(self._shares).sum(0), reduce_op="sum")
        self._shares = []
        task_loss, lm_loss = sums[:2] / sums[2:].clamp(min=1)
        self.log_dict({"train/task_loss": task_loss, "train/lm_loss": lm_loss})

    def validation_step(self, batch: LabelledBatch, batch_idx: int) -> None:
        """Loss and metrics over the labelled examples."""
        outputs, loss, lm_loss = self.losses(batch)
        labelled, examples = labelling_metrics.has_label(batch.labels, self.task).sum(), _examples(batch).sum()
        self.held_out.add(loss=loss, labelled=labelled, lm_loss=lm_loss, examples=examples)
        decided, right = labelling_metrics.answered(outputs, batch.labels, self.task)
        self.answers.add(decided=decided, right=right)

    def on_validation_epoch_end(self) -> None:
        """`val/loss` (without the auxiliary one), the task's metrics, and the confusion matrix."""
        self._log_metrics("val")

    def test_step(self, batch: LabelledBatch, batch_idx: int) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """The same as `test/...`."""
        self._log_metrics("test")

    def _log_metrics(self, stage: str) -> None:
        sums, (decided, right) = self.held_out.take(), self.answers.take().values()
        values = labelling_metrics.measured(decided, right, self.task)
        values["loss"] = float((sums["loss"] * sums["labelled"]).sum() / sums["labelled"].sum())
        if self.hparams["lm_coef"]:
            values["lm_loss"] = float((sums["lm_loss"] * sums["examples"]).sum() / sums["examples"].sum())
        # Equal on all processes; said, as Lightning warns otherwise.
        self.log_dict({f"{stage}/{name}": value for name, value in values.items()}, prog_bar=True, sync_dist=True)
        writer, names = tensorboard(self.trainer), self.task.labels
        if writer is not None and not self.trainer.sanity_checking and labelling_metrics.has_named_classes(self.task):
            counts = labelling_metrics.confusion(decided, right, len(names)).numpy()
            writer.add_figure(f"{stage}/confusion", confusion_figure(counts, names), self.global_step)

    def predict_step(self, batch: LabelledBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Each example's prediction with its probabilities."""
        outputs = self.model(batch.tokens, batch.lengths, batch.index)
        return labelling_metrics.prediction_rows(outputs, batch.labels, self.task)

    def configure_optimizers(self) -> Any:
        """AdamW (or Muon for the blocks) and the schedule."""
        config, decay = self.optimizer_config, self.hparams["layer_decay"]
        decoder = self.model.decoder
        groups = groups_by_depth(decoder, self.model.head, config.lr, decay, config.weight_decay)
        groups += optimizers.parameter_groups(self._vocabulary()[1:], config.weight_decay, lr=config.lr)
        for matrix in self._vocabulary() if self._rows_alone else []:  # a decay would move the rows that shall stay
            groups = [_without_decay(group) if _holds(group, matrix.weight) else group for group in groups]
        optimizer = optimizers.build(groups, config, hidden=decoder.blocks)
        return optimizers.configure(optimizer, self.schedule_config, run_length(self.trainer))

    def work(self, batch: LabelledBatch) -> tuple[int, str]:
        """Cells of the rows; rows of a batch are alike in length, and what is left empty is a few per cent."""
        return batch.tokens.numel(), "tokens"

    def flops_per_token(self) -> float:
        """Of a training step."""
        return self.model.config.flops_per_token(self.data.context)

    @torch.no_grad()
    def sample_rows(self) -> list[dict[str, str]]:
        """The first held-out texts with their labels and predictions."""
        batch = LabelledBatch(*(field.to(self.device) for field in next(iter(self.data.predict_dataloader()))))
        training = self.model.training
        self.model.eval()
        rows = self.predict_step(batch, 0)
        self.model.train(training)
        texts = [self._text(batch, i) for i in range(min(SHOWN_ROWS, len(rows)))]
        return [
            {"text": text, "label": str(row.get("label", "")), "prediction": str(row["prediction"])}
            for text, row in zip(texts, rows, strict=False)
        ]

    def _text(self, batch: LabelledBatch, example: int) -> str:
        rows = [int(row) for row in batch.index[example] if row >= 0]
        texts = [self.data.tokenizer.decode(batch.tokens[row, : batch.lengths[row]].tolist(), False) for row in rows]
        return " / ".join(texts)

    def export(self, folder: Path) -> None:
        """Write the task model's folder, LoRA merged."""
        artefacts.export(self, self.model, folder)


def _examples(batch: LabelledBatch) -> Tensor:
    """(B,) whether a place of the batch has an example."""
    return (batch.index >= 0).any(1)


def _row_shares(batch: LabelledBatch) -> Tensor:
    """(N,) what a row weighs among all N, so that each example weighs the same however many answers it has."""
    rows = (batch.index >= 0).sum(1, keepdim=True).expand_as(batch.index)
    shares = torch.zeros(len(batch.lengths) + 1, device=batch.index.device)  # the last one is what -1 points at
    shares[batch.index] = 1.0 / rows.clamp(min=1)
    return shares[:-1] * len(batch.lengths) / _examples(batch).sum().clamp(min=1)


def _holds(group: dict[str, Any], parameter: Tensor) -> bool:
    return any(p is parameter for p in group["params"])


def _without_decay(group: dict[str, Any]) -> dict[str, Any]:
    return {**group, "weight_decay": 0.0}
