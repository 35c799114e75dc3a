"""A resumed run does what its recipe says now, says where that differs from the checkpoint's, and refuses what cannot
change.

What was learned or adapted goes on from the checkpoint: weights, moments of the optimizer, learned inner rates, an
adaptive coefficient, random states, the place in the data. Everything else is the recipe's.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector

from gpt_modules.errors import UserError, expect
from gpt_modules.training.callbacks.checkpointing import newest_checkpoint
from gpt_modules.training.callbacks.dashboard import RunLogger
from gpt_modules.training.callbacks.export import validate
from gpt_modules.training.hyperparameters import plain
from gpt_modules.training.processes import as_one
from gpt_modules.training.sharding.tensors import local

log = logging.getLogger(__name__)

NEWEST = "newest"  # name of a checkpoint: that of the latest step that verifies, once the processes have met
RECIPE, TOKENIZER, CONTENT, MOMENTS = "recipe", "tokenizer", "content", "moments"
VALIDATED = "validated"  # whether the weights of the checkpoint had been

# Where a run is, and how it is shown: no part of what it computes.
_UNSAID = ["ckpt_path", "config*", "weights_only", "verbose", "trainer.default_root_dir", "model.class_path", "*._*"]
# Weights of another form, or a beginning that has been.
_FIXED = [
    "seed_everything", "model.config*", "model.init_layers", "model.freeze", "model.lora*", "model.critic.lora*",
    "model.optimizer.sgd", "model.inner.rates", "model.critic.shared_trunk",
]  # fmt: skip
_FREE = ["model.config.*_pdrop", "model.lora.dropout"]
# Where the weights came from before the first step; whatever else is read from there is compared by its reader.
_BEGINNINGS = ["model.init_from", "model.critic.init_from"]
# Where a whole number counts batches, and another one is a share of them.
_COUNTED = ["trainer.limit_*_batches", "trainer.overfit_batches", "trainer.val_check_interval"]
_LONGEST = 400


class Resumption(L.Callback):
    """Stores the recipe in every checkpoint, and compares it with that of the run that goes on.

    Args:
        recipe: sections and their keys as plain data; left out: what the module was constructed with. Either way the
            keys lose their `init_args`, as on the command line.
    """

    def __init__(self, recipe: Mapping[str, Any] | None = None) -> None:
        self.recipe = recipe
        self._begun = False
        self._unseen = False  # an epoch that was ended by resuming, and not validated

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """From here on this class sees what is restored."""
        if stage == "fit":
            content_of(trainer)  # as it is now: a file may change while it is trained on
        if not isinstance(trainer._checkpoint_connector, _Restoring):
            trainer._checkpoint_connector = _Restoring(trainer, self)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what the run was told, which tokenizer its ids are of, digests of its data, and how many tensors its
        optimizers had accumulated: some parameters have none.
        """
        checkpoint[RECIPE] = self.told(pl_module)
        checkpoint[CONTENT] = content_of(trainer)
        checkpoint[TOKENIZER] = _tokenizer_digest(trainer)
        checkpoint[MOMENTS] = len([*_tensors(checkpoint.get("optimizer_states"), "")])
        checkpoint[VALIDATED] = trainer.validating

    def end_epoch(self, trainer: L.Trainer, stored: Mapping[str, Any], known: bool) -> None:
        """Nothing is left of the epoch of the checkpoint: what an epoch ends with may be still to do. Called when the
        loops are restored.

        Args:
            known: that was so when it was written.
        """
        loop = trainer.fit_loop.epoch_loop
        due = loop._should_check_val_fx(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]
        made = loop.batch_progress
        if not due and made.total.completed == made.total.processed:  # type: ignore[attr-defined]
            # It was validated, and is not to be now: Lightning would train one more batch to get there.
            made.total.completed, made.current.completed = made.total.completed - 1, made.current.completed - 1
        self._unseen = due and not known and trainer.check_val_every_n_epoch is not None and not stored.get(VALIDATED)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The curves go on where the checkpoint is."""
        self._begun = False
        if trainer.global_step and trainer.is_global_zero and isinstance(trainer.logger, RunLogger):
            trainer.logger.go_on_from(trainer.global_step)

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """What is logged has the step of the checkpoint, which Lightning has counted by batches of today's."""
        if not self._begun:
            self._begun, trainer.fit_loop.epoch_loop._batches_that_stepped = True, trainer.global_step

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validate the epoch that resuming has ended; where it was the last one, the run's end does."""
        if self._unseen:
            self._unseen = False
            validate(trainer)

    def told(self, module: L.LightningModule) -> dict[str, Any]:
        """Every key of the recipe with its value: `model.optimizer.lr`."""
        named = {"model": {"class_path": type(module).__name__, **dict(module.hparams)}}
        given = plain(self.recipe) if self.recipe is not None else {}
        return dict(_flat({**given, **named}))

    def check(self, trainer: L.Trainer, checkpoint: dict[str, Any], path: str) -> str | None:
        """Refuse what cannot change, before anything is restored; the line that names what does.

        Raises:
            UserError: the checkpoint is of another procedure, tokenizer, seed or form of the model.
        """
        module, stored = trainer.lightning_module, checkpoint.get(RECIPE)
        if not isinstance(stored, dict):  # written without this callback
            return None
        now, key = self.told(module), "model.class_path"
        expect(stored.get(key) == now[key], f"{path}: {key}", stored.get(key), f"the recipe's {now[key]}")
        changes = differences(stored, now)
        for name, (before, after) in changes.items():
            if _matches(name, _FIXED) and not _matches(name, _FREE):
                raise UserError(f"{name}: found {_short(after)}, expected the checkpoint's {_short(before)} ({path})")
        if bool(stored.get("model.optimizer.muon_lr")) != bool(now.get("model.optimizer.muon_lr")):
            before = _short(stored.get("model.optimizer.muon_lr"))
            raise UserError(f"model.optimizer.muon_lr: found Muon switched, expected the checkpoint's {before}")
        digest = _tokenizer_digest(trainer)
        if digest is not None and checkpoint.get(TOKENIZER) not in (None, digest):
            changed = changed_content(checkpoint.get(CONTENT), content_of(trainer), ())
            trained = now.get("data.tokenizer") == "train" and "data.train" in changed
            why = ", trained on a data.train that has changed" if trained else ""
            raise UserError(f"data.tokenizer: found another tokenizer{why}, expected the checkpoint's ({path})")
        if trainer.state.fn != "fit":
            return None
        changes |= changed_content(checkpoint.get(CONTENT), content_of(trainer), changes)
        learned = {f"model.{name}" for name in getattr(module, "learned_settings", ())}
        return going_on(checkpoint["global_step"], changes, learned) if changes else None


def content_of(trainer: L.Trainer) -> dict[str, str]:
    """Source -> a digest of what it holds, of data that know it: `ResumableDataModule.content`."""
    return dict(getattr(getattr(trainer, "datamodule", None), "content", {}))


def changed_content(stored: Any, now: Mapping[str, str], named: Iterable[str]) -> dict[str, tuple[Any, Any]]:
    """As `differences`, of sources whose names are the same and whose content is not. A part that is held out changes
    with what it is held out of, which is told once.
    """
    if not isinstance(stored, Mapping):  # written without digests
        return {}
    said = [name for name in now if any(f"{key}.".startswith(f"data.{name}.") for key in named)]
    changed = [name for name in now if name in stored and stored[name] != now[name] and name not in said]
    if "train" in changed or "train" in said:
        changed = [name for name in changed if name != "validation"]
    return {f"data.{name}": (f"{stored[name]!s:.8}", f"with other content, SHA-256 {now[name]:.8}") for name in changed}


def differences(stored: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Key -> its value in the checkpoint and now, of the sections that both know, where they differ."""
    known = {name.partition(".")[0] for name in stored} & {name.partition(".")[0] for name in now}
    names = [*now, *(name for name in stored if name not in now)]
    told = [name for name in names if name.partition(".")[0] in known and not _matches(name, _UNSAID)]
    pairs = {name: (stored.get(name), now.get(name)) for name in told}
    return {name: pair for name, pair in pairs.items() if not _alike(*pair, counted=_matches(name, _COUNTED))}


def _alike(before: Any, after: Any, counted: bool) -> bool:
    """A number is the same as its text, which is how a key that takes both keeps it from the command line; but none is
    a yes or no, and where batches are counted, 1 is one of them and 1.0 all.
    """
    kinds = [bool, float] if counted else [bool]
    apart = any(isinstance(before, kind) != isinstance(after, kind) for kind in kinds)
    numeral = isinstance(before, int | float | str) and isinstance(after, int | float | str)
    return bool(before == after and not apart) or (numeral and f"{before}" == f"{after}")


def going_on(step: int, changes: Mapping[str, tuple[Any, Any]], learned: set[str]) -> str:
    """The line that names every difference; what would make it too long is counted."""
    words = []
    for name, (before, after) in changes.items():
        begun = ", which has been learned or read" if name in learned or _matches(name, _BEGINNINGS) else ""
        now, then = _apart(after, before)
        words.append(f"{name} {now} ({then} in the checkpoint{begun})")
    line = f"going on from step {step} with {', '.join(words)}"
    shown = len(words)
    while len(line) > _LONGEST and shown > 1:
        shown -= 1
        line = f"going on from step {step} with {', '.join(words[:shown])}, and {len(words) - shown} more changes"
    return line


class _Restoring(_CheckpointConnector):
    """Lightning's own, whose every failure names the checkpoint in one line: its parts are anybody's data."""

    def __init__(self, trainer: L.Trainer, resumption: Resumption) -> None:
        super().__init__(trainer)
        self._ckpt_path = trainer._checkpoint_connector._ckpt_path
        self._resumption = resumption
        self._line: str | None = None  # of a resume that nothing has refused

    def resume_start(self, checkpoint_path: Any = None, weights_only: bool | None = None) -> None:
        if checkpoint_path is None:
            super().resume_start(checkpoint_path, weights_only=weights_only)
            return
        if Path(checkpoint_path).name == NEWEST:
            checkpoint_path = self._ckpt_path = str(newest_checkpoint(Path(checkpoint_path).parent))
        # Each process reads its own part, and what one cannot read, or begin from, all refuse.
        self._line = as_one(partial(self._read, checkpoint_path, weights_only))[0]

    def resume_end(self) -> None:
        if self._line is not None and self.trainer.is_global_zero:
            log.warning(self._line)
        self._line = None
        super().resume_end()

    def _read(self, path: Any, weights_only: bool | None) -> str | None:
        with self._told(path):
            super().resume_start(path, weights_only=weights_only)
            return self._check(str(path)) if self._loaded_checkpoint else None

    def restore_model(self) -> None:
        with self._told(self._ckpt_path):
            super().restore_model()

    def restore_datamodule(self) -> None:
        with self._told(self._ckpt_path):
            super().restore_datamodule()

    def restore_callbacks(self) -> None:
        with self._told(self._ckpt_path):
            super().restore_callbacks()

    def restore_training_state(self) -> None:
        with self._told(self._ckpt_path):
            if self._loaded_checkpoint and self.trainer.state.fn == "fit":
                own: dict[str, list[Any]] = {
                    "optimizer_states": self.trainer.optimizers,
                    "lr_schedulers": self.trainer.lr_scheduler_configs,
                }
                for name, parts in own.items():
                    found = len(self._loaded_checkpoint[name])
                    expect(found == len(parts), name, found, f"{len(parts)}, as the recipe has")
            super().restore_training_state()
            if self._loaded_checkpoint and self.trainer.state.fn == "fit":
                self._end_epoch()

    def _end_epoch(self) -> None:
        """Whether the epoch is over follows from its examples: with another global batch it has other batches, and what
        is left of it may be less than one.
        """
        over = getattr(self.trainer.train_dataloader, "over", None)
        if over is None:
            return
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        known, progress.is_last_batch = progress.is_last_batch, over
        if over:
            current, batches = progress.current, int(self.trainer.num_training_batches)
            current.completed = batches - (current.ready - current.completed)
            current.ready = current.started = current.processed = batches  # type: ignore[attr-defined]
            self._resumption.end_epoch(self.trainer, self._loaded_checkpoint, known)

    def _check(self, path: str) -> str | None:
        checkpoint, trainer = self._loaded_checkpoint, self.trainer
        for name, kind in (("state_dict", dict), ("global_step", int), ("epoch", int)):
            expect(isinstance(checkpoint.get(name), kind), name, _short(checkpoint.get(name)), kind.__name__)
        line = self._resumption.check(trainer, checkpoint, path)
        self._check_finite("state_dict")
        if trainer.state.fn != "fit":
            return None
        for name in ("optimizer_states", "lr_schedulers"):
            expect(type(checkpoint.get(name)) is list, name, _short(checkpoint.get(name)), "a list")
        self._check_finite("optimizer_states")
        self._check_moments()
        if RECIPE in checkpoint:
            found = checkpoint.get(CONTENT)
            expect(isinstance(found, Mapping), CONTENT, _short(found), "digests of the data")
        _check_like(checkpoint.get("loops"), {"fit_loop": trainer.fit_loop.state_dict()}, "loops")
        expect(type(checkpoint.get("callbacks")) is dict, "callbacks", _short(checkpoint.get("callbacks")), "dict")
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            keeps = type(callback).state_dict is not L.Callback.state_dict
            if keeps and RECIPE in checkpoint and type(callback).__module__.startswith(__package__):
                found = sorted(checkpoint["callbacks"])
                expect(callback.state_key in checkpoint["callbacks"], "callbacks", found, callback.state_key)
                kept = checkpoint["callbacks"][callback.state_key]
                expect(isinstance(kept, dict) and bool(kept), callback.state_key, _short(kept), "what it had kept")
        return line

    def _check_finite(self, part: str) -> None:
        """On the first process, and on each what it alone has read."""
        for name, value in _tensors(self._loaded_checkpoint[part], part):
            own = local(value)
            if self.trainer.is_global_zero or own is not value:
                expect(bool(own.isfinite().all()), name, "NaN or infinity", "finite numbers")

    def _check_moments(self) -> None:
        """What an optimizer had accumulated would begin anew without a word. On the first process, as above."""
        if self.trainer.is_global_zero:
            found = len([*_tensors(self._loaded_checkpoint["optimizer_states"], "")])
            written = self._loaded_checkpoint.get(MOMENTS, found)
            expect(found == written, "optimizer_states", f"{found} tensors", f"the {_short(written)} that were written")

    @contextmanager
    def _told(self, path: Any) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            message = str(error)
            raise error if str(path) in message else UserError(f"{path}: {message}") from error
        except MisconfigurationException:
            raise
        except Exception as error:  # KeyError, TypeError, AttributeError, ...: any part may be missing or another type
            reason = _difference(self.trainer, self._loaded_checkpoint) or f"{type(error).__name__} {error}"
            raise UserError(f"{path}: does not fit this run: {' '.join(reason.split())[:_LONGEST]}") from error


def _difference(trainer: L.Trainer, checkpoint: Mapping[str, Any]) -> str:
    """The first weight that the checkpoint and the recipe's model do not share."""
    own, stored = trainer.lightning_module.state_dict(), checkpoint.get("state_dict", {})
    for name in [*own, *stored]:
        found, expected = (getattr(side.get(name), "shape", None) for side in (stored, own))
        if found != expected:
            words = [str(tuple(shape)) if shape is not None else "no tensor" for shape in (found, expected)]
            return f"state_dict: {name}: found {words[0]}, expected the recipe's {words[1]}"
    return ""


def _check_like(found: Any, expected: Any, name: str) -> None:
    """Refuse a nested value whose keys or types of numbers are not those of `expected`."""
    if isinstance(expected, Mapping):
        expect(isinstance(found, Mapping), name, _short(found), "a mapping")
        for key, value in expected.items():
            expect(key in found, name, sorted(map(str, found)), str(key))
            _check_like(found[key], value, f"{name}: {key}")
    elif isinstance(expected, int):
        fits = type(found) is type(expected) and (found >= 0 or found == expected)
        expect(fits, name, _short(found), "a count" if type(expected) is int else "true or false")


def _tensors(value: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    parts = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in parts:
        yield from _tensors(item, f"{name}: {key}")


def _tokenizer_digest(trainer: L.Trainer) -> str | None:
    data = getattr(trainer, "datamodule", None)
    if not getattr(data, "tokenizer_name", None):
        return None
    return hashlib.sha256(data.tokenizer.to_json().encode()).hexdigest()  # type: ignore[union-attr]


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys without `init_args`, with the values at the leaves."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, name if key == "init_args" else f"{name}.{key}".removeprefix("."))
    else:
        yield name, value


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _text(value: Any) -> str:
    return " ".join(repr(value).split()) if not isinstance(value, str | float) else f"{value}"


def _short(value: Any) -> str:
    text = _text(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _apart(*values: Any) -> list[str]:
    """Both as short texts, of long ones from where they part."""
    texts = [_text(value) for value in values]
    alike = next((i for i, pair in enumerate(zip(*texts, strict=False)) if len({*pair}) > 1), min(map(len, texts)))
    if max(map(len, texts)) <= 60 or alike < 50:
        return [_short(value) for value in values]
    return [f"...{text[alike - 20 :][:54]}{'...' * (len(text) > alike + 34)}" for text in texts]
