"""Training on the CPU: `PretrainingModule` under the Trainer against transformers' model, and a plain GPT-2, in a bare
loop.

    python tests/benchmarks/train_throughput.py --shape 4x256 --rounds 9 --control
    python tests/benchmarks/train_throughput.py --shape 12x768 --rounds 7 --steps 1
    python tests/benchmarks/train_throughput.py --shape 4x256 --family llama --rounds 9 --control
    python tests/benchmarks/train_throughput.py --shape 4x256 --vocab-size 512 --systems ours plain --rounds 9 --steps 4

Ours is what `gpt fit` runs: Lightning's loop, our loader, the finite-loss guard, clipping to norm 1, TensorBoard,
throughput. Theirs is a `ForCausalLM` with its own loss, fused AdamW and the same clipping, and nothing around it.
Plain is `plain_gpt.py` with AdamW one tensor at a time, as nanoGPT has it on a CPU. Shapes, float32 and dropout 0 are
the same. A burst is `--steps` optimizer steps.
"""

import argparse
import logging
import tempfile
from types import SimpleNamespace
from typing import Any, NamedTuple

import families
import measure
import numpy as np


class Shape(NamedTuple):
    """Sizes of a model and its batch."""

    n_layer: int
    n_embd: int
    rows: int
    context: int
    vocab_size: int = 50_304
    family: str = "gpt2"


SHAPES = {
    "4x256": Shape(4, 256, rows=8, context=256),
    "12x768": Shape(12, 768, rows=2, context=512),
    "tiny": Shape(1, 32, rows=2, context=16, vocab_size=128),
}
EPOCH = 1024  # batches; tokens are made for no more of them, as memory is measured that a run maps from its files
SCHEDULED_STEPS = 10**6  # far beyond the end of a measurement, so that none of it is at a rate of 0


def sizes(shape: Shape) -> tuple[str, int, int, int, int]:
    """Family, tokens, positions, layers and width."""
    return shape.family, shape.vocab_size, shape.context, shape.n_layer, shape.n_embd


def shape_of(options: argparse.Namespace) -> Shape:
    """The shape that was asked for, of the family and the vocabulary that were."""
    shape = SHAPES[options.shape]._replace(family=options.family)
    return shape if options.vocab_size is None else shape._replace(vocab_size=options.vocab_size)


def decoder_config(shape: Shape) -> Any:
    """Our configuration, without dropout."""
    return families.our_config(*sizes(shape))


def fit_pretraining(turn: measure.Turn, shape: Shape, compile: bool = False, **trainer_arguments: Any) -> None:
    """Ours: fit on random tokens until the turn is over, with the callbacks and settings of a recipe."""
    import lightning.pytorch as L
    from lightning.pytorch.loggers import TensorBoardLogger

    from gpt_modules.training import PretrainingModule
    from gpt_modules.training.callbacks.checkpointing import RandomState
    from gpt_modules.training.callbacks.gradients import FreedGradients
    from gpt_modules.training.callbacks.guards import FiniteLossGuard
    from gpt_modules.training.callbacks.throughput import Throughput

    class Ticks(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            trainer.should_stop = not turn.tick(shape.rows * shape.context)

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    module = PretrainingModule(decoder_config(shape), compile=compile)
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            accelerator="gpu" if turn.device == "cuda" else "cpu",
            devices=1,
            default_root_dir=folder,
            logger=TensorBoardLogger(folder),
            callbacks=[RandomState(), FiniteLossGuard(), FreedGradients(), Throughput(), Ticks()],
            gradient_clip_val=1.0,
            max_steps=SCHEDULED_STEPS,
            log_every_n_steps=10,
            limit_val_batches=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **trainer_arguments,
        )
        trainer.fit(module, datamodule=random_text(shape))


def random_text(shape: Shape) -> Any:
    """A DataModule whose windows come by the real loader from random tokens."""
    import lightning.pytorch as L

    from gpt_modules.data.loader import BatchLoader
    from gpt_modules.data.pretraining import TrainingWindows

    class RandomText(L.LightningDataModule):
        context, batch_size = shape.context, shape.rows
        tokenizer = SimpleNamespace(vocab_size=shape.vocab_size)

        def train_dataloader(self) -> Any:
            count = EPOCH * shape.rows * shape.context
            tokens = np.random.default_rng(0).integers(shape.vocab_size, size=count, dtype=np.uint16)
            return BatchLoader(TrainingWindows(tokens, shape.context, seed=0), shape.rows)

    return RandomText()


def ours(turn: measure.Turn, options: argparse.Namespace) -> None:
    """`PretrainingModule` under the Trainer."""
    fit_pretraining(turn, shape_of(options))


def ours_bare(turn: measure.Turn, options: argparse.Namespace) -> None:
    """Our decoder and loss in the bare loop: what is left of the difference to it is the Trainer's."""
    import torch

    from gpt_modules.backbone import GPT
    from gpt_modules.functional import linear_cross_entropy

    shape = shape_of(options)
    model = GPT(decoder_config(shape))

    def loss(tokens: torch.Tensor) -> torch.Tensor:
        inputs, labels = tokens[:, :-1], tokens[:, 1:]
        total = linear_cross_entropy(model.hidden(inputs).flatten(0, 1), model.head_weight, labels.flatten())
        return total / labels.numel()

    bare_loop(turn, shape, model, loss, extra=1)


def transformers(turn: measure.Turn, options: argparse.Namespace) -> None:
    """Their class of the family; no cache of keys and values, which it would fill while training."""
    import torch

    shape = shape_of(options)
    model = families.their_model(*sizes(shape))

    def loss(tokens: torch.Tensor) -> torch.Tensor:
        return model(tokens, labels=tokens, use_cache=False).loss

    bare_loop(turn, shape, model, loss, extra=0)


def plain(turn: measure.Turn, options: argparse.Namespace) -> None:
    """A minimal GPT-2, whose optimizer goes from tensor to tensor."""
    import plain_gpt
    import torch

    shape = shape_of(options)
    model = plain_gpt.PlainGPT(shape.vocab_size, shape.context, shape.n_layer, shape.n_embd)
    optimizer = torch.optim.AdamW(plain_gpt.groups(model), lr=3e-4, betas=(0.9, 0.95), fused=False, foreach=False)
    bare_loop(turn, shape, model, model, extra=1, optimizer=optimizer)


def bare_loop(turn: measure.Turn, shape: Shape, model: Any, loss: Any, extra: int, optimizer: Any = None) -> None:
    """Forward, backward, clip, step; `extra` tokens a row for a loss that does not shift the labels itself. By default
    AdamW is fused.
    """
    import torch

    model.train()
    if optimizer is None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    go = True
    while go:
        loss(torch.randint(shape.vocab_size, (shape.rows, shape.context + extra))).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        go = turn.tick(shape.rows * shape.context)


SYSTEMS = {"ours": ours, "ours, bare loop": ours_bare, "transformers": transformers, "plain": plain}
USUAL = ("ours", "ours, bare loop", "transformers")


def main() -> None:
    """Measure and print."""
    parser = measure.parser(__doc__, rounds=9)
    parser.add_argument("--shape", choices=SHAPES, default="4x256", help="layers x width")
    parser.add_argument("--family", choices=families.FAMILIES, default="gpt2")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(USUAL))
    parser.add_argument("--vocab-size", type=int, help="in place of the shape's own, GPT-2's")
    parser.add_argument("--steps", type=int, default=2, help="optimizer steps a burst")
    options = parser.parse_args()
    if options.tiny:
        options.shape = "tiny"
    if "plain" in options.systems and options.family != "gpt2":
        parser.error(f"--systems plain: found --family {options.family}, expected gpt2, which alone it is")
    results = measure.measure({name: SYSTEMS[name] for name in options.systems}, options, options.steps)
    print(f"Training, {options.shape}: {shape_of(options)}\n")
    baseline = next((name for name in ("transformers", "plain") if name in results), None)
    print(measure.comparison(results, "tokens", baseline), measure.provenance(options), sep="\n\n")


if __name__ == "__main__":
    main()
