"""SFT on a GPU, packed: tokens/s that are somebody's, of rows of mean 200 tokens in bfloat16.

    python tests/benchmarks/gpu_sft.py --rounds 3
    python tests/benchmarks/gpu_sft.py --tiny --modes eager      # on a CPU: whether it runs

`SFTModule` under the Trainer on GPT-2 124M: demonstrations of 20 to 380 tokens, half of each a prompt, packed into rows
of 1,024. The bar is three times what an unpacked batch gives; the limit is that of pretraining, less the tokens of
prompts, which no head sees.
"""

import argparse
import itertools
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measure


def packed_rows(options: argparse.Namespace) -> Any:
    """A DataModule with one batch of packed rows, again and again."""
    import lightning.pytorch as L
    import torch

    from gpt_modules.data import Tokenizer
    from gpt_modules.data.batches import IGNORE, PackedBatch

    width, rows = options.width, options.batch_size
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(options.vocab, (rows, width), generator=generator)
    labels, positions, segments = inputs.roll(-1, 1), torch.zeros_like(inputs), torch.zeros_like(inputs)
    for row in range(rows):
        start = segment = 0
        while start < width:
            length = int(torch.randint(width // 50 + 1, width * 3 // 8 + 2, (), generator=generator))
            stop, segment = min(start + length, width), segment + 1
            positions[row, start:stop] = torch.arange(stop - start)
            segments[row, start:stop] = segment
            labels[row, start : start + (stop - start) // 2] = IGNORE
            start = stop
    batch = PackedBatch(inputs, labels, positions, segments)

    class Again:  # a list would be one of loaders
        def __len__(self) -> int:
            return 10**6

        def __iter__(self) -> Iterator[PackedBatch]:
            return itertools.repeat(batch, len(self))

    class Packed(L.LightningDataModule):
        context, tokenizer, in_turns = width, Tokenizer.gpt2(), False

        def train_dataloader(self) -> Any:
            return Again()

    return Packed()


def fit(turn: measure.Turn, options: argparse.Namespace, compile: bool = False) -> None:
    """Train until the turn is over."""
    import lightning.pytorch as L

    from gpt_modules.backbone import GPT, DecoderConfig, save_pretrained
    from gpt_modules.data import Tokenizer
    from gpt_modules.training import SFTModule

    class Ticks(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            trainer.should_stop = not turn.tick(options.batch_size * options.width)

    config = DecoderConfig(options.vocab, options.width, 1, 2, 16) if options.tiny else DecoderConfig()
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(Path(folder), GPT(config), tokenizer_json=Tokenizer.gpt2().to_json())
        trainer = measure.trainer_on_gpu(turn, folder, Ticks())
        trainer.fit(SFTModule(folder, compile=compile), datamodule=packed_rows(options))


def eager(turn: measure.Turn, options: argparse.Namespace) -> None:
    """Blocks as they are."""
    fit(turn, options)


def compiled(turn: measure.Turn, options: argparse.Namespace) -> None:
    """Each block compiled."""
    fit(turn, options, compile=True)


MODES = {"eager": eager, "compiled": compiled}


def main() -> None:
    """Measure and print."""
    parser = measure.parser_on_gpu(__doc__, 3, MODES)
    parser.add_argument("--batch-size", type=int, default=16, help="packed rows a step")
    parser.add_argument("--width", type=int, default=1024, help="tokens of a row")
    parser.add_argument("--steps", type=int, default=10, help="optimizer steps a burst")
    options = measure.parse_on_gpu(parser)
    options.vocab = 50_257
    if options.tiny:
        options.batch_size, options.width, options.steps = 2, 64, 2
    results = measure.measure({mode: MODES[mode] for mode in options.modes}, options, options.steps)
    rates = {name: statistics.median(measure.rates(one)) for name, one in results.items()}
    rows = [[name, f"{rates[name]:,.0f}", f"{one.peak / 1e9:.1f}"] for name, one in results.items()]
    print(f"SFT, packed, bfloat16, {options.batch_size} rows of {options.width} tokens\n")
    print(measure.markdown(["system", "tokens/s", "peak memory, GB"], rows))
    print("", measure.provenance(options), sep="\n")


if __name__ == "__main__":
    main()
