"""The decoder, its heads and models: torch only, no Trainer, no dataset, no loss."""

from gpt_modules.backbone.config import DecoderConfig
from gpt_modules.backbone.decoder import MLP, Block, CausalSelfAttention, Decoder
from gpt_modules.backbone.heads import ScalarHead
from gpt_modules.backbone.kvcache import KVCache
from gpt_modules.backbone.models import GPT, RewardModel

__all__ = [
    "GPT",
    "MLP",
    "Block",
    "CausalSelfAttention",
    "Decoder",
    "DecoderConfig",
    "KVCache",
    "RewardModel",
    "ScalarHead",
]
