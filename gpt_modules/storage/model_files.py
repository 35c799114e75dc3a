"""Names that those who write weights and those who write tokenizers agree on."""

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
TEMPLATE_FILE, GENERATION_FILE, CARD_FILE = "chat_template.jinja", "generation_config.json", "README.md"
ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
END_OF_TEXT = "<|endoftext|>"
"""The token that ends a document, and that `transformers` is told to begin and end with."""
