"""Fine-tuning on the CPU: `FinetuningModule` against transformers' Trainer, same weights, same rows of unequal length.

    python tests/benchmarks/finetune_throughput.py --task classification --rounds 5 --control
    python tests/benchmarks/finetune_throughput.py --task multiple_choice --rounds 5

classification: `OpenAIGPTForSequenceClassification`, no auxiliary loss on either side (theirs has none).
multiple_choice: `OpenAIGPTDoubleHeadsModel` with two choices, both sides with the auxiliary loss at 0.5.
Theirs pads each batch to its longest row. Its sampler by length is left out: it takes the longest rows first, so that a
short measurement says nothing of it. Batches of 16, float32, dropout 0.1, fused AdamW, clipping to norm 1. A burst is
`--steps` optimizer steps; work is counted in examples.
"""

import argparse
import logging
import tempfile
from typing import Any

import measure
import numpy as np
import torch

LAYERS, WIDTH, HEADS, CONTEXT, BATCH, EXAMPLES = 4, 256, 4, 128, 16, 8192


def vocabulary(options: argparse.Namespace) -> int:
    """GPT-1's ids; the start, delimiter and extract tokens come after them."""
    return 500 if options.tiny else 40_478


def decoder_config(options: argparse.Namespace) -> Any:
    """GPT-1's block order at laptop size."""
    from gpt_modules.backbone import DecoderConfig

    layers, width = (1, 16) if options.tiny else (LAYERS, WIDTH)
    return DecoderConfig(
        vocabulary(options), CONTEXT, layers, 2 if options.tiny else HEADS, width, norm="post", init="gpt1"
    )


def examples(options: argparse.Namespace) -> list[list[np.ndarray]]:
    """Rows of an example: lengths as of sentences (log-normal, median 24 tokens, 8 to 126), ids uniform."""
    choices = 2 if options.task == "multiple_choice" else 1
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(24), 0.6, EXAMPLES), 8, CONTEXT - 2).astype(int)
    return [[row(rng, length, vocabulary(options)) for _ in range(choices)] for length in lengths]


def row(rng: np.random.Generator, length: int, tokens: int) -> np.ndarray:
    """[start] text [extract]."""
    return np.concatenate([[tokens], rng.integers(tokens, size=length), [tokens + 2]])


def ours(turn: measure.Turn, options: argparse.Namespace) -> None:
    """What `gpt fit` runs: Lightning's loop, our loader, guard, clipping, TensorBoard."""
    import lightning.pytorch as L
    from lightning.pytorch.loggers import TensorBoardLogger

    from gpt_modules.training import FinetuningModule
    from gpt_modules.training.callbacks.checkpointing import RandomState
    from gpt_modules.training.callbacks.gradients import FreedGradients
    from gpt_modules.training.callbacks.guards import FiniteLossGuard
    from gpt_modules.training.callbacks.throughput import Throughput

    class Ticks(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            trainer.should_stop = not turn.tick(BATCH)

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    coefficient = 0.5 if options.task == "multiple_choice" else 0.0
    module = FinetuningModule(config=decoder_config(options), lm_coef=coefficient)
    with tempfile.TemporaryDirectory() as folder:
        L.Trainer(
            accelerator="cpu",
            devices=1,
            default_root_dir=folder,
            logger=TensorBoardLogger(folder),
            callbacks=[RandomState(), FiniteLossGuard(), FreedGradients(), Throughput(), Ticks()],
            gradient_clip_val=1.0,
            max_steps=10**6,
            log_every_n_steps=10,
            limit_val_batches=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(module, datamodule=random_rows(options))


def random_rows(options: argparse.Namespace) -> Any:
    """A DataModule whose batches come by the real loader and collate from random rows."""
    from types import SimpleNamespace

    import lightning.pytorch as L

    from gpt_modules.data.collate import TaskExample, collate_tasks
    from gpt_modules.data.loader import BatchLoader, Examples
    from gpt_modules.labelling import Labelling

    rows, start = examples(options), vocabulary(options)

    class Rows(Examples[Any]):
        def __len__(self) -> int:
            return len(rows)

        def lengths(self, epoch: int) -> Any:
            return np.array([len(example[0]) for example in rows])

        def batch(self, epoch: int, indices: Any) -> Any:
            return collate_tasks([TaskExample(rows[i], i % 2) for i in indices.tolist()], False)

    class RandomRows(L.LightningDataModule):
        context = CONTEXT
        task_spec = Labelling(options.task, ("no", "yes") if options.task == "classification" else ())
        tokenizer = SimpleNamespace(task_ids=(start, start + 1, start + 2), vocab_size=start + 3)

        def train_dataloader(self) -> Any:
            return BatchLoader(Rows(), BATCH)

    return RandomRows()


def transformers(turn: measure.Turn, options: argparse.Namespace) -> None:
    """Their Trainer with the same settings, padding each batch to its longest row."""
    import transformers as hf

    hf.utils.logging.set_verbosity_error()

    class Ticks(hf.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = not turn.tick(BATCH)

    class Trainer(hf.Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            out = model(**inputs)
            return out.mc_loss + 0.5 * out.loss if options.task == "multiple_choice" else out.loss

    with tempfile.TemporaryDirectory() as folder:
        settings = hf.TrainingArguments(
            folder,
            per_device_train_batch_size=BATCH,
            max_steps=10**6,
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        rows = [{"input_ids": example, "label": i % 2} for i, example in enumerate(examples(options))]
        trainer = Trainer(their_model(options), settings, their_collate(options), rows, callbacks=[Ticks()])
        trainer.remove_callback(hf.PrinterCallback)
        trainer.train()


def their_model(options: argparse.Namespace) -> Any:
    """The same sizes."""
    import transformers as hf

    sizes = decoder_config(options)
    config = hf.OpenAIGPTConfig(
        vocab_size=sizes.vocab_size + 3,
        n_positions=CONTEXT,
        n_embd=sizes.n_embd,
        n_layer=sizes.n_layer,
        n_head=sizes.n_head,
        pad_token_id=0,
        num_labels=2,
    )
    if options.task == "multiple_choice":
        return hf.OpenAIGPTDoubleHeadsModel(config)
    return hf.OpenAIGPTForSequenceClassification(config)


def their_collate(options: argparse.Namespace) -> Any:
    """Right padding to the longest row of the batch."""

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        width = max(len(ids) for row in rows for ids in row["input_ids"])
        table = np.zeros((len(rows), len(rows[0]["input_ids"]), width), dtype=np.int64)
        lengths = np.array([[len(ids) for ids in row["input_ids"]] for row in rows])
        for i, row in enumerate(rows):
            for k, ids in enumerate(row["input_ids"]):
                table[i, k, : len(ids)] = ids
        tokens, labels = torch.from_numpy(table), torch.tensor([row["label"] for row in rows])
        if options.task != "multiple_choice":
            return {"input_ids": tokens[:, 0], "labels": labels}
        real = torch.arange(width) < torch.from_numpy(lengths)[..., None]
        places = torch.from_numpy(lengths - 1)
        masked = tokens.masked_fill(~real, -100)
        return {"input_ids": tokens, "labels": masked, "mc_labels": labels, "mc_token_ids": places}

    return collate


SYSTEMS = {"ours": ours, "transformers": transformers}


def main() -> None:
    """Measure and print."""
    parser = measure.parser(__doc__, rounds=5)
    parser.add_argument("--task", choices=("classification", "multiple_choice"), default="classification")
    parser.add_argument("--steps", type=int, default=16, help="optimizer steps a burst: several widths of batches")
    options = parser.parse_args()
    results = measure.measure(SYSTEMS, options, 2 if options.tiny else options.steps)
    print(f"Fine-tuning, {options.task}: {decoder_config(options)}\n")
    print(measure.comparison(results, "examples", "transformers"), measure.provenance(options), sep="\n\n")


if __name__ == "__main__":
    main()
