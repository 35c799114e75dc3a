"""Which votes a reward model has seen: `votes.json` in the run's folder, and TensorBoard's text tab."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as L

from gpt_modules.storage.documents import Count, Positive, Sha256, read_document
from gpt_modules.storage.durable import replace_durably
from gpt_modules.training.callbacks.writer import markdown_table, tensorboard

VOTES_FILE = "votes.json"


@dataclass(frozen=True)
class Votes:
    """Votes that count alike; None where rows name no round or no labeler."""

    round: int | None
    labeler: str | None
    votes: Positive


@dataclass(frozen=True)
class Part:
    """What is learnt from, or what validates.

    Args:
        sha256: of each file, by its path; of a store of comparisons that of its votes.
    """

    source: str | list[str]
    sha256: dict[str, Sha256]
    votes: list[Votes]


@dataclass(frozen=True)
class Seen:
    """What a run has seen from a step on."""

    from_step: Count
    train: Part
    validation: Part


@dataclass(frozen=True)
class Record:
    """`votes.json`: an entry from step 0 on, and one for each step from which the run went on with other votes."""

    seen: list[Seen]


class VoteRecord(L.Callback):
    """Writes `<root>/votes.json` when training begins, where the data module can tell (`votes`)."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write it.

        Raises:
            UserError: an earlier record cannot be read, or this one cannot be written.
        """
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.fast_dev_run or not trainer.is_global_zero or not hasattr(data, "votes"):  # type: ignore[attr-defined]
            return
        root, votes = Path(trainer.default_root_dir), data.votes()
        seen = _before(root, trainer.global_step)
        if not seen or seen[-1] != {**votes, "from_step": seen[-1]["from_step"]}:
            seen.append({"from_step": trainer.global_step, **votes})
        root.mkdir(parents=True, exist_ok=True)
        replace_durably(root / VOTES_FILE, json.dumps({"seen": seen}, indent=1) + "\n")
        writer = tensorboard(trainer)
        if writer is not None:
            writer.add_text("votes", _table(votes), trainer.global_step)


def _before(root: Path, step: int) -> list[dict[str, Any]]:
    """What the run in a folder had seen before a step, from which it may go on otherwise than it did."""
    if step == 0 or not (root / VOTES_FILE).exists():
        return []
    record = read_document(root / VOTES_FILE, Record, "which votes a run has seen")
    return [asdict(seen) for seen in record.seen if seen.from_step < step]


def _table(votes: dict[str, Any]) -> str:
    counts = [
        {"part": name, **{key: "-" if value is None else str(value) for key, value in row.items()}}
        for name, part in votes.items()
        for row in part["votes"]
    ]
    digests = {path: digest for part in votes.values() for path, digest in part["sha256"].items()}
    files = [{"file": path, "SHA-256": digest} for path, digest in digests.items()]
    return f"{markdown_table(counts)}\n\n{markdown_table(files)}"
