"""The `gpt` command. It imports nothing heavy before it knows what is wanted, so that `gpt --help` answers at once."""

import errno
import gc
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from gpt_modules import one_voice
from gpt_modules.errors import Stopped, UserError
from gpt_modules.forks import forks_end_here

COMMANDS = {
    "fit": "train what a recipe describes",
    "validate": "run a recipe's validation",
    "test": "run a recipe's test",
    "predict": "write a recipe's predictions to predictions.jsonl",
    "bench": "how fast a recipe trains on this machine, by phase, and what holds it up",
    "recipes": "list the recipes, print one, or copy one to edit",
    "run": "run a pipeline: recipes in order, each stage's folder feeding the next",
    "compare": "sample K answers to each prompt, to be ranked",
    "label": "have a store's answers ranked: by people on a page, by models, from files; compare labelers",
    "prepare": "tokenise text into shards that a pretraining recipe reads",
    "evaluate": "measure a model folder on tasks, zero-, one- and few-shot",
    "adapt": "take gradient steps on a few examples, from a model folder to an adapted one",
    "generate": "continue prompts with a model folder",
    "chat": "talk to a model folder",
    "serve": "answer OpenAI's clients, and a page, with a model folder",
}

_TRAINED = ("fit", "validate", "test", "predict")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_PRINT_ONLY = ("recipes", "generate", "chat")

LONGEST_LINE = 390
HELP = f"""usage: gpt COMMAND [...]

The GPT lineage as PyTorch Lightning components: pretraining, SFT, reward model, PPO, DPO and MAML from YAML recipes.

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

A recipe's name (ppo/tiny) works wherever its path does; gpt recipes lists them.
`gpt COMMAND --help` explains a command; `gpt fit --help sft` lists the keys of a procedure; `gpt --version`."""


@forks_end_here()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command.

    Exit status: 0 when done, 2 for a mistake of the user's (one line on stderr), 128 + n after signal n, 141 (128 +
    SIGPIPE) when a command that only prints has nobody left to read it.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    one_voice.begin()
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _exit_on_signal)
        _open_closed_streams(words)
        _run(words)
        if sys.stdout is not None:
            sys.stdout.flush()
    except UserError as error:
        fail(str(error))
    except (Stopped, KeyboardInterrupt) as error:
        stopped = error if isinstance(error, Stopped) else Stopped(signal.SIGINT)
        if not stopped.told:
            _tell_stop(stopped.number)
        sys.exit(128 + stopped.number)
    except BrokenPipeError:
        _discard_output()
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        _discard_output()
        # The streams of a command that does more than print lose what they cannot write: it was another file.
        printed = error.filename is None and (words[:1] == [] or words[0] not in COMMANDS or words[0] in _PRINT_ONLY)
        name = "standard output" if printed else error.filename or "a file"
        fail(f"{name}: could not be written ({error.strerror}), expected room")


def _open_closed_streams(words: list[str]) -> None:
    """Python has no stream where the shell closed it.

    Raises:
        UserError: the command does nothing but print.
    """
    closed = sys.stdout is None
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 -- as long as the process
    if closed and words[:1] and words[0] in _PRINT_ONLY:
        raise UserError("standard output: found it closed, expected somewhere to print to")


def _run(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP)
    elif words[0] in ("-V", "--version"):
        print(f"gpt_modules {_version()}")
    else:
        if words[0] not in _PRINT_ONLY:
            _outlive_readers()
        _command(words[0])(words[1:])


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # half of what this file would import

    try:
        return version("gpt-modules")
    except PackageNotFoundError:
        return "from a folder, not installed"


class _Unread(io.FileIO):
    """A standard stream that may lose its reader, its terminal or its disk: no reason to end a run."""

    def write(self, data: Any) -> int:
        """Write, or pretend to."""
        try:
            return super().write(data)
        except OSError:
            return len(data)


def _outlive_readers() -> None:
    for name, original in (("stdout", sys.__stdout__), ("stderr", sys.__stderr__)):
        if original is None or getattr(sys, name) is not original:
            continue
        original.flush()
        raw = io.BufferedWriter(_Unread(original.fileno(), "w", closefd=False))
        own = io.TextIOWrapper(raw, original.encoding, original.errors, line_buffering=True)
        setattr(sys, name, own)


def _discard_output() -> None:
    """Nobody reads: what is still to be written, at the latest when Python ends, goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def fail(message: str) -> None:
    """The one line that a user's mistake gets, of all processes of a run."""
    if one_voice.is_told(telling=True):
        sys.exit(2)
    line = " ".join(message.split())
    if len(line) > LONGEST_LINE:  # of a name that is long itself: what was found and expected stands at its end
        line = f"{line[: LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 2 + 5 :]}"
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)


def _exit_on_signal(number: int, frame: FrameType | None) -> None:
    # Until a run has begun there is nothing to save; from then on the checkpoint callback holds these signals.
    if _is_importing(frame):  # of the libraries' code in C, some lets no exception through
        _tell_stop(number)
        os._exit(128 + number)
    raise Stopped(number)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def _tell_stop(number: int) -> None:
    if not one_voice.is_told(telling=True):
        print(f"stopped by {'Ctrl-C' if number == signal.SIGINT else signal.Signals(number).name}", file=sys.stderr)


def _command(name: str) -> Callable[[list[str]], None]:
    if name in _TRAINED:
        return lambda words: _lightning(name, words)
    if name in COMMANDS:
        command: Callable[[list[str]], None] = _imported(f"gpt_modules.commands.{name}").main
        return command
    near = get_close_matches(name, COMMANDS, n=1)
    hint = f"; did you mean gpt {near[0]}?" if near else ""
    raise UserError(f"gpt: found command {name!r}, expected one of {', '.join(COMMANDS)}{hint}")


def _lightning(subcommand: str, words: list[str]) -> None:
    from gpt_modules.commands.parsing.first_page import FIRST_PAGE, asks_first_page

    if asks_first_page(words):
        print(FIRST_PAGE.replace("COMMAND", subcommand))
        return
    from gpt_modules.commands.parsing.composition import compose

    compose(words)  # once more when it runs: what is wrong with the files is told before the libraries are imported
    # Where a process has ended, and has said why, torch's C++ code in the others tells pages of lost connections.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    _imported("gpt_modules.commands.fit").run_trainer(subcommand, words)


def _imported(name: str) -> ModuleType:
    """A module and what it imports: 800,000 objects that stay, among which nobody looks for garbage, now or later."""
    gc.disable()
    try:
        return import_module(name)
    finally:
        gc.enable()
        gc.freeze()
