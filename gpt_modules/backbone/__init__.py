"""The decoder, its heads and models, how they speak and how they are kept: no Trainer, no dataset, no loss."""

from gpt_modules.backbone.config import DecoderConfig
from gpt_modules.backbone.decoder import MLP, Block, CausalSelfAttention, Decoder
from gpt_modules.backbone.generation import Generation, generate
from gpt_modules.backbone.heads import ScalarHead
from gpt_modules.backbone.kvcache import KVCache
from gpt_modules.backbone.models import GPT, RewardModel
from gpt_modules.backbone.pretrained import load_pretrained, read_config, read_extra, save_pretrained

__all__ = [
    "GPT",
    "MLP",
    "Block",
    "CausalSelfAttention",
    "Decoder",
    "DecoderConfig",
    "Generation",
    "KVCache",
    "RewardModel",
    "ScalarHead",
    "generate",
    "load_pretrained",
    "read_config",
    "read_extra",
    "save_pretrained",
]
