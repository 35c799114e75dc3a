"""The models that learn from rewards: the policy, its critic, and the average of its weights."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from jaxtyping import Float
from torch import Tensor, nn

from gpt_modules.backbone import GPT, Decoder, RewardModel, base_of
from gpt_modules.backbone.folders.card import Facts
from gpt_modules.training import artefacts, optimizers
from gpt_modules.training.lora import export_merged, learn_updates
from gpt_modules.training.rl.average import Average
from gpt_modules.training.rl.models import change_units, critic_folder, on_trunk, open_critic, shared_critic
from gpt_modules.training.rl.recipe import Recipe
from gpt_modules.training.rl.rollout import Scored, response_outputs, response_values, value_responses
from gpt_modules.training.rl.scores import Moments
from gpt_modules.training.rl.shaping import Rollout
from gpt_modules.training.rl.update import Outputs
from gpt_modules.training.sharding.models import shard, shard_head


class Learners:
    """Policy, critic if any, and average, opened from their folders, all without dropout, or the first ratio would not
    be 1.

    No module of torch: the procedure has `policy` and `critic` as its own, under these names in its checkpoints.

    Args:
        recipe: where they begin, and how they learn.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.policy: GPT = artefacts.open_gpt(None, recipe.init_from, **artefacts.dropout_changes(0.0))
        self.average = None if recipe.ema is None else Average(self.policy, recipe.ema.decay)
        self.critic: RewardModel | None = self._open_critic() if recipe.estimator.has_critic else None

    def _open_critic(self) -> RewardModel:
        critic, rewards, init_from = self.recipe.critic, self.recipe.rewards, self.recipe.init_from
        self.critic_folder = critic_folder(critic.init_from, [] if critic.shared_trunk else rewards, init_from)
        if critic.shared_trunk:
            return shared_critic(self.policy, critic.init_from, rewards)
        return open_critic(self.critic_folder, rewards)

    def learn_updates(self, module: L.LightningModule) -> None:
        """Low-rank ones in place of the models of `module`, where the recipe has them."""
        if self.recipe.lora is not None:
            learn_updates(module, "policy", self.recipe.lora, self.recipe.init_from)
        if self.recipe.critic.lora is not None:
            learn_updates(module, "critic", self.recipe.critic.lora, self.critic_folder)

    def shard(self, module: L.LightningModule) -> None:
        """Split them over the devices of the run."""
        shard(self.policy, module)
        if self.critic is not None and self.recipe.critic.shared_trunk:
            shard_head(self.critic.head, module)
        elif self.critic is not None:
            shard(self.critic, module)
        if self.average is not None:
            self.average.shard(module)

    def base(self) -> GPT | None:
        """The reference, where the policy without its updates is that one; else None."""
        same = self.recipe.lora is not None and self.recipe.reference == self.recipe.init_from
        return base_of(self.policy) if same else None

    def trunks(self) -> dict[str, Decoder]:
        """Those of folders that lie under a critic's updates."""
        if self.critic is None or self.recipe.critic.lora is None:
            return {}
        return {self.critic_folder: base_of(self.critic.decoder)}

    def critics(self) -> dict[str, nn.Module]:
        """The critic, if any, by the folder that it began from."""
        return {} if self.critic is None else {self.critic_folder: self.critic}

    def decoders(self) -> list[Decoder]:
        """Each once."""
        models = (self.policy,) if self.critic is None else (self.policy, self.critic)
        return list(dict.fromkeys(model.decoder for model in models))

    # --- what they say ---

    def outputs(
        self, rollout: Rollout, temperature: float, policy_rests: bool = False, count: int | None = None
    ) -> Outputs:
        """Of a rollout's response tokens, with gradient: the critic's alone where the policy rests. `count`: as of
        `Counted.of`.
        """
        tokens, prompt_lengths, responses, mask = rollout[:4]
        text = (tokens, prompt_lengths, responses, mask, temperature, policy_rests, count)
        logprobs, entropy, values = response_outputs(self.policy, self.critic, *text)
        if values is None and self.critic is not None:
            values = response_values(self.critic, tokens, prompt_lengths, mask, count)
        return Outputs(logprobs, entropy, values)

    def values(self, scored: Scored, rows: int) -> Float[Tensor, "B R"] | None:
        """The critic's, without gradient, `rows` of them in a forward pass; None: there is none."""
        return None if self.critic is None else value_responses(self.critic, scored, rows)

    def follow(self, before: Moments, after: Moments, learnt: bool, mean_of: Callable[[str], float]) -> None:
        """A critic values in the units of the first moments of the scores, and learns the rest.

        One that has not learnt and began as a part of the reward, a term of a sum or a member of an ensemble, says what
        that part says: it is the part's own mean that comes off, so that its answers have a mean of 0 as all have. One
        that began at zero says the mean already.

        Args:
            learnt: whether it values the whole reward by now.
            mean_of: the mean score that the reward model of a folder gives the answers that `after` is of.
        """
        follows = not before.seen or before.of != after.of  # and no later ones of the same kind
        if self.critic is None or not follows or not (before.seen or after.seen):
            return
        if not (learnt or before.seen):
            part = next((source for source in self.recipe.rewards if self.critic_folder in source.folders), None)
            if part is None:
                return
            if len(self.recipe.rewards) > 1 or part.ensemble:
                after = after._replace(mean=part.weight * mean_of(self.critic_folder))
        change_units(self.critic, before, after)

    def answering(self) -> dict[str, GPT]:
        """Whose answers a validation is of, and a table shows. The first is the one that `export` holds."""
        if self.recipe.ema is None or self.average is None:
            return {"policy": self.policy}
        average = {"average": self.average.model(self.policy)}
        return average if self.recipe.ema.export == "instead" else {"policy": self.policy} | average

    # --- how they learn, and what is left of them ---

    def groups(self) -> list[dict[str, Any]]:
        """The optimizer's: for the policy and for the critic, if any: its head, where it stands on the policy's
        trunk.
        """
        config, critic = self.recipe.optimizer, self.recipe.critic
        rates = {"policy": config.lr, "value": config.lr if critic.lr is None else critic.lr}
        learners: dict[str, nn.Module] = {"policy": self.policy}
        if self.critic is not None:
            learners["value"] = self.critic.head if critic.shared_trunk else self.critic
        return [
            group
            for name, model in learners.items()
            for group in optimizers.parameter_groups([model], config.weight_decay, lr=rates[name], name=name)
        ]

    def export(self, module: L.LightningModule, folder: Path) -> None:
        """Write the policy, or its average; the critic, if any, goes beside it, for a later run that begins from it: on
        the trunk that is written, where both share one. Of updates, an adapter.
        """
        first, *averages = self.answering().values()
        ends = self.recipe.sampling.ends(artefacts.datamodule_tokenizer(module))
        export_merged(module, first, self.recipe.lora, self.recipe.init_from, folder, ends)
        beside: dict[str, GPT | RewardModel] = dict(zip(self.recipe.averages_beside, averages, strict=True))
        if self.critic is not None:
            shared = self.recipe.critic.shared_trunk
            beside["critic"] = on_trunk(first, self.critic.head) if shared else self.critic
        for name, model in beside.items():
            artefacts.export(module, model, folder.with_name(f"{folder.name}-{name}"), ends=ends)

    def tell(self, name: str | None, facts: Facts) -> Facts:
        """For a model card: the facts of a run, as they are of the folder `export-<name>` (None: `export`)."""
        ema, critic = self.recipe.ema, self.recipe.critic
        sources = [said for source in self.recipe.rewards for said in source.names]
        models = {"Reference": [self.recipe.reference], "Rewards": sources}
        if name == "critic":
            head = "" if critic.init_from is None else f", under the head of {critic.init_from}"
            shared = f"the policy's trunk{head}" if critic.shared_trunk else None
            base = self.recipe.init_from if critic.shared_trunk else self.critic_folder
            return replace(facts, base=base, kind="critic: a value of each token", weights=shared,
                           models={"Rewards": sources}, before={}, metrics={})  # fmt: skip
        averaged = ema is not None and (name == "ema" or ema.export == "instead")
        weights = f"exponential moving average of the policy's, decay {ema.decay:g}" if ema and averaged else None
        before, metrics = _own(facts.before, name), _own(facts.metrics, name)
        ends = self.recipe.sampling.told
        return replace(facts, weights=weights, models=models, ends=ends, before=before, metrics=metrics)


def _own(metrics: Mapping[str, float], name: str | None) -> dict[str, float]:
    """Of all metrics, those of the average, or of the policy."""
    return {metric: value for metric, value in metrics.items() if metric.startswith("val/ema/") == (name == "ema")}
