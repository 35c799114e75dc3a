"""Meta-gradients: tasks a second through `vmap` and through loops, and the memory of second against first order.

    python tests/benchmarks/adaptation.py --case sinusoid --control
    python tests/benchmarks/adaptation.py --case cipher
    python tests/benchmarks/adaptation.py --case decoder
    python tests/benchmarks/adaptation.py --case decoder --memory

vmap: `meta_gradient`, all tasks at once. loop: the same, one task after the other. naive: what one writes without
torch.func, `torch.autograd.grad(create_graph=True)` task by task. Float32, random data; a piece of work is the
meta-gradient of one batch of tasks, without an optimizer's step.

--memory: peak over what a process holds before its first meta-gradient, so that imports and the model are not in it,
but its gradients are.
"""

import argparse
from functools import partial
from typing import Any, NamedTuple

import measure
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map


class Case(NamedTuple):
    """tasks a batch; examples of each set; tokens of an example; steps: of the inner loop."""

    tasks: int
    examples: int
    tokens: int
    steps: int


CASES = {
    "sinusoid": Case(25, 10, 1, 1),  # Finn et al. 2017, section 5.1: 1-40-40-1
    "cipher": Case(16, 16, 4, 5),
    "decoder": Case(4, 4, 64, 1),
}
MEMORY_STEPS = (1, 2, 5)


def network(options: argparse.Namespace) -> nn.Module:
    """The model of a case."""
    from gpt_modules.backbone import GPT, DecoderConfig

    if options.case == "sinusoid":
        return nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
    vocabulary, layers, heads, width = (12, 1, 2, 32) if options.case == "cipher" else (2048, 2, 4, 128)
    if options.tiny:
        vocabulary, width = 12, 8
    return GPT(DecoderConfig(vocabulary, 64, layers, heads, width)).eval()


class World:
    """A model, its loss, and the sets of a batch of tasks, on the device."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.case = CASES[options.case]._replace(**({"steps": options.inner} if options.inner else {}))
        self.model = network(options).to(options.device)
        self.parameters = dict(self.model.named_parameters())
        rate = torch.full((1,), 0.01, device=options.device)
        self.rates = dict.fromkeys(self.parameters, rate)
        self.support, self.query = (self._set(options) for _ in range(2))

    def _set(self, options: argparse.Namespace) -> Any:
        from gpt_modules.data.batches import EpisodeSet

        tasks, examples, tokens, _ = self.case
        if options.case == "sinusoid":
            x = torch.rand(tasks, examples, 1, device=options.device)
            return EpisodeSet((x,), x.sin())
        vocabulary = self.model.config.vocab_size  # type: ignore[union-attr]
        ids = torch.randint(vocabulary, (tasks, examples, tokens + 1), device=options.device)  # type: ignore[arg-type]
        return EpisodeSet((ids[..., :-1],), ids[..., 1:].contiguous())

    def loss(self, parameters: Any, batch: Any) -> Tensor:
        """As the training module's."""
        from gpt_modules.functional import supervised_scores

        return supervised_scores(functional_call(self.model, dict(parameters), batch.inputs), batch.targets)[0]


def ours(turn: measure.Turn, options: argparse.Namespace, algorithm: str, at_once: int | None, cold: bool) -> None:
    """`meta_gradient`. cold: say how much memory there is before the first one."""
    from gpt_modules.functional import meta_gradient

    world = World(options)
    if cold and not turn.tick(0):
        return
    while True:
        meta_gradient(
            world.loss, world.parameters, world.rates, world.support, world.query, world.case.steps,
            algorithm=algorithm, tasks_at_once=at_once,  # type: ignore[arg-type]
        )  # fmt: skip
        if not turn.tick(world.case.tasks):
            return


def naive(turn: measure.Turn, options: argparse.Namespace, algorithm: str) -> None:
    """A loop over tasks and steps on autograd alone."""
    world, second = World(options), algorithm == "maml"
    while True:
        with sdpa_kernel([SDPBackend.MATH] if second else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
            for i in range(world.case.tasks):
                support, query = (tree_map(lambda t, i=i: t[i], part) for part in (world.support, world.query))
                theta = dict(world.parameters)
                for _ in range(world.case.steps):
                    loss = world.loss(theta, support)
                    gradients = torch.autograd.grad(loss, list(theta.values()), create_graph=second)
                    theta = {
                        name: value - world.rates[name] * gradient
                        for (name, value), gradient in zip(theta.items(), gradients, strict=True)
                    }
                (world.loss(theta, query) / world.case.tasks).backward()
        world.model.zero_grad()
        if not turn.tick(world.case.tasks):
            return


def speed(options: argparse.Namespace) -> str:
    """Tasks a second, three ways."""
    systems: dict[str, measure.System] = {
        "vmap": partial(ours, algorithm=options.algorithm, at_once=None, cold=False),
        "loop": partial(ours, algorithm=options.algorithm, at_once=1, cold=False),
        "naive": partial(naive, algorithm=options.algorithm),
    }
    return measure.comparison(measure.measure(systems, options, options.pieces), "tasks", "naive")


def memory(options: argparse.Namespace) -> str:
    """A row a number of inner steps."""
    columns = [(algorithm, at_once) for at_once in (None, 1) for algorithm in ("maml", "fomaml")]
    names = [f"{algorithm}, {'loop' if at_once else 'vmap'}" for algorithm, at_once in columns]
    rows = []
    for steps in MEMORY_STEPS:
        options.inner = steps
        cells = [grown(partial(ours, algorithm=a, at_once=n, cold=True), options) for a, n in columns]
        ratios = [f"{cells[i] / max(1, cells[i + 1]):.1f}" for i in (0, 2)]
        rows.append([str(steps), *(f"{cell / 1e6:.0f}" for cell in cells), *ratios])
    return measure.markdown(["inner steps", *(f"{name}, MB" for name in names), "ratio, vmap", "ratio, loop"], rows)


def grown(system: measure.System, options: argparse.Namespace) -> int:
    """Bytes by which a process's peak grows through its meta-gradients."""
    worker = measure.Worker(system, options, options.pieces)
    worker.receive()
    before = worker.peak
    worker.connection.send(True)
    worker.receive()
    worker.process.kill()
    worker.process.join()
    return worker.peak - before


def main() -> None:
    """Measure and print."""
    parser = measure.parser(__doc__, rounds=7, device="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--case", choices=list(CASES), default="cipher")
    parser.add_argument("--algorithm", choices=("maml", "fomaml"), default="maml")
    parser.add_argument("--inner", type=int, metavar="S", help="inner steps in place of the case's")
    parser.add_argument("--pieces", type=int, default=10, help="meta-gradients a burst")
    parser.add_argument("--memory", action="store_true", help="peak memory in place of speed")
    options = parser.parse_args()
    print(f"{options.case}: {CASES[options.case]}\n")
    print(memory(options) if options.memory else speed(options), measure.provenance(options), sep="\n\n")


if __name__ == "__main__":
    main()
