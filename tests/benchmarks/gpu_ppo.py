"""PPO on a GPU in the shape of Ziegler et al. 2019 (sentiment): episodes/s, and where the time goes.

    python tests/benchmarks/gpu_ppo.py --rounds 5
    python tests/benchmarks/gpu_ppo.py --tiny --modes eager      # on a CPU: whether it runs

`PPOModule` under the Trainer in bfloat16: policy, critic, reference and reward of 124M parameters each, prompts of 64
tokens, responses of 24, rollouts of 512 episodes, 4 epochs of one minibatch. A burst is one iteration. Its time splits
into sampling (`generate`), scoring (log-probabilities, reference, reward, critic, advantages) and the update. The bar
on an H100 is 300 episodes/s, the aim 600, with a quarter of the time or less in sampling.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import measure


def save_models(folder: Path, options: argparse.Namespace) -> None:
    """A policy and a reward model of random weights, with GPT-2's tokenizer."""
    from gpt_modules.backbone import GPT, DecoderConfig, RewardModel, save_pretrained
    from gpt_modules.data import Tokenizer

    config = DecoderConfig(50_257, 32, 1, 2, 16) if options.tiny else DecoderConfig()
    tokenizer = Tokenizer.gpt2().to_json()
    save_pretrained(folder / "policy", GPT(config), tokenizer_json=tokenizer)
    save_pretrained(folder / "reward", RewardModel(config), tokenizer_json=tokenizer)


def random_prompts(options: argparse.Namespace) -> Any:
    """A DataModule that asks the same number of tokens in every prompt."""
    import lightning.pytorch as L
    import torch

    from gpt_modules.data import PromptBatch, Tokenizer

    class RandomPrompts(L.LightningDataModule):
        tokenizer, episodes, answers, longest_prompt = Tokenizer.gpt2(), options.episodes, 1, options.prompt

        def prompts(self, iteration: int, rank: int, world: int) -> PromptBatch:
            tokens = torch.randint(self.tokenizer.vocab_size - 1, (options.episodes, options.prompt))
            numbers = torch.arange(options.episodes)
            return PromptBatch(tokens, torch.full((options.episodes,), options.prompt), numbers, numbers)

        def train_dataloader(self) -> Any:
            return self.trainer.lightning_module.experience_loader()

    return RandomPrompts()


def fit(turn: measure.Turn, options: argparse.Namespace, compile: bool = False) -> None:
    """Train until the turn is over; a tick an iteration, with its phases."""
    import lightning.pytorch as L

    from gpt_modules.training import PPOModule
    from gpt_modules.training.rl import rollout

    class Phases(L.Callback):
        """Sampling is inside `sample`; the rollout is what precedes an epoch's first batch; the rest is the update."""

        sampling = rolled = 0.0

        def sample(self, *arguments: Any) -> Any:
            clock = measure.Clock(turn.device)
            drawn = sample(*arguments)
            self.sampling = clock.read()[0]
            return drawn

        def on_train_epoch_start(self, *_: Any) -> None:
            self.clock = measure.Clock(turn.device)

        def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, index: int) -> None:
            if index == 0:
                self.rolled = self.clock.read()[0]

        def on_train_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
            update = self.clock.read()[0] - self.rolled
            phases = {"sampling": self.sampling, "scoring": self.rolled - self.sampling, "update": update}
            trainer.should_stop = not turn.tick(options.episodes, **phases)

    sample, phases = rollout.sample, Phases()
    with tempfile.TemporaryDirectory() as folder, patch.object(rollout, "sample", phases.sample):
        save_models(Path(folder), options)
        module = PPOModule(
            f"{folder}/policy",
            f"{folder}/reward",
            max_new_tokens=options.tokens,
            ppo_epochs=4,
            minibatches=1,
            score_rows=options.episodes,
            compile=compile,
        )
        trainer = measure.trainer_on_gpu(turn, folder, phases, accumulate_grad_batches=options.accumulate)
        trainer.fit(module, datamodule=random_prompts(options))


def eager(turn: measure.Turn, options: argparse.Namespace) -> None:
    """Blocks as they are."""
    fit(turn, options)


def compiled(turn: measure.Turn, options: argparse.Namespace) -> None:
    """Each block of the four models compiled."""
    fit(turn, options, compile=True)


MODES = {"eager": eager, "compiled": compiled}
PHASES = ("sampling", "scoring", "update")


def row(name: str, result: measure.Result) -> list[str]:
    """Medians over the bursts: episodes/s in all and in each phase, and each phase's share of the time."""
    cells = [name, f"{statistics.median(measure.rates(result)):,.1f}"]
    for phase in PHASES:
        rate = statistics.median(burst.work / burst.phases[phase] for burst in result.bursts)
        share = statistics.median(burst.phases[phase] / sum(burst.phases.values()) for burst in result.bursts)
        cells.append(f"{rate:,.1f} ({share:.0%})")
    return [*cells, f"{result.peak / 1e9:.1f}"]


def main() -> None:
    """Measure and print."""
    parser = measure.parser_on_gpu(__doc__, 5, MODES)
    parser.add_argument("--episodes", type=int, default=512, help="prompts of a rollout")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=24, help="tokens of each response")
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches a minibatch, where memory is short")
    options = measure.parse_on_gpu(parser)
    if options.tiny:
        options.episodes, options.prompt, options.tokens = 4, 4, 4
    results = measure.measure({mode: MODES[mode] for mode in options.modes}, options, pieces=1)
    print(f"PPO, bfloat16, {options.episodes} episodes of {options.prompt} + {options.tokens} tokens, 4 epochs\n")
    header = ["system", "episodes/s", *(f"{phase}, episodes/s (share)" for phase in PHASES), "peak memory, GB"]
    print(measure.markdown(header, [row(name, result) for name, result in results.items()]))
    print("", measure.provenance(options), sep="\n")


if __name__ == "__main__":
    main()
