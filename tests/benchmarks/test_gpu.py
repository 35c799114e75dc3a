"""What only a CUDA device can show: graphs, mixed precision, memory, and the guard that does not wait for the device.

python -m pytest tests/benchmarks/test_gpu.py
"""

import dataclasses
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt_modules.backbone import GPT, Decoder, DecoderConfig, LoRAConfig, beam_search, generate
from gpt_modules.backbone.lora import add_lora
from gpt_modules.backbone.masks import can_fuse
from gpt_modules.data import PretrainingDataModule, TokenBatch
from gpt_modules.errors import UserError
from gpt_modules.functional import linear_cross_entropy
from gpt_modules.training import PretrainingModule
from gpt_modules.training.callbacks.checkpointing import RandomState
from gpt_modules.training.callbacks.guards import FiniteLossGuard

DEVICE = "cuda"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

CONFIG = DecoderConfig(vocab_size=320, n_positions=64, n_layer=2, n_head=2, n_embd=32).without_dropout()
BANDED = dataclasses.replace(CONFIG, attention=("dense", "banded"), window=6)
TURNED = dataclasses.replace(
    BANDED, positions="rotary", n_kv_head=1, head_size=16, qk_norm=True, norm_kind="rms", mlp="swiglu", tied=False
)
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [12, 13]]


@pytest.fixture(autouse=True)
def _no_checker_around_compiled_code(request: pytest.FixtureRequest) -> None:
    if "compiled" in request.node.name and request.config.getoption("jaxtyping_packages", default=None):
        pytest.skip("the checker of types is on")


def wide_model(config: DecoderConfig = CONFIG) -> GPT:
    """Weights five times as large as at initialisation: far from uniform, so that a near tie is unlikely."""
    model = GPT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5.0)
    return model


@pytest.mark.parametrize("compile", [False, True], ids=["graph", "compiled"])
@pytest.mark.parametrize("eos_id", [None, 17], ids=["to the end", "rows retire"])
@pytest.mark.parametrize("config", [CONFIG, BANDED, TURNED], ids=["dense", "banded", "turned"])
def test_decoding_says_on_the_gpu_what_it_says_on_the_cpu(
    compile: bool, eos_id: int | None, config: DecoderConfig
) -> None:
    model = wide_model(config)
    length: dict[str, Any] = {"max_new_tokens": 24, "eos_id": eos_id, "temperature": 0.0}
    expected = generate(model, PROMPTS, **length)
    found = generate(model.to(DEVICE), PROMPTS, **length, compile=compile)
    assert torch.equal(found.tokens.cpu(), expected.tokens)
    assert torch.equal(found.mask.cpu(), expected.mask)
    torch.testing.assert_close(found.logprobs.cpu(), expected.logprobs, atol=1e-3, rtol=1e-3)


def test_the_same_generator_state_draws_the_same_tokens_from_graph_after_graph() -> None:
    model = wide_model().to(DEVICE)
    drawn = [
        generate(
            model, PROMPTS, max_new_tokens=16, eos_id=None, generator=torch.Generator(DEVICE).manual_seed(3)
        ).tokens
        for _ in range(2)
    ]
    assert torch.equal(*drawn)


@pytest.mark.parametrize("kind", ["learns", "frozen", "low-rank"])
def test_under_autocast_the_graph_draws_what_its_step_draws(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Static and sliced cache may take other kernels, so to the digits of bfloat16."""
    model = wide_model()
    if kind == "low-rank":
        add_lora(model.decoder, LoRAConfig(2))
    model.to(DEVICE).requires_grad_(kind == "learns")
    with torch.autocast(DEVICE, torch.bfloat16):
        found = generate(model, PROMPTS, max_new_tokens=16, eos_id=None, temperature=0.0)
        for room in ("generation", "step"):
            monkeypatch.setattr(f"gpt_modules.backbone.decoding.{room}.can_capture", lambda _: False)
        expected = generate(model, PROMPTS, max_new_tokens=16, eos_id=None, temperature=0.0)
    torch.testing.assert_close(found.logprobs[:, :2], expected.logprobs[:, :2], atol=0.1, rtol=0.05)
    assert (found.tokens == expected.tokens).float().mean() > 0.7
    assert found.logprobs.isfinite().all()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_model_on_another_device_than_the_current_one_is_captured_there() -> None:
    model = wide_model()
    expected = generate(model, PROMPTS, max_new_tokens=16, eos_id=None, temperature=0.0)
    for place in (DEVICE, "cuda:1"):
        found = generate(model.to(place), PROMPTS, max_new_tokens=16, eos_id=None, temperature=0.0)
        assert torch.equal(found.tokens.cpu(), expected.tokens)


def test_where_algorithms_are_deterministic_the_device_draws_what_the_cpu_draws() -> None:
    model = wide_model()
    rule: dict[str, Any] = {"max_new_tokens": 16, "eos_id": None, "top_p": 0.9}
    expected = generate(model, PROMPTS, **rule, generator=torch.Generator().manual_seed(0))
    torch.use_deterministic_algorithms(True)
    try:
        found = generate(model.to(DEVICE), PROMPTS, **rule, generator=torch.Generator().manual_seed(0))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(found.tokens.cpu(), expected.tokens)


def test_the_devices_random_state_is_kept_and_comes_back() -> None:
    torch.zeros(1, device=DEVICE)
    kept, module = RandomState().state_dict(), Decoder(BANDED).to(DEVICE)
    expected = torch.rand(4, device=DEVICE)
    restored, trainer = RandomState(), L.Trainer(accelerator="gpu", devices=1, logger=False)
    restored.load_state_dict(kept)
    restored.on_train_batch_start(trainer, module)
    assert torch.equal(torch.rand(4, device=DEVICE), expected)


def test_beam_search_says_on_the_gpu_what_it_says_on_the_cpu() -> None:
    model = wide_model(BANDED)
    expected = beam_search(model, PROMPTS, max_new_tokens=24, eos_id=17)
    found = beam_search(model.to(DEVICE), PROMPTS, max_new_tokens=24, eos_id=17)
    assert torch.equal(found.tokens.cpu(), expected.tokens)
    assert torch.equal(found.mask.cpu(), expected.mask)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("head_size", "width"), [(64, 256), (64, 1024), (80, 300), (96, 300), (128, 1024)])  # of GPT-3
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_the_fused_band_is_the_masked_one_forward_and_backward(
    compiled: bool, head_size: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DecoderConfig(
        vocab_size=320, n_positions=1024, n_layer=2, n_head=2, n_embd=2 * head_size, attention=("dense", "banded"),
        window=200,
    ).without_dropout()  # fmt: skip
    decoder = Decoder(config).to(DEVICE)
    tokens = torch.randint(320, (3, width), device=DEVICE)
    assert can_fuse(config, tokens.device, training=True)
    results = []
    for fused in (False, True):
        monkeypatch.setattr("gpt_modules.backbone.decoder.can_fuse", lambda *_, fused=fused: fused)
        if fused and compiled:
            decoder.compile_blocks()
        decoder.zero_grad()
        with torch.autocast(DEVICE, torch.bfloat16):
            hidden = decoder(tokens)
        hidden.float().square().mean().backward()
        results.append([hidden.float(), *(parameter.grad.clone() for parameter in decoder.parameters())])
    for masked, found in zip(*results, strict=True):
        assert (found - masked).norm() <= 0.03 * masked.norm() + 1e-6


@pytest.mark.filterwarnings("ignore")
def test_a_fused_band_holds_no_scores() -> None:
    width, heads = 8192, 8
    config = DecoderConfig(
        vocab_size=320, n_positions=width, n_layer=1, n_head=heads, n_embd=512, attention=("banded",), window=256
    ).without_dropout()
    decoder, tokens = Decoder(config).to(DEVICE), torch.randint(320, (1, width), device=DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        decoder(tokens).sum().backward()  # builds the mask and the kernels
        torch.cuda.reset_peak_memory_stats()
        decoder(tokens).sum().backward()
    assert torch.cuda.max_memory_allocated() < heads * width * width * 2


def test_the_chunked_head_never_holds_the_logits() -> None:
    rows, width, vocab = 16_384, 64, 50_304
    hidden = torch.randn(rows, width, device=DEVICE, requires_grad=True)
    weight = torch.randn(vocab, width, device=DEVICE, requires_grad=True)
    labels = torch.randint(vocab, (rows,), device=DEVICE)
    torch.cuda.reset_peak_memory_stats()
    with torch.autocast(DEVICE, torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, labels)
    loss.backward()
    assert torch.cuda.max_memory_allocated() < 0.5 * rows * vocab * 4
    few = slice(0, 256)
    exact = F.cross_entropy(hidden[few].double() @ weight.double().T, labels[few], reduction="sum")
    with torch.autocast(DEVICE, torch.bfloat16):
        found = linear_cross_entropy(hidden[few], weight, labels[few])
    torch.testing.assert_close(found.double(), exact, rtol=1e-2, atol=0.0)


class Losses(L.Callback):
    """Keeps the training loss of each step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.values.append(float(trainer.callback_metrics["train/loss"]))


def fit(module: PretrainingModule, folder: Path, accelerator: str, precision: Any, *callbacks: L.Callback) -> None:
    trainer = L.Trainer(
        accelerator=accelerator,
        devices=1,
        precision=precision,
        default_root_dir=folder,
        logger=False,
        callbacks=list(callbacks),
        gradient_clip_val=1.0,
        max_steps=6,
        log_every_n_steps=1,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = PretrainingDataModule(tokenizer="train", vocab_size=320, context=32, batch_size=8, cache_dir=str(folder))
    trainer.fit(module, datamodule=data)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("config", [CONFIG, BANDED, TURNED], ids=["dense", "banded", "turned"])
def test_bfloat16_training_follows_float32_on_the_cpu(tmp_path: Path, compile: bool, config: DecoderConfig) -> None:
    losses = []
    for accelerator, precision, compiled in (("cpu", "32-true", False), ("gpu", "bf16-mixed", compile)):
        L.seed_everything(0, verbose=False)
        kept = Losses()
        fit(PretrainingModule(config, compile=compiled), tmp_path, accelerator, precision, FiniteLossGuard(), kept)
        losses.append(kept.values)
    assert losses[1] == pytest.approx(losses[0], abs=0.03)


class Poisoned(PretrainingModule):
    """The third step's loss is infinite."""

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if batch_idx == 2:
            self.before = [parameter.detach().clone() for parameter in self.parameters()]
            return loss * torch.inf
        return loss


@pytest.mark.filterwarnings("ignore")
def test_a_bad_step_is_refused_on_the_device(tmp_path: Path) -> None:
    module = Poisoned(CONFIG)
    with pytest.raises(UserError, match="not finite"):
        fit(module, tmp_path, "gpu", "bf16-mixed", FiniteLossGuard())
    assert all(
        torch.equal(kept, parameter.cpu()) for kept, parameter in zip(module.before, module.parameters(), strict=True)
    )
