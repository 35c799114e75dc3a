"""What a run shows in TensorBoard, and in which order a PPO run is looked at when something is wrong."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from torch.utils.tensorboard import SummaryWriter

from gpt_modules.storage.durable import room_for
from gpt_modules.training.callbacks.writer import survive_full_disk, tell_full_disk_once


class RunLogger(TensorBoardLogger):
    """TensorBoard, where the same values told twice are written once: `ExactCheckpoint` has a step logged before it
    saves it, and Lightning logs it again. The epoch is told beside what is trained: after a run that stops inside one,
    Lightning validates in the next, to which a resumed run is yet to come.
    """

    @property
    def experiment(self) -> Any:
        """Tensorboard's writer, which no full disk makes the end of a run.

        Raises:
            UserError: there is no room to begin the curves.
        """
        tell_full_disk_once()
        with room_for(Path(self.save_dir)):
            writer = super().experiment
        return survive_full_disk(writer) if isinstance(writer, SummaryWriter) else writer

    _latest: tuple[int | None, Mapping[str, Any]] | None = None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write scalars, unless they are the latest that were written."""
        if all(name == "epoch" or name.startswith("val/") for name in metrics):
            metrics = {name: value for name, value in metrics.items() if name != "epoch"}
        if self._latest != (step, dict(metrics)):
            self._latest = (step, dict(metrics))
            super().log_metrics(metrics, step)

    def go_on_from(self, step: int) -> None:
        """What was written of later steps belongs to a run that was killed, or left: TensorBoard shows none of it."""
        begun = Event(step=step + 1, session_log=SessionLog(status=SessionLog.START))
        self.experiment._get_file_writer().event_writer.add_event(begun)


def _chart(*tags: str) -> list[Any]:
    """A chart of exactly these values: TensorBoard takes a name for a pattern of how others begin."""
    return ["Multiline", [f"^{re.escape(tag)}$" for tag in tags]]


def _group(beginning: str) -> list[Any]:
    """A chart of all values whose names begin so."""
    return ["Multiline", [f"^{re.escape(beginning)}"]]


REWARD_LAYOUT = {
    "1 preferences": {
        "accuracy": _chart("val/accuracy", "train/accuracy"),
        "loss": _chart("val/loss", "train/loss"),
        "calibration error": _chart("val/calibration_error"),
    },
    "2 whose votes": {
        "accuracy by round": _group("val/accuracy_round/"),
        "accuracy by labeler": _group("val/accuracy_labeler/"),
        "accuracy by how clearly one was preferred": _group("val/accuracy_margin/"),
    },
    "3 length": {
        "accuracy, the shorter or the longer preferred": _chart(
            "val/accuracy_shorter_preferred", "val/accuracy_longer_preferred"
        ),
        "accuracy by tokens that the preferred one is shorter or longer": _group("val/accuracy_length/"),
        "correlation of score and length": _chart("val/length_correlation"),
    },
}
DPO_LAYOUT = REWARD_LAYOUT | {
    "4 log-probability of an answer, nats": {
        "the preferred one, which may fall too, and the other": _chart("val/chosen_logprob", "val/rejected_logprob"),
    },
}


def _measured(name: str, room: str = "objective") -> list[Any]:
    """A chart of what rollouts, held-out answers, and those of the average have of a name."""
    return _chart(f"{room}/{name}", f"val/{name}", f"val/ema/{name}")


PPO_LAYOUT = {
    "1 objective": {
        "score": _measured("score"),
        "score as optimised: a missing end has its own": _measured("optimised_score"),
        "standard deviation of the score": _measured("score_std"),
        "spread of an ensemble of rewards": _measured("reward_spread"),
        "KL to the reference, nats a sequence": _measured("kl"),
        "reward: the optimised score less the penalty": _measured("reward"),
        "KL coefficient": _chart("objective/kl_coef"),
        "entropy": _chart("objective/entropy", "policy/entropy"),
        "part of the scores that are clipped; of prompts whose answers score alike": _chart(
            "objective/clipped_scores", "objective/groups_without_spread"
        ),
    },
    "2 policy": {
        "approximate KL of the update": _chart("policy/approx_kl"),
        "clip fraction": _chart("policy/clip_fraction", "value/clip_fraction"),
        "ratio": _chart("policy/ratio"),
        "loss": _chart("loss/policy"),
        "pretraining text, nats a token": _chart("loss/ptx", "val/pretraining_loss", "val/ema/pretraining_loss"),
        "norm of the gradient": _chart("policy/grad_norm", "value/grad_norm"),
        "steps taken of an iteration: fewer where it was stopped early": _chart("update/steps"),
        "KL between sampler and policy, nats a token": _chart("sampler/kl"),
        "largest difference of a probability between them": _chart("sampler/max_prob_error"),
        "distance to the reference in the loss, nats": _chart("loss/kl"),
    },
    "3 critic": {
        "explained variance": _chart("value/explained_variance"),
        "loss": _chart("loss/value"),
        "returns": _chart("value/returns"),
    },
    "4 responses": {
        "length": _measured("length", "response"),
        "ended": _measured("ended", "response"),
        "length, quantiles": _chart("response/length_p10", "response/length_p50", "response/length_p90"),
        "length of held-out ones, quantiles": _chart("val/length_p10", "val/length_p50", "val/length_p90"),
        "n-grams that an answer repeats": _measured("repetition", "response"),
        "different tokens by tokens": _measured("distinct_1", "response"),
        "different pairs of tokens by tokens": _measured("distinct_2", "response"),
    },
    "5 speed": {
        "episodes per second": _chart("perf/episodes_per_s"),
        "seconds of a rollout": _chart("perf/rollout_seconds"),
    },
}


def ppo_layout(has_critic: bool, terms: Sequence[str] = (), monitors: Sequence[str] = ()) -> dict[str, Any]:
    """The rooms of `PPO_LAYOUT`, without an empty one where no critic is trained, and with what the recipe names.

    Args:
        terms: of the reward, whose sum is the score.
        monitors: what held-out answers are scored by, too.
    """
    parts = {f"part of the score: {name}": _measured(f"score/{name}") for name in terms}
    watched = {name: _chart(f"val/{name}", f"val/ema/{name}") for name in monitors}
    rooms = {room: charts for room, charts in PPO_LAYOUT.items() if has_critic or room != "3 critic"}
    return rooms | ({"6 parts of the score": parts} if parts else {}) | ({"7 monitors": watched} if watched else {})
