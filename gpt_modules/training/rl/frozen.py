"""What a PPO run reads and never trains: the reference, the rewards, and the monitors."""

import logging
from collections.abc import Mapping, Sequence

import lightning.pytorch as L
import torch
from torch import nn

from gpt_modules.backbone import GPT, Decoder, model_digest
from gpt_modules.backbone.linear import Linear
from gpt_modules.backbone.offload import offload
from gpt_modules.training import artefacts
from gpt_modules.training.hyperparameters import expect_idle
from gpt_modules.training.rl.rewards import Reward, RewardSource
from gpt_modules.training.rl.rollout import autocast_type
from gpt_modules.training.rl.terms import Columns, ModelScores
from gpt_modules.training.rl.unchanged import check_unchanged
from gpt_modules.training.sharding.models import shard

log = logging.getLogger(__name__)

REFERENCE = "model.init_args.reference_from or init_from"  # one name in a checkpoint, wherever it lies now


class Frozen:
    """Models from their folders; no module of torch, so that nothing trains them or puts them into a checkpoint, which
    knows them by their SHA-256 instead.

    Args:
        reference: folder of the policy that the penalty holds to.
        base: the model in that folder, where the run has it already: under a policy's updates.
        trunks: of folders of reward models, those that the run has already: under a critic's updates.
        rewards: terms of what is optimised.
        monitors: scores that are only watched.
        offload: let them lie in the host's memory, and on the device while they are `held`. What the run has already
            stays where it learns.
    """

    def __init__(
        self,
        reference: str,
        rewards: Sequence[RewardSource],
        monitors: Mapping[str, RewardSource],
        base: GPT | None = None,
        trunks: Mapping[str, Decoder] | None = None,
        offload: bool = False,
    ) -> None:
        self.reference_folder = reference
        self.reference: GPT = base or artefacts.open_gpt(None, reference, **artefacts.dropout_changes(0.0))
        self.reference.requires_grad_(False).eval()
        self._shared, self._trunks = base is not None, trunks or {}
        self.digests: dict[str, str | None] = {REFERENCE: model_digest(self.reference)}
        self.recorded: dict[str, str | None] = {}  # of a checkpoint that the run goes on from
        self.reward: Reward
        self.monitors: dict[str, Reward] = {}
        self._sources, self._offload = (rewards, monitors), offload

    @property
    def opened(self) -> bool:
        """Whether `open` has been called."""
        return hasattr(self, "reward")

    def open(self, module: L.LightningModule) -> dict[str, nn.Module]:
        """Open the rewards, bring all to the module's device and precision, and compare them with what a checkpoint
        says. Returns those that read the policy's ids, by folder.

        Raises:
            UserError: a source cannot be opened or cannot read the prompts, a folder holds another model than before,
                or there is nothing to offload.
        """
        home = torch.device("cpu") if self._offload else module.device

        def place(model: nn.Module) -> nn.Module:  # a float32 reference beside a bf16 policy is none
            converted: nn.Module = module.trainer.precision_plugin.convert_module(model)
            converted = cast_products(converted, autocast_type(module))
            if module.device_mesh is not None:
                assert isinstance(converted, GPT | Decoder)
                shard(converted, module)
            return converted.to(home)

        rewards, monitors = self._sources
        tokenizer = artefacts.datamodule_tokenizer(module)
        opened: dict[str, ModelScores] = {}  # once each, whoever names them
        own = module.trainer.datamodule  # type: ignore[attr-defined]
        data = own if isinstance(own, Columns) else None  # a DataModule of the user's own may have prompts alone
        reward = Reward(rewards, tokenizer, place, opened, data)
        self.monitors = {name: Reward([source], tokenizer, place, opened, data) for name, source in monitors.items()}
        models: dict[str, nn.Module] = {self.reference_folder: self.reference}
        for scorer in (reward, *self.monitors.values()):
            models |= {name: of.model for name, of in scorer.readers().items() if not of.through_text}
            self.digests |= scorer.digests()
        for reader in (reader for reader in opened.values() if reader.through_text):
            reader.check_prompts(own.prompt_tokens())
        check_unchanged(self.digests, self.recorded)
        for folder in opened.keys() & self._trunks.keys():  # the copy that was read, to know it, is let go
            opened[folder].model.decoder = self._trunks[folder].eval()
            opened[folder].model.to(module.device)
        if not self._shared:  # what is shared lies where the policy does, as the policy is
            place(self.reference)
        if self._offload:
            own = [of.model for folder, of in opened.items() if folder not in self._trunks]
            offload_all([*own, *([] if self._shared else [self.reference])], module.device)
        self.reward = reward
        return models

    def recall(self, recorded: dict[str, str | None]) -> None:
        """What a checkpoint says of them. With a strategy that shards it is read when they have been opened.

        Raises:
            UserError: a folder holds another model than before.
        """
        self.recorded = recorded
        if self.opened:
            check_unchanged(self.digests, self.recorded)

    def scorers(self) -> list[Decoder]:
        """The trunks of reward models, but those that the run has otherwise; once there are some."""
        readers = (scorer.models().values() for scorer in (self.reward, *self.monitors.values()))
        found = dict.fromkeys(model.decoder for models in readers for model in models)
        return [decoder for decoder in found if decoder not in self._trunks.values()]


def offload_all(models: Sequence[nn.Module], device: torch.device) -> None:
    """Let them lie in the host's memory, as `model.ref_reward_offload` says.

    Raises:
        UserError: there is none.
    """
    reason = "the reference lies under the policy's updates, and no reward model is a copy of its own"
    expect_idle("ref_reward_offload", True, [bool(models)], reason)
    if device.type == "cpu":
        log.warning(
            "model.ref_reward_offload: on a CPU frozen models lie in the host's memory as it is: nothing is moved"
        )
        return
    for model in models:
        offload(model, device)


def cast_products(model: nn.Module, half: torch.dtype | None) -> nn.Module:
    """Keep what autocast would cast before each product in that type: the same numbers bit for bit, in half the memory.
    Embeddings and norms, which it leaves alone, stay; so do heads that multiply in float32.
    """
    for layer in model.modules():
        if half is not None and type(layer) in (nn.Linear, Linear):
            layer.to(half)
    return model
