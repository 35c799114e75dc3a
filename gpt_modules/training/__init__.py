"""One LightningModule a procedure; they share by calling functions, never by inheriting from one another."""

from gpt_modules.training.dpo import DPOModule
from gpt_modules.training.finetuning import FinetuningModule
from gpt_modules.training.maml import MAMLModule
from gpt_modules.training.ppo import PPOModule
from gpt_modules.training.pretraining import PretrainingModule
from gpt_modules.training.reward import RewardModule
from gpt_modules.training.sft import SFTModule

__all__ = ["DPOModule", "FinetuningModule", "MAMLModule", "PPOModule", "PretrainingModule", "RewardModule", "SFTModule"]
