"""Names that those who write weights and those who write tokenizers agree on."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
TEMPLATE_FILE, GENERATION_FILE, CARD_FILE = "chat_template.jinja", "generation_config.json", "README.md"
ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
END_OF_TEXT = "<|endoftext|>"
"""The token that ends a document, and that `transformers` is told to begin and end with."""


class ChatFiles(NamedTuple):
    """How a model talks, for whoever opens its folder.

    template: Jinja's text.
    names: the tokens that it writes, such as {"eos_token": "<|endoftext|>"}.
    end_ids: tokens that end an answer.
    ids: by the names of their fields, ids that a model's files say of tokens that have no name.
    """

    template: str
    names: dict[str, str]
    end_ids: tuple[int, ...]
    ids: Mapping[str, int] = MappingProxyType({})
