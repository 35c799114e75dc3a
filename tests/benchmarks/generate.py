"""Sampling on the CPU: `gpt_modules.backbone.generate` against transformers' `generate`.

    python tests/benchmarks/generate.py --rows 16 --tokens 128 --rounds 9 --control
    python tests/benchmarks/generate.py --rows 1 --tokens 256 --rounds 9 --control

    python tests/benchmarks/generate.py --family llama --rounds 9 --control

A decoder of 4 layers x 256 (GPT-2's, or Llama's with 8 heads on 2 of keys, or GPT-NeoX's) with random weights and
float32, prompts of 4 to 32 tokens, left-padded for transformers.
Both sample at temperature 1 from the whole vocabulary, and no row ends early. A burst is one call; its tokens are the
new ones of all rows, its time includes the prompts.
"""

import argparse
from typing import Any

import families
import measure
import numpy as np


def prompts(options: argparse.Namespace) -> list[list[int]]:
    """Random prompts, their lengths spread evenly over 4 to 32; a single one has 16."""
    lengths = np.linspace(4, 32, options.rows).astype(int).tolist() if options.rows > 1 else [16]
    random = np.random.default_rng(0)
    return [random.integers(options.vocab_size, size=length).tolist() for length in lengths]


def sizes(options: argparse.Namespace) -> tuple[str, int, int, int, int]:
    """Family, tokens, positions, layers and width."""
    return options.family, options.vocab_size, 1024, options.layers, options.width


def ours(turn: measure.Turn, options: argparse.Namespace) -> None:
    """`generate` as PPO and the sample tables call it."""
    import torch

    from gpt_modules.backbone import GPT, generate

    model = GPT(families.our_config(*sizes(options)))
    generator = torch.Generator().manual_seed(0)
    rows = prompts(options)
    go = True
    while go:
        made = generate(model, rows, max_new_tokens=options.tokens, eos_id=None, generator=generator)
        assert bool(made.mask.all())
        go = turn.tick(made.mask.numel())


def transformers(turn: measure.Turn, options: argparse.Namespace) -> None:
    """`generate` of its class; no end token, so it has no logits to suppress."""
    import torch

    model = families.their_model(*sizes(options)).eval()
    rows = prompts(options)
    width = max(map(len, rows))
    tokens = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    length: dict[str, Any] = {"max_new_tokens": options.tokens, "min_new_tokens": options.tokens}
    go = True
    while go:
        made = model.generate(
            tokens, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, **length
        )
        assert made.shape == (options.rows, width + options.tokens)
        go = turn.tick(options.rows * options.tokens)


SYSTEMS = {"ours": ours, "transformers": transformers}


def main() -> None:
    """Measure and print."""
    parser = measure.parser(__doc__, rounds=9)
    parser.add_argument("--family", choices=families.FAMILIES, default="gpt2")
    parser.add_argument("--rows", type=int, default=16, help="prompts in the batch")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens a row")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocab-size", type=int, default=50_304)
    options = parser.parse_args()
    if options.tiny:
        options.rows, options.tokens, options.layers, options.width, options.vocab_size = 3, 4, 1, 32, 64
    results = measure.measure(SYSTEMS, options, pieces=1)
    print(f"Sampling, {options.rows} x {options.tokens} new tokens, {sizes(options)}\n")
    print(measure.comparison(results, "tokens", "transformers"), measure.provenance(options), sep="\n\n")


if __name__ == "__main__":
    main()
