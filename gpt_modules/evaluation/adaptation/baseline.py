"""The weights that meta-learned ones are compared with, from the folder of another run."""

from copy import deepcopy
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from gpt_modules.backbone import GPT, LabellingModel, load_pretrained
from gpt_modules.backbone.folders.replacing import find_folder
from gpt_modules.data.text.reading import has_tokenizer
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError
from gpt_modules.storage.model_files import WEIGHTS_FILE


def open_baseline(folder: str, network: nn.Module, data: Any) -> nn.Module:
    """A model of the same kind as `network` from its folder; of a language model in place of a classifier, its trunk
    with a new head.

    Raises:
        UserError: it is another model.
    """
    if not isinstance(network, GPT | LabellingModel):
        return _same_network(folder, network)
    opened = load_pretrained(folder, None)
    if isinstance(opened, GPT) and isinstance(network, LabellingModel):
        return LabellingModel.from_gpt(opened, data.task_spec, data.tokenizer.task_ids)
    if _name(opened) != _name(network):
        raise UserError(f"baseline: {folder}: found {_name(opened)}, expected {_name(network)}")
    return opened


def _same_network(folder: str, network: nn.Module) -> nn.Module:
    path, model = find_folder(folder) / WEIGHTS_FILE, deepcopy(network)
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise UserError(f"baseline: {path}: found no readable weights, expected those of a run's export") from error
    except RuntimeError as error:
        raise UserError(f"baseline: {path}: found other weights, expected those of {_name(network)}") from error
    return model


def check_tokenizer(folder: str, model: GPT | LabellingModel, tokenizer: Tokenizer) -> None:
    """Weights that read other tokens would make a weak baseline without a word.

    Raises:
        UserError: the folder's tokenizer reads in another way than the data's.
    """
    if (found := model.config.vocab_size) < tokenizer.vocab_size:
        raise UserError(
            f"baseline: {folder}: found {found} tokens, expected at least the data's {tokenizer.vocab_size}"
        )
    found_at = find_folder(folder)
    if has_tokenizer(found_at) and not tokenizer.reads_like(Tokenizer.load(found_at)):
        raise UserError(f"baseline: {folder}: found another tokenizer, expected the run's (data.tokenizer: {folder})")


def _name(model: nn.Module) -> str:
    outputs = f" of {model.task.n_outputs} outputs" if isinstance(model, LabellingModel) else ""
    return f"a {type(model).__name__}{outputs}"
