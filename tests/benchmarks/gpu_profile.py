"""Where a step's time goes on a GPU: the kernels that take most of it, and how long the device stands still.

    python tests/benchmarks/gpu_profile.py
    python tests/benchmarks/gpu_profile.py --tiny      # on a CPU: whether it runs

GPT-2 124M in bfloat16: a training step of 32 x 1,024 tokens (forward, loss, backward, clipping, fused AdamW), and 16
steps of decoding of 256 rows, with what `generate` does before them. Idle is the wall's time less that of all kernels.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import measure


def training(options: argparse.Namespace) -> Callable[[], Any]:
    """A step without a Trainer."""
    import torch

    from gpt_modules.backbone import GPT, DecoderConfig
    from gpt_modules.functional import linear_cross_entropy

    config = DecoderConfig(128, 16, 1, 2, 16) if options.tiny else DecoderConfig(vocab_size=50_304)
    model = GPT(config.without_dropout()).to(options.device)
    if not options.tiny:
        model.decoder.compile_blocks()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    tokens = torch.randint(config.vocab_size, (2 if options.tiny else 32, config.n_positions), device=options.device)

    def step() -> None:
        with torch.autocast(options.device, torch.bfloat16):
            loss = linear_cross_entropy(model.hidden(tokens).flatten(0, 1), model.head_weight, tokens.flatten())
        (loss / tokens.numel()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def decoding(options: argparse.Namespace) -> Callable[[], Any]:
    """Sixteen tokens of each row."""
    import torch

    from gpt_modules.backbone import GPT, DecoderConfig, generate

    config = DecoderConfig(128, 32, 1, 2, 16) if options.tiny else DecoderConfig(vocab_size=50_304)
    model = GPT(config).to(options.device, torch.bfloat16)
    prompts = torch.randint(config.vocab_size, (2, 4) if options.tiny else (256, 256), device=options.device)
    mask = torch.ones_like(prompts, dtype=torch.bool)
    return lambda: generate(model, (prompts, mask), max_new_tokens=16, eos_id=None)


STEPS = {"training": training, "decoding": decoding}


def profiled(step: Callable[[], Any], options: argparse.Namespace) -> tuple[Any, float]:
    """Sums by kernel, and the seconds of the wall, of one step after two others."""
    import torch

    activities = [torch.profiler.ProfilerActivity.CPU]
    if options.device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    wait = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    for _ in range(2):
        step()
    wait()
    with torch.profiler.profile(activities=activities) as seen:
        started = time.perf_counter()
        step()
        wait()
        seconds = time.perf_counter() - started
    return seen.key_averages(), seconds


def main() -> None:
    """Measure and print."""
    parser = measure.parser_on_gpu(__doc__, rounds=1)
    parser.add_argument("--top", type=int, default=12, help="kernels of a step that are shown")
    options = measure.parse_on_gpu(parser)
    own = f"self_{'device' if options.device == 'cuda' else 'cpu'}_time_total"
    for name, make in STEPS.items():
        found, seconds = profiled(make(options), options)
        kernels = sorted(found, key=lambda one: -getattr(one, own))[: options.top]
        busy = sum(getattr(one, own) for one in found) / 1e6
        idle = max(0.0, 1 - busy / seconds)
        print(f"{name}: {1000 * seconds:.2f} ms, {1000 * busy:.2f} ms of kernels, idle {idle:.0%}\n")
        rows = [[one.key[:60], f"{getattr(one, own) / 1000:.3f}", str(one.count)] for one in kernels]
        print(measure.markdown(["kernel", "ms", "times"], rows), end="\n\n")
    print(measure.provenance(options))


if __name__ == "__main__":
    main()
