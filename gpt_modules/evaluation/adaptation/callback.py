"""What meta-learning was good for, measured when a run ends: its weights adapted by gradient and in context, beside
plain fine-tuning of weights that were not meta-learned.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from gpt_modules.backbone import GPT, LabellingModel
from gpt_modules.data.batches import EpisodeBatch, EpisodeSet
from gpt_modules.data.episodes.families import Episode
from gpt_modules.errors import UserError, expect
from gpt_modules.evaluation.adaptation.baseline import check_tokenizer, open_baseline
from gpt_modules.evaluation.adaptation.comparison import (
    Comparison,
    Network,
    Settings,
    Trial,
    compare,
)
from gpt_modules.evaluation.adaptation.figures import sinusoid_figure
from gpt_modules.evaluation.adaptation.functions import function_fits
from gpt_modules.evaluation.adaptation.report import (
    comparison_figures,
    finetuned_baseline,
    how_finetuned,
    metric_values,
    write_comparison,
)
from gpt_modules.evaluation.adaptation.table import adaptation_table
from gpt_modules.functional import Parameters
from gpt_modules.progress import Meter

CURVES = 3  # tasks in the figure of functions
CURVE_POINTS = 200


class Tasks(NamedTuple):
    """Episodes of one draw, at the largest support set; smaller ones are the beginnings of theirs."""

    episodes: list[Any]
    batch: EpisodeBatch

    def smaller(self, support: int) -> EpisodeBatch:
        """The same tasks with their first so many support examples."""
        return EpisodeBatch(tree_map(lambda tensor: tensor[:, :support], self.batch.support), self.batch.query)


class AdaptationCurves(L.Callback):
    """Measures, at the end of a meta-learning run and in `gpt validate`, how well held-out tasks are learned: by
    gradient, in context, both ways, and by plain fine-tuning (see `evaluation.adaptation`).

    Prints a table, writes `<root>/adaptation.json` and figures, and logs `adaptation/<way>_<metric>` at the trained
    number of examples and steps. Fine-tuning is the run's baseline in its summary. The episodes are the same for all
    ways and each time, and drawn when the run starts, so that what is wrong with them is told before the first step.

    Args:
        tasks: held-out tasks.
        support: numbers of support examples; the trained one is always among them.
        steps: numbers of inner steps; the trained one is always among them.
        baseline: folder of the model that fine-tuning begins with; left out: the weights that the run began with. If
            those are new, every checkpoint keeps them.
        finetuning_steps: what fine-tuning may take at most; left out: the most of `steps`.
        learning_rates: of AdamW, that fine-tuning chooses from. It does so for each number of examples and of steps, by
            the accuracy on training tasks.
        tuning_tasks: how many of those.
        tasks_at_once: so many tasks learn together; each needs memory for four times the weights.
        seed: of the episodes.
    """

    def __init__(
        self,
        tasks: int = 200,
        support: Sequence[int] = (0, 1, 2, 4, 8, 16),
        steps: Sequence[int] = (0, 1, 2, 3, 5, 10),
        baseline: str | None = None,
        finetuning_steps: int | None = None,
        learning_rates: Sequence[float] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
        tuning_tasks: int = 100,
        tasks_at_once: int = 16,
        seed: int = 0,
    ) -> None:
        counts = {"tasks": tasks, "tuning_tasks": tuning_tasks, "tasks_at_once": tasks_at_once}
        counts |= {} if finetuning_steps is None else {"finetuning_steps": finetuning_steps}
        for name, count in counts.items():
            expect(count >= 1, f"AdaptationCurves: {name}", count, "at least 1")
        expect(seed >= 0, "AdaptationCurves: seed", seed, "at least 0")
        if not support or not steps or min(*support, *steps) < 0 or max(steps) < 1:
            found = f"found support {list(support)} and steps {list(steps)}"
            raise UserError(f"AdaptationCurves: {found}, expected numbers from 0, and at least 1 step among them")
        fits = len(learning_rates) > 0 and all(0 < rate < math.inf for rate in learning_rates)
        expect(fits, "AdaptationCurves: learning_rates", list(learning_rates), "rates above 0")
        self.tasks, self.support, self.tuning_tasks, self.seed = tasks, support, tuning_tasks, seed
        self.baseline = baseline
        self.settings = Settings(sorted(set(steps)), finetuning_steps or max(steps), learning_rates, tasks_at_once)
        self.baselines: dict[str, dict[str, Any]] = {}
        """For the run's summary: metric -> name and value of fine-tuning."""
        self.latest: Comparison | None = None
        self._first: dict[str, Tensor] = {}
        self._held_out: Tasks | None = None
        self._measured = False

    def state_dict(self) -> dict[str, Any]:
        """The weights that the run began with, where no folder holds them."""
        return {"first": self._first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self._first = state_dict["first"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the episodes, look at the baseline's folder, or keep the weights that the run begins with."""
        network = _network(pl_module)
        begins = trainer.ckpt_path is None  # what resumes has its first weights from the checkpoint, or not at all
        if begins and self._folder(pl_module) is None:
            self._first = {name: value.detach().cpu().clone() for name, value in network.named_parameters()}
        self._measured = False
        self._draw(trainer.datamodule)  # type: ignore[attr-defined]
        self._open_baseline(trainer, pl_module)  # by all processes: what is wrong ends each of them

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure."""
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._measure(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A run that was cut off after its last step has none left when it resumes, and then no `on_train_end`."""
        if not self._measured:
            self.on_train_end(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure in `gpt validate`, not in the validations of a fit."""
        if trainer.state.fn == "validate":
            self._measure(trainer, pl_module)

    def _measure(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            with torch.inference_mode(False), _without_dropout(_network(pl_module)):
                self._compare(trainer, pl_module)
        self._measured = True  # of all processes, though one alone has the numbers: they must agree on who waits
        trainer.strategy.barrier()

    def _compare(self, trainer: L.Trainer, pl_module: Any) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        trained = (data.support, pl_module.inner.steps)
        learned, rates = _as_function(pl_module.network), _detached(pl_module.rates())
        baseline = self._open_baseline(trainer, pl_module)
        trials, notes = self._trials(data, pl_module.device)
        counts = ", ".join(str(trial.support) for trial in trials)
        sys.stdout.write(f"AdaptationCurves: learning {self.tasks} tasks in every way, from {counts} examples each\n")
        with Meter("AdaptationCurves", len(trials) * self.tasks) as meter:
            told = _told(trials, meter)
            self.latest = found = compare(learned, rates, baseline, told, trained, self.settings)
        at_trained = [point for point in found.by_support if point.support == trained[0]]
        notes.append(how_finetuned(at_trained, self.settings, self.tuning_tasks, self._folder(pl_module)))
        Console(soft_wrap=True, highlight=False).print(
            adaptation_table(found, trained, self.tasks, notes), markup=False
        )
        sizes = {"tasks": self.tasks, "tuning_tasks": self.tuning_tasks, "seed": self.seed}
        write_comparison(Path(trainer.default_root_dir), found, trained, sizes, notes)
        self.baselines = finetuned_baseline(at_trained)
        if trainer.logger is not None:
            trainer.logger.log_metrics(metric_values(at_trained), step=trainer.global_step)
        for writer in _writers(trainer):
            for name, figure in comparison_figures(found, trained):
                writer.add_figure(f"adaptation/{name}", figure, trainer.global_step)
        if trials[0].episodes.query.targets.is_floating_point():
            self._draw_functions(trainer, learned, rates, trained[1])

    def _draw(self, data: Any) -> Tasks:
        """The held-out tasks, at the largest support set."""
        if not hasattr(data, "encode_in_context"):
            raise UserError(f"AdaptationCurves: found {type(data).__name__}, expected data of episodes")
        if self._held_out is None:
            self._held_out = self._episodes(data, "validation", self.tasks)
        return self._held_out

    def _episodes(self, data: Any, split: str, tasks: int) -> Tasks:
        episodes = data.episodes(split, tasks, max(*self.support, data.support), data.query, self.seed)
        return Tasks(episodes, data.encode(episodes))

    def _trials(self, data: Any, device: torch.device) -> tuple[list[Trial], list[str]]:
        """One a number of support examples, and what has to be said about them."""
        held_out, tuning = self._draw(data), self._episodes(data, "train", self.tuning_tasks)
        trials, left_out = [], []
        for support in sorted({*self.support, data.support}):
            in_context = None
            if data.objective == "language":
                in_context = _in_context(data, held_out.episodes, support)
                left_out += [] if in_context is not None else [str(support)]
            trial = Trial(support, held_out.smaller(support), in_context, tuning.smaller(support))
            trials.append(tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, trial))
        sizes, room = ", ".join(left_out), f"a row of data.context = {data.context} tokens has no room"
        return trials, [f"in-context: left out with {sizes} examples, for which {room}"] if left_out else []

    def _folder(self, pl_module: Any) -> str | None:
        return self.baseline or pl_module.hparams.get("init_from")

    def _open_baseline(self, trainer: L.Trainer, pl_module: Any) -> Network | None:
        """What fine-tuning begins with; None in `gpt validate` of new weights, when no checkpoint tells of them."""
        folder, network = self._folder(pl_module), pl_module.network
        if folder is None:
            first = {name: value.to(pl_module.device) for name, value in self._first.items()}
            return _as_function(network)._replace(parameters=first) if first else None
        with torch.random.fork_rng(devices=[]):  # a new head is drawn
            torch.manual_seed(self.seed)
            opened = open_baseline(folder, network, trainer.datamodule)  # type: ignore[attr-defined]
        if self.baseline is not None and isinstance(opened, GPT | LabellingModel):
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            check_tokenizer(folder, opened, data.tokenizer)
        return _as_function(opened.to(pl_module.device).eval())

    def _draw_functions(self, trainer: L.Trainer, learned: Network, rates: Parameters, steps: int) -> None:
        """Of one number to one number only: more have no such picture."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        episodes = data.encode(data.episodes("validation", CURVES, data.support, CURVE_POINTS, self.seed))
        if episodes.query.inputs[0].shape[-1] != 1 or episodes.query.targets.shape[-1] != 1:
            return
        shown = sorted({0, steps, max(self.settings.steps)})
        device = next(iter(learned.parameters.values())).device
        fits = function_fits(learned, rates, tree_map(lambda tensor: tensor.to(device), episodes), shown)
        for writer in _writers(trainer):
            writer.add_figure("adaptation/functions", sinusoid_figure(fits), trainer.global_step)


def _told(trials: Sequence[Trial], meter: Meter) -> Iterator[Trial]:
    """One after the other, and how far it is: by what they have to read."""
    sizes = [1 + trial.support for trial in trials]
    for number, trial in enumerate(trials):
        meter.update(sum(sizes[:number]) / sum(sizes))
        yield trial


def _in_context(data: Any, episodes: list[Episode], support: int) -> EpisodeSet | None:
    """None where not every query has room for all examples before it."""
    found = data.encode_in_context([Episode(episode.support[:support], episode.query) for episode in episodes])
    return found.rows if bool((found.shown == support).all()) else None


def _network(pl_module: Any) -> nn.Module:
    network = getattr(pl_module, "network", None)
    if not isinstance(network, nn.Module) or not hasattr(pl_module, "rates"):
        raise UserError(f"AdaptationCurves: found {type(pl_module).__name__}, expected a module that meta-learns")
    return network


def _as_function(network: nn.Module) -> Network:
    return Network(partial(torch.func.functional_call, network), _detached(dict(network.named_parameters())))


def _detached(tensors: Parameters) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in tensors.items()}


def _writers(trainer: L.Trainer) -> list[Any]:
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


@contextmanager
def _without_dropout(network: nn.Module) -> Iterator[None]:
    training = {module for module in network.modules() if module.training}
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
