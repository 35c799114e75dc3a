"""Pretraining on a GPU: tokens/s and model FLOPs utilisation of `PretrainingModule` under the Trainer, in bfloat16.

    python tests/benchmarks/gpu_pretrain.py --rounds 7
    python tests/benchmarks/gpu_pretrain.py --tiny --modes eager      # on a CPU: whether it runs

GPT-2 124M at 1,024 tokens, eager and with compiled blocks, as `recipes/hardware/gpu.yaml` sets it up. A token of
training counts 6 N_matmul + 12 L d T floating-point operations, 854.4 million here, whatever the padded vocabulary
(50,304) really costs. The bar on an H100 is 521 thousand tokens/s (45 %), the aim 579 thousand (50 %).
"""

import argparse
import statistics

import measure
from train_throughput import Shape, decoder_config, fit_pretraining

TINY = Shape(1, 32, rows=2, context=16, vocab_size=128)


def gpt2(options: argparse.Namespace) -> Shape:
    """The batch's shape; GPT-2 124M unless `--tiny`."""
    return TINY if options.tiny else Shape(12, 768, rows=options.batch_size, context=1024)


def flops_per_token(options: argparse.Namespace) -> int:
    """6 N_matmul + 12 L d T, by the sizes of the paper: 50,257 ids."""
    from gpt_modules.backbone import DecoderConfig

    config = decoder_config(TINY) if options.tiny else DecoderConfig()
    return config.flops_per_token(config.n_positions)


def eager(turn: measure.Turn, options: argparse.Namespace) -> None:
    """Blocks as they are."""
    fit_pretraining(turn, gpt2(options), precision="bf16-mixed")


def compiled(turn: measure.Turn, options: argparse.Namespace) -> None:
    """Each block compiled."""
    fit_pretraining(turn, gpt2(options), compile=True, precision="bf16-mixed")


MODES = {"eager": eager, "compiled": compiled}


def main() -> None:
    """Measure and print."""
    parser = measure.parser_on_gpu(__doc__, 7, MODES)
    parser.add_argument("--batch-size", type=int, default=32, help="rows of 1,024 tokens a step")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps a burst")
    parser.add_argument("--peak-flops", type=float, default=989e12, help="dense bfloat16 FLOP/s of the device")
    options = measure.parse_on_gpu(parser)
    results = measure.measure({mode: MODES[mode] for mode in options.modes}, options, options.steps)
    rows = []
    for name, result in results.items():
        rate = statistics.median(measure.rates(result))
        utilisation = rate * flops_per_token(options) / options.peak_flops
        rows.append([name, f"{rate:,.0f}", f"{utilisation:.1%}", f"{result.peak / 1e9:.1f}"])
    print(f"Pretraining, bfloat16, {gpt2(options)}, {flops_per_token(options) / 1e6:.1f} MFLOP a token\n")
    print(measure.markdown(["system", "tokens/s", f"MFU of {options.peak_flops:.3g} FLOP/s", "peak memory, GB"], rows))
    print("", measure.provenance(options), sep="\n")


if __name__ == "__main__":
    main()
