"""The Trainer's keys: values it would take and stumble over later are refused, and what it refuses itself is told by
key.
"""

import math
import os
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, NamedTuple

from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import StrategyRegistry

from gpt_modules.commands.parsing.complaints import one_line, shown
from gpt_modules.commands.parsing.composition import Composition
from gpt_modules.commands.parsing.locating import imported
from gpt_modules.errors import UserError
from gpt_modules.storage.yaml_files import Place, parse_yaml


class Bound(NamedTuple):
    """fits: of a value that is given and not null. expected: in words."""

    fits: Callable[[Any], bool]
    expected: str


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _from(least: int) -> Bound:
    return Bound(lambda value: not _is_number(value) or least <= value < 2**63, f"{least} or more")


def _unlimited_from(least: int) -> Bound:
    fits = lambda value: value == -1 or least <= value < 2**63  # noqa: E731
    return Bound(fits, f"{least} or more, or -1 for no limit")


def _lasts(duration: Any) -> bool:
    """Texts that are no duration are the Trainer's to refuse."""
    if isinstance(duration, dict):
        return min(duration.values(), default=0) >= 0 and any(duration.values())
    return not re.fullmatch(r"[0:\s]+", duration) if isinstance(duration, str) else duration > timedelta(0)


_SHARE = Bound(
    lambda value: not _is_number(value) or (0 <= value < 2**63 if isinstance(value, int) else 0.0 <= value <= 1.0),
    "a whole number of batches, or a share from 0.0 to 1.0",
)
_SOME = Bound(
    lambda value: not _is_number(value) or (value >= 1 if isinstance(value, int) else 0.0 < value <= 1.0),
    "a whole number of batches, 1 or more, or a share above 0.0 up to 1.0",
)
BOUNDS = {
    "max_steps": _unlimited_from(1),
    "max_epochs": _unlimited_from(1),
    "max_time": Bound(_lasts, "a time above 0, or null for no limit"),
    "min_steps": _from(0),
    "min_epochs": _from(0),
    "num_nodes": _from(1),
    "log_every_n_steps": _from(1),
    "accumulate_grad_batches": _from(1),
    "check_val_every_n_epoch": _from(1),
    "reload_dataloaders_every_n_epochs": _from(0),
    "num_sanity_val_steps": Bound(lambda value: -1 <= value < 2**63, "0 or more, or -1 for a whole validation"),
    "fast_dev_run": _from(0),
    "gradient_clip_val": Bound(lambda value: math.isfinite(value) and value >= 0.0, "a finite number, 0 or more"),
    "gradient_clip_algorithm": Bound(lambda value: value in ("norm", "value"), "norm or value"),
    "val_check_interval": _SOME,
    # Its sampler is a DataLoader's, and our loaders go on drawing others in the next epoch.
    "overfit_batches": Bound(lambda value: value == 0, "0: each epoch draws its batches anew; name a small data file"),
    "limit_train_batches": Bound(lambda value: value < 2**63 and _SOME.fits(value), _SOME.expected),
    **dict.fromkeys((f"limit_{loop}_batches" for loop in ("val", "test", "predict")), _SHARE),
}
_APART = ("DeepSpeedStrategy", "FSDPStrategy")
_FLOAT16 = ("16-mixed", "16")
_SECTIONS = ("model", "data", "trainer", "checkpoint", "export", "samples", "throughput", "progress")
_NUMERAL = re.compile(r"[-+]?((0|[1-9][\d_]*)(\.\d*)?|\.\d+)([eE][-+]?\d+)?|.*[iI][nN][fF].*|.*[nN][aA][nN].*")
_WHOLE_NUMBERS = (
    "WORLD_SIZE", "RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT",
    "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID",
)  # fmt: skip


def keep_whole_numbers(config: Any, recipe: Composition) -> None:
    """Put back the whole numbers that the parser made floats of: to the Trainer, 1 is one batch and 1.0 is all of them.

    `int | float` and `float | int` are one cached object to Python's typing, in the order that was imported first.
    """
    for key, value in config["trainer"].items():
        said = recipe.at(("trainer", key))
        if isinstance(value, float) and re.fullmatch(r"[-+]?\d+", str(said)):
            config["trainer"][key] = int(value)


def check_sections(recipe: Composition) -> None:
    """What holds keys is neither null nor a value without keys.

    Raises:
        UserError: for the first section that is.
    """
    for key, value in recipe.values.items():
        if key in _SECTIONS and (value is None or value in ("null", "~", "")):
            raise UserError(f"{recipe.where((key,))}: found null, expected keys; without any it keeps its defaults")
        if key in _SECTIONS and key not in ("model", "data") and not isinstance(value, str | dict):
            raise UserError(f"{recipe.where((key,))}: found {shown(value)}, expected keys")


def check_values(config: dict[str, Any], recipe: Composition) -> None:
    """Check what the types of a parsed recipe's keys do not say.

    Raises:
        UserError: for the first value out of bounds, or number that is not finite.
    """
    for place, value in _numbers(config, ()):
        said = _said(recipe, place)
        if isinstance(value, int) and abs(value) >= 2**1023:  # more than a float holds
            raise UserError(f"{recipe.where(place)}: found {shown(str(said or value))}, expected a number below 2**63")
        if not math.isfinite(value):
            raise UserError(f"{recipe.where(place)}: found {value}, expected a finite number")
        # Python and YAML 1.1 read 010, 0x10 and 1:30, to several bases
        if isinstance(said, str) and "${" not in said and not _NUMERAL.fullmatch(said.strip()):
            raise UserError(f"{recipe.where(place)}: found {shown(said)}, expected a number")
    seed = config["seed_everything"]
    if seed is None or (not isinstance(seed, bool) and not 0 <= seed < 2**32):
        found = "null" if seed is None else seed
        raise UserError(f"{recipe.where(('seed_everything',))}: found {found}, expected 0 to {2**32 - 1}")
    for key, bound in BOUNDS.items():
        value = config["trainer"].get(key)
        if value is not None and not bound.fits(value):
            raise UserError(f"{recipe.where(('trainer', key))}: found {shown(value)}, expected {bound.expected}")


def _said(recipe: Composition, place: Place) -> Any:
    """What was said at a place, or there in a list that was said as text."""
    for length in range(len(place), 0, -1):
        if (said := recipe.at(place[:length])) is not None:
            inside = (
                parse_yaml(said, "")[0] if length < len(place) and isinstance(said, str) and said[:1] == "[" else None
            )
            return said if length == len(place) else Composition({"": inside}).at(("", *place[length:]))
    return None


def _numbers(value: Any, place: Place) -> Iterator[tuple[Place, float]]:
    if _is_number(value):
        yield place, value
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, item in pairs:
        yield from _numbers(item, (*place, key))


def check_environment() -> None:
    """What a launcher left in the environment is numbers.

    Raises:
        UserError: for the first that is not.
    """
    for name in _WHOLE_NUMBERS:
        value = os.environ.get(name)
        if value is not None and not re.fullmatch(r"\d{1,9}", value):
            raise UserError(f"environment: {name}: found {shown(value)}, expected a launcher's whole number")


def check_processes(trainer: Any, recipe: Composition) -> None:
    """A process is started for each device, and on a CPU any number of devices can be asked for.

    Raises:
        UserError: for more than the machine can be meant to bear.
    """
    most = max(8, os.cpu_count() or 1)
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > most:
        found = f"found {trainer.num_devices} processes on the CPU, expected at most {most} on this machine"
        raise UserError(f"{recipe.where(('trainer', 'devices'))}: {found}")


def check_precision(trainer: Any, asked: object, recipe: Composition) -> None:
    """On a CPU Lightning runs bfloat16 in place of float16's mixed precision, and the recipe would still say float16.

    Args:
        asked: the precision that the Trainer was built with, by any of its names.

    Raises:
        UserError: for float16's, where the Trainer runs another.
    """
    if str(asked) in _FLOAT16 and trainer.precision != "16-mixed":
        where, runs = recipe.where(("trainer", "precision")), f"{trainer.precision} (which Lightning would run)"
        raise UserError(f"{where}: found {asked} on a CPU, expected {runs} or 32-true")


def refuse_half_weights(trainer: Any, recipe: Composition) -> None:
    """For a stage that learns: squares of gradients below 2.4e-4 are 0 in float16, and so is AdamW's usual epsilon, by
    which the first steps divide.

    Raises:
        UserError: the weights, and what is accumulated of their gradients, would be float16.
    """
    if trainer.precision == "16-true":
        where = recipe.where(("trainer", "precision"))
        why = "in float16 AdamW's eps and the squares of small gradients are 0"
        raise UserError(f"{where}: found 16-true, expected bf16-mixed, bf16-true, 16-mixed on a GPU, or 32-true: {why}")


def check_strategy(asked: Any, recipe: Composition) -> None:
    """A step's gradients are brought to the mean over all that it counts where they lie, and checkpoints are verified:
    of a strategy that keeps gradients and files to itself neither would hold, and nothing would tell. Before the
    Trainer is built, which would first ask for what such a strategy needs.

    Args:
        asked: the strategy of a parsed recipe, a name or a class and its arguments.

    Raises:
        UserError: for one of these.
    """
    name = asked.get("class_path") if isinstance(asked, dict) else asked
    known = StrategyRegistry[name]["strategy"].__name__ if name in StrategyRegistry else str(name)
    if known.rpartition(".")[2] in _APART:
        where, found = recipe.where(("trainer", "strategy")), shown(name)
        expected = "auto, ddp or fsdp2, which shards as ZeRO's stage 3 does"
        why = "it keeps gradients and files to itself, so that neither a mean over all tokens nor a digest would hold"
        raise UserError(f"{where}: found {found}, expected {expected}: {why}")


def refused_key(
    error: Exception, given: dict[str, Any], build: Callable[[dict[str, Any]], Any], recipe: Composition
) -> UserError:
    """The line for a Trainer that could not be built, by the key without which it can.

    Args:
        given: the Trainer's arguments.
        build: a Trainer of other arguments.
    """
    said = [key for key in given if ("trainer", key) in recipe.sources or recipe.at(("trainer", key)) is not None]
    named = [key for key in said if re.search(rf"\b{key}\b", str(error))]
    for key in [*named, *(key for key in said if key not in named)]:
        try:
            build({name: value for name, value in given.items() if name != key})
        except Exception:
            continue
        found = shown(recipe.at(("trainer", key)))
        return UserError(f"{recipe.where(('trainer', key))}: found {found}, which is refused: {_cut(error)}")
    return UserError(f"trainer: {_cut(error)}")


def refused_callback(config: Mapping[str, Any], recipe: Composition) -> UserError | None:
    """The line for the first of `trainer.callbacks` that cannot be made, None where all can: the parser buries why.

    Args:
        config: a parsed recipe.
    """
    given = config["trainer"].get("callbacks") or []
    for number, one in enumerate(given if isinstance(given, list) else [given]):
        name = one["class_path"].rpartition(".")[2]
        try:
            imported(one["class_path"])(**(one.get("init_args") or {}))
        except Exception as error:  # whatever its constructor raises
            where = recipe.where(("trainer", "callbacks", number))
            return UserError(f"{where}: found {name}, which is refused: {type(error).__name__} {_cut(error)}")
    return None


def refused_later(error: Exception, recipe: Composition) -> UserError | None:
    """The line for what Lightning itself refuses once it knows model and data, None for any other failure."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    if not str(frame.f_globals.get("__name__")).startswith("lightning."):
        return None
    keys = re.findall(r"\w+", str(error))
    said = [key for key in recipe.values.get("trainer", {}) if key in keys]
    if not said:
        return UserError(f"trainer: {_cut(error)}")
    found = shown(recipe.at(("trainer", said[0])))
    return UserError(f"{recipe.where(('trainer', said[0]))}: found {found}, which is refused: {_cut(error)}")


def _cut(error: Exception) -> str:
    text = one_line(str(error)) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]} ..."
