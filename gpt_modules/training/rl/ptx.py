"""PPO-ptx: pretraining gradients mixed into the update (Ouyang et al. 2022, section 3.5, equation 2).

    objective(phi) = E_RL[r(x, y) - beta log(pi(y|x) / pi_SFT(y|x))] + gamma E_pretrain[log pi(x)]

Appendix C.4: gamma 27.8, 8 times as many pretraining examples as episodes, both gradients computed in consecutive steps
and accumulated into one update.
"""

import math
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from gpt_modules.backbone import GPT
from gpt_modules.data.batches import PackedBatch, TokenBatch
from gpt_modules.data.mixed import TextBeside
from gpt_modules.errors import UserError
from gpt_modules.training.language import next_token_loss
from gpt_modules.training.rl.gradients import touch
from gpt_modules.training.rl.settings import PtxConfig


class PtxBatch(NamedTuple):
    """A micro-batch of pretraining text.

    windows: this process's share; None: nothing is learnt of them, and they have not been read.
    normaliser: what the sum over its tokens is divided by, so that the micro-batches of all processes, those of the
        experience among them, average to the mean over the step's pretraining tokens.
    """

    windows: TokenBatch | PackedBatch | None
    normaliser: float


class PtxSteps:
    """The pretraining text of each optimizer step, in micro-batches: a function of the step's number, whose windows are
    the same for any number of processes.

    Args:
        text: an endless stream of windows, all of them full.
        windows: of a step, over all processes; at least one for each.
        rank: this process.
        world: processes.
    """

    def __init__(self, text: TextBeside, windows: int, rank: int, world: int) -> None:
        self.text, self.windows, self.rank, self.world = text, windows, rank, world
        self.micro_batches = min(math.ceil(windows / text.batch_size), windows // world)

    @property
    def tokens(self) -> int:
        """Pretraining tokens of a step, over all processes."""
        return self.windows * self.text.context

    def batch(self, step: int, part: int) -> TokenBatch | PackedBatch:
        """This process's share of a micro-batch."""
        first, last = (step * self.windows + self.windows * (part + i) // self.micro_batches for i in (0, 1))
        batch = self.text.windows(first, last, self.rank, self.world)
        assert batch is not None, "every part has a window for every process"
        return batch


def ptx_steps(text: TextBeside | None, config: PtxConfig, episodes: int, rank: int, world: int) -> PtxSteps | None:
    """The pretraining text of optimizer steps of so many episodes; None: it is not learnt.

    Raises:
        UserError: it is to be learnt, and there is none.
    """
    if not config.coef:
        return None
    if text is None:
        raise UserError(f"model.ptx.coef: found {config.coef}, expected 0 or data with `pretraining` text")
    return PtxSteps(text, config.windows * episodes, rank, world)


def ptx_loss(model: GPT, batch: PtxBatch, coef: float) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """`coef` times the share of a micro-batch in the step's mean cross-entropy, nats a token; with its statistics. Of
    what has not been read nothing but a gradient of zeros, for processes that wait for one.
    """
    if batch.windows is None:
        return touch(model), {}
    total, _ = next_token_loss(model, batch.windows)
    mean = total / batch.normaliser
    loss = coef * mean
    return loss, {"train/loss": loss, "loss/ptx": mean}
