"""Low-rank updates as a folder that the library `peft` opens on the model of `transformers` that is their base.

adapter_config.json and adapter_model.safetensors. Where one of our matrices is several of theirs (queries, keys and
values; the halves of a gated layer), each has its rows of B and the A that they share. Of a reward model the weights of
the head are with them: scores differ from those of our folder by its constant and its scale, which `transformers` has
no word for.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from gpt_modules.backbone.config import DecoderConfig
from gpt_modules.backbone.folders.documents import kind_of
from gpt_modules.backbone.folders.model_families import family_of
from gpt_modules.backbone.folders.replacing import replace_folder
from gpt_modules.backbone.folders.weightmap import SCORE, Entry, weight_map
from gpt_modules.backbone.lora import LoRAConfig, LoRALinear, lora_layers
from gpt_modules.backbone.models import GPT, RewardModel
from gpt_modules.errors import UserError
from gpt_modules.storage.model_files import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE

_MODULE_OF_BLOCK = re.compile(r"\.(?:h|layers)\.\d+\.(.+)\.weight")


def can_adapt(config: DecoderConfig) -> bool:
    """Whether `transformers` has a class for a model of these sizes, which `peft` adapts."""
    return family_of(config) != "gpt_modules"


def save_adapter(folder: Path, model: GPT | RewardModel, config: LoRAConfig, base: str) -> None:
    """Write the updates of `model`, and its head if it has one; an adapter's folder written here before is replaced.

    Args:
        base: folder, or name on the hub, of what they are updates of.

    Raises:
        UserError: `transformers` has no class for the base, or the folder holds files of another kind.
    """
    family = family_of(model.config)
    if not can_adapt(model.config):
        raise UserError(f"{base}: found a decoder that transformers has no class for, expected one that peft can adapt")
    tensors, modules = _tensors(model)
    reward = isinstance(model, RewardModel)
    fields: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if reward else "CAUSAL_LM",
        "base_model_name_or_path": str(Path(base).resolve()) if Path(base).is_dir() else base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": modules,
        "modules_to_save": ["score"] if reward else None,
        "fan_in_fan_out": family in ("gpt2", "openai-gpt"),  # whose layers are `Conv1D`, the transpose
        "bias": "none",
        "inference_mode": True,
    }
    with replace_folder(folder) as new:
        save_file(tensors, new / ADAPTER_WEIGHTS_FILE, metadata={"format": "pt"})
        (new / ADAPTER_CONFIG_FILE).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _tensors(model: GPT | RewardModel) -> tuple[dict[str, Tensor], list[str]]:
    """Under peft's names, and the modules of a block that have an update."""
    layers, state = lora_layers(model), model.state_dict()
    tensors: dict[str, Tensor] = {}
    modules: dict[str, None] = {}
    for entry in weight_map(model.config, kind_of(model)):
        layer = layers.get(entry.ours.removesuffix(".weight"))
        if layer is not None:
            name = f"base_model.model.{entry.theirs.removesuffix('.weight')}"
            tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = _update(layer, entry)
            modules |= dict.fromkeys(_MODULE_OF_BLOCK.findall(entry.theirs))
        elif entry.theirs == SCORE:
            tensors[f"base_model.model.{SCORE}"] = state[entry.ours].cpu().contiguous()
    return tensors, list(modules)


def _update(layer: LoRALinear, entry: Entry) -> tuple[Tensor, Tensor]:
    """A and B of one of their layers; copies, as files of weights take no tensors that share memory."""
    a, b = layer.lora_a.detach().cpu(), layer.lora_b.detach().cpu()
    return a.clone(), entry.rows_of_theirs(b).clone(memory_format=torch.contiguous_format)
