"""Text to batches: tokenizers, sources, packing, and one LightningDataModule a procedure.

Names are looked up when they are first used, so that a part which needs only the tokenizer does not pay for Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt_modules.data.batches import PackedBatch, PromptBatch, RankingBatch, TaskBatch, TokenBatch
    from gpt_modules.data.chat import encode_conversation, render_conversation, transcript
    from gpt_modules.data.finetuning import FinetuningDataModule
    from gpt_modules.data.labelled import Columns
    from gpt_modules.data.loader import BatchLoader
    from gpt_modules.data.maml import EpisodicDataModule
    from gpt_modules.data.mixture import MixedSource
    from gpt_modules.data.ppo import PPODataModule
    from gpt_modules.data.pretraining import PretrainingDataModule
    from gpt_modules.data.reviews import Review, load_reviews
    from gpt_modules.data.reward import RewardDataModule
    from gpt_modules.data.sft import SFTDataModule
    from gpt_modules.data.sources import load_rows
    from gpt_modules.data.tokenizers import Tokenizer

__all__ = [
    "BatchLoader",
    "Columns",
    "EpisodicDataModule",
    "FinetuningDataModule",
    "MixedSource",
    "PPODataModule",
    "PackedBatch",
    "PretrainingDataModule",
    "PromptBatch",
    "RankingBatch",
    "Review",
    "RewardDataModule",
    "SFTDataModule",
    "TaskBatch",
    "TokenBatch",
    "Tokenizer",
    "encode_conversation",
    "load_reviews",
    "load_rows",
    "render_conversation",
    "transcript",
]

_HOMES = {
    "BatchLoader": "loader",
    "Columns": "labelled",
    "EpisodicDataModule": "maml",
    "FinetuningDataModule": "finetuning",
    "MixedSource": "mixture",
    "PPODataModule": "ppo",
    "PackedBatch": "batches",
    "PretrainingDataModule": "pretraining",
    "PromptBatch": "batches",
    "RankingBatch": "batches",
    "Review": "reviews",
    "RewardDataModule": "reward",
    "SFTDataModule": "sft",
    "TaskBatch": "batches",
    "TokenBatch": "batches",
    "Tokenizer": "tokenizers",
    "encode_conversation": "chat",
    "render_conversation": "chat",
    "load_reviews": "reviews",
    "load_rows": "sources",
    "transcript": "chat",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
