"""Reinforcement learning from a reward: step 3 of InstructGPT (Ouyang et al. 2022, section 3.5), PPO (Schulman et al.
2017).
"""

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gpt_modules.backbone import GPT, LoRAConfig, RewardModel, base_of, merge_lora
from gpt_modules.data.batches import PackedBatch, PromptBatch, TokenBatch
from gpt_modules.errors import UserError, expect
from gpt_modules.functional import adaptive_kl_coef
from gpt_modules.training import artefacts, optimizers
from gpt_modules.training.callbacks.dashboard import ppo_layout
from gpt_modules.training.callbacks.figures import frontier_figure
from gpt_modules.training.callbacks.writer import tensorboard
from gpt_modules.training.hyperparameters import SEEDS, arguments, expect_idle, expect_number, refuse_idle, typed
from gpt_modules.training.lora import ADAPTER, export_merged, learn_updates
from gpt_modules.training.optimizers import OptimizerConfig, ScheduleConfig
from gpt_modules.training.processes import in_order
from gpt_modules.training.rl.answers import predictions, side_by_side
from gpt_modules.training.rl.average import Average
from gpt_modules.training.rl.early_stop import StepsTaken
from gpt_modules.training.rl.estimators import EstimatorConfig
from gpt_modules.training.rl.experience import Experience, ExperienceLoader, Parts
from gpt_modules.training.rl.frozen import Frozen
from gpt_modules.training.rl.gradients import clip_gradients, drop_gradients, grad_norm, named_groups, touch
from gpt_modules.training.rl.held_out import HeldOutAnswers
from gpt_modules.training.rl.models import change_units, check_fit, critic_folder, on_trunk, open_critic, shared_critic
from gpt_modules.training.rl.ptx import PtxBatch, PtxSteps, ptx_loss
from gpt_modules.training.rl.rewards import RewardSource, reward_sources
from gpt_modules.training.rl.rollout import (
    Scored,
    inference,
    response_outputs,
    response_values,
    score_responses,
    value_responses,
)
from gpt_modules.training.rl.scores import Moments, ScoresConfig, expect_spread
from gpt_modules.training.rl.settings import (
    ClipConfig,
    CriticConfig,
    EarlyStop,
    EMAConfig,
    KLConfig,
    PtxConfig,
    Sampling,
    SamplingConfig,
    Shaping,
    expect_no_dropout,
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
from gpt_modules.training.rl.state import State, expect_same_models, expect_same_penalty, read_state
from gpt_modules.training.rl.terms import check_tokenizer
from gpt_modules.training.rl.update import Outputs, Penalty, StepStatistics, update_loss
from gpt_modules.training.rl.watch import RolloutWatch, warn_of_idle_policy
from gpt_modules.training.sharding import refuse_sharding

VALIDATION = 0  # the first number of a key of `noise`; iterations count from 1
OF_REFERENCE = 2**31  # and from here, the reference's answers by which scores are normalised


class PPOModule(L.LightningModule):
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
        recompute: bool = False,
        compile: bool = False,
        sample_prompts: int = 8,
        seed: int = 0,
    ) -> None:
        given = arguments(locals())
        super().__init__()
        self.save_hyperparameters(given)
        for name in ("max_new_tokens", "ppo_epochs", "minibatches", "score_rows"):
            expect_number(name, given[name], "[1, inf)", whole=True)
        expect_number("sample_prompts", sample_prompts, "[0, inf)", whole=True)
        expect_number("seed", seed, SEEDS, whole=True)
        expect_number("temperature", temperature, "[0.001, inf)")
        self.sampling_config = typed(SamplingConfig, sampling)
        after = self.sampling_config.truncate_after
        expect(after < max_new_tokens, "sampling.truncate_after", after, f"less than max_new_tokens: {max_new_tokens}")
        expect_number("cache_gb", cache_gb, "(0, inf)")
        self.reward_sources = reward_sources(rewards)
        self.monitor_sources = {name: typed(RewardSource, source) for name, source in (monitors or {}).items()}
        self.kl_config, self.clip_config = typed(KLConfig, kl), typed(ClipConfig, clip)
        self.critic_config, self.ptx_config = typed(CriticConfig, critic), typed(PtxConfig, ptx)
        self.estimator = typed(EstimatorConfig, estimator)
        self.ema_config = None if ema is None else typed(EMAConfig, ema)
        self.lora = None if lora is None else typed(LoRAConfig, lora)
        expect_no_dropout("lora", self.lora)
        if self.lora is not None and self.ema_config is not None:
            raise UserError("ema: found beside lora, expected one of them: averaged factors are no averaged weights")
        self.optimizer_config, self.schedule_config = typed(OptimizerConfig, optimizer), typed(ScheduleConfig, schedule)
        refuse_idle(self, optimizer=self.optimizer_config, schedule=self.schedule_config)
        refuse_idle(self, kl=self.kl_config, clip=self.clip_config, ptx=self.ptx_config, estimator=self.estimator)
        self.estimator.refuse_of_a_critic(given, PPOModule)
        if not self.clip_config.value_coef:
            for name in ("lr", "warmup", "max_norm"):
                found, default = getattr(self.critic_config, name), getattr(CriticConfig(), name)
                expect_idle(f"critic.{name}", found, [default], "clip.value_coef is 0, so the critic does not learn")
        self.scores_config = typed(ScoresConfig, scores)
        refuse_idle(self, scores=self.scores_config)
        self.shaping = Shaping(
            gamma,
            lam,
            missing_eos_score,
            whiten_rewards,
            whiten_over=whiten_over,
            scores=self.scores_config,
            estimator=self.estimator,
        )
        # Python's numbers: a buffer would become bf16 with the weights, and a coefficient of 3 digits sticks.
        self.kl_coef, self.iteration = float(self.kl_config.coef), -1
        ensembles = any(source.ensemble for source in self.reward_sources)
        prefixes = ["", "ema/"] if self.ema_config is not None and self.ema_config.export == "beside" else [""]
        self.held_out = HeldOutAnswers(prefixes, list(self.monitor_sources), ensembles)
        self.rollout: Rollout | None = None
        self.frontier: list[tuple[float, float]] = []
        self._experience: ExperienceLoader | None = None
        self._cut_off: dict[str, Any] | None = None
        self.watch, self.step = RolloutWatch(max_new_tokens, missing_eos_score), StepStatistics()
        self.steps = StepsTaken(typed(EarlyStop, early_stop))
        self.average: Average | None = None
        self.policy: GPT
        self.critic: RewardModel | None

    # --- models ---

    def configure_model(self) -> None:
        """Policy, critic if any, and the frozen reference, all without dropout, or the first ratio would not be 1."""
        refuse_sharding(self)
        if hasattr(self, "policy"):
            return
        init_from = self.hparams["init_from"]
        self.policy = artefacts.open_gpt(None, init_from, **artefacts.dropout_changes(0.0))
        self.average = None if self.ema_config is None else Average(self.policy, self.ema_config.decay)
        self.critic = self._open_critic() if self.estimator.has_critic else None
        self._learn_updates()
        named = self.hparams["reference_from"]
        reference = init_from if named is None else named
        base = base_of(self.policy) if self.lora is not None and reference == init_from else None
        trunks = {}
        if self.critic is not None and self.critic_config.lora is not None:
            trunks = {self.critic_folder: base_of(self.critic.decoder)}
        self.frozen = Frozen(reference, self.reward_sources, self.monitor_sources, base, trunks)
        learners = (self.policy,) if self.critic is None else (self.policy, self.critic)
        for model in learners:
            model.decoder.recompute = self.hparams["recompute"]
        if self.hparams["compile"]:
            for decoder in dict.fromkeys(model.decoder for model in (*learners, self.frozen.reference)):
                decoder.compile_blocks()

    def _open_critic(self) -> RewardModel:
        told, shared = self.critic_config.init_from, self.critic_config.shared_trunk
        self.critic_folder = critic_folder(told, [] if shared else self.reward_sources, self.hparams["init_from"])
        if shared:
            return shared_critic(self.policy, told, self.reward_sources)
        return open_critic(self.critic_folder, self.reward_sources)

    def _learn_updates(self) -> None:
        if self.lora is not None:
            learn_updates(self, "policy", self.lora, self.hparams["init_from"])
        if self.critic_config.lora is not None:
            learn_updates(self, "critic", self.critic_config.lora, self.critic_folder)

    def on_fit_start(self) -> None:
        """Open the rewards, and refuse what would fail in the middle of a run."""
        if self.frozen.opened:
            return
        artefacts.check_vocabulary(self, self.policy.config)
        artefacts.check_beside(self, self.policy.config)
        tokenizer, init_from = artefacts.datamodule_tokenizer(self), self.hparams["init_from"]
        critic = {} if self.critic is None else {self.critic_folder: self.critic}
        for folder in sorted({self.frozen.reference_folder, *critic} - {init_from}):
            check_tokenizer(folder, tokenizer)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        self.estimator.expect_answers(data.answers)
        readers = {init_from: self.policy, **critic, **self.frozen.open(self)}
        most, temperature = self.hparams["max_new_tokens"], self.hparams["temperature"]
        config = self.sampling_config
        room = 1e9 * self.hparams["cache_gb"]
        self.sampling = Sampling(most, temperature, config.ends(tokenizer), config.truncate_after, cache_bytes=room)
        marks = int(self.sampling.ends != (tokenizer.eos_id,))
        check_fit(self.policy.config, readers, data.longest_prompt, most, marks)
        if self.average is not None:
            self.average.to(self.device)

    # A validation of its own has no fit.
    on_validation_start = on_test_start = on_predict_start = on_fit_start

    # --- rollout ---

    def experience_loader(self) -> ExperienceLoader:
        """What the datamodule hands to the Trainer."""
        hparams, place = self.hparams, (self.global_rank, self.trainer.world_size)
        parts = Parts(hparams["ppo_epochs"], hparams["minibatches"], self._accumulate)
        episodes = self.trainer.datamodule.episodes  # type: ignore[attr-defined]
        expect_enough(self.shaping.whiten_over, episodes // parts.minibatches)
        ptx = self._ptx_steps(episodes // parts.minibatches, *place)
        self._experience = ExperienceLoader(self, parts, episodes, hparams["seed"], *place, ptx)
        self.trainer.accumulate_grad_batches = self._experience.parts.micro_batches
        self._restore_experience()
        return self._experience

    def _ptx_steps(self, episodes: int, rank: int, world: int) -> PtxSteps | None:
        """The pretraining text of optimizer steps of so many episodes; None: it is not learnt."""
        text, ptx = artefacts.pretraining_text(self), self.ptx_config
        if not ptx.coef:
            return None
        if text is None:
            raise UserError(f"model.init_args.ptx.coef: found {ptx.coef}, expected 0 or data with `pretraining` text")
        return PtxSteps(text, ptx.windows * episodes, rank, world)

    def setup(self, stage: str) -> None:
        """What the recipe accumulates; micro-batches of pretraining text are added to it while a fit lasts."""
        self._accumulate = self.trainer.accumulate_grad_batches

    def teardown(self, stage: str) -> None:
        """The Trainer's own again."""
        self.trainer.accumulate_grad_batches = self._accumulate

    def _restore_experience(self) -> None:
        """Once both are there: the loader, and what a checkpoint held of it."""
        if self._experience is not None and self._cut_off is not None:
            self._experience.restore(self._cut_off)
            self._cut_off = None

    def _score(self, prompts: PromptBatch, draw: int, policy: GPT | None = None) -> Scored:
        """Responses of the policy to this process's prompts; `draw` and a prompt's number decide its noise."""
        key, rows, sampling = (self.hparams["seed"], draw), self.hparams["score_rows"], self.sampling
        critic = self.critic
        if draw == VALIDATION:  # which asks for no values
            critic, sampling = None, sampling._replace(draw=self.sampling_config.eval_temperature)
        with inference(self):
            frozen, policy = self.frozen, policy or self.policy
            return score_responses(policy, frozen.reference, frozen.reward, prompts, sampling, key, rows, critic)

    def collect(self) -> Rollout:
        """The next iteration's rollout. The experience loader asks for it when an epoch's first batch is asked of it,
        for Lightning leaves out `on_train_epoch_start` in the epoch after one at whose end a run was cut off.
        """
        started = time.perf_counter()
        self.iteration += 1
        self.steps.begin()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        own = data.prompts(self.iteration, self.global_rank, self.trainer.world_size)
        prompts = PromptBatch(*(field.to(self.device) for field in own))
        self._find_gain()
        scored = self._score(prompts, VALIDATION + 1 + self.iteration)
        if self.scores_config.normalise == "running":
            self._normalise_by(self.shaping.moments.joined(in_order(prompts.numbers, [scored.scores])[0]))
        scored, values = over_processes(prompts.numbers, scored, self._values(scored))
        self.rollout, _ = shape_rollout(scored, values, self.reward_kl_coef, self.shaping, data.answers)
        if self.kl_config.loss is not None:
            self.rollout = self.rollout._replace(ref_logprobs=scored.ref_logprobs)
        statistics = rollout_statistics(scored, self.rollout, self.reward_kl_coef, self.shaping)
        numbers = {name: float(value) for name, value in statistics.items()}
        numbers |= {"objective/kl_coef": self.kl_coef, "objective/iteration": float(self.iteration)}
        # Reading them waited for the device, so the clock stops when the rollout is complete.
        numbers["perf/rollout_seconds"] = time.perf_counter() - started
        if self.logger is not None:  # at once: the epoch's end may not come
            self.logger.log_metrics(numbers, step=self.global_step)
        self.watch.look(numbers, len(scored.scores))
        self._adapt_kl_coef(numbers["objective/kl"], len(scored.scores))
        return self.rollout

    def _find_gain(self) -> None:
        """Before the first rollout: by what the reference's answers score (Ziegler et al. 2019, section 2.2)."""
        config, moments = self.scores_config, self.shaping.moments
        if moments.of != config.normalise:
            self._normalise_by(Moments(config.normalise))
        if config.normalise != "reference" or self.shaping.moments.seen:
            return
        data, found = self.trainer.datamodule, []  # type: ignore[attr-defined]
        for number in range(math.ceil(config.samples / data.episodes)):
            own = data.prompts(number, self.global_rank, self.trainer.world_size)
            prompts = PromptBatch(*(field.to(self.device) for field in own))
            scored = self._score(prompts, OF_REFERENCE + number, self.frozen.reference)
            found += in_order(prompts.numbers, [scored.scores])
        self._normalise_by(expect_spread(self.shaping.moments.joined(torch.cat(found)[: config.samples])))

    def _normalise_by(self, moments: Moments) -> None:
        """From now on. A critic that began as a reward model follows the first of them, and learns the rest."""
        before, self.shaping = self.shaping.moments, replace(self.shaping, moments=moments)
        if self.critic is None or (before.seen and moments.seen):
            return
        if any(self.critic_folder in source.folders for source in self.reward_sources):
            change_units(self.critic, before, moments, len(self.reward_sources) == 1)

    def _values(self, scored: Scored) -> Tensor | None:
        if self.critic is None:
            return None
        with inference(self):
            return value_responses(self.critic, scored, self.hparams["score_rows"])

    @property
    def reward_kl_coef(self) -> float:
        """The penalty's weight in the reward: 0 where it stands in the loss."""
        return self.kl_coef if self.kl_config.loss is None else 0.0

    def _adapt_kl_coef(self, kl: float, episodes: int) -> None:
        config = self.kl_config
        if config.target is not None and not self.warming_up:
            self.kl_coef = adaptive_kl_coef(self.kl_coef, kl, config.target, config.horizon, episodes)

    # --- update ---

    def training_step(self, batch: Experience | PtxBatch, batch_idx: int) -> Tensor:
        """The losses of the estimator and of the critic, if any; or the loss of pretraining text."""
        assert self.rollout is not None
        if self.steps.stopped:
            return touch(self.parameters())
        if isinstance(batch, PtxBatch):
            loss, shares = ptx_loss(self.policy, batch, self.ptx_config.coef)
        else:
            rollout, kind = self.rollout.take(batch.rows), self.kl_config.loss
            if self.shaping.whiten_over == "minibatch":
                assert self._experience is not None
                rollout = whitened_alone(self.rollout, batch.rows, self._experience.minibatch, self.shaping)
            sequences = batch.sequences if self.estimator.averages_answers else None
            penalty = None if kind is None else Penalty(kind, self.kl_coef)
            outputs = self._outputs(rollout)
            loss, shares = update_loss(outputs, rollout, self.clip_config, batch.normaliser, sequences, penalty)
        self.step.add(shares)
        self.log_dict(self.watch.shown, prog_bar=True, logger=False)
        return loss

    def _outputs(self, rollout: Rollout) -> Outputs:
        tokens, prompt_lengths, responses, mask = rollout[:4]
        logprobs, entropy, values = response_outputs(
            self.policy, self.critic, tokens, prompt_lengths, responses, mask, self.hparams["temperature"]
        )
        if values is None and self.critic is not None:
            values = response_values(self.critic, tokens, prompt_lengths, mask)
        return Outputs(logprobs, entropy, values)

    @property
    def warming_up(self) -> bool:
        """Whether the critic alone learns in this iteration."""
        return self.iteration < self.critic_config.warmup

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
        if self.average is not None and not self.steps.stopped:
            self.average.update(self.policy)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """The critic's gradient apart where it has a norm of its own; else the Trainer's clipping of all as one."""
        if self.critic_config.max_norm is None:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            groups = named_groups(optimizer)
            clip_gradients(groups["policy"], gradient_clip_val, gradient_clip_algorithm)
            clip_gradients(groups["value"], self.critic_config.max_norm, "norm")

    def configure_optimizers(self) -> Any:
        """One AdamW, a group for the policy and one for the critic, if any: its head, where it stands on the policy's
        trunk.
        """
        config = self.optimizer_config
        rates = {"policy": config.lr, "value": config.lr if self.critic_config.lr is None else self.critic_config.lr}
        learners: dict[str, nn.Module] = {"policy": self.policy}
        if self.critic is not None:
            learners["value"] = self.critic.head if self.critic_config.shared_trunk else self.critic
        groups = [
            group
            for name, model in learners.items()
            for group in optimizers.parameter_groups([model], config.weight_decay, lr=rates[name], name=name)
        ]
        warn_of_idle_policy(self.critic_config.warmup, self.trainer.max_epochs)
        optimizer = optimizers.build(groups, config)
        return optimizers.configure(optimizer, self.schedule_config, self.trainer.estimated_stepping_batches)

    def work(self, batch: Experience | PtxBatch) -> tuple[float, str]:
        """Episodes: each is visited once an epoch, and counts a share each time; pretraining text is none."""
        episodes = 0 if isinstance(batch, PtxBatch) else len(batch.rows)
        return episodes / self.hparams["ppo_epochs"], "episodes"

    # --- validation ---

    def on_validation_epoch_start(self) -> None:
        """What is normalised by the reference's answers is so before the first rollout, too."""
        self._find_gain()

    on_test_epoch_start = on_validation_epoch_start

    def answering(self) -> dict[str, GPT]:
        """Whose answers a validation is of, and a table shows. The first is the one that `export` holds."""
        if self.ema_config is None or self.average is None:
            return {"policy": self.policy}
        average = {"average": self.average.model(self.policy)}
        return average if self.ema_config.export == "instead" else {"policy": self.policy} | average

    def validation_step(
        self, batch: PromptBatch | TokenBatch | PackedBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Sample answers to held-out prompts with the same noise each time; score them with the reward and the
        monitors. The second loader has held-out pretraining text.
        """
        if not isinstance(batch, PromptBatch):
            for prefix, model in zip(self.held_out.prefixes, self.answering().values(), strict=True):
                self.held_out.read(prefix, model, batch)
            return
        if not len(batch.lengths):
            return
        for prefix, model in zip(self.held_out.prefixes, self.answering().values(), strict=True):
            scored = self._score(batch, VALIDATION, model)
            measured = response_statistics(scored, self.reward_kl_coef, self.shaping)
            monitored = {name: monitor(scored.sequences).totals for name, monitor in self.frozen.monitors.items()}
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
        values = {f"{stage}/{name}": value for name, value in self.held_out.take().items()}
        if (temperature := self.sampling_config.eval_temperature) is not None:
            values[f"{stage}/temperature"] = float(temperature)
        self.log_dict(values, sync_dist=True)  # equal on all processes; said, as Lightning warns otherwise
        if artefacts.pretraining_text(self) is not None:
            self.held_out.log_text(self, stage)
        return values

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Prompt, response and score of each row."""
        if not len(batch.lengths):
            return []
        exported, *_ = self.answering().values()
        return predictions(self._score(batch, VALIDATION, exported), artefacts.datamodule_tokenizer(self))

    def on_train_start(self) -> None:
        """A PPO run opens as a dashboard in TensorBoard's custom scalars."""
        writer = tensorboard(self.trainer)
        if writer is not None:
            writer.add_custom_scalars(ppo_layout(self.estimator.has_critic))

    def sample_rows(self) -> list[dict[str, str]]:
        """Held-out prompts, the reference's answer, with the same noise the policy's and its average's, and their
        scores.
        """
        batch = next(iter(self.trainer.datamodule.predict_dataloader()))  # type: ignore[attr-defined]
        batch = PromptBatch(*(field[: self.hparams["sample_prompts"]].to(self.device) for field in batch))
        if not len(batch.lengths):
            return []
        models = {"reference": self.frozen.reference, **self.answering()}
        answers = {name: self._score(batch, VALIDATION, model) for name, model in models.items()}
        return side_by_side(answers, artefacts.datamodule_tokenizer(self))

    # --- artefacts ---

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What is neither weights nor optimizer: the place of the run, and inside an iteration its experience."""
        experience = None if self._experience is None else self._experience.state()
        steps = (self.steps.taken, self.steps.stopped)
        average = None if self.average is None else self.average.state()
        place = (self.iteration, self.kl_coef, self.frontier, self.frozen.digests, experience)
        state = State(*place, steps, average, self.shaping.moments)
        checkpoint["ppo"] = state._asdict() | {"moments": state.moments._asdict()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore it; a coefficient that was adapted goes on, a fixed one is the recipe's."""
        state = read_state(checkpoint)
        expect_same_models(checkpoint["state_dict"], self.estimator.has_critic)
        expect_same_penalty(state.experience, self.kl_config.loss)
        self.iteration, self.frozen.recorded = state.iteration, state.frozen
        self.frontier, self.shaping = state.frontier, replace(self.shaping, moments=state.moments)
        self.steps.taken, self.steps.stopped = state.steps
        if self.average is not None:
            expect(state.average is not None, "model.init_args.ema", "an average", "none, as the checkpoint has none")
            self.average.restore(state.average or {})
        if self.kl_config.target is not None:
            self.kl_coef = state.kl_coef
        self._cut_off = state.experience
        self._restore_experience()

    @property
    def learned_settings(self) -> set[str]:
        """Of a resumed run: settings that are only where adapted numbers began."""
        return set() if self.kl_config.target is None else {"kl.coef"}

    def export(self, folder: Path) -> None:
        """Write the policy, or its average; the critic, if any, goes beside it, for a later run that begins from it: on
        the trunk that is written, where both share one. Of updates, an adapter.
        """
        first, *averages = self.answering().values()
        export_merged(self, first, self.lora, self.hparams["init_from"], folder)
        beside: dict[str, GPT | RewardModel] = dict(zip(self._averages_beside, averages, strict=True))
        if self.critic is not None:
            shared = self.critic_config.shared_trunk
            beside["critic"] = on_trunk(merge_lora(first), self.critic.head) if shared else merge_lora(self.critic)
        for name, model in beside.items():
            artefacts.export(self, model, folder.with_name(f"{folder.name}-{name}"))

    @property
    def _averages_beside(self) -> list[str]:
        return [prefix.rstrip("/") for prefix in self.held_out.prefixes[1:]]

    @property
    def also_exports(self) -> list[str]:
        """Folders beside `export`, by the ends of their names."""
        critic = ["critic"] if self.estimator.has_critic else []
        return [*critic, *self._averages_beside, *([] if self.lora is None else [ADAPTER])]
