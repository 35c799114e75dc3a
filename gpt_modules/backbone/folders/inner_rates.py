"""How the model in a folder was meant to be adapted: `inner_rates.safetensors` beside the weights that it belongs to.

Meta-learned weights are a starting point, of use only with the steps they were trained for: which parameters move, how
far a step goes in each (Meta-SGD learns a number an element, MAML++ one a layer and step), and how many steps. The
names are those of our `state_dict`, whatever family the weights beside them are written as.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gpt_modules.backbone.folders.documents import ModelDocument, decoder_of, open_document, read_task
from gpt_modules.backbone.folders.original import is_original
from gpt_modules.backbone.folders.replacing import find_folder
from gpt_modules.backbone.folders.weightmap import flaw_of, weight_map
from gpt_modules.errors import UserError
from gpt_modules.functional.adaptation import Algorithm
from gpt_modules.storage.digests import sha256_of

INNER_RATES_FILE = "inner_rates.safetensors"
INNER_RATES_SHA256 = "inner_rates_sha256"


@dataclass(frozen=True)
class InnerRates:
    """The inner loop that a model was trained for.

    algorithm: how the outer loop saw it. steps: of gradient descent. rates: by name of a parameter, (S,) or (S, *shape
    of the parameter), the last entry serving all later steps, as in `functional.adaptation`; what is not named does not
    move.

    Raises `ValueError` for a negative number of steps.
    """

    algorithm: Algorithm
    steps: int
    rates: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps: found {self.steps}, expected at least 0")


def save_inner_rates(path: Path, rates: InnerRates, state: Mapping[str, Tensor]) -> str:
    """Write `rates` as a file, in float32; its SHA-256.

    `state`: the model's `state_dict`. Raises `ValueError` for a rate that does not fit it.
    """
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    for name, rate in rates.rates.items():
        if (problem := _misfit(name, rate, shapes)) is not None:
            raise ValueError(f"inner rates: {name}: {problem}")
    # Copies, as a file takes no two tensors that share memory: one number for all names may be one tensor.
    tensors = {
        name: rate.detach().to("cpu", torch.float32, copy=True, memory_format=torch.contiguous_format)
        for name, rate in rates.rates.items()
    }
    save_file(tensors, path, metadata={"algorithm": rates.algorithm, "steps": str(rates.steps)})
    return sha256_of(path)


def load_inner_rates(name: str | Path) -> InnerRates | None:
    """The inner loop of the model in a folder, or of a name on the hub; None for a model that was trained for none.

    Raises `UserError`, one line, for a file that is missing, damaged (SHA-256) or does not fit the model.
    """
    folder = find_folder(name)
    if is_original(folder):
        return None
    document = open_document(folder)
    expected = document.inner_rates_sha256
    if expected is None:
        return None
    path = folder / INNER_RATES_FILE
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected the inner rates that config.json tells of")
    if (found := sha256_of(path)) != expected:
        raise UserError(f"{path}: damaged: found SHA-256 {found[:12]}…, expected {expected[:12]}…")
    fields, tensors = _read(path)
    shapes = _shapes(document)
    for parameter, rate in tensors.items():
        if (problem := _misfit(parameter, rate, shapes) or flaw_of(rate, "rates")) is not None:
            raise UserError(f"{path}: {parameter}: {problem}")
    return _from_fields(fields, tensors, path)


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, MemoryError) as error:
        raise UserError(f"{path}: not a readable safetensors file: {str(error)[:160]}") from error


def _from_fields(fields: dict[str, str], tensors: dict[str, Tensor], path: Path) -> InnerRates:
    algorithm, steps = (fields.get(name, "nothing") for name in ("algorithm", "steps"))
    if not re.fullmatch(r"\d{1,9}", steps, re.ASCII):
        raise UserError(f"{path}: steps: found {steps!r}, expected a whole number from 0")
    if algorithm not in get_args(Algorithm):
        raise UserError(f"{path}: algorithm: found {algorithm!r}, expected one of {', '.join(get_args(Algorithm))}")
    return InnerRates(algorithm, int(steps), tensors)  # type: ignore[arg-type]  # it is one of them


def _shapes(document: ModelDocument) -> dict[str, tuple[int, ...]]:
    """The parameters of the model that config.json describes."""
    kind = document.ours.kind or "gpt"
    task = read_task(document, {})[0] if kind == "task" else None
    table = weight_map(decoder_of(document), kind, task, "gpt_modules")  # whose names and layouts are ours
    return {entry.ours: entry.shape for entry in table}


def _misfit(name: str, rate: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Why no parameter can have this rate, if so."""
    if name not in shapes:
        return "unknown parameter, expected the name of one of the model's"
    shape = shapes[name]
    if rate.dim() == 0 or len(rate) == 0 or tuple(rate.shape[1:]) not in ((), shape):
        return f"found shape {list(rate.shape)}, expected [S] or [S, {', '.join(map(str, shape))}]"
    return None
