"""LoRA in a procedure: what learns, checkpoints of that alone, and two folders at the end.

The frozen base is not in a checkpoint. It is known there by its SHA-256 and read again from its folder, where it must
be what it was: updates of one base beside the matrices of another would be a third model, and nothing would tell.
"""

import logging
from collections.abc import MutableMapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from torch import Tensor, nn

from gpt_modules.backbone import GPT, LoRAConfig, RewardModel, add_lora
from gpt_modules.backbone.folders.adapter import can_adapt, save_adapter
from gpt_modules.backbone.folders.digest import digest_of
from gpt_modules.errors import UserError
from gpt_modules.training import artefacts
from gpt_modules.training.sharding.models import whole

log = logging.getLogger(__name__)

BASE = "base_sha256"
ADAPTER = "adapter"


def learn_updates(module: L.LightningModule, name: str, config: LoRAConfig, folder: str) -> None:
    """Let low-rank updates of a procedure's model learn in place of its decoder and output matrix; a scalar head
    learns in full. From here on `module.state_dict()` holds what learns, and which base it belongs to.

    Args:
        name: of the attribute that is the model.
        folder: that its weights were read from.

    Raises:
        UserError: a rank that is not low.
    """
    model: GPT | RewardModel = getattr(module, name)
    decoder = model.decoder
    base = dict(decoder.state_dict())
    if isinstance(model, GPT) and not model.config.tied:
        base["lm_head.weight"] = model.lm_head.weight
        model.lm_head.requires_grad_(False)
    known = digest_of(decoder.config.without_dropout(), base)  # dropout is the recipe's
    digest = torch.frombuffer(bytearray.fromhex(known), dtype=torch.uint8)
    add_lora(decoder, config)
    ids = {id(parameter) for parameter in model.parameters() if not parameter.requires_grad}
    frozen = frozenset(key for key, parameter in _every_name(module).items() if id(parameter) in ids)
    module.register_state_dict_post_hook(partial(_leave_out, name=name, frozen=frozen, digest=digest))  # type: ignore[no-untyped-call]
    module.register_load_state_dict_pre_hook(partial(_put_in, name=name, frozen=frozen, digest=digest, folder=folder))  # type: ignore[no-untyped-call]
    if not can_adapt(decoder.config) and getattr(rank_zero_only, "rank", 0) == 0:
        log.warning("lora: transformers has no class for this decoder, so no adapter is written beside the export")


def export_merged(
    module: L.LightningModule,
    model: GPT | RewardModel,
    config: LoRAConfig | None,
    base: str,
    folder: Path,
    ends: Sequence[int] | None = None,
) -> None:
    """Write a procedure's model with its updates merged, which begins the next stage; and beside it, in
    `<folder>-adapter`, the updates alone, for `peft` on the base.

    Args:
        config: None: nothing is updated, and nothing written beside.
        base: folder of what was updated.
        ends: as of `artefacts.export`.
    """
    artefacts.export(module, model, folder, ends=ends)
    if config is None or not can_adapt(model.config):
        return
    if (entire := whole(model)) is not None and module.trainer.is_global_zero:
        save_adapter(folder.with_name(f"{folder.name}-{ADAPTER}"), entire, config, base)
    module.trainer.strategy.barrier()


def _leave_out(
    module: L.LightningModule,
    state: MutableMapping[str, Any],
    prefix: str,
    metadata: Any,
    name: str,
    frozen: frozenset[str],
    digest: Tensor,
) -> None:
    for key in frozen:
        del state[prefix + key]
    state[f"{prefix}{name}.{BASE}"] = digest


def _put_in(
    module: L.LightningModule,
    state: MutableMapping[str, Any],
    prefix: str,
    metadata: Any,
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
    name: str,
    frozen: frozenset[str],
    digest: Tensor,
    folder: str,
) -> None:
    stored = state.pop(f"{prefix}{name}.{BASE}", None)
    if stored is None:
        missing.append(f"{prefix}{name}.{BASE}")
    elif not torch.equal(stored.cpu(), digest):
        found, expected = (bytes(value.tolist()).hex()[:12] for value in (digest, stored))
        raise UserError(
            f"{folder}: found another model (SHA-256 {found}…) than this run began with, expected {expected}…: put it "
            "back, or begin a new run"
        )
    unexpected.extend(prefix + key for key in frozen & {key.removeprefix(prefix) for key in state})
    own = _every_name(module)
    state.update({prefix + key: own[key].detach() for key in frozen})


def _every_name(module: L.LightningModule) -> dict[str, nn.Parameter]:
    """Of a trunk that two models share, under both."""
    return dict(module.named_parameters(remove_duplicate=False))
