"""Text to batches: tokenizers, sources, packing, and one LightningDataModule a procedure.

Names are looked up when they are first used, so that a part which needs only the tokenizer does not pay for Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt_modules.data.batches import LabelledBatch, PackedBatch, PromptBatch, RankingBatch, TokenBatch
    from gpt_modules.data.builtin.reviews import Review, load_reviews
    from gpt_modules.data.corpus.mixture import MixedSource
    from gpt_modules.data.finetuning import FinetuningDataModule
    from gpt_modules.data.loader import BatchLoader
    from gpt_modules.data.maml import EpisodicDataModule
    from gpt_modules.data.mixed import PretrainingText
    from gpt_modules.data.ppo import PPODataModule
    from gpt_modules.data.pretraining import PretrainingDataModule
    from gpt_modules.data.reward import RewardDataModule
    from gpt_modules.data.rows.chat import encode_conversation, fit_conversation, render_conversation
    from gpt_modules.data.rows.labelled import Columns
    from gpt_modules.data.rows.sources import load_rows
    from gpt_modules.data.sft import SFTDataModule
    from gpt_modules.data.text.tokenizers import Tokenizer

__all__ = [
    "BatchLoader",
    "Columns",
    "EpisodicDataModule",
    "FinetuningDataModule",
    "LabelledBatch",
    "MixedSource",
    "PPODataModule",
    "PackedBatch",
    "PretrainingDataModule",
    "PretrainingText",
    "PromptBatch",
    "RankingBatch",
    "Review",
    "RewardDataModule",
    "SFTDataModule",
    "TokenBatch",
    "Tokenizer",
    "encode_conversation",
    "fit_conversation",
    "load_reviews",
    "load_rows",
    "render_conversation",
]

_HOMES = {
    "BatchLoader": "loader",
    "Columns": "rows.labelled",
    "EpisodicDataModule": "maml",
    "FinetuningDataModule": "finetuning",
    "MixedSource": "corpus.mixture",
    "PPODataModule": "ppo",
    "PackedBatch": "batches",
    "PretrainingDataModule": "pretraining",
    "PretrainingText": "mixed",
    "PromptBatch": "batches",
    "RankingBatch": "batches",
    "Review": "builtin.reviews",
    "RewardDataModule": "reward",
    "SFTDataModule": "sft",
    "LabelledBatch": "batches",
    "TokenBatch": "batches",
    "Tokenizer": "text.tokenizers",
    "encode_conversation": "rows.chat",
    "fit_conversation": "rows.chat",
    "render_conversation": "rows.chat",
    "load_reviews": "builtin.reviews",
    "load_rows": "rows.sources",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
