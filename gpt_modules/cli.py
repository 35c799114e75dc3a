"""The `gpt` command. It imports nothing heavy before it knows what is wanted, so that `gpt --help` answers at once."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import pairwise
from types import FrameType

from gpt_modules.errors import UserError

COMMANDS = {
    "fit": "train what a recipe describes",
    "validate": "run a recipe's validation",
    "test": "run a recipe's test",
    "predict": "write a recipe's predictions to predictions.jsonl",
    "run": "run a pipeline: recipes in order, each stage's folder feeding the next",
    "prepare": "tokenise text into shards that a pretraining recipe reads",
    "evaluate": "measure a model folder on tasks, zero-, one- and few-shot",
    "adapt": "take gradient steps on a few examples, from a model folder to an adapted one",
    "generate": "continue prompts with a model folder",
    "chat": "talk to a model folder",
}

_OWN = {
    "run": ("run", "main"),
    "prepare": ("prepare", "main"),
    "evaluate": ("evaluate", "main"),
    "adapt": ("adapt", "main"),
    "generate": ("generate", "main"),
    "chat": ("chat", "main"),
}

HELP = f"""usage: gpt COMMAND [...]

The GPT lineage as PyTorch Lightning components: pretraining, SFT, reward model, PPO and MAML from YAML recipes.

commands:
{chr(10).join(f"  {name:<10}{text}" for name, text in COMMANDS.items())}

examples:
  gpt fit --config recipes/pretraining/tiny.yaml
  gpt fit --config recipes/pretraining/tiny.yaml --config recipes/hardware/gpu.yaml --trainer.max_steps 2000
  gpt fit --config recipes/pretraining/tiny.yaml --ckpt_path last      go on where a run was cut off
  gpt run recipes/pipelines/demo.yaml
  gpt prepare --source 'corpus/*.jsonl' --tokenizer gpt2 --output prepared/corpus
  gpt evaluate --model runs/pretraining/multitask/export --tasks 2D+ RW --shots 0,1,4 --output runs/evaluation
  gpt adapt --model runs/maml/tiny/export --support examples.jsonl --output runs/adapted
  gpt chat --model runs/demo/ppo/export

`gpt COMMAND --help` explains a command; `gpt fit --model.help SFTModule` lists a module's arguments."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command.

    Exit status: 0 when done, 2 for a mistake of the user's (one line on stderr), 128 + n after signal n.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(HELP)
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit_on_signal)
    try:
        _command(words[0])(words[1:])
    except UserError as error:
        fail(str(error))


def fail(message: str) -> None:
    """The one line that a user's mistake gets."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _exit_on_signal(number: int, frame: FrameType | None) -> None:
    # Until a run has begun there is nothing to save; from then on the checkpoint callback holds these signals.
    raise SystemExit(128 + number)


def _command(name: str) -> Callable[[list[str]], None]:
    if name in _OWN:
        module, function = _OWN[name]
        command: Callable[[list[str]], None] = getattr(import_module(f"gpt_modules.commands.{module}"), function)
        return command
    if name in COMMANDS:
        return lambda words: _lightning(name, words)
    raise UserError(f"gpt: found command {name!r}, expected one of {', '.join(COMMANDS)}")


def _lightning(subcommand: str, words: list[str]) -> None:
    _check_recipes(words)
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    from gpt_modules.commands.fit import run_trainer

    run_trainer(subcommand, words)


def _check_recipes(words: list[str]) -> None:
    """What the recipe parser would accept silently: a duplicate key (the last would win), a URL (it would be fetched)
    and a resolver (it would copy what it finds into the run's folder).
    """
    from gpt_modules.storage.recipes import find_recipe, read_recipe

    for word, value in pairwise([*words, ""]):
        option, _, attached = word.partition("=")
        if option in ("--config", "-c"):
            read_recipe(find_recipe(attached or value))
