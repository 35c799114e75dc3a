"""What a recipe may name: our classes by their short names, Lightning's, torch's, and those of packages that the user
allows.
"""

from collections.abc import Sequence

import lightning.pytorch as L
from jsonargparse import set_parsing_settings
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy

from gpt_modules.backbone import FeedForward
from gpt_modules.data import (
    EpisodicDataModule,
    FinetuningDataModule,
    PPODataModule,
    PretrainingDataModule,
    RewardDataModule,
    SFTDataModule,
)
from gpt_modules.data.episodes.arithmetic_and_words import SyntheticTasks
from gpt_modules.data.episodes.ciphers import AffineCipher, SubstitutionCipher
from gpt_modules.data.episodes.cloze import Cloze
from gpt_modules.data.episodes.label_words import LabelWords
from gpt_modules.data.episodes.sinusoid import Sinusoid
from gpt_modules.data.episodes.transforms import SequenceTransforms
from gpt_modules.data.episodes.ways import LabelledClasses
from gpt_modules.evaluation import (
    AdaptationCurves,
    BagOfWordsBaseline,
    FewShot,
    NaiveBayesBaseline,
    NgramBaseline,
    ZeroShotProbes,
)
from gpt_modules.scoring import look_here
from gpt_modules.training import (
    DPOModule,
    FinetuningModule,
    MAMLModule,
    PPOModule,
    PretrainingModule,
    RewardModule,
    SFTModule,
)

PROCEDURES = {
    "pretraining": (PretrainingModule, PretrainingDataModule),
    "finetuning": (FinetuningModule, FinetuningDataModule),
    "sft": (SFTModule, SFTDataModule),
    "reward": (RewardModule, RewardDataModule),
    "ppo": (PPOModule, PPODataModule),
    "maml": (MAMLModule, EpisodicDataModule),
    "dpo": (DPOModule, RewardDataModule),
}
"""Word -> its LightningModule and its LightningDataModule."""

# The parser finds by its short name what has been imported.
MODULES = tuple(module for module, _ in PROCEDURES.values())
DATA_MODULES = tuple(dict.fromkeys(data for _, data in PROCEDURES.values()))
CALLBACKS = (AdaptationCurves, NgramBaseline, BagOfWordsBaseline, NaiveBayesBaseline, ZeroShotProbes, FewShot)
NETWORKS = (FeedForward,)
FAMILIES = (
    AffineCipher,
    Cloze,
    LabelWords,
    LabelledClasses,
    SequenceTransforms,
    Sinusoid,
    SubstitutionCipher,
    SyntheticTasks,
)
_BASES = (L.LightningModule, L.LightningDataModule, L.Callback, Logger, Profiler, Strategy)
_PARTS = ("accelerators", "callbacks", "loggers", "plugins", "profilers", "strategies")
_ALLOWED = (
    "gpt_modules",
    *(f"lightning.{root}.{part}" for root in ("pytorch", "fabric") for part in _PARTS),
    "torch.nn",
    "torch.optim",
    "torch.distributed.fsdp",
    *(f"torch.{dtype}" for dtype in ("bfloat16", "float16", "float32", "float64")),
)
_DENIED = (
    "*",
    "gpt_modules.cli",
    "gpt_modules.commands",
    "lightning.pytorch.callbacks.LambdaCallback",
    "lightning.pytorch.callbacks.lambda_function",
    # What changes weights, rates or batches behind the procedures' backs, and leaves files of its own in the folder
    *(f"lightning.pytorch.callbacks.{name}" for name in ("StochasticWeightAveraging", "stochastic_weight_avg")),
    *(f"lightning.pytorch.callbacks.{name}" for name in ("LearningRateFinder", "lr_finder")),
    *(f"lightning.pytorch.callbacks.{name}" for name in ("BatchSizeFinder", "batch_size_finder")),
)
_once_allowed: set[str] = set()  # in this process: the parser forgets nothing, so it is told


def allow_only(packages: Sequence[str]) -> None:
    """From now on the parser imports nothing that a recipe names outside our package, Lightning's parts, torch's
    layers and optimizers, and these packages, installed or in the current folder; a name is judged before anything is
    imported.
    """
    if packages:
        look_here()
    allowed = [*_ALLOWED, *packages]
    gone = [old for old in _once_allowed if not any(f"{old}.".startswith(f"{name}.") for name in allowed)]
    set_parsing_settings(import_path_denylist=[*_DENIED, *gone], import_path_allowlist=allowed)
    _once_allowed.update(packages)


def named_classes() -> dict[str, type]:
    """Short name -> class, of what a recipe may name: ours, and Lightning's that have been imported."""
    kinds: list[type] = list(_BASES)
    named: dict[str, type] = {kind.__name__: kind for kind in (*FAMILIES, *NETWORKS)}
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        if kind.__module__.startswith(("gpt_modules.", "lightning.pytorch.")) and not kind.__name__.startswith("_"):
            named[kind.__name__] = kind
    return named
