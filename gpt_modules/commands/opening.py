"""A model folder as a command opens it: weights and tokenizer, which fit each other."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from gpt_modules.backbone import GPT
    from gpt_modules.data.text.tokenizers import Tokenizer


def open_language_model(name: str, device: "torch.device") -> "tuple[GPT, Tokenizer]":
    """The language model of a folder or of a name on the hub, not in training mode.

    Raises:
        UserError: It is not there, not a language model, or has no tokenizer, or one with more tokens than the model.
    """
    from gpt_modules.backbone import load_pretrained
    from gpt_modules.data.text.tokenizers import load_fitting

    model = load_pretrained(name, kind="gpt")
    return model.to(device).eval(), load_fitting(name, model.config.vocab_size)
