"""Direct preference optimisation (Rafailov et al. 2023): a policy from comparisons, without a reward model and without
sampling.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gpt_modules.backbone import GPT, LoRAConfig
from gpt_modules.data import RewardDataModule
from gpt_modules.data.batches import RankingBatch
from gpt_modules.data.reward import Comparisons
from gpt_modules.errors import UserError, expect
from gpt_modules.functional import PreferenceLosses, dpo_losses, preferred_nlls, untied_pairs
from gpt_modules.storage.documents import typed as read_typed
from gpt_modules.training import artefacts
from gpt_modules.training.accumulation import StepMean
from gpt_modules.training.answer_logprobs import ReferenceLogprobs, answer_logprobs
from gpt_modules.training.callbacks.dashboard import DPO_LAYOUT
from gpt_modules.training.callbacks.writer import tensorboard
from gpt_modules.training.from_checkpoint import FromCheckpoint
from gpt_modules.training.hyperparameters import arguments, expect_idle, expect_number
from gpt_modules.training.language import check_samples, continuation_rows
from gpt_modules.training.learning import configure, learning_settings, prepare
from gpt_modules.training.lora import ADAPTER, export_merged
from gpt_modules.training.optimizers import OptimizerConfig, ScheduleConfig
from gpt_modules.training.preference_metrics import PreferenceMetrics, StepRatio, right_pairs
from gpt_modules.training.processes import HeldOut
from gpt_modules.training.rl.unchanged import check_unchanged

ROUNDING = 1e-4  # nats of a whole answer, which policy and reference read in other batches


class State(NamedTuple):
    """What a checkpoint says of a run beside weights and optimizer.

    frozen: SHA-256 of the reference.
    """

    frozen: dict[str, str | None]


class DPOModule(FromCheckpoint):
    """Moves a policy towards the answers that people prefer, on the comparisons that a reward model would learn from.

    The reward of an answer is what the policy has come to say of it: beta (log pi - log pi_ref). All untied pairs of a
    prompt's K answers count, and each prompt weighs the same, as for a reward model. Dropout is off, so that a policy
    that begins as its reference prefers nothing: the first loss is ln 2. The reference reads each answer once, before
    the first step, and is no part of any checkpoint, which knows it by its SHA-256.

    Args:
        init_from: folder of the policy to begin with, the SFT model.
        reference_from: folder of the reference; left out: init_from.
        lora: low-rank updates learn in place of the policy; merged in the exported folder, with an adapter for `peft`
            beside it.
        beta: reward per nat, which holds the policy to the reference. The paper has 0.1, and 0.5 for summaries.
        rpo_alpha: weight of the preferred answers' negative log-likelihood, nats per token, beside the loss: it holds
            them where both answers of a pair would become less likely. Pang et al. 2024 have 1; see `preferred_nlls`.
        optimizer: AdamW's settings. The paper has RMSprop at 1e-6, which is AdamW with betas of 0 and 0.99 but for the
            correction of the bias.
        schedule: the paper has a linear warm-up over 150 steps, then a constant rate.
        compile: compile each block with `torch.compile`.
        sample_prompts: prompts to answer after each validation; where the data is in turns, what a user says.
        sample_tokens: longest answer shown.
        seed: of the samples.
    """

    def __init__(
        self,
        init_from: str,
        reference_from: str | None = None,
        lora: LoRAConfig | None = None,
        beta: float = 0.1,
        rpo_alpha: float = 0.0,
        optimizer: OptimizerConfig = OptimizerConfig(lr=1e-6, betas=(0.0, 0.99), weight_decay=0.0),
        schedule: ScheduleConfig = ScheduleConfig(shape="constant"),
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
        expect_number("beta", beta, "(0, inf)")
        expect_number("rpo_alpha", rpo_alpha, "[0, inf)")
        check_samples(sample_prompts, sample_tokens, seed, usual=48)
        self.reference = ReferenceLogprobs(init_from if reference_from is None else reference_from)
        self.held_out, self.held_out_logprobs = PreferenceMetrics(), HeldOut("chosen_logprob", "rejected_logprob")
        self.step, self.right, self.nll = StepMean(), StepRatio("train/accuracy"), StepRatio("train/nll")
        self.model: GPT

    @property
    def also_exports(self) -> tuple[str, ...]:
        """What is written beside the export."""
        return () if self.lora is None else (ADAPTER,)

    def configure_model(self) -> None:
        """Open the policy."""
        if hasattr(self, "model"):
            return
        self.model = artefacts.open_gpt(None, self.hparams["init_from"], **artefacts.dropout_changes(0.0))
        prepare(self, self.lora)

    def on_fit_start(self) -> None:
        """Let the reference read what is learnt from, and what validates."""
        self._read("train", "validation")

    def on_validation_start(self) -> None:
        """Let it read what validates, where no fit has."""
        self._read("validation")

    on_test_start = on_predict_start = on_validation_start

    def _read(self, *parts: str) -> None:
        """Refuse what is no comparisons, and what the recipe says of them and nothing would follow."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        expect(isinstance(data, RewardDataModule), "data.class_path", type(data).__name__, "RewardDataModule")
        reason = "DPO has no zero point that they would set"
        expect_idle("data.demonstrations", data.demonstration_source, [None], reason)
        expect_idle("data.max_demonstrations", data.max_demonstrations, [512], reason)
        for part in parts:
            for tokens in (tokens for tokens, prompt_length in self._comparisons(part).answers if not prompt_length):
                found = f"one without tokens, before {data.tokenizer.decode(tokens.tolist())!r:.60}"
                raise UserError(f"{part}: prompt: found {found}, expected text to answer")
        self.reference.read(self, *map(self._comparisons, parts))

    def _comparisons(self, part: str) -> Comparisons:
        comparisons: Comparisons = getattr(self.trainer.datamodule, f"{part}_examples")  # type: ignore[attr-defined]
        return comparisons

    def losses(self, batch: RankingBatch, part: str) -> tuple[PreferenceLosses, Tensor]:
        """The losses of a batch, and the log-probabilities (P, K) of its answers; a cell that holds no answer has some
        other one's.
        """
        rows = answer_logprobs(self.model, batch.tokens, batch.prompt_lengths, batch.lengths)
        logprobs = rows[batch.index.clamp(min=0)]
        ref_logprobs = self.reference.of(self._comparisons(part), batch)
        return dpo_losses(logprobs, ref_logprobs, batch.ranks, batch.mask, self.hparams["beta"]), logprobs

    def _moved(self, rewards: Tensor) -> Tensor:
        """A policy that still is its reference lies by rounding beside it, and prefers nothing."""
        return torch.where(rewards.abs() > self.hparams["beta"] * ROUNDING, rewards, 0.0)

    def training_step(self, batch: RankingBatch, batch_idx: int) -> Tensor:
        """Over the pairs of each prompt, then over the prompts, in the scale of `StepMean`."""
        found, logprobs = self.losses(batch, "train")
        total, count = found.losses.sum(), found.counted.sum()
        self.right.add(*right_pairs(batch, self._moved(found.rewards)))
        if alpha := self.hparams["rpo_alpha"]:
            nll = preferred_nlls(logprobs, batch.answer_lengths(), batch.ranks, batch.mask).sum()
            self.nll.add(nll, count)
            total = total + alpha * nll
        return self.step.add(total, count, len(found.losses))

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """`train/loss`, the mean over the step's prompts, and what of it `rpo_alpha` weighs as `train/nll`;
        `train/accuracy`, over its pairs.
        """
        self.log("train/loss", self.step.close(self))
        self.right.close(self)
        if self.hparams["rpo_alpha"]:
            self.nll.close(self)

    def validation_step(self, batch: RankingBatch, batch_idx: int) -> None:
        """Over all untied pairs; the loss over all prompts that have one."""
        if not len(batch.mask):
            self._sit_out(batch)
            return
        found, logprobs = self.losses(batch, "validation")
        self.held_out.add(batch, self._moved(found.rewards))
        prompt, better, worse = untied_pairs(batch.ranks, batch.mask)
        self.held_out_logprobs.add(chosen_logprob=logprobs[prompt, better], rejected_logprob=logprobs[prompt, worse])

    def _sit_out(self, batch: RankingBatch) -> None:
        """Of a process without prompts the others may wait for its shards: it reads the one token that such a batch
        has.
        """
        self.model.hidden(batch.tokens)

    def on_validation_epoch_end(self) -> None:
        """What `preference_metrics` has of the implicit rewards, and the log-probabilities of the preferred and of the
        other answers, in nats: a margin may grow while both fall.
        """
        self._log_held_out("val")

    def test_step(self, batch: RankingBatch, batch_idx: int) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """The same metrics as `test/...`."""
        self._log_held_out("test")

    def _log_held_out(self, stage: str) -> None:
        self.held_out.log(self, stage)
        columns = self.held_out_logprobs.take()
        self.log_dict({f"{stage}/{name}": float(column.mean()) for name, column in columns.items()}, sync_dist=True)

    def predict_step(self, batch: RankingBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Each prompt's implicit rewards and log-probabilities beside the ranks that people gave (1 is best)."""
        if not len(batch.mask):
            self._sit_out(batch)
            return []
        found, logprobs = self.losses(batch, "validation")
        columns = {"rewards": found.rewards, "logprobs": logprobs, "ranks": batch.ranks}
        return [
            {name: column[i][kept].tolist() for name, column in columns.items()} for i, kept in enumerate(batch.mask)
        ]

    def on_train_start(self) -> None:
        """The curves of preferences stand side by side in TensorBoard's custom scalars."""
        writer = tensorboard(self.trainer)
        if writer is not None:
            writer.add_custom_scalars(DPO_LAYOUT)

    def configure_optimizers(self) -> Any:
        """AdamW and the schedule."""
        return configure(self, self.optimizer_config, self.schedule_config)

    def work(self, batch: RankingBatch) -> tuple[int, str]:
        """Answers of a batch, for the throughput."""
        return batch.tokens.shape[0], "answers"

    def sample_rows(self) -> list[dict[str, str]]:
        """Answers to the recipe's prompts, asked in the form that the data has."""
        in_turns: bool = self.trainer.datamodule.in_turns  # type: ignore[attr-defined]
        given = self.hparams
        return continuation_rows(self, self.model, given["sample_prompts"], given["sample_tokens"], in_turns)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Which reference it was."""
        checkpoint["dpo"] = State(self.reference.digests)._asdict()

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Keep it until the reference is opened.

        Raises:
            UserError: the checkpoint is of another procedure, or its state is none.
        """
        if "dpo" not in checkpoint:
            raise UserError("--ckpt_path: found no state of DPO in it, expected a checkpoint of this procedure")
        state: State = read_typed(State, checkpoint["dpo"], "dpo")
        self.reference.recorded = state.frozen
        check_unchanged(self.reference.digests, state.frozen)  # read before, with a strategy that shards

    def export(self, folder: Path) -> None:
        """Write config.json, model.safetensors and the tokenizer."""
        export_merged(self, self.model, self.lora, self.hparams["init_from"], folder)
