"""Decoding on a GPU, GPT-2 124M in bfloat16: launched kernel by kernel, as a CUDA graph, and compiled in a graph.

    python tests/benchmarks/gpu_generate.py --rows 1 --rounds 7
    python tests/benchmarks/gpu_generate.py --rows 256 --rounds 7
    python tests/benchmarks/gpu_generate.py --tiny --modes eager graph      # on a CPU: whether it runs

Every row has a prompt of 256 tokens and goes on for 256, so the cache holds 512 a row. A burst is one call of
`generate`: it reads the prompts, captures the graph and decodes, and all of that is in its time. The bars on an H100
are 3,000 tokens/s at batch 1 (bound by launches) and 80,000 at 256 (bound by the bandwidth that the cache takes).
"""

import argparse
from unittest.mock import patch

import measure


def decode(turn: measure.Turn, options: argparse.Namespace, compile: bool = False) -> None:
    """Sample from a model of random weights until the turn is over."""
    import torch

    from gpt_modules.backbone import GPT, DecoderConfig, generate

    config = DecoderConfig(128, 16, 1, 2, 16) if options.tiny else DecoderConfig(vocab_size=50_304)
    model = GPT(config).to(turn.device, torch.bfloat16)
    prompts = torch.randint(config.vocab_size, (options.rows, options.prompt), device=turn.device)
    mask = torch.ones_like(prompts, dtype=torch.bool)
    generator = torch.Generator(turn.device).manual_seed(0)
    go = True
    while go:
        length = {"max_new_tokens": options.tokens, "eos_id": None}
        made = generate(model, (prompts, mask), **length, generator=generator, compile=compile)
        go = turn.tick(made.tokens.numel())


def eager(turn: measure.Turn, options: argparse.Namespace) -> None:
    """Without a graph, as `generate` never decodes on one GPU: shows what the graph is worth."""
    rooms = [f"gpt_modules.backbone.decoding.{room}.can_capture" for room in ("generation", "step")]
    with patch(rooms[0], return_value=False), patch(rooms[1], return_value=False):
        decode(turn, options)


def graph(turn: measure.Turn, options: argparse.Namespace) -> None:
    """As `generate` decodes by default: a static cache, the step captured."""
    decode(turn, options)


def compiled(turn: measure.Turn, options: argparse.Namespace) -> None:
    """The step compiled, then captured."""
    decode(turn, options, compile=True)


MODES = {"eager": eager, "graph": graph, "compiled": compiled}


def main() -> None:
    """Measure and print."""
    parser = measure.parser_on_gpu(__doc__, 7, MODES)
    parser.add_argument("--rows", type=int, default=256, help="prompts in the batch")
    parser.add_argument("--prompt", type=int, default=256, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=256, help="new tokens a row")
    options = measure.parse_on_gpu(parser)
    if options.tiny:
        options.rows, options.prompt, options.tokens = 2, 4, 4
    results = measure.measure({mode: MODES[mode] for mode in options.modes}, options, pieces=1)
    print(f"Decoding, bfloat16, {options.rows} rows of {options.prompt} + {options.tokens} tokens\n")
    print(measure.comparison(results, "tokens", options.modes[0]), measure.provenance(options), sep="\n\n")


if __name__ == "__main__":
    main()
