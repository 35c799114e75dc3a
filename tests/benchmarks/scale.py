"""On paper: what a device would hold, and how long a step would take, for GPT-3's sizes on many GPUs.

    python tests/benchmarks/scale.py pretraining
    python tests/benchmarks/scale.py ppo
    python tests/benchmarks/scale.py check

Nothing of this has run. Bytes of weights, gradients and moments follow from the parameters, and activations from what
autograd keeps for a token in a layer, which is counted here on a small layer in bf16 autocast and grows with the width
(`check` holds that against wider and deeper ones). Time is the longest of arithmetic, at a share of an H100's peak that
others reach, and of what must be sent; the rest of a step is left out, so it is a bound and no forecast.
"""

import argparse
from typing import NamedTuple

import measure
import torch
from torch.autograd.graph import saved_tensors_hooks

from gpt_modules.backbone import GPT, DecoderConfig
from gpt_modules.functional import linear_cross_entropy

SHAPES = {"1.3B": (24, 16, 2048), "6.7B": (32, 32, 4096), "13B": (40, 40, 5120), "175B": (96, 96, 12_288)}
BATCH = {"1.3B": 2**20, "6.7B": 2**21, "13B": 2**21, "175B": 3_200_000}  # tokens a step, Brown et al. 2020, table 2.1
CONTEXT = 2048
GPUS = (8, 64, 256, 1024)
ROOM = 74e9  # bytes of an 80 GB device, less what the runtime and fragments take
PEAK, REACHED = 989e12, 0.45  # FLOP/s dense bf16, and the share of it; llm.c and others
NEAR, FAR = 450e9, 50e9  # bytes a second to a GPU of the same machine, and of another one
MEMORY, READ = 3.35e12, 0.47  # bytes a second, and the share that decoding reaches
TRAINED, FROZEN = 16.0, 2.0  # bytes a parameter: weight, gradient, two moments in float32; matrices in bf16
EPISODES, PROMPT, RESPONSE = 512, 512, 128  # of an iteration, as recipes/ppo/instructgpt.yaml


LAYER, AGAIN = 36, 4  # bytes for a token and a unit of width that autograd keeps of a layer; with `recompute`


class Plan(NamedTuple):
    """Of one device.

    Args:
        states: bytes of weights, gradients and moments.
        whole: bytes of weights that are whole for a moment, in bf16.
        activations: bytes, of `rows` sequences at a time; keys and values among them.
        arithmetic, sent: seconds of a step, or of an iteration.
    """

    states: float
    whole: float
    activations: float
    rows: int
    recompute: bool
    arithmetic: float
    sent: float

    @property
    def bytes(self) -> float:
        """At the peak."""
        return self.states + self.whole + self.activations


def kept_bytes(n_layer: int, n_embd: int, recompute: bool, tokens: int = 64) -> int:
    """Bytes that a forward pass with its loss keeps for the backward pass, beside the parameters."""
    torch.manual_seed(0)
    still = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0)
    config = DecoderConfig(vocab_size=64, n_positions=tokens, n_layer=n_layer, n_head=4, n_embd=n_embd, **still)
    model, ids = GPT(config), torch.randint(64, (1, tokens))
    model.decoder.recompute = recompute
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autocast("cpu", torch.bfloat16):
        casts = 2 * config.n_layer * config.matrices()  # autocast keeps a bf16 copy of each matrix
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            states = model.hidden(ids)
            loss = linear_cross_entropy(states.flatten(0, 1), model.head_weight, ids.flatten())
    assert loss.isfinite()
    return sum(seen.values()) - (0 if recompute else casts)


def config_of(name: str) -> DecoderConfig:
    """The decoder of a size."""
    n_layer, n_head, n_embd = SHAPES[name]
    return DecoderConfig(50_257, CONTEXT, n_layer, n_head, n_embd)


def activations(config: DecoderConfig, rows: int, length: int, recompute: bool) -> float:
    """Bytes that `rows` sequences keep for the backward pass."""
    kept = config.n_layer * (AGAIN if recompute else LAYER) + (LAYER if recompute else 0)
    return float(rows * length * config.n_embd * kept)


def speed_between(gpus: int) -> float:
    """Bytes a second to a device, where all talk to all."""
    return NEAR if gpus <= 8 else FAR


def pretraining(name: str, gpus: int, strategy: str) -> Plan | None:
    """The largest micro-batch that fits; None where not even one sequence does."""
    config, tokens = config_of(name), BATCH[name] / gpus
    parameters, matrices = config.n_params(), config.n_layer * config.matrices()
    if strategy == "ddp":
        states, whole = TRAINED * parameters, 2.0 * matrices
    else:
        states, whole = (
            TRAINED * parameters / gpus,
            2 * 2.0 * config.matrices() + 2.0 * config.vocab_size * config.n_embd,
        )
    most = max(1, int(tokens // CONTEXT))
    for recompute in (False, True):
        for rows in (of for of in (16, 8, 4, 2, 1) if of <= most):
            kept = activations(config, rows, CONTEXT, recompute)
            if states + whole + kept <= ROOM:
                steps = max(1.0, tokens / (rows * CONTEXT))
                sent = 2 * 4 * parameters if strategy == "ddp" else steps * 3 * 2 * parameters
                work = tokens * config.flops_per_token(CONTEXT) * (4 / 3 if recompute else 1)
                arithmetic, sending = work / (PEAK * REACHED), sent / speed_between(gpus)
                return Plan(states, whole, kept, rows, recompute, arithmetic, sending)
    return None


def ppo(name: str, gpus: int) -> Plan | None:
    """An iteration of `ppo/instructgpt` in shards, policy, critic, reference and reward of one size, without ptx. One
    model at a time is whole on each device while answers are said and scored.
    """
    config, length = config_of(name), PROMPT + RESPONSE
    parameters, episodes = config.n_params(), max(1, EPISODES // gpus)
    states = (2 * TRAINED + 2 * FROZEN) * parameters / gpus
    cache = 2.0 * 2 * config.n_layer * config.n_embd * length  # bytes a row, keys and values in bf16
    rows = max(1, 64 // gpus)
    learning = 2 * 2.0 * config.matrices() + activations(config, rows, length, recompute=True)
    if states + max(2.0 * parameters + cache * episodes, learning) > ROOM:
        return None
    tokens, forward = episodes * length, config.flops_per_token(length) / 3
    reading = RESPONSE * (2.0 * parameters + cache * episodes) / (MEMORY * READ)
    arithmetic = (
        tokens * forward * (4 + 2 * 4) / (PEAK * REACHED)
    )  # scored by four, learned by two: forward twice, back
    sent = 4 * 2 * parameters + 8 * 2 * 3 * 2 * parameters  # whole once each; eight minibatches of two models
    return Plan(
        states, 2.0 * parameters, cache * episodes, rows, True, reading + arithmetic, sent / speed_between(gpus)
    )


def row(name: str, gpus: int, strategy: str, plan: Plan | None, amount: float) -> list[str]:
    """Of a table."""
    if plan is None:
        return [name, str(gpus), strategy, "does not fit", *[""] * 7]
    seconds = max(plan.arithmetic, plan.sent)
    sizes = (plan.states, plan.whole, plan.activations, plan.bytes)
    rows = f"{plan.rows}{', recompute' if plan.recompute else ''}"
    times = (f"{plan.arithmetic:.2f}", f"{plan.sent:.2f}", f"{amount / seconds:,.0f}")
    return [name, str(gpus), strategy, *(f"{size / 1e9:.1f}" for size in sizes), rows, *times]


def kept_of_a_layer(n_embd: int, recompute: bool) -> list[float]:
    """Bytes for a token and a unit of width, of the second layer, and of the third and fourth."""
    one, two, four = (kept_bytes(n_layer, n_embd, recompute) for n_layer in (1, 2, 4))
    return [(two - one) / (64 * n_embd), (four - two) / (2 * 64 * n_embd)]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pretraining", "ppo", "check"))
    what = parser.parse_args().what
    if what == "check":
        for recompute, expected in ((False, LAYER), (True, AGAIN)):
            for n_embd in (64, 128, 256):
                found = ", ".join(f"{of:.2f}" for of in kept_of_a_layer(n_embd, recompute))
                print(f"recompute {recompute}, width {n_embd}: {found} bytes, taken as {expected}")
        return
    head = ["size", "GPUs", "strategy", "states, GB", "whole", "activations", "all", "rows", "arithmetic, s", "sent, s"]
    rows = []
    for name in SHAPES:
        for gpus in GPUS:
            if what == "ppo":
                rows.append(row(name, gpus, "fsdp2", ppo(name, gpus), EPISODES))
                continue
            for strategy in ("ddp", "fsdp2"):
                rows.append(row(name, gpus, strategy, pretraining(name, gpus, strategy), BATCH[name]))
    print(measure.markdown([*head, "episodes/s" if what == "ppo" else "tokens/s"], rows))


if __name__ == "__main__":
    main()
