"""How weights enter and leave a procedure: from a configuration or a folder, to a folder with its tokenizer."""

import dataclasses
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from safetensors.torch import save_model
from torch import nn

from gpt_modules.backbone import (
    GPT,
    DecoderConfig,
    LabellingModel,
    RewardModel,
    load_pretrained,
    merge_lora,
    save_pretrained,
)
from gpt_modules.backbone.folders.inner_rates import InnerRates
from gpt_modules.backbone.folders.replacing import find_folder, replace_folder
from gpt_modules.data.mixed import TextBeside
from gpt_modules.data.text.reading import has_tokenizer
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError, expect
from gpt_modules.storage.model_files import WEIGHTS_FILE
from gpt_modules.training.sharding.models import blank_gpt, whole

log = logging.getLogger(__name__)

_UNUSED = 0.2  # of a new embedding's rows, from which on those that no token uses are told of


def open_gpt(config: DecoderConfig | None, init_from: str | None, blank: bool = False, **changes: Any) -> GPT:
    """A new model of `config`, or the one in the folder `init_from`, whose own configuration then holds.

    Args:
        blank: a new model stays without weights, on the meta device.
        changes: configuration fields to change on loading, such as dropout.
    """
    if (config is None) == (init_from is None):
        found = "neither" if config is None else "both"
        raise UserError(
            f"model: found {found} of config and init_from, expected exactly one; the other may be unset, as "
            "in --model.config null"
        )
    if config is not None:
        return blank_gpt(config) if blank else _new_gpt(config)
    assert init_from is not None
    model = load_pretrained(init_from, kind="gpt", **changes)
    assert isinstance(model, GPT)
    return model


def _new_gpt(config: DecoderConfig) -> GPT:
    """A new model.

    Raises:
        UserError: its parameters alone are more than the machine's memory, or than there is left of it.
    """
    size, memory = config.n_params() * torch.get_default_dtype().itemsize, _physical_memory()
    found = f"found a model of {config.n_params():,} parameters, {size / 1e9:,.1f} GB"
    if memory is not None and size > memory:
        raise UserError(f"model.config: {found}, expected less than this machine's {memory / 1e9:,.1f} GB")
    try:
        return GPT(config)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search("allocate memory|out of memory", str(error)):
            raise
        raise UserError(f"model.config: {found}, expected one that memory has room for") from error


def _physical_memory() -> int | None:
    """Bytes; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


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


def expect_data(module: L.LightningModule, *kinds: type[L.LightningDataModule]) -> None:
    """The run's DataModule, where it is this package's, has what the procedure reads; for the beginning of
    `configure_model`. One of the user's own is taken at its word.

    Raises:
        UserError: it is of another procedure.
    """
    data = None if module._trainer is None else module.trainer.datamodule  # type: ignore[attr-defined]
    ours = type(data).__module__.startswith(f"{__package__.partition('.')[0]}.")
    names = " or ".join(kind.__name__ for kind in kinds)
    expect(not ours or isinstance(data, kinds), "data.class_path", type(data).__name__, names)


def check_data(module: L.LightningModule, config: DecoderConfig) -> None:
    """The run's data fits its model: what it would come to after many steps, or never, is said before the first one of
    any stage. For the end of `configure_model`; a module without a Trainer has no data.

    Raises:
        UserError: as `check_vocabulary`, or a row is longer than the model's positions.
    """
    if module._trainer is None:
        return
    check_vocabulary(module, config)
    measure = getattr(module.trainer.datamodule, "longest_row", None)  # type: ignore[attr-defined]
    if measure is None:  # a DataModule of the user's own
        return
    longest, found = measure()
    if longest > config.n_positions:
        expected = f"expected at most the model's n_positions = {config.n_positions}"
        raise UserError(f"data.context: found {found}, {expected}")
    check_beside(module, config)


def pretraining_text(module: L.LightningModule) -> TextBeside | None:
    """The pretraining text beside the run's data; None: it has none, or is of the user's own kind."""
    text: TextBeside | None = getattr(module.trainer.datamodule, "pretraining", None)  # type: ignore[attr-defined]
    return text


def check_beside(module: L.LightningModule, config: DecoderConfig) -> None:
    """The windows of pretraining text that stand beside the run's data fit its model, too.

    Raises:
        UserError: they are longer than the model's positions.
    """
    text = pretraining_text(module)
    if text is not None and text.context > config.n_positions:
        expected = f"expected at most the model's n_positions = {config.n_positions}"
        raise UserError(f"data.pretraining.context: found {text.context}, {expected}")


def check_vocabulary(module: L.LightningModule, config: DecoderConfig) -> None:
    """The data is read by the tokenizer that the model learnt with. A token id beyond the embedding would be an index
    error on the CPU and a dead context on a GPU; other ids of the same number train and export the wrong tokenizer.

    Raises:
        UserError: the tokenizer has more tokens than the model, or is not the one in the folder that it begins from.
    """
    tokenizer, folder = datamodule_tokenizer(module), module.hparams.get("init_from")
    size = tokenizer.vocab_size
    if size > config.vocab_size:
        raise UserError(
            f"model.config.vocab_size: found {config.vocab_size}, expected at least the tokenizer's {size} tokens"
        )
    unused = config.vocab_size - size
    if folder is None and unused > _UNUSED * config.vocab_size and _begins(module.trainer):
        message = "model.config.vocab_size: %d, of which the tokenizer has %d: no token uses the other %d rows"
        log.warning(message, config.vocab_size, size, unused)
    theirs = None if folder is None else tokenizer_of(folder)
    if theirs is not None and not tokenizer.reads_like(theirs):
        name = module.trainer.datamodule.tokenizer_name  # type: ignore[attr-defined]
        raise UserError(f"data.tokenizer: found {name}, expected the tokenizer of the model, {folder}")


def _begins(trainer: L.Trainer) -> bool:
    """Whether weights are to learn here, on the first process."""
    return trainer.is_global_zero and trainer.state.fn == "fit"


def tokenizer_of(name: str) -> Tokenizer | None:
    """The tokenizer in a model's folder (or of its name on the hub); None: it has none."""
    folder = find_folder(name)
    return Tokenizer.load(folder) if has_tokenizer(folder) else None


def export(
    module: L.LightningModule,
    model: GPT | RewardModel | LabellingModel,
    folder: Path,
    inner_rates: InnerRates | None = None,
    ends: Sequence[int] | None = None,
) -> None:
    """Write the artefact folder from rank 0, low-rank updates merged; other ranks give their shards, if any, and wait.

    Args:
        ends: the tokens that end an answer, where they are others than the tokenizer's.
    """
    entire = whole(model)
    if module.trainer.is_global_zero:
        assert entire is not None
        tokenizer, merged = datamodule_tokenizer(module), merge_lora(entire)
        chat = tokenizer.chat_files()
        chat = chat if ends is None else chat._replace(end_ids=tuple(ends))
        form = tokenizer.task_json() if isinstance(merged, LabellingModel) else tokenizer.to_json()
        save_pretrained(folder, merged, tokenizer_json=form, chat=chat, inner_rates=inner_rates)
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


def refuse_random_head(module: L.LightningModule) -> None:
    """For a procedure that is about to put a new head on its model: fitting learns it and a checkpoint replaces it, but
    any other stage would give numbers and predictions of random weights.

    Raises:
        UserError: the stage neither fits nor reads a checkpoint.
    """
    stage = None if module._trainer is None else module.trainer.state.fn
    if stage is None or stage == "fit":
        return
    folder = module.hparams.get("init_from")
    found = "a new model" if folder is None else f"{folder}, which has no head for this task"
    expected = f"expected a folder that this procedure exported, or --ckpt_path: {stage.value} learns nothing"

    def refuse() -> None:
        # Lightning tells which checkpoint it reads only after the model has been made.
        if module.trainer.state.fn != "fit" and module.trainer.ckpt_path is None and not module.global_step:
            raise UserError(f"model.init_from: found {found}, {expected}")

    for hook in ("on_validation_start", "on_test_start", "on_predict_start"):
        setattr(module, hook, refuse)


def open_scorer(
    folder: str, learner: L.LightningModule | None = None, zero_head: bool = False, **changes: Any
) -> RewardModel:
    """A reward model from its folder, or a new head on the trunk of a language model's folder.

    Args:
        learner: the procedure that is to learn the new head.
        zero_head: a new head says 0 until it has learnt.
        changes: configuration fields to change, such as dropout.
    """
    model = load_pretrained(folder, None, **changes)
    if isinstance(model, LabellingModel):
        raise UserError(f"{folder}: found a model of kind 'task', expected 'reward' or 'gpt'")
    if isinstance(model, RewardModel):
        return model
    if learner is not None:
        refuse_random_head(learner)
    scorer = RewardModel.from_gpt(model)
    if zero_head:
        nn.init.zeros_(scorer.head.linear.weight)
    return scorer
