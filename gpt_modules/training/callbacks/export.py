"""The weights that a run hands on, the best or the last, and what a validation says of exactly these."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import lightning.pytorch as L
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities.seed import isolate_rng
from lightning_utilities.core.rank_zero import rank_zero_warn

from gpt_modules.backbone.folders.card import Facts, write_card
from gpt_modules.backbone.folders.replacing import check_replaceable
from gpt_modules.errors import UserError, expect
from gpt_modules.storage.digests import sha256_of
from gpt_modules.storage.durable import check_writable
from gpt_modules.storage.model_files import CONFIG_FILE
from gpt_modules.training.hyperparameters import expect_idle

_LIBRARIES = ("lightning", "torch", "tokenizers", "safetensors")

log = logging.getLogger(__name__)


@runtime_checkable
class Exports(Protocol):
    """A module that can write its artefact: config.json, model.safetensors, tokenizer.json."""

    def export(self, folder: Path) -> None:
        """Write the folder."""


@runtime_checkable
class Tells(Protocol):
    """A module whose folders are not all of the same facts."""

    def tell(self, name: str | None, facts: Facts) -> Facts:
        """Those of the folder `export-<name>`, or `export`, given those of the run."""


class ExportBest(L.Callback):
    """Writes the artefact folder `<root>/export`, the weights that validate best, or the last ones.

    A run ends with a validation of its last weights, unless they have just been validated: `metrics` are those of what
    is exported. A value of the monitor that is not finite is never the best; a run that has no other exports its last
    weights and says so.

    Args:
        monitor: a validation metric; left out, the weights at the end of the run are exported.
        mode: whether the metric should fall or rise.
    """

    def __init__(self, monitor: str | None = None, mode: Literal["min", "max"] = "min") -> None:
        expect(mode in ("min", "max"), "export.mode", mode, "min or max")
        if monitor is None:
            expect_idle("export.mode", mode, ["min"], "there is no monitor, so the last weights are exported")
        self.monitor = monitor
        self.mode = mode
        self.recipe: str | None = None  # as the user named it, for the model card
        self.best: float | None = None
        self.metrics: dict[str, float] = {}
        self._latest: dict[str, float] = {}
        self._validated = -1  # the step whose weights `_latest` is of
        self._measured_on: str | None = None  # which validation, as the same weights have another value on another
        self._exported: str | None = None  # the folder that `metrics` are of
        self._finished = False

    def state_dict(self) -> dict[str, Any]:
        """The best value so far, of what, and what else was measured there: a resumed run exports nothing worse."""
        measured = {"metrics": self.metrics, "latest": self._latest, "validated": self._validated}
        measured["exported"] = self._exported
        told = {"monitor": self.monitor, "mode": self.mode, "measured_on": self._measured_on}
        return {"best": self.best, **told, **measured}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it; the best by another measure, or on other data, is none."""
        self._latest = {str(name): float(value) for name, value in state_dict["latest"].items()}
        self._validated = int(state_dict["validated"])
        if self.monitor is not None and self._latest:
            self._check_monitor()
        before = state_dict.get("measured_on")
        self._measured_on = self._measured_on or before  # a run that does not validate measures nothing else
        if before is not None and before != self._measured_on:
            if self.monitor is not None:
                log.warning("export: validated on other data than before; the best from here on counts")
            self._validated = -1
        elif (self.monitor, self.mode) == (state_dict["monitor"], state_dict["mode"]):
            self.best = None if state_dict["best"] is None else float(state_dict["best"])
            self.metrics = {str(name): float(value) for name, value in state_dict["metrics"].items()}
            self._exported = state_dict.get("exported")

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find out before the first step what would keep the weights from being written after the last."""
        if stage != "fit" or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._finished = False
        content = getattr(getattr(trainer, "datamodule", None), "content", {}).get("validation")
        measures = content and trainer.limit_val_batches
        self._measured_on = f"{content} {trainer.limit_val_batches}" if measures else None
        if self.monitor is not None and trainer.limit_val_batches == 0:
            expected = "a run that validates, or --export.monitor null"
            raise UserError(f"export.monitor: found beside trainer.limit_val_batches 0, expected {expected}")
        if trainer.is_global_zero and isinstance(pl_module, Exports):
            for folder in self._folders(trainer, pl_module).values():
                check_replaceable(folder)
                check_writable(folder.parent)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A run that goes on where its best weights are not, in another folder, looks for the best from here on."""
        if self.best is not None and not (Path(trainer.default_root_dir) / "export").exists():
            log.warning(f"export: not there, though {self.monitor} was {self.best:g}; the best from here on counts")
            self.best = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Export when the metric has improved."""
        if trainer.state.fn != "fit":
            return
        self._latest = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self._validated = trainer.global_step
        if self.monitor is None:
            return
        self._check_monitor()
        if trainer.global_step == 0:  # a wrong name has been told before the first step; a blank model is no best one
            return
        value = self._latest[self.monitor]
        if self._improves(value):
            self._export(trainer, pl_module)
            self.best, self.metrics = value, self._latest

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validate the last weights if that has not been done; export them unless better ones have been."""
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._finish(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """No run ends without its artefact: one that was cut off after its last step has none left to take when it
        resumes, and then `on_train_end` is not called.
        """
        if self._finished or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        pl_module.to(trainer.strategy.root_device)  # which the strategy's teardown has left
        self._finish(trainer, pl_module)

    def _finish(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The folder may hold what a run that was cut off wrote later than the checkpoint that this one goes on from,
        and changed settings may never have led there again.

        Raises:
            UserError: no step was made, as where `max_time` ends within the first; untrained weights are no result.
        """
        if trainer.global_step == 0:
            expected = "one: a longer trainer.max_time, or fewer trainer.accumulate_grad_batches"
            raise UserError(f"export: found a run that ended before its first step, expected {expected}")
        if self._validated != trainer.global_step:
            self._latest = {}  # of a run that has validated before and does not now
            validate(trainer)
        if self.best is None:
            last = self._latest.get(self.monitor, math.nan) if self.monitor is not None else 0.0
            if not math.isfinite(last):
                found = f"{self.monitor} was never finite (last: {last})"
                rank_zero_warn(f"export.monitor: {found}; the last weights it is")
            self._export_last(trainer, pl_module)
        elif not self._in_place(trainer):
            found = "export: holds weights of a later step or of another run, not those of the best"
            log.warning(f"{found} %s, %g; the last ones it is", self.monitor, self.best)
            self._export_last(trainer, pl_module)
        self._finished = True

    def _in_place(self, trainer: L.Trainer) -> bool:
        """Whether the folder is the one that `metrics` are of, as the process knows that has written it."""
        same: bool = trainer.strategy.broadcast(self._exported == _digest(Path(trainer.default_root_dir) / "export"))
        return same

    def _improves(self, value: float) -> bool:
        if not math.isfinite(value) or self.best is None:
            return math.isfinite(value)
        return value < self.best if self.mode == "min" else value > self.best

    def _check_monitor(self) -> None:
        known = ", ".join(sorted(self._latest))
        expect(self.monitor in self._latest, "export.monitor", self.monitor, f"one of the logged metrics: {known}")

    def _export_last(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._export(trainer, pl_module)
        self.metrics = self._latest

    def _export(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not isinstance(pl_module, Exports):
            return
        try:
            with _as_validated(trainer, pl_module):
                pl_module.export(Path(trainer.default_root_dir) / "export")
            if trainer.is_global_zero:
                self._write_cards(trainer, pl_module)
            self._exported = _digest(Path(trainer.default_root_dir) / "export")
        except UserError as error:
            raise UserError(f"{error}; then go on with --ckpt_path last") from error

    def _write_cards(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        data = getattr(trainer, "datamodule", None)
        sources: dict[str, list[Any]] = data.sources() if data is not None and hasattr(data, "sources") else {}
        averages = [type(one).__name__ for one in _averages(trainer)]
        facts = Facts(
            type(module).__name__.removesuffix("Module"),
            self.recipe,
            module.hparams.get("init_from"),
            weights=f"average over steps, by {averages[0]}" if averages else None,
            data={use: [str(name) for source in found for name in _names(source)] for use, found in sources.items()},
            before=next((one.before for one in trainer.callbacks if hasattr(one, "before")), {}),  # type: ignore[attr-defined]
            metrics={name: value for name, value in self._latest.items() if name.startswith("val/")},
            steps=trainer.global_step,
            versions={name: version(name) for name in _LIBRARIES},
        )
        for name, folder in self._folders(trainer, module).items():
            if (folder / CONFIG_FILE).is_file():
                write_card(folder, module.tell(name, facts) if isinstance(module, Tells) else facts)

    @staticmethod
    def _folders(trainer: L.Trainer, module: L.LightningModule) -> dict[str | None, Path]:
        """By what stands behind `export-` in their names."""
        first = Path(trainer.default_root_dir) / "export"
        return {
            None: first,
            **{name: first.with_name(f"export-{name}") for name in getattr(module, "also_exports", ())},
        }


def _names(source: Any) -> list[Any]:
    return list(source) if isinstance(source, list | tuple) else [source]


def _digest(folder: Path) -> str | None:
    """Of what an artefact is: its configuration, which knows the digests of its weights and its tokenizer."""
    return sha256_of(folder / CONFIG_FILE) if (folder / CONFIG_FILE).is_file() else None


def _averages(trainer: L.Trainer) -> list[WeightAveraging]:
    return [one for one in trainer.callbacks if isinstance(one, WeightAveraging) and one._average_model]  # type: ignore[attr-defined]


@contextmanager
def _as_validated(trainer: L.Trainer, module: L.LightningModule) -> Iterator[None]:
    """Inside: the weights that a validation sees, which are an average where a callback of Lightning's keeps one; it
    puts the average in for the validation alone.
    """
    averages = _averages(trainer)
    for average in averages:
        average._swap_models(module)
    try:
        yield
    finally:
        for average in reversed(averages):
            average._swap_models(module)


def validate(trainer: L.Trainer) -> None:
    """A validation at the end of a run, logged as those on the way; it draws no number from a run that goes on."""
    stage, loop = trainer.state.stage, trainer.fit_loop.epoch_loop.val_loop
    trainer.validating = True
    loop.restarting = False  # or, of a run that has made no step yet, the batches of its checkpoint's would be left out
    with isolate_rng():
        loop.run()
    trainer.state.stage = stage
