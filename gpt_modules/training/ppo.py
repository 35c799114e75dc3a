"""Reinforcement learning from a reward: step 3 of InstructGPT (Ouyang et al. 2022, section 3.5), PPO (Schulman et al.
2017).
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor
from torchmetrics import CatMetric, MeanMetric, MetricCollection

from gpt_modules.backbone import GPT, RewardModel
from gpt_modules.data.batches import PromptBatch
from gpt_modules.errors import UserError
from gpt_modules.functional import (
    adaptive_kl_coef,
    clipped_value_loss,
    masked_mean,
    ppo_clip_loss,
)
from gpt_modules.training import artefacts, optimizers
from gpt_modules.training.callbacks.dashboard import PPO_LAYOUT
from gpt_modules.training.callbacks.figures import frontier_figure
from gpt_modules.training.callbacks.writer import log_interval, tensorboard
from gpt_modules.training.hyperparameters import arguments, typed
from gpt_modules.training.optimizers import OptimizerConfig, ScheduleConfig
from gpt_modules.training.rl.experience import Experience, ExperienceLoader
from gpt_modules.training.rl.rewards import Reward, RewardSource, reward_sources, texts
from gpt_modules.training.rl.rollout import (
    Rollout,
    Sampling,
    Scored,
    Shaping,
    response_logprobs,
    response_values,
    rollout_statistics,
    score_responses,
    shape_rollout,
)
from gpt_modules.training.sharding import refuse_sharding

FRONTIER = ("val/kl", "val/score")


@dataclass(frozen=True)
class KLConfig:
    """The penalty for leaving the SFT model.

    Args:
        coef: beta, reward per nat; InstructGPT 0.02, Stiennon et al. 0.05, Ziegler et al. 0.15 to start from.
        target: nats a sequence that an adaptive coefficient steers to (Ziegler et al. 2019, section 2.2: 6); None
            keeps it fixed.
        horizon: episodes over which the adaptive coefficient reacts.
    """

    coef: float = 0.05
    target: float | None = None
    horizon: float = 10_000


@dataclass(frozen=True)
class ClipConfig:
    """PPO's trust region.

    Args:
        ratio: epsilon of the policy's clipped objective.
        value: how far the critic may move from its old value before the loss stops pulling it on.
        value_coef: weight of the value loss in the sum.
    """

    ratio: float = 0.2
    value: float = 0.2
    value_coef: float = 0.1


class PPOModule(L.LightningModule):
    """PPO under automatic optimisation: one Lightning epoch is one iteration.

    Its first batch samples responses to a batch of prompts and scores them; the training batches are
    minibatches of that
    rollout; one optimizer holds the policy and the critic as groups. The reference and the reward are frozen, read
    from their folders,
    and not part of any checkpoint.

    Args:
        init_from: folder of the SFT model: the policy to begin with, and the reference of the KL penalty.
        rewards: folder of a reward model, or `package.module:function`, or a list of terms to be summed.
        value_from: folder the critic begins from; left out: the first reward folder, or the SFT model with a new head.
        monitors: further scores of the validation texts, logged as `val/<name>` and never optimised.
        max_new_tokens: longest response.
        temperature: of sampling, and of every log-probability.
        ppo_epochs: passes over a rollout; InstructGPT 1, Ziegler et al. 4.
        minibatches: parts of a rollout; each is one optimizer step.
        kl: the penalty.
        clip: the trust region.
        gamma: discount. InstructGPT: none.
        lam: lambda of GAE. InstructGPT does not state it; Stiennon et al. use 0.95.
        missing_eos_score: score of a response that did not end, in place of the reward's; None trusts the reward.
        whiten_rewards: unit variance of the shaped rewards, mean kept.
        optimizer: AdamW's settings; the RLHF codes use eps 1e-5.
        value_lr: the critic's rate; left out: the policy's.
        schedule: rate over the run; Ziegler et al.: linear to 0.
        score_rows: rows of a forward pass while a rollout is scored.
        compile: compile each block with `torch.compile`.
        sample_prompts: how many held-out prompts the sample table shows.
        seed: of sampling and of the minibatch order.
    """

    also_exports = ("critic",)

    def __init__(
        self,
        init_from: str,
        rewards: str | list[RewardSource],
        value_from: str | None = None,
        monitors: dict[str, RewardSource] | None = None,
        max_new_tokens: int = 24,
        temperature: float = 1.0,
        ppo_epochs: int = 4,
        minibatches: int = 1,
        kl: KLConfig = KLConfig(),
        clip: ClipConfig = ClipConfig(),
        gamma: float = 1.0,
        lam: float = 0.95,
        missing_eos_score: float | None = -1.0,
        whiten_rewards: bool = False,
        optimizer: OptimizerConfig = OptimizerConfig(lr=1e-5, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.0),
        value_lr: float | None = None,
        schedule: ScheduleConfig = ScheduleConfig(shape="linear", final=0.0),
        score_rows: int = 64,
        compile: bool = False,
        sample_prompts: int = 8,
        seed: int = 0,
    ) -> None:
        given = arguments(locals())
        super().__init__()
        self.save_hyperparameters(given)
        self.reward_sources = reward_sources(rewards)
        self.monitor_sources = {name: typed(RewardSource, source) for name, source in (monitors or {}).items()}
        self.kl_config, self.clip_config = typed(KLConfig, kl), typed(ClipConfig, clip)
        self.optimizer_config, self.schedule_config = typed(OptimizerConfig, optimizer), typed(ScheduleConfig, schedule)
        self.shaping = Shaping(gamma, lam, missing_eos_score, whiten_rewards)
        self.register_buffer("kl_coef", torch.tensor(float(self.kl_config.coef)))
        self.register_buffer("iteration", torch.tensor(-1))
        names = ["score", "kl", "length", "ended", *self.monitor_sources]
        self.val_metrics = MetricCollection({name: MeanMetric() for name in names}, compute_groups=False)
        self.val_scores = CatMetric()
        self.rollout: Rollout | None = None
        self.frontier: list[list[float]] = []
        self._experience: ExperienceLoader | None = None
        self._cut_off: dict[str, Any] | None = None
        self.shown: dict[str, Tensor] = {}
        self.policy: GPT
        self.critic: RewardModel
        self.kl_coef: Tensor
        self.iteration: Tensor

    # --- models ---

    def configure_model(self) -> None:
        """Policy, critic and the frozen reference; dropout is off in all of them, or the first ratio would not be 1."""
        refuse_sharding(self)
        if hasattr(self, "policy"):
            return
        no_dropout = artefacts.dropout_changes(0.0)
        self.policy = artefacts.open_gpt(None, self.hparams["init_from"], **no_dropout)
        folders = [source.folder for source in self.reward_sources if source.folder is not None]
        critic_folder = self.hparams["value_from"] or (folders[0] if folders else self.hparams["init_from"])
        self.critic = artefacts.open_scorer(critic_folder, **no_dropout).fold_scale()
        reference = artefacts.open_gpt(None, self.hparams["init_from"], **no_dropout).requires_grad_(False).eval()
        self._frozen = [reference]  # in a list, so that it is no submodule: not trained, not in checkpoints
        if self.hparams["compile"]:
            for decoder in (self.policy.decoder, self.critic.decoder, reference.decoder):
                decoder.compile_blocks()

    @property
    def reference(self) -> GPT:
        """The frozen SFT model."""
        return self._frozen[0]

    def on_fit_start(self) -> None:
        """Open the rewards and move what Lightning does not see."""
        self._open_frozen()

    def on_validation_start(self) -> None:
        """For `gpt validate`, which has no fit."""
        self._open_frozen()

    on_test_start = on_predict_start = on_validation_start

    def _open_frozen(self) -> None:
        if hasattr(self, "reward"):
            return
        artefacts.check_vocabulary(self, self.policy.config)
        tokenizer = artefacts.datamodule_tokenizer(self)
        if not self.reward_sources:
            raise UserError("model.init_args.rewards: found none, expected at least one source")
        self.reference.to(self.device)
        self.reward = Reward(self.reward_sources, tokenizer, self.device)
        self.monitors = {
            name: Reward([source], tokenizer, self.device) for name, source in self.monitor_sources.items()
        }
        self.sampling = Sampling(self.hparams["max_new_tokens"], self.hparams["temperature"], tokenizer.eos_id)

    # --- rollout ---

    def experience_loader(self) -> ExperienceLoader:
        """What the datamodule hands to the Trainer."""
        hparams, accumulate = self.hparams, self.trainer.accumulate_grad_batches
        sizes = (hparams["ppo_epochs"], hparams["minibatches"], accumulate)
        self._experience = ExperienceLoader(self, *sizes, hparams["seed"])
        self._restore_experience()
        return self._experience

    def _restore_experience(self) -> None:
        """Once both are there: the loader, and what a checkpoint held of it."""
        if self._experience is not None and self._cut_off is not None:
            self._experience.restore(self._cut_off)
            self._cut_off = None

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """The run's precision with cached casts: without gradients every decode step may reuse the same bf16
        weights.
        """
        training = self.training
        self.eval()
        half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(str(self.trainer.precision))
        with torch.no_grad(), torch.autocast(self.device.type, dtype=half, enabled=half is not None):
            yield
        self.train(training)

    def _score(self, prompts: PromptBatch, generator: torch.Generator) -> Scored:
        rows = self.hparams["score_rows"]
        with self._inference():
            return score_responses(self.policy, self.reference, self.reward, prompts, self.sampling, generator, rows)

    def collect(self) -> Rollout:
        """The next iteration's rollout. The experience loader asks for it when an epoch's first batch is asked of it,
        for Lightning leaves out `on_train_epoch_start` in the epoch after one at whose end a run was cut off.
        """
        started = time.perf_counter()
        self.iteration += 1
        iteration, rank = int(self.iteration), self.global_rank
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        prompts = PromptBatch(
            *(field.to(self.device) for field in data.prompts(iteration, rank, self.trainer.world_size))
        )
        seed = (self.hparams["seed"] * 1_000_003 + iteration) * 4096 + rank
        scored = self._score(prompts, torch.Generator(self.device).manual_seed(seed))
        with self._inference():
            self.rollout, rewards = shape_rollout(
                scored, self.critic, self.kl_coef, self.shaping, self.hparams["score_rows"]
            )
        kl = self.trainer.strategy.reduce(scored.sequence_kl().mean(), reduce_op="mean")
        self._log_objective(scored, rewards, kl, started)
        if self.kl_config.target is not None:
            episodes = len(scored.scores) * self.trainer.world_size
            self.kl_coef.copy_(
                adaptive_kl_coef(self.kl_coef, kl, self.kl_config.target, self.kl_config.horizon, episodes)
            )
        return self.rollout

    def _log_objective(self, scored: Scored, rewards: Tensor, kl: Tensor, started: float) -> None:
        """Straight to the logger: values logged for the epoch's end would be lost if the run is cut off before it."""
        assert self.rollout is not None
        values = {
            "objective/kl": kl,
            "objective/kl_coef": self.kl_coef,
            "objective/iteration": self.iteration,
            **rollout_statistics(scored, self.rollout, rewards),
        }
        self.shown = {"score": values["objective/score"], "kl": kl}
        if self.logger is not None:
            # Reading waits for the device, so the clock below stops when the rollout is complete.
            numbers = {name: float(value) for name, value in values.items()}
            numbers["perf/rollout_seconds"] = time.perf_counter() - started
            self.logger.log_metrics(numbers, step=self.global_step)

    # --- update ---

    def training_step(self, batch: Experience, batch_idx: int) -> Tensor:
        """Clipped policy loss plus the clipped value loss, over response tokens."""
        rollout, normaliser = batch
        width = rollout.responses.shape[1]
        temperature = self.hparams["temperature"]
        logprobs, entropy = response_logprobs(
            self.policy, rollout.tokens, rollout.prompt_lengths, rollout.responses, temperature
        )
        values = response_values(self.critic, rollout.tokens, rollout.prompt_lengths, width)
        clip, mask = self.clip_config, rollout.mask
        policy = ppo_clip_loss(logprobs, rollout.logprobs, rollout.advantages, mask, clip.ratio, normaliser)
        value = clipped_value_loss(values, rollout.values, rollout.returns, mask, clip.value, normaliser)
        loss: Tensor = policy.loss + clip.value_coef * value.loss
        self.log("train/loss", loss)
        self.log_dict(self.shown, prog_bar=True, logger=False)
        if (self.global_step + 1) % log_interval(self.trainer) == 0:
            self.log_dict(
                {
                    "loss/policy": policy.loss,
                    "loss/value": value.loss,
                    "policy/approx_kl": policy.approx_kl,
                    "policy/clip_fraction": policy.clip_fraction,
                    "policy/ratio": policy.ratio_mean,
                    "policy/entropy": masked_mean(entropy, mask),
                    "value/clip_fraction": value.clip_fraction,
                }
            )
        return loss

    def configure_optimizers(self) -> Any:
        """One AdamW, a group for the policy and one for the critic."""
        config = self.optimizer_config
        value_lr = config.lr if self.hparams["value_lr"] is None else self.hparams["value_lr"]
        groups = [
            *optimizers.parameter_groups([self.policy], config.weight_decay, lr=config.lr, name="policy"),
            *optimizers.parameter_groups([self.critic], config.weight_decay, lr=value_lr, name="value"),
        ]
        optimizer = optimizers.build(groups, config)
        return optimizers.configure(optimizer, self.schedule_config, self.trainer.estimated_stepping_batches)

    def work(self, batch: Experience) -> tuple[float, str]:
        """Episodes: each is visited once an epoch, and counts a share each time."""
        return len(batch.rollout.tokens) / self.hparams["ppo_epochs"], "episodes"

    # --- validation ---

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Sample answers to held-out prompts with the same noise each time; score them with the reward and the
        monitors.
        """
        generator = torch.Generator(self.device).manual_seed(
            self.hparams["seed"] * 1_000_003 + batch_idx * 4096 + self.global_rank
        )
        scored = self._score(batch, generator)
        values = {
            "score": scored.scores,
            "kl": scored.sequence_kl(),
            "length": scored.mask.sum(1).float(),
            "ended": scored.ended.float(),
        } | {name: monitor(scored.sequences) for name, monitor in self.monitors.items()}
        self.val_scores.update(scored.scores)
        for name, value in values.items():
            self.val_metrics[name].update(value)

    def on_validation_epoch_end(self) -> None:
        """Means over the held-out prompts, and the reward-against-KL figure."""
        values = self._log_means("val")
        if not self.trainer.sanity_checking and self.trainer.state.fn == "fit":
            self.frontier.append([float(values[name]) for name in FRONTIER])
        writer = tensorboard(self.trainer)
        if writer is not None and self.frontier:
            kl, score = zip(*self.frontier, strict=True)
            writer.add_figure("val/score_against_kl", frontier_figure(list(kl), list(score)), self.global_step)

    def test_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """The same means as `test/...`."""
        self._log_means("test")

    def _log_means(self, stage: str) -> dict[str, Tensor]:
        scores = torch.as_tensor(self.val_scores.compute())
        values = {f"{stage}/{name}": value for name, value in self.val_metrics.compute().items()}
        values[f"{stage}/score_std"] = scores.std(unbiased=False)
        self.val_metrics.reset()
        self.val_scores.reset()
        self.log_dict(values)
        return values

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Prompt, response and score of each row."""
        generator = torch.Generator(self.device).manual_seed(self.hparams["seed"] * 1_000_003 + batch_idx)
        scored = self._score(batch, generator)
        prompts, responses = texts(scored.sequences, artefacts.datamodule_tokenizer(self))
        rows = zip(prompts, responses, scored.scores.tolist(), strict=True)
        return [{"prompt": prompt, "response": response, "score": score} for prompt, response, score in rows]

    def on_train_start(self) -> None:
        """A PPO run opens as a dashboard in TensorBoard's custom scalars."""
        writer = tensorboard(self.trainer)
        if writer is not None:
            writer.add_custom_scalars(PPO_LAYOUT)

    def sample_rows(self) -> list[dict[str, str]]:
        """Held-out prompts, the SFT model's answer, the policy's answer with the same noise, and their scores."""
        batch = next(iter(self.trainer.datamodule.val_dataloader()))  # type: ignore[attr-defined]
        batch = PromptBatch(*(field[: self.hparams["sample_prompts"]].to(self.device) for field in batch))
        tokenizer = artefacts.datamodule_tokenizer(self)
        columns: dict[str, list[str]] = {}
        for name, model in (("SFT", self.reference), ("policy", self.policy)):
            generator = torch.Generator(self.device).manual_seed(self.hparams["seed"])
            with self._inference():
                rows = self.hparams["score_rows"]
                scored = score_responses(model, self.reference, self.reward, batch, self.sampling, generator, rows)
            columns["prompt"], columns[name] = texts(scored.sequences, tokenizer)
            columns[f"{name} score"] = [f"{score:.2f}" for score in scored.scores.tolist()]
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    # --- artefacts ---

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The figure's points belong to the run, and inside an iteration its experience."""
        checkpoint["frontier"] = self.frontier
        checkpoint["experience"] = None if self._experience is None else self._experience.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore them; a coefficient that nothing adapts is the recipe's."""
        if self.kl_config.target is None:
            checkpoint["state_dict"]["kl_coef"] = torch.tensor(float(self.kl_config.coef))
        self.frontier = checkpoint["frontier"]
        self._cut_off = checkpoint["experience"]
        self._restore_experience()

    @property
    def learned_settings(self) -> set[str]:
        """Of a resumed run: settings that are only where adapted numbers began."""
        return set() if self.kl_config.target is None else {"kl.coef"}

    def export(self, folder: Path) -> None:
        """Write the policy; the critic goes beside it, for a later run that begins from it."""
        artefacts.export(self, self.policy, folder)
        artefacts.export(self, self.critic, folder.with_name(folder.name + "-critic"))
