"""The decoder, its heads and models, how they speak and how they are kept: no Trainer, no dataset, no loss."""

from gpt_modules.backbone.beam import beam_search
from gpt_modules.backbone.config import DecoderConfig
from gpt_modules.backbone.decoder import MLP, Block, CausalSelfAttention, Decoder
from gpt_modules.backbone.feedforward import FeedForward
from gpt_modules.backbone.generation import Generation, generate
from gpt_modules.backbone.heads import ClassificationHead, MultipleChoiceHead, ScalarHead, SimilarityHead
from gpt_modules.backbone.kvcache import KVCache
from gpt_modules.backbone.models import GPT, RewardModel
from gpt_modules.backbone.pretrained import load_pretrained, read_config, read_extra, save_pretrained
from gpt_modules.backbone.task import TaskModel

__all__ = [
    "GPT",
    "MLP",
    "Block",
    "CausalSelfAttention",
    "ClassificationHead",
    "Decoder",
    "DecoderConfig",
    "FeedForward",
    "Generation",
    "KVCache",
    "MultipleChoiceHead",
    "RewardModel",
    "ScalarHead",
    "SimilarityHead",
    "TaskModel",
    "beam_search",
    "generate",
    "load_pretrained",
    "read_config",
    "read_extra",
    "save_pretrained",
]
