"""Bytes a parameter that a PPO run holds when it takes a step, by what its recipe says of memory.

    python tests/benchmarks/ppo_memory.py
    python tests/benchmarks/ppo_memory.py --measure

The table is of four models of equal size: policy, critic, reference and reward. A trained parameter is its weight, its
gradient and Adam's two moments; a frozen one its weight. Counted on the meta device, where no tensor has memory, for
GPT-2's 124M and a 1.3B shape; `--measure` makes an iteration of a small run instead and counts what there is.
Activations and the cache of keys and values come on top: `recompute` and `cache_gb` bound them. `offloaded` is what is
left on the device with `ref_reward_offload`: frozen models lie in the host's memory then.
"""

import argparse
import logging
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import measure
import torch
from torch import Tensor, nn

PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16, "bf16-true": torch.bfloat16}
SHAPES = {"124M": (50_257, 1024, 12, 12, 768), "1.3B": (50_257, 2048, 24, 16, 2048)}


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def counted(shape: tuple[int, ...], precision: str) -> dict[str, float]:
    """Bytes a parameter of each part, from the meta device."""
    from gpt_modules.backbone import GPT, DecoderConfig
    from gpt_modules.training.rl.frozen import cast_products

    with torch.device("meta"):
        trained, frozen = (GPT(DecoderConfig(*shape)) for _ in range(2))
    half = PRECISIONS[precision]
    if precision == "bf16-true":
        trained, frozen = trained.to(half), frozen.to(half)
    elif half is not None:
        cast_products(frozen, half)
    parameters = sum(parameter.numel() for parameter in trained.parameters())
    weights, still = size(trained.parameters()) / parameters, size(frozen.parameters()) / parameters
    return {"policy": 4 * weights, "critic": 4 * weights, "reference": still, "reward": still}


def measured(precision: str) -> dict[str, float]:
    """Bytes a parameter of each part after an iteration of a small run."""
    import lightning.pytorch as L
    import ppo_throughput as throughput

    found: dict[str, float] = {}

    class Count(L.Callback):
        def on_before_optimizer_step(self, trainer: L.Trainer, module: Any, optimizer: Any) -> None:
            models = {"policy": module.policy, "critic": module.critic, "reference": module.frozen.reference}
            (models["reward"],) = module.frozen.reward.models().values()
            found.update({name: held(model, optimizer.state) for name, model in models.items()})

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    options = argparse.Namespace(tiny=False, vocab=512, end=0.0)
    with tempfile.TemporaryDirectory() as folder:
        throughput.save_models(Path(folder), options)
        trainer = throughput.trainer(folder, [Count()], precision=precision, max_epochs=1)
        trainer.fit(throughput.module(folder), datamodule=throughput.random_prompts(folder, options))
    return found


def held(model: nn.Module, states: Mapping[Tensor, Mapping[str, Any]]) -> float:
    """Bytes a parameter of its weights, gradients and optimizer states."""
    parameters = list(model.parameters())
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    moments = [value for one in parameters for value in states.get(one, {}).values() if value.numel() == one.numel()]
    return size([*parameters, *gradients, *moments]) / sum(parameter.numel() for parameter in parameters)


def table(of: Callable[[str], dict[str, float]], title: str) -> str:
    """A row a precision."""
    rows = []
    for precision in PRECISIONS:
        parts = of(precision)
        left = parts["policy"] + parts["critic"]
        rows.append([title, precision, *(f"{part:.2f}" for part in (*parts.values(), sum(parts.values()), left))])
    return measure.markdown(["shape", "precision", *parts, "all", "offloaded"], rows)


def main() -> None:
    """Count and print."""
    parser = measure.parser(__doc__, rounds=1)
    parser.add_argument("--measure", action="store_true", help="what a run of 4 layers x 256, vocabulary 512, holds")
    options = parser.parse_args()
    if options.measure:
        print(table(measured, "4 x 256"))
    else:
        print("\n\n".join(table(partial(counted, shape), name) for name, shape in SHAPES.items()))
    print("", measure.provenance(options), sep="\n")


if __name__ == "__main__":
    main()
