"""The parameters that were released with GPT-1 (Radford et al. 2018), in the form of the original TensorFlow code.

A folder of `params_shapes.json`, a list of shapes, and `params_0.npy`, `params_1.npy`, ...: all parameters end to end
in one long array, cut at arbitrary places. Their order is that in which the original code makes them: positions,
tokens, then block after block. Linear layers are 1-wide convolutions, (1, in, out): the transpose of ours.
"""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpt_modules.backbone.config import DecoderConfig
from gpt_modules.backbone.folders.blank import blank_weights
from gpt_modules.backbone.models import GPT
from gpt_modules.errors import UserError

SHAPES_FILE = "params_shapes.json"
HEAD_SIZE = 64  # of GPT-1; no file of the release says how many heads there are


def is_original(folder: str | Path) -> bool:
    """Whether a folder holds parameters in the original form."""
    return (Path(folder) / SHAPES_FILE).is_file()


def read_original(folder: str | Path, **changes: Any) -> GPT:
    """The language model in a folder of the original form; float32, on the CPU.

    Sizes are read off the shapes, with heads of 64 (one head where the width is no multiple of it); `changes` replace
    fields of the configuration. Raises `UserError`, one line, for shapes of another model, parts that are missing, cut
    off or no plain arrays, and numbers that are not finite.
    """
    folder = Path(folder)
    shapes = _read_shapes(folder / SHAPES_FILE)
    sizes = _sizes(shapes, folder / SHAPES_FILE)
    config = DecoderConfig.from_dict({**sizes, "norm": "post", "init": "gpt1", **changes})
    flat = _read_parts(folder, sum(math.prod(shape) for shape in shapes))
    state = {}
    for (name, _), shape, values in zip(_entries(sizes), shapes, _cut(flat, shapes), strict=True):
        if not np.isfinite(values).all():
            raise UserError(f"{folder}: {name}: found numbers that are not finite, expected weights")
        tensor = torch.from_numpy(values.reshape(shape).copy())
        state[name] = tensor[0].t().contiguous() if tensor.ndim == 3 else tensor
    return _build(config, state, folder)


def _build(config: DecoderConfig, state: dict[str, Tensor], folder: Path) -> GPT:
    with blank_weights():
        model = GPT(config)
    for name, parameter in model.named_parameters():
        if name in state and state[name].shape != parameter.shape:
            raise UserError(f"{folder}: {name}: found shape {list(state[name].shape)}, expected "
                            f"{list(parameter.shape)} after the changes asked for")  # fmt: skip
    model.load_state_dict(state, assign=True)
    return model


def _sizes(shapes: list[tuple[int, ...]], path: Path) -> dict[str, int]:
    if len(shapes) < 14 or (len(shapes) - 2) % 12 or len(shapes[0]) != 2 or len(shapes[1]) != 2:
        raise UserError(f"{path}: found {len(shapes)} shapes, expected positions, tokens and 12 for each block")
    width = shapes[0][1]
    sizes = {
        "vocab_size": shapes[1][0],
        "n_positions": shapes[0][0],
        "n_layer": (len(shapes) - 2) // 12,
        "n_head": 1 if width % HEAD_SIZE else width // HEAD_SIZE,
        "n_embd": width,
    }
    for row, ((name, expected), found) in enumerate(zip(_entries(sizes), shapes, strict=True)):
        if found != expected:
            raise UserError(f"{path}: row {row}: found {list(found)}, expected {list(expected)} ({name})")
    return sizes


def _entries(sizes: dict[str, int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Our names in their order, with their shapes."""
    width = sizes["n_embd"]
    yield "decoder.wpe.weight", (sizes["n_positions"], width)
    yield "decoder.wte.weight", (sizes["vocab_size"], width)
    for layer in range(sizes["n_layer"]):
        block = f"decoder.blocks.{layer}"
        yield from _pair(f"{block}.attn.qkv", (1, width, 3 * width))
        yield from _pair(f"{block}.attn.proj", (1, width, width))
        yield from _pair(f"{block}.ln_1", (width,))
        yield from _pair(f"{block}.mlp.fc", (1, width, 4 * width))
        yield from _pair(f"{block}.mlp.proj", (1, 4 * width, width))
        yield from _pair(f"{block}.ln_2", (width,))


def _pair(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[-1:]


def _read_shapes(path: Path) -> list[tuple[int, ...]]:
    try:
        shapes = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: no such file, expected the shapes of the original release") from error
    except ValueError as error:
        raise UserError(f"{path}: found no JSON, expected a list of shapes") from error
    if not isinstance(shapes, list):
        raise UserError(f"{path}: found no list, expected a list of shapes")
    for row, shape in enumerate(shapes):
        if not isinstance(shape, list) or not shape or not all(type(size) is int and size > 0 for size in shape):
            raise UserError(f"{path}: row {row}: found {shape!r}, expected a list of whole numbers above 0")
    return [tuple(shape) for shape in shapes]


def _read_parts(folder: Path, total: int) -> NDArray[np.float32]:
    numbers = sorted(int(m[1]) for p in folder.iterdir() if (m := re.fullmatch(r"params_(\d+)\.npy", p.name)))
    last = numbers[-1] if numbers else 0
    parts = [_read_part(folder / f"params_{number}.npy") for number in range(last + 1)]
    found = sum(len(part) for part in parts)
    if found != total:
        raise UserError(f"{folder}: found {found} numbers in params_0.npy to params_{last}.npy, expected {total}, "
                        f"the sum of {SHAPES_FILE}")  # fmt: skip
    return np.concatenate(parts)


def _read_part(path: Path) -> NDArray[np.float32]:
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected a part of the original release")
    try:
        part = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: found no readable array ({type(error).__name__}), expected plain numbers") from error
    if not isinstance(part, np.ndarray) or part.ndim != 1 or part.dtype.kind != "f":
        raise UserError(f"{path}: found no flat array of floating-point numbers, expected a part of the release")
    return part.astype(np.float32, copy=False)


def _cut(flat: NDArray[np.float32], shapes: list[tuple[int, ...]]) -> list[NDArray[np.float32]]:
    return np.split(flat, np.cumsum([math.prod(shape) for shape in shapes])[:-1])
