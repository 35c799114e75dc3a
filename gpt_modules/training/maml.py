"""Meta-learning an initialisation by gradient: MAML and its relatives (Finn et al. 2017, and `functional.adaptation`).

Not what GPT-3 does: Brown et al. 2020 call pretraining the outer loop and reading examples in the context the inner
one, and cite MAML only. The data's `in_context` serves that second meaning, with `inner.steps: 0`.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from gpt_modules.backbone import GPT, DecoderConfig, LabellingModel
from gpt_modules.backbone.folders.inner_rates import InnerRates, load_inner_rates
from gpt_modules.data import EpisodicDataModule
from gpt_modules.data.batches import IGNORE, EpisodeBatch, EpisodeSet
from gpt_modules.errors import UserError, expect
from gpt_modules.functional import Algorithm, Parameters, adapt, meta_gradient, over_tasks, supervised_scores
from gpt_modules.labelling import Labelling
from gpt_modules.training import artefacts, optimizers
from gpt_modules.training.accumulation import StepMean
from gpt_modules.training.from_checkpoint import FromCheckpoint
from gpt_modules.training.hyperparameters import arguments, expect_idle, expect_number, refuse_idle, typed
from gpt_modules.training.inner_loop import InnerLoop
from gpt_modules.training.optimizers import OptimizerConfig, ScheduleConfig
from gpt_modules.training.processes import HeldOut
from gpt_modules.training.run_length import run_length
from gpt_modules.training.sharding.strategy import refuse_sharding

SHOWN_QUERIES = 8
_MATRICES = ("head.linear", "decoder.wte")
MEASURED = ("loss_before", "loss", "accuracy")  # of a held-out task: what `adapted_scores` gives


class MAMLModule(FromCheckpoint):
    """Learns weights from which a few gradient steps on a few examples make a model of a new task.

    The DataModule says what is learned: a language model answers in tokens, a classifier by its head, and a network of
    your own gives numbers. Dropout is off, in both loops: the inner loss has to be one function. Meta-gradients are
    handed to the optimizer as gradients of `training_step`'s loss, so clipping, accumulation, schedules and DDP are
    Lightning's own.

    Args:
        init_from: folder (or hub name) of a pretrained model, or of a meta-learned one to go on with.
        config: a decoder to begin from scratch with, in place of `init_from`.
        network: any other module, in place of both.
        algorithm: `maml`, `fomaml` or `reptile`.
        inner: the inner loop; ANIL, Meta-SGD and rates per step are settings of it.
        tasks_at_once: tasks of a batch that go through the network together; left out: all, which is fastest. Fewer
            need less memory, 1 least.
        optimizer: of the outer loop; Finn et al. use Adam at 1e-3. Under Reptile `lr` is ε and the step is θ + ε (mean
            θᵢ - θ), plain; ε falls to 0 in the paper.
        schedule: of the outer rate.
    """

    def __init__(
        self,
        init_from: str | None = None,
        config: DecoderConfig | None = None,
        network: nn.Module | None = None,
        algorithm: Algorithm = "maml",
        inner: InnerLoop = InnerLoop(),
        tasks_at_once: int | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0),
        schedule: ScheduleConfig = ScheduleConfig(shape="constant"),
    ) -> None:
        given = {**arguments({**locals(), "network": None}), "network": type(network).__name__}
        super().__init__()
        if isinstance(network, str):  # which is what a checkpoint keeps of it
            expect(network == type(None).__name__, "network", network, "the module itself, as in network=...")
            given["network"], network = network, None
        self.config = None if config is None else typed(DecoderConfig, config)
        self.inner = typed(InnerLoop, inner)
        self.optimizer_config = typed(OptimizerConfig, optimizer)
        self.schedule_config = typed(ScheduleConfig, schedule)
        refuse_idle(self, optimizer=self.optimizer_config, schedule=self.schedule_config, inner=self.inner)
        self.save_hyperparameters(given)
        expect_number("tasks_at_once", 1 if tasks_at_once is None else tasks_at_once, "[1, inf)", whole=True)
        self._check()
        if network is not None:
            expect_idle("init_from", init_from, [None], "network takes its place")
            expect_idle("config", given["config"], [None], "network takes its place")
            self.network = network
        self.inner_rates = nn.ParameterDict()
        self.step = StepMean()
        self.held_out = HeldOut(*MEASURED)

    def _check(self) -> None:
        reptile, config = self.hparams["algorithm"] == "reptile", self.optimizer_config
        if reptile and self.inner.learned:
            found = f"found {self.inner.rates!r}"
            raise UserError(f"inner: rates: {found}, expected 'fixed': reptile has no gradient of them")
        if reptile and (config.muon_lr or config.weight_decay or config.lr > 1):
            expected = "expected no muon_lr, weight_decay 0 and lr up to 1: the ε of an interpolation"
            raise UserError(f"optimizer: found {config}, {expected}")
        if reptile:
            refuse_idle(self, optimizer=dataclasses.replace(config, sgd=True))
        if reptile and self.inner.steps < 2:
            raise UserError(
                f"inner: steps: found {self.inner.steps}, expected 2 or more: reptile with 1 is joint training"
            )

    @property
    def data(self) -> Any:
        """The run's EpisodicDataModule."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def configure_model(self) -> None:
        """Open the network, and make the rates that are learned."""
        artefacts.expect_data(self, EpisodicDataModule)
        refuse_sharding(self, "every task adapts a copy of all weights, which is whole on its device")
        if len(self.inner_rates):
            return
        if hasattr(self, "network"):
            self._make_rates()
        elif self._trainer is not None:  # without one a checkpoint says what the network is
            expect(self.data.objective != "regression", "model.network", None, "one: the data are numbers, not text")
            classes = self.data.objective == "classification"
            self._open(*((self.data.task_spec, self.data.tokenizer.task_ids) if classes else ()))

    def _open(self, task: Labelling | None = None, special_ids: tuple[int, ...] = ()) -> None:
        """A classifier for a task, or a language model, with its rates."""
        source = artefacts.open_source(self.config, self.hparams["init_from"])
        self.network = source
        if task is None:
            if not isinstance(source, GPT):
                raise UserError(f"{self.hparams['init_from']}: found a classifier, expected a language model")
        elif isinstance(source, GPT):
            artefacts.refuse_random_head(self)
            self.network = LabellingModel.from_gpt(source, task, special_ids)
        elif source.task.n_outputs != task.n_outputs or source.task.kind != task.kind:
            raise UserError(
                f"{self.hparams['init_from']}: found a model of the task {source.task}, expected one of {task}"
            )
        self._make_rates()

    def _make_rates(self) -> None:
        if isinstance(self.network, GPT | LabellingModel):
            artefacts.check_data(self, self.network.config)
        source = self.hparams["init_from"]
        before = load_inner_rates(source) if source is not None else None
        rates = self.inner.first_rates(self.parameters_now(), before.rates if before is not None else {})
        # No dots in the names of a ParameterDict.
        self.inner_rates.update(
            {name.replace(".", "/"): nn.Parameter(rate, self.inner.learned) for name, rate in rates.items()}
        )

    def parameters_now(self) -> dict[str, Tensor]:
        """θ, by name."""
        return dict(self.network.named_parameters())

    def rates(self) -> dict[str, Tensor]:
        """α, by the names that adapt: (S, ...)."""
        return {name: self.inner_rates[name.replace(".", "/")] for name in self.inner.adapted(self.parameters_now())}

    def scores(self, parameters: Parameters, examples: EpisodeSet) -> tuple[Tensor, Tensor]:
        """Loss () and correctness (B,) of one task's examples."""
        outputs = torch.func.functional_call(self.network, dict(parameters), examples.inputs)
        return supervised_scores(outputs, examples.targets)

    def loss(self, parameters: Parameters, examples: EpisodeSet) -> Tensor:
        """The inner and the outer loss: nats a token or a class, or the squared error."""
        return self.scores(parameters, examples)[0]

    def on_fit_start(self) -> None:
        """Refuse an interpolation that is clipped."""
        clip = self.trainer.gradient_clip_val
        if self.hparams["algorithm"] == "reptile" and clip:
            raise UserError(f"trainer.gradient_clip_val: found {clip:g}, expected none with reptile")

    @property
    def learned_settings(self) -> set[str]:
        """Of a resumed run: settings that are only where learned numbers began."""
        return {"inner.lr"} if self.inner.learned else set()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Rates that nobody learns are the recipe's. Without a Trainer the weights say what the network is."""
        if not hasattr(self, "network"):
            classes, rows = (len(checkpoint["state_dict"].get(f"network.{name}.weight", ())) for name in _MATRICES)
            task = Labelling("classification", tuple(map(str, range(classes)))) if classes else None
            self._open(task, (rows - 1,))
        if not self.inner.learned:
            state = {name: value for name, value in checkpoint["state_dict"].items() if "inner_rates." not in name}
            own = {f"inner_rates.{name}": rate.detach() for name, rate in self.inner_rates.items()}
            checkpoint["state_dict"] = {**state, **own}

    def training_step(self, batch: EpisodeBatch, batch_idx: int) -> Tensor:
        """The query loss after adaptation, whose gradient is the algorithm's meta-gradient, in the scale of
        `StepMean`.
        """
        self.network.eval()  # the inner loss has to be one function, so nothing drops out
        parameters, rates = self.parameters_now(), self.rates()
        found = meta_gradient(
            self.loss, parameters, rates, batch.support, batch.query, self.inner.steps,
            self.hparams["algorithm"], self.inner.learned, self.hparams["tasks_at_once"],
        )  # fmt: skip
        pairs = [(parameters[name], gradient) for name, gradient in found.gradients.items()]
        pairs += [(rates[name], gradient) for name, gradient in found.rates.items()]
        # Linear in the parameters: its gradient is what was found, through DDP's hooks and Lightning's backward.
        carrier = torch.stack([(value * gradient).sum() for value, gradient in pairs if value.requires_grad]).sum()
        tasks = len(batch.query.targets)
        count = torch.full((), tasks, device=self.device)  # `tensor` would wait for the device
        return self.step.add((found.query_loss + carrier - carrier.detach()) * tasks, count, tasks)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """`train/loss`, the mean over the step's tasks."""
        self.log("train/loss", self.step.close(self))

    def on_train_end(self) -> None:
        """Leave the network as it came, for whoever trains it on."""
        self.network.train()

    def validation_step(self, batch: EpisodeBatch, batch_idx: int) -> None:
        """Query loss before and after adaptation, and the queries answered right after it."""
        self.held_out.add(**dict(zip(MEASURED, self.adapted_scores(batch), strict=True)))

    @torch.no_grad()
    def adapted_scores(self, batch: EpisodeBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Query loss (N,) before and after adaptation, and the share (N,) of right queries after it; N may be 0."""
        if not len(batch.query.targets):
            return (torch.zeros(0, device=self.device),) * 3

        def task(
            parameters: Parameters, rates: Parameters, support: EpisodeSet, query: EpisodeSet
        ) -> tuple[Tensor, Tensor, Tensor]:
            adapted = adapt(self.loss, parameters, rates, support, self.inner.steps, first_order=True)
            after, correct = self.scores(adapted, query)
            return self.loss(parameters, query), after, correct.mean()

        with _differentiable(batch) as (support, query):
            return over_tasks(task, self.parameters_now(), self.rates(), support, query, twice=False)

    def on_validation_epoch_end(self) -> None:
        """`val/loss` and `val/accuracy` after adaptation, `val/loss_before`."""
        self._log_metrics("val")

    def test_step(self, batch: EpisodeBatch, batch_idx: int) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """The same as `test/...`."""
        self._log_metrics("test")

    def _log_metrics(self, stage: str) -> None:
        values = {f"{stage}/{name}": float(column.mean()) for name, column in self.held_out.take().items()}
        if self.data.objective == "regression":
            del values[f"{stage}/accuracy"]
        self.log_dict(values, prog_bar=True, sync_dist=True)  # equal on all; said, as Lightning warns otherwise

    def predict_step(self, batch: EpisodeBatch, batch_idx: int) -> list[dict[str, float]]:
        """Each task's query loss before and after adaptation, and its accuracy."""
        rows = torch.stack(self.adapted_scores(batch), 1).tolist()
        return [dict(zip(MEASURED, values, strict=True)) for values in rows]

    def configure_optimizers(self) -> Any:
        """Adam (or Muon for the blocks) on θ and α, or Reptile's plain steps; and the schedule."""
        config = self.optimizer_config
        total = run_length(self.trainer)
        if self.hparams["algorithm"] == "reptile":
            plain = torch.optim.SGD([p for p in self.network.parameters() if p.requires_grad], lr=config.lr)
            return optimizers.configure(plain, self.schedule_config, total)
        groups = optimizers.parameter_groups([self.network], config.weight_decay)
        groups += optimizers.parameter_groups([self.inner_rates], 0.0)
        hidden = self.network.decoder.blocks if isinstance(self.network, GPT | LabellingModel) else ()
        return optimizers.configure(optimizers.build(groups, config, hidden=hidden), self.schedule_config, total)

    def work(self, batch: EpisodeBatch) -> tuple[int, str]:
        """Tasks of a batch, for the throughput."""
        return len(batch.query.targets), "tasks"

    def sample_rows(self) -> list[dict[str, str]]:
        """Queries of the first held-out task: what was expected, and what is likeliest before and after adaptation."""
        if self.data.objective != "language":
            return []
        batch = _to(next(iter(self.data.val_dataloader())), self.device)
        first = EpisodeBatch(*(tree_map(lambda tensor: tensor[0], part) for part in batch))
        with torch.no_grad(), _differentiable(first) as (support, query):
            parameters = self.parameters_now()
            adapted = adapt(self.loss, parameters, self.rates(), support, self.inner.steps, first_order=True)
            forward = partial(torch.func.functional_call, self.network)
            answers = [forward(weights, query.inputs).argmax(-1) for weights in (parameters, adapted)]
        return [self._sample(query, answers, row) for row in range(min(SHOWN_QUERIES, len(query.targets)))]

    def _sample(self, query: EpisodeSet, answers: list[Tensor], row: int) -> dict[str, str]:
        asked, decode = query.targets[row] != IGNORE, self.data.tokenizer.decode
        tokens, first = query.inputs[0][row], int(asked.int().argmax())
        texts = [decode(kind[row][asked].tolist()) for kind in (query.targets, *answers)]
        names = ("expected", "before", "after")
        return {"prompt": decode(tokens[: first + 1].tolist()), **dict(zip(names, texts, strict=True))}

    def export(self, folder: Path) -> None:
        """Write the network's folder, with the rates and steps that it was learned for."""
        rates = {name: rate.detach().cpu() for name, rate in self.rates().items()}
        inner = InnerRates(algorithm=self.hparams["algorithm"], steps=self.inner.steps, rates=rates)
        if isinstance(self.network, GPT | LabellingModel):
            artefacts.export(self, self.network, folder, inner_rates=inner)
        else:
            artefacts.export_network(self, self.network, folder)


@contextmanager
def _differentiable(batch: EpisodeBatch) -> Iterator[EpisodeBatch]:
    """Copies of the tensors that an inner gradient may save: Lightning validates in inference mode, whose own tensors
    may not be. No other gradient is noted: who leaves that mode has them again.
    """
    with torch.inference_mode(False), torch.no_grad():
        yield tree_map(torch.clone, batch)


def _to(batch: EpisodeBatch, device: torch.device) -> EpisodeBatch:
    moved: EpisodeBatch = tree_map(lambda tensor: tensor.to(device), batch)
    return moved
