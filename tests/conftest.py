"""One thread and one seed, so that a test gives the same numbers alone, beside others, and on any machine; a micro
world to train in.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt_modules.backbone import GPT, DecoderConfig, RewardModel, save_pretrained
from gpt_modules.data.tokenizers import Tokenizer

torch.set_num_threads(1)

GOOD = ["good", "great", "fine", "lovely"]
BAD = ["bad", "poor", "awful", "dull"]
REST = ["the film", "a story", "this plot", "its cast"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@dataclass(frozen=True)
class Micro:
    """Folders and files of a world in which a training step takes milliseconds.

    Args:
        gpt, reward: exported folders that share `tokenizer`; the stored configuration has dropout 0.3.
        pretraining, sft, comparisons, prompts: .jsonl files of 120 rows each.
    """

    gpt: Path
    reward: Path
    tokenizer: Tokenizer
    pretraining: Path
    sft: Path
    comparisons: Path
    prompts: Path

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def config(self, **changes: Any) -> DecoderConfig:
        sizes = {"vocab_size": self.vocab_size, "n_positions": 32, "n_layer": 2, "n_head": 2, "n_embd": 16}
        dropout = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.3)
        return DecoderConfig(**{**sizes, **dropout, **changes})


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def sentence(rng: random.Random, words: list[str]) -> str:
    return f"{rng.choice(REST)} is {rng.choice(words)} and {rng.choice(words)}."


def shaken(model: torch.nn.Module, seed: int) -> Any:
    """Larger weights than at initialisation, so that distributions are far from uniform and nothing is accidentally
    equal.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="session")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Micro:
    root, rng = tmp_path_factory.mktemp("micro"), random.Random(0)
    texts = [sentence(rng, GOOD + BAD) for _ in range(120)]
    tokenizer = Tokenizer.train(texts, 300)
    prompts = [f"{rng.choice(REST)} {number}" for number in range(120)]
    sft = [{"prompt": prompt, "response": f" is {rng.choice(GOOD)}."} for prompt in prompts]
    ranked = [
        {"prompt": prompt, "responses": [f" {rng.choice(GOOD)}.", f" {rng.choice(BAD)}.", " so."], "ranking": [1, 3, 2]}
        for prompt in prompts
    ]
    world = Micro(
        root / "gpt",
        root / "reward",
        tokenizer,
        write_rows(root / "pretraining.jsonl", [{"text": text} for text in texts]),
        write_rows(root / "sft.jsonl", sft),
        write_rows(root / "comparisons.jsonl", ranked),
        write_rows(root / "prompts.jsonl", [{"prompt": prompt} for prompt in prompts]),
    )
    gpt, reward = shaken(GPT(world.config()), 1), shaken(RewardModel(world.config()), 2)
    with torch.no_grad():  # the end of a text is about as likely as five other tokens together: some answers end, some do not
        constant = gpt.decoder.ln_f.bias
        gpt.decoder.wte.weight[tokenizer.eos_id] = 3.0 * constant / constant.square().sum()
    reward.bias.fill_(0.7)
    reward.scale.fill_(1.9)
    save_pretrained(world.gpt, gpt, tokenizer_json=tokenizer.to_json())
    save_pretrained(world.reward, reward, tokenizer_json=tokenizer.to_json())
    return world
