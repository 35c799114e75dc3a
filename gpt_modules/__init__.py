"""The GPT lineage as PyTorch Lightning components: the public names.

They are looked up when first used, so that `import gpt_modules` (and `gpt --help`) does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt_modules.backbone import (
        GPT,
        DecoderConfig,
        LabellingModel,
        RewardModel,
        generate,
        load_pretrained,
        save_pretrained,
    )
    from gpt_modules.data import (
        EpisodicDataModule,
        FinetuningDataModule,
        PPODataModule,
        PretrainingDataModule,
        RewardDataModule,
        SFTDataModule,
        Tokenizer,
    )
    from gpt_modules.training import (
        DPOModule,
        FinetuningModule,
        MAMLModule,
        PPOModule,
        PretrainingModule,
        RewardModule,
        SFTModule,
    )

__all__ = [
    "GPT",
    "DPOModule",
    "DecoderConfig",
    "EpisodicDataModule",
    "FinetuningDataModule",
    "FinetuningModule",
    "LabellingModel",
    "MAMLModule",
    "PPODataModule",
    "PPOModule",
    "PretrainingDataModule",
    "PretrainingModule",
    "RewardDataModule",
    "RewardModel",
    "RewardModule",
    "SFTDataModule",
    "SFTModule",
    "Tokenizer",
    "generate",
    "load_pretrained",
    "save_pretrained",
]

_ROOMS = ("gpt_modules.backbone", "gpt_modules.data", "gpt_modules.training")


def __getattr__(name: str) -> Any:
    if name in __all__:
        for room in _ROOMS:
            module = import_module(room)
            if name in module.__all__:
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
