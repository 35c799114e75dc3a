"""PPO on the CPU: `PPOModule` against TRL's `PPOTrainer`, same weights, same number of episodes, tokens and steps.

    python -m pip install --no-deps --target TRL trl==1.12.0      # the last release with PPO
    PYTHONPATH=TRL python tests/benchmarks/ppo_throughput.py --vocab 512 --rounds 5 --control
    PYTHONPATH=TRL python tests/benchmarks/ppo_throughput.py --vocab 50304 --rounds 3

32 episodes of 16 + 32 tokens, 4 epochs of 4 minibatches of 8, one optimizer step each; policy, critic, reference and
reward of 4 layers x 256 each; float32, temperature 1, dropout 0. A burst is one iteration. `--end 0.04` raises the
probability of the end token at the start, so that answers are of unequal length, in all systems alike.

"arithmetic" multiplies what an iteration of full-length answers has to multiply, once each, and takes AdamW's steps; it
has no attention, no softmax, no layer norm and no loss. What its seconds are of a system's is that system's share of
the limit.
"""

import argparse
import contextlib
import logging
import math
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import measure
import torch

LAYERS, WIDTH, HEADS = 4, 256, 4
EPISODES, PROMPT, RESPONSE, EPOCHS, MINIBATCHES = 32, 16, 32, 4, 4
UNUSED = 4  # ids of the models that the tokenizer lacks: TRL pads with one of them


def save_models(folder: Path, options: argparse.Namespace) -> None:
    """A policy and a reward model of random weights, with a tokenizer that is a little smaller."""
    from gpt_modules.backbone import GPT, DecoderConfig, RewardModel, save_pretrained
    from gpt_modules.data import Tokenizer

    layers, width, heads = (1, 16, 2) if options.tiny else (LAYERS, WIDTH, HEADS)
    settings = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0)
    config = DecoderConfig(options.vocab, PROMPT + RESPONSE, layers, heads, width, **settings)
    small = options.vocab < 50_257
    letters = ("".join(chr(32 + (i * j) % 90) for j in range(40)) for i in range(200))
    tokenizer = Tokenizer.train(letters, options.vocab - UNUSED) if small else Tokenizer.gpt2()
    policy, reward = GPT(config), RewardModel(config)
    if options.end:
        raise_the_end(policy, tokenizer.eos_id, options.end)
    save_pretrained(folder / "policy", policy, tokenizer_json=tokenizer.to_json())
    save_pretrained(folder / "reward", reward, tokenizer_json=tokenizer.to_json())


@torch.no_grad()
def raise_the_end(policy: Any, eos: int, probability: float) -> None:
    """The last norm's bias leans on the end token's embedding, which makes its logit log((V - 1) p / (1 - p))."""
    row = policy.head_weight[eos]
    logit = math.log((len(policy.head_weight) - 1) * probability / (1 - probability))
    policy.decoder.ln_f.bias.copy_(logit * row / row.square().sum())


def prompts(options: argparse.Namespace, tokens: int, seed: int = 0) -> torch.Tensor:
    """(N, 16) ids: all that an iteration asks."""
    return torch.randint(1, tokens - 1, (EPISODES, PROMPT), generator=torch.Generator().manual_seed(seed))


def ours(turn: measure.Turn, options: argparse.Namespace) -> None:
    """What `gpt fit` runs: Lightning's loop, our guard, clipping, TensorBoard."""
    import lightning.pytorch as L

    class Ticks(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
            trainer.should_stop = not turn.tick(EPISODES)

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        save_models(Path(folder), options)
        trainer(folder, [Ticks()], max_epochs=10**6).fit(module(folder), datamodule=random_prompts(folder, options))


def module(folder: str) -> Any:
    """`PPOModule` on the saved models."""
    from gpt_modules.training import PPOModule

    return PPOModule(
        f"{folder}/policy",
        f"{folder}/reward",
        max_new_tokens=RESPONSE,
        ppo_epochs=EPOCHS,
        minibatches=MINIBATCHES,
        missing_eos_score=None,
    )


def trainer(folder: str, callbacks: list[Any], **settings: Any) -> Any:
    """As a recipe makes it, without checkpoints, validation and bars."""
    import lightning.pytorch as L
    from lightning.pytorch.loggers import TensorBoardLogger

    from gpt_modules.training.callbacks.checkpointing import RandomState
    from gpt_modules.training.callbacks.gradients import FreedGradients
    from gpt_modules.training.callbacks.guards import FiniteLossGuard

    return L.Trainer(
        accelerator="cpu",
        devices=1,
        default_root_dir=folder,
        logger=TensorBoardLogger(folder),
        callbacks=[RandomState(), FiniteLossGuard(), FreedGradients(), *callbacks],
        gradient_clip_val=1.0,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def random_prompts(folder: str, options: argparse.Namespace) -> Any:
    """A DataModule that asks the same number of tokens in every prompt."""
    import lightning.pytorch as L

    from gpt_modules.data import PromptBatch, Tokenizer

    class RandomPrompts(L.LightningDataModule):
        tokenizer, episodes, answers = Tokenizer.load(f"{folder}/policy"), EPISODES, 1
        longest_prompt = PROMPT

        def prompts(self, iteration: int, rank: int, world: int) -> PromptBatch:
            tokens, numbers = prompts(options, self.tokenizer.vocab_size, iteration), torch.arange(EPISODES)
            return PromptBatch(tokens, torch.full((EPISODES,), PROMPT), numbers, numbers)

        def train_dataloader(self) -> Any:
            return self.trainer.lightning_module.experience_loader()

    return RandomPrompts()


def trl(turn: measure.Turn, options: argparse.Namespace) -> None:
    """TRL as its example has it, without gradient checkpointing, in float32."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from datasets import Dataset
    from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedTokenizerFast, TrainerCallback
    from transformers.utils import logging as messages
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    class Stop(Exception):
        """The measurement is over."""

    class Ticks(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if not turn.tick(EPISODES):
                raise Stop

    messages.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        save_models(Path(folder), options)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=f"{folder}/policy/tokenizer.json", eos_token="<|endoftext|>", pad_token="<|pad|>"
        )
        policies = [GPT2LMHeadModel.from_pretrained(f"{folder}/policy") for _ in range(2)]
        shape = policies[0].config
        shape.num_labels, shape.pad_token_id = 1, tokenizer.pad_token_id
        scorers = [GPT2ForSequenceClassification(shape) for _ in range(2)]
        rows = prompts(options, tokenizer.eos_token_id).repeat(100, 1)
        trainer = PPOTrainer(
            args=PPOConfig(
                output_dir=folder,
                per_device_train_batch_size=EPISODES,
                gradient_accumulation_steps=1,
                num_mini_batches=MINIBATCHES,
                num_ppo_epochs=EPOCHS,
                total_episodes=EPISODES * 10**4,
                response_length=RESPONSE,
                stop_token="eos",
                temperature=1.0,
                num_sample_generations=0,
                gradient_checkpointing=False,
                bf16=False,
                use_cpu=True,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            processing_class=tokenizer,
            model=policies[0],
            ref_model=policies[1],
            reward_model=scorers[0],
            value_model=scorers[1],
            train_dataset=Dataset.from_dict({"input_ids": rows.tolist()}),
            eval_dataset=Dataset.from_dict({"input_ids": rows[:32].tolist()}),
            callbacks=[Ticks()],
        )
        with contextlib.suppress(Stop):
            trainer.train()


class Products:
    """The products of one model with a batch of rows, forward alone or with those of the backward pass."""

    def __init__(self, outputs: int, width: int, layers: int) -> None:
        self.layers = layers
        self.blocks = [torch.randn(width, columns) for columns in (3 * width, width, 4 * width)]
        self.blocks.append(torch.randn(4 * width, width))
        self.head = torch.randn(width, outputs)

    def forward(self, rows: int, head_rows: int) -> None:
        for weight, count in self._each(rows, head_rows):
            torch.mm(torch.ones(count, len(weight)), weight)

    def backward(self, rows: int, head_rows: int) -> None:
        for weight, count in self._each(rows, head_rows):
            slopes = torch.ones(count, weight.shape[1])
            torch.mm(slopes, weight.T)
            torch.mm(torch.ones(count, len(weight)).T, slopes)

    def _each(self, rows: int, head_rows: int) -> list[tuple[torch.Tensor, int]]:
        return [(weight, rows) for weight in self.blocks * self.layers] + [(self.head, head_rows)]


def arithmetic(turn: measure.Turn, options: argparse.Namespace) -> None:
    """See the top. Sampling reads a token at a time; the prompts are read once."""
    layers, width = (1, 16) if options.tiny else (LAYERS, WIDTH)
    policy, scorer = Products(options.vocab, width, layers), Products(1, width, layers)
    size = 12 * layers * width**2 + (options.vocab + PROMPT + RESPONSE) * width
    weights = [torch.nn.Parameter(torch.randn(size)) for _ in range(2)]
    for weight in weights:
        weight.grad = torch.randn(size)
    optimizer = torch.optim.AdamW(weights, lr=1e-5, fused=True)
    answers, rows = EPISODES * RESPONSE, EPISODES * (PROMPT + RESPONSE)
    go = True
    while go:
        policy.forward(EPISODES * PROMPT, EPISODES)
        for _ in range(RESPONSE - 1):
            policy.forward(EPISODES, EPISODES)
        for _ in range(2):  # policy and reference, reward and critic
            policy.forward(rows, answers)
            scorer.forward(rows, answers)
        for _ in range(EPOCHS * MINIBATCHES):
            for model in (policy, scorer):
                model.forward(rows // MINIBATCHES, answers // MINIBATCHES)
                model.backward(rows // MINIBATCHES, answers // MINIBATCHES)
            optimizer.step()
        go = turn.tick(EPISODES)


SYSTEMS = {"ours": ours, "trl": trl, "arithmetic": arithmetic}


def row(name: str, results: dict[str, measure.Result], baselines: list[str]) -> list[str]:
    """Medians over the bursts; how many times as many episodes a CPU second as each baseline."""
    bursts = [burst.cpu_seconds for burst in results[name].bursts]
    seconds = f"{statistics.median(bursts):.2f} ({min(bursts):.2f} to {max(bursts):.2f})"
    ratios = [measure.ratio(results[name], results[other], "cpu_seconds") for other in baselines]
    return [name, seconds, f"{results[name].peak / 1e9:.2f}", *ratios]


def main() -> None:
    """Measure and print."""
    parser = measure.parser(__doc__, rounds=5)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--vocab", type=int, default=512, help="ids of the models")
    parser.add_argument("--end", type=float, default=0.0, help="probability of the end token; 0: as it comes")
    options = parser.parse_args()
    results = measure.measure({name: SYSTEMS[name] for name in options.systems}, options, pieces=1)
    answers = f"with an end at {options.end:.0%} a token" if options.end else "of full length"
    print(f"PPO, vocabulary {options.vocab:,}, {EPISODES} episodes, answers {answers}\n")
    header = [
        "system",
        "CPU seconds an iteration",
        "peak memory, GB",
        *(f"ratio to {name}" for name in options.systems),
    ]
    print(measure.markdown(header, [row(name, results, options.systems) for name in results]))
    print("", measure.provenance(options), sep="\n")


if __name__ == "__main__":
    main()
