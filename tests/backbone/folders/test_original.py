"""The original release's form, on random arrays of its structure; `transformers` is the oracle."""

import json
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from gpt_modules.backbone.folders.original import is_original, read_original
from gpt_modules.errors import UserError

POSITIONS, TOKENS, WIDTH, LAYERS = 9, 23, 128, 2
BLOCK = [
    ("attn.c_attn", (1, WIDTH, 3 * WIDTH)),
    ("attn.c_proj", (1, WIDTH, WIDTH)),
    ("ln_1", (WIDTH,)),
    ("mlp.c_fc", (1, WIDTH, 4 * WIDTH)),
    ("mlp.c_proj", (1, 4 * WIDTH, WIDTH)),
    ("ln_2", (WIDTH,)),
]


def arrays() -> dict[str, np.ndarray]:
    """Random parameters in the order of the release, under the names of `transformers`."""
    rng = np.random.default_rng(0)
    shapes = {"positions_embed.weight": (POSITIONS, WIDTH), "tokens_embed.weight": (TOKENS, WIDTH)}
    for layer in range(LAYERS):
        for name, shape in BLOCK:
            shapes |= {f"h.{layer}.{name}.weight": shape, f"h.{layer}.{name}.bias": shape[-1:]}
    return {name: rng.normal(0.0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}


def write(folder: Path, values: dict[str, np.ndarray], parts: int = 10) -> Path:
    flat = np.concatenate([value.ravel() for value in values.values()])
    for number, part in enumerate(np.array_split(flat, parts)):
        np.save(folder / f"params_{number}.npy", part)
    (folder / "params_shapes.json").write_text(json.dumps([value.shape for value in values.values()]))
    return folder


@pytest.mark.parametrize("parts", [10, 3])
def test_logits_are_those_of_the_same_arrays_in_transformers(tmp_path, transformers: ModuleType, parts: int):
    values = arrays()
    model = read_original(write(tmp_path, values, parts)).eval()
    config = transformers.OpenAIGPTConfig(
        vocab_size=TOKENS, n_positions=POSITIONS, n_embd=WIDTH, n_layer=LAYERS, n_head=2
    )
    theirs = transformers.OpenAIGPTLMHeadModel(config).eval()
    state = {name: torch.from_numpy(value[0] if value.ndim == 3 else value) for name, value in values.items()}
    theirs.transformer.load_state_dict(state)
    theirs.tie_weights()
    tokens = torch.randint(TOKENS, (3, POSITIONS), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), theirs(tokens).logits, rtol=1e-5, atol=1e-5)


def test_sizes_come_from_the_shapes(tmp_path):
    model = read_original(write(tmp_path, arrays()), attn_pdrop=0.0)
    config = model.config
    assert (config.n_positions, config.vocab_size, config.n_embd, config.n_layer) == (9, 23, 128, 2)
    assert (config.n_head, config.norm, config.init, config.attn_pdrop) == (2, "post", "gpt1", 0.0)
    assert config.n_params() == sum(math.prod(value.shape) for value in arrays().values())
    assert is_original(tmp_path)
    assert not is_original(tmp_path.parent)


def poison(folder: Path) -> None:
    values = arrays()
    values["h.1.ln_1.bias"][3] = np.nan
    write(folder, values)


def wrong_shape(folder: Path) -> None:
    shapes = json.loads((folder / "params_shapes.json").read_text())
    (folder / "params_shapes.json").write_text(json.dumps([*shapes[:4], [1, WIDTH, WIDTH + 1], *shapes[5:]]))


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda f: (f / "params_4.npy").unlink(), r"params_4\.npy: no such file"),
        (lambda f: [f.joinpath(f"params_{n}.npy").unlink() for n in range(10)], r"params_0\.npy: no such file"),
        (
            lambda f: (f / "params_9.npy").unlink(),
            r"found \d+ numbers in params_0\.npy to params_8\.npy, expected 40",
        ),
        (lambda f: (f / "params_2.npy").write_bytes(b"x"), r"params_2\.npy: found no readable array"),
        (lambda f: np.save(f / "params_2.npy", np.array([{}])), r"params_2\.npy: found no readable array"),
        (lambda f: np.save(f / "params_2.npy", np.arange(3)), r"params_2\.npy: found no flat array"),
        (lambda f: (f / "params_shapes.json").write_text("["), r"params_shapes\.json: found no JSON"),
        (lambda f: (f / "params_shapes.json").write_text("[[1, 0]]"), r"row 0: found \[1, 0\], expected"),
        (lambda f: (f / "params_shapes.json").write_text("[[1, 2]]"), r"found 1 shapes, expected"),
        (wrong_shape, r"row 4: found \[1, 128, 129\], expected \[1, 128, 128\]"),
        (poison, r"decoder\.blocks\.1\.ln_1\.bias: found numbers that are not finite"),
    ],
)
def test_mistakes_are_one_line(tmp_path, damage, found):
    damage(write(tmp_path, arrays()))
    with pytest.raises(UserError, match=rf"^[^\n]*{found}[^\n]*$"):
        read_original(tmp_path)


def test_a_size_that_the_weights_do_not_have_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"wpe.*found shape \[9, 128\], expected \[7, 128\]"):
        read_original(write(tmp_path, arrays()), n_positions=7)
