"""How weights enter and leave a procedure: from a configuration or a folder, to a folder with its tokenizer."""

import dataclasses
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from safetensors.torch import save_model
from torch import nn

from gpt_modules.backbone import GPT, DecoderConfig, LabellingModel, RewardModel, load_pretrained, save_pretrained
from gpt_modules.backbone.folders.inner_rates import InnerRates
from gpt_modules.backbone.folders.replacing import replace_folder
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError
from gpt_modules.storage.model_files import WEIGHTS_FILE
from gpt_modules.training import sharding


def open_gpt(config: DecoderConfig | None, init_from: str | None, blank: bool = False, **changes: Any) -> GPT:
    """A new model of `config`, or the one in the folder `init_from`, whose own configuration then holds.

    Args:
        blank: a new model stays without weights, on the meta device.
        changes: configuration fields to change on loading, such as dropout.
    """
    if (config is None) == (init_from is None):
        found = "neither" if config is None else "both"
        raise UserError(f"model.init_args: found {found} of config and init_from, expected exactly one")
    if config is not None:
        return sharding.blank_gpt(config) if blank else GPT(config)
    assert init_from is not None
    model = load_pretrained(init_from, kind="gpt", **changes)
    assert isinstance(model, GPT)
    return model


def open_source(config: DecoderConfig | None, init_from: str | None, **changes: Any) -> GPT | LabellingModel:
    """A language model to begin with (new, or from its folder), or a task model to go on with.

    Args:
        changes: configuration fields to change, such as dropout.
    """
    if init_from is None or config is not None:
        return open_gpt(config and dataclasses.replace(config, **changes), init_from)
    model = load_pretrained(init_from, None, **changes)
    if not isinstance(model, GPT | LabellingModel):
        raise UserError(f"{init_from}: found a reward model, expected a language model or a task model")
    return model


def datamodule_tokenizer(module: L.LightningModule) -> Tokenizer:
    """The tokenizer of the run's data; it travels with the weights."""
    tokenizer: Tokenizer = module.trainer.datamodule.tokenizer  # type: ignore[attr-defined]
    return tokenizer


def check_vocabulary(module: L.LightningModule, config: DecoderConfig) -> None:
    """A token id beyond the embedding would be an index error on the CPU and a dead context on a GPU: say it before.

    Raises:
        UserError: when the tokenizer has more tokens than the model.
    """
    size = datamodule_tokenizer(module).vocab_size
    if size > config.vocab_size:
        raise UserError(
            f"model.init_args.config.vocab_size: found {config.vocab_size}, "
            f"expected at least the tokenizer's {size} tokens"
        )


def export(
    module: L.LightningModule,
    model: GPT | RewardModel | LabellingModel,
    folder: Path,
    inner_rates: InnerRates | None = None,
) -> None:
    """Write the artefact folder from rank 0; other ranks give their shards, if any, and wait."""
    whole = sharding.whole(model) if isinstance(model, GPT) and sharding.is_sharded(model) else model
    if module.trainer.is_global_zero:
        assert whole is not None
        save_pretrained(folder, whole, tokenizer_json=datamodule_tokenizer(module).to_json(), inner_rates=inner_rates)
    module.trainer.strategy.barrier()


def export_network(module: L.LightningModule, network: nn.Module, folder: Path) -> None:
    """Write the weights of a network that is no decoder: model.safetensors, under the names of its `state_dict`."""
    if module.trainer.is_global_zero:
        with replace_folder(folder) as new:
            save_model(network, str(new / WEIGHTS_FILE))
    module.trainer.strategy.barrier()


def sampling_generator(module: L.LightningModule, purpose: int) -> torch.Generator:
    """A generator of its own for sampling, a function of (seed, step, purpose), so that showing samples changes no
    training draw.
    """
    seed = int(module.hparams.get("seed", 0) or 0)
    return torch.Generator(module.device).manual_seed((seed * 1_000_003 + module.global_step) * 64 + purpose)


def dropout_changes(dropout: float | None) -> dict[str, Any]:
    """One dropout for embeddings, attention and residuals, as changes to a stored configuration."""
    return {} if dropout is None else {"embd_pdrop": dropout, "attn_pdrop": dropout, "resid_pdrop": dropout}


def open_scorer(folder: str, zero_head: bool = False, **changes: Any) -> RewardModel:
    """A reward model from its folder, or a new head on the trunk of a language model's folder.

    Args:
        zero_head: a new head says 0 until it has learnt.
    """
    model = load_pretrained(folder, None, **changes)
    if isinstance(model, LabellingModel):
        raise UserError(f"{folder}: found a model of kind 'task', expected 'reward' or 'gpt'")
    if isinstance(model, RewardModel):
        return model
    scorer = RewardModel.from_gpt(model)
    if zero_head:
        nn.init.zeros_(scorer.head.linear.weight)
    return scorer
