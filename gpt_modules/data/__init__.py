"""Text to batches: tokenizers, sources, packing, and one LightningDataModule a procedure.

Names are looked up when they are first used, so that a part which needs only the tokenizer does not pay for Lightning.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "PackedBatch": "batches",
    "PromptBatch": "batches",
    "RankingBatch": "batches",
    "TokenBatch": "batches",
    "BatchLoader": "loader",
    "PPODataModule": "ppo",
    "PretrainingDataModule": "pretraining",
    "Review": "reviews",
    "load_reviews": "reviews",
    "RewardDataModule": "reward",
    "SFTDataModule": "sft",
    "Tokenizer": "tokenizers",
    "load_rows": "sources",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
