"""Reinforcement learning from a reward: step 3 of InstructGPT (Ouyang et al. 2022, section 3.5), PPO (Schulman et al.
2017).
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.profilers import Profiler
from torch import Tensor
from torch.optim import Optimizer

from gpt_modules.backbone import GPT, LoRAConfig, RewardModel
from gpt_modules.backbone.folders.card import Facts
from gpt_modules.data import PPODataModule
from gpt_modules.data.batches import PackedBatch, PromptBatch, TokenBatch
from gpt_modules.data.loader import pinned
from gpt_modules.training import artefacts, optimizers
from gpt_modules.training.callbacks.dashboard import ppo_layout
from gpt_modules.training.callbacks.figures import frontier_figure
from gpt_modules.training.callbacks.writer import tensorboard
from gpt_modules.training.from_checkpoint import FromCheckpoint
from gpt_modules.training.hyperparameters import arguments
from gpt_modules.training.optimizers import OptimizerConfig, ScheduleConfig
from gpt_modules.training.processes import in_order
from gpt_modules.training.rl.answers import predictions, side_by_side
from gpt_modules.training.rl.early_stop import StepsTaken
from gpt_modules.training.rl.estimators import EstimatorConfig
from gpt_modules.training.rl.experience import Experience, ExperienceLoader, Parts, expect_whole_iterations
from gpt_modules.training.rl.frozen import Frozen
from gpt_modules.training.rl.gradients import clip_gradients, drop_gradients, grad_norm, named_groups, touch
from gpt_modules.training.rl.held_out import SHAPED, HeldOutAnswers
from gpt_modules.training.rl.learners import Learners
from gpt_modules.training.rl.models import check_fit
from gpt_modules.training.rl.ptx import PtxBatch, ptx_loss, ptx_steps
from gpt_modules.training.rl.recipe import read_recipe
from gpt_modules.training.rl.rewards import RewardSource, term_names
from gpt_modules.training.rl.rollout import (
    Scored,
    inference,
    mean_score,
    models_of,
    score_responses,
    sit_out,
)
from gpt_modules.training.rl.scores import Moments, ScoresConfig, first_moments
from gpt_modules.training.rl.settings import (
    ClipConfig,
    CriticConfig,
    EarlyStop,
    EMAConfig,
    KLConfig,
    PtxConfig,
    Sampling,
    SamplingConfig,
)
from gpt_modules.training.rl.shaping import (
    Rollout,
    expect_enough,
    over_processes,
    response_statistics,
    rollout_statistics,
    shape_rollout,
    whitened_alone,
)
from gpt_modules.training.rl.state import (
    State,
    expect_rest_before,
    expect_same_models,
    expect_same_penalty,
    expect_same_rollout,
    read_state,
)
from gpt_modules.training.rl.terms import check_tokenizer
from gpt_modules.training.rl.update import Penalty, StepStatistics, update_loss
from gpt_modules.training.rl.watch import RolloutWatch, refuse_idle_policy
from gpt_modules.training.run_length import run_length
from gpt_modules.training.sharding.models import held
from gpt_modules.training.sharding.strategy import refuse_sharding

VALIDATION = 0  # the first number of a key of `noise`; iterations count from 1
OF_REFERENCE = 2**31  # and from here, the reference's answers by which scores are normalised


class PPOModule(FromCheckpoint):
    """PPO under automatic optimisation: one Lightning epoch is one iteration.

    Its first batch samples responses to a batch of prompts and scores them; the training batches are minibatches of
    that rollout; one optimizer holds the policy and the critic as groups. The reference and the reward are frozen, read
    from their folders, and not part of any checkpoint, which knows them by their SHA-256.

    Args:
        init_from: folder of the policy to begin with: the SFT model, or the policy of an earlier round.
        rewards: folder of a reward model, or `package.module:function`, or a term such as an ensemble of folders, or a
            list of terms to be summed.
        reference_from: folder of the reference of the KL penalty, the SFT model; left out: init_from.
        monitors: further scores of the validation texts, logged as `val/<name>` and never optimised.
        max_new_tokens: longest response.
        temperature: of sampling, and of every log-probability.
        sampling: where a response ends, and how held-out ones are drawn.
        ppo_epochs: passes over a rollout; InstructGPT 1, Ziegler et al. 4.
        minibatches: parts of a rollout, over all devices; each is one optimizer step.
        kl: the penalty.
        clip: the trust region.
        critic: the value function.
        estimator: what makes advantages of scores: GAE by a critic, RLOO or GRPO without one.
        ptx: pretraining text that the policy goes on learning.
        ema: an average of the policy's weights; None: none is kept.
        early_stop: when the rest of an iteration's steps is left out.
        lora: low-rank updates learn in place of the policy, which is the reference without them, unless
            `reference_from` names another; merged in the exported folder, with an adapter for `peft` beside it.
        gamma: discount. InstructGPT: none.
        lam: lambda of GAE. InstructGPT does not state it; Stiennon et al. use 0.95.
        missing_eos_score: score of a response that did not end, in place of the reward's; None trusts the reward.
        whiten_rewards: unit variance of the shaped rewards, mean kept.
        whiten_over: what they and the advantages are whitened over: the `rollout`, or each `minibatch` by itself.
        scores: what is optimised of the reward's scores: normalised, clipped, less a length penalty.
        optimizer: AdamW's settings; the RLHF codes use eps 1e-5.
        schedule: rate over the run; Ziegler et al.: linear to 0.
        score_rows: rows of a forward pass while a rollout is scored.
        cache_gb: gigabytes of keys and values while responses are sampled; rows beyond it wait their turn.
        ref_reward_offload: keep the frozen models in the host's memory while the policy samples and learns, see
            `Frozen`.
        recompute: recompute activations of policy and critic in the backward pass instead of storing them.
        compile: compile each block with `torch.compile`.
        sample_prompts: how many held-out prompts the sample table shows.
        seed: of sampling and of the minibatch order.
    """

    def __init__(
        self,
        init_from: str,
        rewards: str | RewardSource | list[RewardSource],
        reference_from: str | None = None,
        monitors: dict[str, RewardSource] | None = None,
        max_new_tokens: int = 24,
        temperature: float = 1.0,
        sampling: SamplingConfig = SamplingConfig(),
        ppo_epochs: int = 4,
        minibatches: int = 1,
        kl: KLConfig = KLConfig(),
        clip: ClipConfig = ClipConfig(),
        critic: CriticConfig = CriticConfig(),
        estimator: EstimatorConfig = EstimatorConfig(),
        ptx: PtxConfig = PtxConfig(),
        ema: EMAConfig | None = None,
        early_stop: EarlyStop = EarlyStop(),
        lora: LoRAConfig | None = None,
        gamma: float = 1.0,
        lam: float = 0.95,
        missing_eos_score: float | None = -1.0,
        whiten_rewards: bool = False,
        whiten_over: Literal["rollout", "minibatch"] = "rollout",
        scores: ScoresConfig = ScoresConfig(),
        optimizer: OptimizerConfig = OptimizerConfig(lr=1e-5, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.0),
        schedule: ScheduleConfig = ScheduleConfig(shape="linear", final=0.0),
        score_rows: int = 64,
        cache_gb: float = 4.0,
        ref_reward_offload: bool = False,
        recompute: bool = False,
        compile: bool = False,
        sample_prompts: int = 8,
        seed: int = 0,
    ) -> None:
        said = locals()
        super().__init__()
        self.save_hyperparameters(arguments(said))
        self.recipe = read_recipe(self, said, PPOModule)
        self.shaping = self.recipe.shaping
        # Python's numbers: a buffer would become bf16 with the weights, and a coefficient of 3 digits sticks.
        self.kl_coef, self.iteration, self.rested = float(self.recipe.kl.coef), -1, 0
        ensembles = any(source.ensemble for source in self.recipe.rewards)
        prefixes = ["", *(f"{name}/" for name in self.recipe.averages_beside)]
        self.terms = term_names(self.recipe.rewards)
        self.held_out = HeldOutAnswers(prefixes, list(self.recipe.monitors), ensembles, self.terms)
        self.rollout: Rollout | None = None
        self.frontier: list[tuple[float, float]] = []
        self._experience: ExperienceLoader | None = None
        self._cut_off: dict[str, Any] | None = None
        self.watch, self.step = RolloutWatch(max_new_tokens, missing_eos_score), StepStatistics()
        self.steps = StepsTaken(self.recipe.early_stop)
        self.policy: GPT
        self.critic: RewardModel | None

    # --- models ---

    def configure_model(self) -> None:
        """The learners, and what is frozen."""
        artefacts.expect_data(self, PPODataModule)
        if hasattr(self, "policy"):
            return
        if self.hparams["ref_reward_offload"]:
            why = "frozen models are in shards, of which each device has its part"
            refuse_sharding(self, why, "model.ref_reward_offload")
        sharded = self.device_mesh is not None
        self.learners = Learners(self.recipe)
        self.policy, self.critic = self.learners.policy, self.learners.critic
        self.learners.learn_updates(self)
        self.frozen = Frozen(
            self.recipe.reference,
            self.recipe.rewards,
            self.recipe.monitors,
            None if sharded else self.learners.base(),
            None if sharded else self.learners.trunks(),
            self.hparams["ref_reward_offload"],
        )
        for decoder in self.learners.decoders():
            decoder.recompute = self.hparams["recompute"]
        if self.hparams["compile"]:
            for decoder in dict.fromkeys([*self.learners.decoders(), self.frozen.reference.decoder]):
                decoder.compile_blocks()
        if sharded:
            self.learners.shard(self)

    def on_fit_start(self) -> None:
        """Open the rewards, and refuse what would fail in the middle of a run."""
        if self.frozen.opened:
            return
        artefacts.check_vocabulary(self, self.policy.config)
        artefacts.check_beside(self, self.policy.config)
        tokenizer, data = artefacts.datamodule_tokenizer(self), self.trainer.datamodule  # type: ignore[attr-defined]
        critics = self.learners.critics()
        for folder in sorted({self.recipe.reference, *critics} - {self.recipe.init_from}):
            check_tokenizer(folder, tokenizer)
        self.recipe.estimator.expect_answers(data.answers)
        readers = {self.recipe.init_from: self.policy, **critics, **self.frozen.open(self)}
        if self.hparams["compile"] and self.device_mesh is None:  # or they are in shards by now, which comes last
            for decoder in self.frozen.scorers():
                decoder.compile_blocks()
        config, most, room = self.recipe.sampling, self.hparams["max_new_tokens"], 1e9 * self.hparams["cache_gb"]
        self.sampling = Sampling(
            most, self.hparams["temperature"], config.ends(tokenizer), config.truncate_after, cache_bytes=room
        )
        marks = int(self.sampling.ends != (tokenizer.eos_id,))
        check_fit(self.policy.config, readers, data.longest_prompt, most, marks)
        if self.learners.average is not None:
            self.learners.average.to(self.device)

    # A validation of its own has no fit.
    on_validation_start = on_test_start = on_predict_start = on_fit_start

    # --- rollout ---

    def experience_loader(self) -> ExperienceLoader:
        """What the datamodule hands to the Trainer."""
        hparams, place = self.hparams, (self.global_rank, self.trainer.world_size)
        parts = Parts(hparams["ppo_epochs"], hparams["minibatches"], self._accumulate)
        episodes = self.trainer.datamodule.episodes  # type: ignore[attr-defined]
        expect_enough(self.shaping.whiten_over, episodes // parts.minibatches)
        ptx = ptx_steps(artefacts.pretraining_text(self), self.recipe.ptx, episodes // parts.minibatches, *place)
        self._experience = ExperienceLoader(self, parts, episodes, hparams["seed"], *place, ptx)
        self.trainer.accumulate_grad_batches = self._experience.parts.micro_batches
        self._restore_experience()
        return self._experience

    def setup(self, stage: str) -> None:
        """What the recipe accumulates; micro-batches of pretraining text are added to it while a fit lasts."""
        if stage == "fit":
            expect_whole_iterations(self.trainer)
        self._accumulate = self.trainer.accumulate_grad_batches

    def teardown(self, stage: str) -> None:
        """The Trainer's own again."""
        self.trainer.accumulate_grad_batches = self._accumulate

    def _restore_experience(self) -> None:
        """Once both are there: the loader, and what a checkpoint held of it."""
        if self._experience is not None and self._cut_off is not None:
            self._experience.restore(self._cut_off)
            self._cut_off = None

    def _prompts(self, iteration: int) -> PromptBatch:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        own = pinned(data.prompts(iteration, self.global_rank, self.trainer.world_size))
        return PromptBatch(*(field.to(self.device, non_blocking=True) for field in own))

    @property
    def _profiler(self) -> Profiler:
        profiler: Profiler = self.trainer.profiler  # type: ignore[attr-defined]
        return profiler

    def _score(self, prompts: PromptBatch, draw: int, policy: GPT | None = None) -> Scored | None:
        """Responses of the policy to this process's prompts; `draw` and a prompt's number decide its noise. None where
        it has no prompts.
        """
        key, rows, sampling = (self.hparams["seed"], draw), self.hparams["score_rows"], self.sampling
        critic = self.critic
        if draw == VALIDATION:  # which asks for no values
            critic, sampling = None, sampling._replace(draw=self.recipe.sampling.eval_temperature)
        with inference(self):
            frozen, policy = self.frozen, policy or self.policy
            if not len(prompts.lengths):
                sit_out(policy, frozen.reference, frozen.reward)
                return None
            models = (policy, frozen.reference, frozen.reward)
            with self._profiler.profile("[PPOModule]scoring"):
                return score_responses(*models, prompts, sampling, key, rows, critic, self._profiler)

    def collect(self) -> Rollout:
        """The next iteration's rollout. The experience loader asks for it when an epoch's first batch is asked of it,
        for Lightning leaves out `on_train_epoch_start` in the epoch after one at whose end a run was cut off.
        """
        started = time.perf_counter()
        self.iteration += 1
        if self.warming_up:
            self.rested += self.steps_each
        self.steps.begin()
        self._find_gain()
        prompts = self._prompts(self.iteration)
        scored = self._score(prompts, VALIDATION + 1 + self.iteration)
        assert scored is not None, "each process has its share of the episodes"
        if self.shaping.scores.normalise == "running":
            found = in_order(prompts.numbers, [scored.scores])[0]
            self._normalise_by(self.shaping.moments.joined(found), [scored])
        with inference(self), self._profiler.profile("[PPOModule]scoring"):
            values = self.learners.values(scored, self.hparams["score_rows"])
        scored, values = over_processes(prompts.numbers, scored, values)
        answers = self.trainer.datamodule.answers  # type: ignore[attr-defined]
        self.rollout, _ = shape_rollout(scored, values, self.reward_kl_coef, self.shaping, answers)
        if self.recipe.kl.loss is not None:
            self.rollout = self.rollout._replace(ref_logprobs=scored.ref_logprobs)
        kl = self._tell(scored, self.rollout, started)
        if not self.warming_up:
            self.kl_coef = self.recipe.kl.adapted(self.kl_coef, kl, len(scored.scores))
        return self.rollout

    def _tell(self, scored: Scored, rollout: Rollout, started: float) -> float:
        """What is known of a rollout, at once: the epoch's end may not come. Returns its KL."""
        answers = self.trainer.datamodule.answers  # type: ignore[attr-defined]
        statistics = rollout_statistics(scored, rollout, self.reward_kl_coef, self.shaping, answers, self.terms)
        together = torch.stack([value.double() for value in statistics.values()])  # the device is waited for once
        numbers: dict[str, float] = dict(zip(statistics, together.tolist(), strict=True))
        numbers |= {"objective/kl_coef": self.kl_coef, "objective/iteration": float(self.iteration)}
        # Reading them waited for the device, so the clock stops when the rollout is complete.
        numbers["perf/rollout_seconds"] = time.perf_counter() - started
        if self.logger is not None:
            self.logger.log_metrics(numbers, step=self.global_step)
        self.watch.look(numbers, len(scored.scores))
        return numbers["objective/kl"]

    def _find_gain(self) -> None:
        """What is normalised by the reference's answers is so before the first rollout."""
        answers: list[Scored] = []

        def draw(number: int) -> Tensor:
            prompts = self._prompts(number)
            scored = self._score(prompts, OF_REFERENCE + number, self.frozen.reference)
            assert scored is not None
            answers.append(scored)
            return in_order(prompts.numbers, [answers[-1].scores])[0]

        self._normalise_by(first_moments(self.shaping.moments, self.shaping.scores, draw), answers)

    def _normalise_by(self, moments: Moments, answers: list[Scored]) -> None:
        """From now on, as the scores of these answers are."""

        def mean_of(folder: str) -> float:
            reader = self.frozen.reward.readers()[folder]
            with inference(self), held(reader.model):
                return mean_score(reader, answers, self.hparams["score_rows"])

        self.learners.follow(self.shaping.moments, moments, self.global_step > 0, mean_of)
        self.shaping = replace(self.shaping, moments=moments)

    @property
    def reward_kl_coef(self) -> float:
        """The penalty's weight in the reward: 0 where it stands in the loss."""
        return self.kl_coef if self.recipe.kl.loss is None else 0.0

    # --- update ---

    def training_step(self, batch: Experience | PtxBatch, batch_idx: int) -> Tensor:
        """The losses of the estimator and of the critic, if any; or the loss of pretraining text."""
        if self.steps.stopped:
            return touch(self)
        if isinstance(batch, PtxBatch):
            loss, shares = ptx_loss(self.policy, batch, self.recipe.ptx.coef)
        else:
            loss, shares = self._update_loss(batch)
        self.step.add(shares)
        if batch_idx == 0:
            self.log_dict(self.watch.shown, logger=False)
        return loss

    def _update_loss(self, batch: Experience) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.rollout is not None
        assert self._experience is not None
        if self.shaping.whiten_over == "minibatch":
            rollout = whitened_alone(self.rollout, batch.cut, self._experience.minibatch, self.shaping)
        else:
            rollout = self.rollout.take(batch.cut)
        sequences = batch.sequences if self.recipe.estimator.averages_answers else None
        kind = self.recipe.kl.loss
        penalty = None if kind is None else Penalty(kind, self.kl_coef)
        outputs = self.learners.outputs(rollout, self.hparams["temperature"], self.warming_up, batch.cut.tokens)
        loss, shares = update_loss(outputs, rollout, self.recipe.clip, batch.normaliser, sequences, penalty)
        return loss + touch(self.policy) if self.warming_up else loss, shares

    @property
    def warming_up(self) -> bool:
        """Whether the critic alone learns in this iteration."""
        return self.iteration < self.recipe.critic.warmup

    @property
    def steps_each(self) -> int:
        """Optimizer steps of an iteration, as the recipe has it now."""
        return int(self.hparams["ppo_epochs"] * self.hparams["minibatches"])

    @property
    def policy_rests(self) -> bool:
        """Whether the next step leaves the policy as it is."""
        return self.warming_up or self.steps.stopped

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """The step's statistics: what its micro-batches and its processes have of them, together."""
        if self.warming_up:
            drop_gradients(self.policy.parameters())
        if self.steps.stopped:
            results = self.trainer._results
            assert results is not None
            results.reset(fx="on_before_optimizer_step")  # or Lightning tells the last step's again
        else:
            norms = {f"{name}/grad_norm": grad_norm(of) for name, of in named_groups(optimizer).items()}
            statistics = self.step.close(self.trainer.strategy)
            self.log_dict(statistics | norms)
            self.steps.look(statistics, self.iteration)
        if self.steps.stopped:
            drop_gradients(self.parameters())
        if self.steps.bounded and self.trainer.is_last_batch and self.logger is not None:
            self.logger.log_metrics({"update/steps": float(self.steps.taken)}, step=self.global_step)

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        """Lightning's, and the average of where it leads; a step that is left out leads nowhere."""
        super().optimizer_step(*arguments, **named)
        if self.learners.average is not None and not self.steps.stopped:
            self.learners.average.update(self.policy)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """The critic's gradient apart where it has a norm of its own; else the Trainer's clipping of all as one."""
        if self.recipe.critic.max_norm is None:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            groups = named_groups(optimizer)
            clip_gradients(groups["policy"], gradient_clip_val, gradient_clip_algorithm)
            clip_gradients(groups["value"], self.recipe.critic.max_norm, "norm")

    def configure_optimizers(self) -> Any:
        """One AdamW over the learners' groups."""
        warmup, steps = self.recipe.critic.warmup, run_length(self.trainer)
        # Of iterations that are over, which may have had other steps, and of those that are still to come.
        rest = self.rested + max(0, warmup - (self.iteration + 1)) * self.steps_each
        refuse_idle_policy(warmup, warmup + (steps - rest) / self.steps_each)
        optimizer = optimizers.build(self.learners.groups(), self.recipe.optimizer)
        return optimizers.configure(optimizer, self.recipe.schedule, steps, rests={"policy": rest})

    def work(self, batch: Experience | PtxBatch) -> tuple[float, str]:
        """Episodes: each is visited once an epoch, and counts a share each time; pretraining text is none."""
        episodes = 0 if isinstance(batch, PtxBatch) else len(batch.rows)
        return episodes / self.hparams["ppo_epochs"], "episodes"

    # --- validation ---

    def on_validation_epoch_start(self) -> None:
        """What is normalised by the reference's answers is so before the first rollout, too."""
        self._find_gain()

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(
        self, batch: PromptBatch | TokenBatch | PackedBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Sample answers to held-out prompts with the same noise each time; score them with the reward and the
        monitors. The second loader has held-out pretraining text.
        """
        for prefix, model in zip(self.held_out.prefixes, self.learners.answering().values(), strict=True):
            if not isinstance(batch, PromptBatch):
                self.held_out.read(prefix, model, batch)
                continue
            scored = self._score(batch, VALIDATION, model)
            with held(*models_of(*self.frozen.monitors.values())):
                if scored is None:
                    continue
                monitored = {name: monitor(scored.sequences).totals for name, monitor in self.frozen.monitors.items()}
            measured = response_statistics(scored, self.reward_kl_coef, self.shaping, self.terms)
            self.held_out.add(prefix, scored, **measured, **monitored)

    def on_validation_epoch_end(self) -> None:
        """Means over the held-out prompts, and the reward-against-KL figure; of pretraining text
        `val/pretraining_perplexity`, whose rise is the alignment tax.
        """
        values = self._log_means("val")
        if not self.trainer.sanity_checking and self.trainer.state.fn == "fit":
            self.frontier.append((values["val/kl"], values["val/score"]))
        writer = tensorboard(self.trainer)
        if writer is not None and self.frontier:
            kl, score = zip(*self.frontier, strict=True)
            writer.add_figure("val/score_against_kl", frontier_figure(list(kl), list(score)), self.global_step)

    def test_step(self, batch: PromptBatch | TokenBatch | PackedBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        """The same means as `test/...`."""
        self._log_means("test")

    def _log_means(self, stage: str) -> dict[str, float]:
        found = self.held_out.take()
        if self.shaping.scores.normalise and not self.shaping.moments.seen:  # of running ones, before the first rollout
            unknown = {prefix + name for prefix in self.held_out.prefixes for name in SHAPED}
            found = {name: value for name, value in found.items() if name not in unknown}
        values = {f"{stage}/{name}": value for name, value in found.items()}
        if (temperature := self.recipe.sampling.eval_temperature) is not None:
            values[f"{stage}/temperature"] = float(temperature)
        self.log_dict(values, sync_dist=True)  # equal on all processes; said, as Lightning warns otherwise
        if artefacts.pretraining_text(self) is not None:
            self.held_out.log_text(self, stage)
        return values

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Prompt, response and score of each row."""
        exported, *_ = self.learners.answering().values()
        scored = self._score(batch, VALIDATION, exported)
        return [] if scored is None else predictions(scored, artefacts.datamodule_tokenizer(self))

    def on_train_start(self) -> None:
        """A PPO run opens as a dashboard in TensorBoard's custom scalars."""
        writer = tensorboard(self.trainer)
        if writer is not None:
            has_critic, monitors = self.recipe.estimator.has_critic, list(self.recipe.monitors)
            writer.add_custom_scalars(ppo_layout(has_critic, self.terms, monitors))

    def sample_rows(self) -> list[dict[str, str]]:
        """Held-out prompts, the reference's answer, with the same noise the policy's and its average's, and their
        scores.
        """
        batch = next(iter(self.trainer.datamodule.predict_dataloader()))  # type: ignore[attr-defined]
        batch = PromptBatch(*(field[: self.hparams["sample_prompts"]].to(self.device) for field in batch))
        models = {"reference": self.frozen.reference, **self.learners.answering()}
        said = {name: self._score(batch, VALIDATION, model) for name, model in models.items()}
        answers = {name: scored for name, scored in said.items() if scored is not None}
        return side_by_side(answers, artefacts.datamodule_tokenizer(self)) if answers else []

    # --- artefacts ---

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What is neither weights nor optimizer: the place of the run, and inside an iteration its experience."""
        experience = None if self._experience is None else self._experience.state()
        steps = (self.steps.taken, self.steps.stopped)
        average = None if self.learners.average is None else self.learners.average.state()
        place = (self.iteration, self.rested, self.kl_coef, self.frontier, self.frozen.digests, experience)
        checkpoint["ppo"] = State(*place, steps, average, self.shaping.moments).document()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore it; a coefficient that was adapted goes on, a fixed one is the recipe's."""
        state = read_state(checkpoint)
        expect_same_models(checkpoint["state_dict"], self.recipe.estimator.has_critic)
        expect_same_penalty(state.experience, self.recipe.kl.loss)
        # An evaluation goes on with no update, and so does a module that is opened by itself.
        if self._trainer is not None and self.trainer.state.fn == "fit":
            expect_same_rollout(state.experience, checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY), self.hparams)
            expect_rest_before(state, self.recipe.critic.warmup, checkpoint["global_step"])
        self.iteration, self.rested = state.iteration, state.rested
        self.frozen.recall(state.frozen)
        self.frontier, self.shaping = state.frontier, replace(self.shaping, moments=state.moments)
        self.steps.taken, self.steps.stopped = state.steps
        if self.learners.average is not None:
            self.learners.average.restore(state.average)
        if self.learned_settings:
            self.kl_coef = state.kl_coef
        self._cut_off = state.experience
        self._restore_experience()

    @property
    def learned_settings(self) -> set[str]:
        """Of a resumed run: settings that are only where adapted numbers began."""
        return set() if self.recipe.kl.target is None else {"kl.coef"}

    def export(self, folder: Path) -> None:
        """Write the policy, or its average, and what goes beside it, see `Learners.export`."""
        self.learners.export(self, folder)

    def tell(self, name: str | None, facts: Facts) -> Facts:
        """Of the run, what holds for the folder of this name, see `Learners.tell`."""
        return self.learners.tell(name, facts)

    @property
    def also_exports(self) -> list[str]:
        """Folders beside `export`, by the ends of their names."""
        return self.recipe.also_exports
