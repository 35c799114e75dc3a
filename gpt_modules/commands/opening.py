"""A model folder as a command opens it: weights and tokenizer, which fit each other."""

from typing import TYPE_CHECKING

from gpt_modules.errors import UserError

if TYPE_CHECKING:
    import torch

    from gpt_modules.backbone import GPT, LabellingModel, RewardModel
    from gpt_modules.data.text.tokenizers import Tokenizer


def open_language_model(name: str, device: "torch.device") -> "tuple[GPT, Tokenizer]":
    """The language model of a folder or of a name on the hub, not in training mode.

    Raises:
        UserError: It is not there, not a language model, or has no tokenizer, or one with more tokens than the model.
    """
    from gpt_modules.backbone import load_pretrained

    model = load_pretrained(name, kind="gpt")
    return model.to(device).eval(), fitting_tokenizer(name, model)


def fitting_tokenizer(name: str, model: "GPT | LabellingModel | RewardModel") -> "Tokenizer":
    """The tokenizer beside a model's weights.

    Raises:
        UserError: There is none, or it has tokens that the model does not.
    """
    from gpt_modules.data.text.tokenizers import Tokenizer

    tokenizer = Tokenizer.load(name)
    if tokenizer.vocab_size > model.config.vocab_size:
        found = f"{tokenizer.vocab_size} tokens in its tokenizer"
        raise UserError(f"{name}: found {found}, expected at most the model's {model.config.vocab_size}")
    return tokenizer
