"""One thread and one seed, so that a test gives the same numbers alone, beside others, and on any machine; a micro
world to train in.
"""

import dataclasses
import json
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from gpt_modules.backbone import GPT, DecoderConfig, RewardModel, save_pretrained
from gpt_modules.data.builtin.reviews import pretraining_rows
from gpt_modules.data.text.tokenizers import Tokenizer

torch.set_num_threads(1)

# The same examples on every machine, however busy it is.
settings.register_profile(
    "steady", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")

GOOD = ["good", "great", "fine", "lovely"]
BAD = ["bad", "poor", "awful", "dull"]
LABELLED = [(GOOD, "praise"), (BAD, "blame")]
REST = ["the film", "a story", "this plot", "its cast"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


SHARED_TRUNK = {
    "model__critic": {"shared_trunk": True, "warmup": 1, "max_norm": 0.5},
    "model__ema": {"decay": 0.9},
    "model__early_stop": {"kl": 1e-3},
}


@dataclass(frozen=True)
class Micro:
    """Folders and files of a world in which a training step takes milliseconds.

    Args:
        gpt, reward: exported folders that share `tokenizer`; the stored configuration has dropout 0.3.
        pretraining, labelled, sft, comparisons, prompts: .jsonl files of 120 rows each.
    """

    gpt: Path
    reward: Path
    tokenizer: Tokenizer
    pretraining: Path
    labelled: Path
    sft: Path
    comparisons: Path
    prompts: Path

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def again(self, path: Path) -> str:
        """The same rows in another file: what is trained on may not validate."""
        other = path.with_name(f"again-{path.name}")
        other.write_bytes(path.read_bytes() + b"\n")
        return str(other)

    def config(self, **changes: Any) -> DecoderConfig:
        sizes = {"vocab_size": self.vocab_size, "n_positions": 32, "n_layer": 2, "n_head": 2, "n_embd": 16}
        dropout = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.3)
        return DecoderConfig(**{**sizes, **dropout, **changes})

    def recipe(self, word: str, root: Path, **changes: Any) -> dict[str, Any]:
        """A recipe of some thirty steps that logs each of them and saves every second one.

        Args:
            word: or one with a variant; `ppo-shared` is `ppo` with all that a shared trunk, an average and an early
                stop carry.
            changes: `section__key=value`, laid over the sections `trainer`, `model`, `data`, `checkpoint` and `export`.
        """
        word, _, variant = word.partition("-")
        trainer = {"accelerator": "cpu", "devices": 1, "log_every_n_steps": 1, "limit_val_batches": 2, "max_epochs": 3}
        recipe: dict[str, Any] = {
            "seed_everything": 0,
            "trainer": {"default_root_dir": str(root), "gradient_clip_val": 1.0, **trainer},
            "model": {"optimizer": {"lr": 1e-2}, **self._model(word)},
            "data": {"tokenizer": str(self.gpt), **self._data(word, root.parent / "cache")},
            "checkpoint": {"every_n_steps": 2},
            "export": {
                "monitor": {"reward": "val/margin", "dpo": "val/margin", "ppo": "val/score"}.get(word, "val/loss")
            },
        }
        recipe["export"]["mode"] = "max" if word in ("reward", "dpo", "ppo") else "min"
        if variant == "shared":
            changes = {**SHARED_TRUNK, **changes}
        for place, value in changes.items():
            section, _, key = place.partition("__")
            recipe[section][key] = value
        name = {
            "pretraining": "Pretraining",
            "finetuning": "Finetuning",
            "sft": "SFT",
            "reward": "Reward",
            "ppo": "PPO",
            "maml": "MAML",
            "dpo": "DPO",
        }[word]
        recipe["model"] = {"class_path": f"{name}Module", "init_args": recipe["model"]}
        name = {"maml": "Episodic", "dpo": "Reward"}.get(word, name)
        recipe["data"] = {"class_path": f"{name}DataModule", "init_args": recipe["data"]}
        return recipe

    def _model(self, word: str) -> dict[str, Any]:
        if word == "pretraining":
            return {"config": dataclasses.asdict(self.config()), "sample_prompts": ["the film"], "sample_tokens": 4}
        if word == "ppo":
            sizes = {"max_new_tokens": 6, "ppo_epochs": 2, "minibatches": 2}
            kl = {"coef": 0.1, "target": 1.0, "horizon": 100.0}
            return {"init_from": str(self.gpt), "rewards": str(self.reward), "kl": kl, **sizes}
        if word == "maml":
            return {"init_from": str(self.gpt), "inner": {"steps": 1, "lr": 0.1, "rates": "per_step"}}
        return {"init_from": str(self.gpt)}

    def _data(self, word: str, cache: Path) -> dict[str, Any]:
        if word == "maml":
            cipher = {"class_path": "SubstitutionCipher", "init_args": {"symbols": 5}}
            sizes = {"support": 4, "query": 4, "tasks": 2, "validation_tasks": 4, "context": 32}
            return {"families": [cipher], "steps": 10, **sizes}
        files = {"pretraining": self.pretraining, "finetuning": self.labelled, "sft": self.sft}
        files |= {"reward": self.comparisons, "dpo": self.comparisons, "ppo": self.prompts}
        sizes: dict[str, Any] = {"ppo": {"episodes": 8}, "reward": {"batch_size": 10}, "dpo": {"batch_size": 10}}
        return {
            "train": str(files[word]),
            "cache_dir": str(cache),
            **sizes.get(word, {"context": 16 if word == "pretraining" else 32, "batch_size": 4}),
        }


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


@dataclass(frozen=True)
class Ended:
    """How a command ended. status: its exit status, or minus the signal that killed it."""

    status: int
    stdout: str
    stderr: str


class Gpt:
    """The `gpt` command in processes of its own, forked from one that has imported everything."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        command = [sys.executable, str(Path(__file__).with_name("forkserver.py"))]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.server = subprocess.Popen(command, text=True, env=environment, **pipes)

    def start(
        self, *words: object, stdin: str = "", cwd: Path | None = None, ranks: int = 1, **environment: str
    ) -> int:
        """Begin a command, in as many processes as it has ranks; the first one's process id."""
        (self.folder / "stdin").write_text(stdin)
        request = {"words": list(map(str, words)), "folder": str(self.folder), "environment": environment}
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps({**request, "cwd": str(cwd or self.folder), "ranks": ranks}) + "\n")
        self.server.stdin.flush()
        return self._answer()

    def wait(self) -> Ended:
        """Until the command has ended; what is written is that of the first rank."""
        return Ended(self._answer(), *((self.folder / name).read_text() for name in ("stdout", "stderr")))

    def run(self, *words: object, **options: Any) -> Ended:
        self.start(*words, **options)
        return self.wait()

    def _answer(self) -> int:
        assert self.server.stdout is not None
        return int(self.server.stdout.readline())


@pytest.fixture(scope="session")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gpt]:
    command = Gpt(tmp_path_factory.mktemp("gpt"))
    yield command
    assert command.server.stdin is not None
    command.server.stdin.close()
    command.server.wait()
    assert command.server.stdout is not None
    command.server.stdout.close()


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
    labelled = [{"text": sentence(rng, words), "label": label} for _ in range(60) for words, label in LABELLED]
    world = Micro(
        root / "gpt",
        root / "reward",
        tokenizer,
        write_rows(root / "pretraining.jsonl", [{"text": text} for text in texts]),
        write_rows(root / "labelled.jsonl", labelled),
        write_rows(root / "sft.jsonl", sft),
        write_rows(root / "comparisons.jsonl", ranked),
        write_rows(root / "prompts.jsonl", [{"prompt": prompt} for prompt in prompts]),
    )
    torch.manual_seed(0)  # made before `_seed` is asked, as it is for all tests
    gpt, reward = shaken(GPT(world.config()), 1), shaken(RewardModel(world.config()), 2)
    with (
        torch.no_grad()
    ):  # the end of a text is about as likely as five other tokens together: some answers end, some do not
        constant = gpt.decoder.ln_f.bias
        gpt.decoder.wte.weight[tokenizer.eos_id] = 3.0 * constant / constant.square().sum()
    reward.bias.fill_(0.7)
    reward.scale.fill_(1.9)
    save_pretrained(world.gpt, gpt, tokenizer_json=tokenizer.to_json())
    save_pretrained(world.reward, reward, tokenizer_json=tokenizer.to_json())
    return world


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make demo` leaves behind, from models that have learned nothing."""
    root = tmp_path_factory.mktemp("demo")
    tokenizer = Tokenizer.train([row["text"] for row in pretraining_rows("validation")], 512)
    sizes = {"vocab_size": tokenizer.vocab_size, "n_positions": 128, "n_layer": 1, "n_head": 2, "n_embd": 8}
    config = DecoderConfig(**sizes).without_dropout()
    torch.manual_seed(0)
    kinds = {"pretraining/export": GPT, "sft/export": GPT, "reward/export": RewardModel}
    for folder, kind in (kinds | {"ppo/export": GPT, "ppo/export-critic": RewardModel}).items():
        save_pretrained(root / folder, kind(config), tokenizer_json=tokenizer.to_json())
    return root


@pytest.fixture
def transformers() -> ModuleType:
    """The library, quiet: what it says on import and of its progress is not ours to mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        _ = transformers.GPT2LMHeadModel, transformers.OpenAIGPTLMHeadModel  # loaded on first use, with warnings
    return transformers
