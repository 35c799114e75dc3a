"""The decoder, its heads and models, how they speak and how they are kept: no Trainer, no dataset, no loss."""

from gpt_modules.backbone.config import DecoderConfig
from gpt_modules.backbone.decoder import MLP, Block, CausalSelfAttention, Decoder
from gpt_modules.backbone.decoding.beam import beam_search
from gpt_modules.backbone.decoding.generation import Generation, generate, noise_of
from gpt_modules.backbone.decoding.kvcache import KVCache
from gpt_modules.backbone.feedforward import FeedForward
from gpt_modules.backbone.folders.digest import model_digest
from gpt_modules.backbone.folders.pretrained import load_pretrained, read_config, read_extra, save_pretrained
from gpt_modules.backbone.heads import ClassificationHead, MultipleChoiceHead, ScalarHead, SimilarityHead
from gpt_modules.backbone.labelling import LabellingModel
from gpt_modules.backbone.lora import LoRAConfig, add_lora, base_of, lend_merged, merge_lora, without_lora
from gpt_modules.backbone.models import GPT, RewardModel
from gpt_modules.backbone.rotary import RopeScaling

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
    "LabellingModel",
    "LoRAConfig",
    "MultipleChoiceHead",
    "RewardModel",
    "RopeScaling",
    "ScalarHead",
    "SimilarityHead",
    "add_lora",
    "base_of",
    "beam_search",
    "generate",
    "lend_merged",
    "load_pretrained",
    "merge_lora",
    "model_digest",
    "noise_of",
    "read_config",
    "read_extra",
    "save_pretrained",
    "without_lora",
]
