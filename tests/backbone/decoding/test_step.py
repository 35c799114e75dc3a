"""The draw against the distribution it inverts, weights that come back from their other layout untouched, and a step
that is captured and replayed on paper.
"""

from collections import Counter
from typing import Any

import pytest
import torch
from device import CUDA, Device, device
from torch.utils._python_dispatch import TorchDispatchMode

from gpt_modules.backbone import GPT, DecoderConfig, LoRAConfig, beam_search, generate
from gpt_modules.backbone.decoding import generation, step
from gpt_modules.backbone.decoding.step import LONG_ENOUGH, SamplingRule, choose, draw, input_major, is_whole, lend_cast
from gpt_modules.backbone.lora import add_lora


@pytest.mark.parametrize("vocab", [5, 256, 700])
def test_frequencies_are_the_probabilities(vocab: int) -> None:
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(vocab, generator=generator) ** 4
    probs = probs / probs.sum()
    uniform = torch.rand(2, 40_000, generator=generator, dtype=torch.float64)
    counts = draw(probs.expand(40_000, -1), uniform).bincount(minlength=vocab)
    chi_square = ((counts - 40_000 * probs) ** 2 / (40_000 * probs)).sum().item()
    assert chi_square < vocab - 1 + 5 * (2 * vocab) ** 0.5  # five standard deviations


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1.0 - 2**-53])
@pytest.mark.parametrize("place", [0, 255, 256, 511, 512, 599])
def test_the_only_possible_token_is_drawn_at_both_ends_of_the_scale(uniform: float, place: int) -> None:
    probs = torch.zeros(1, 600)
    probs[0, place] = 1.0
    assert draw(probs, torch.full((2, 1), uniform, dtype=torch.float64)).item() == place


def test_hand_worked_draw() -> None:
    probs = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).expand(4, 4)
    within = torch.tensor([0.05, 0.15, 0.59, 0.61], dtype=torch.float64)
    assert draw(probs, torch.stack([torch.zeros(4, dtype=torch.float64), within])).tolist() == [0, 1, 2, 3]


def test_log_probability_is_that_of_the_filtered_distribution() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(64, 4)
    uniform = torch.rand(2, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens, logprobs = choose(logits, uniform, SamplingRule(temperature=0.5, top_k=2))
    # Two tokens stay, 2 / 0.5 = 4 and 1 / 0.5 = 2: probabilities 1 / (1 + e^-2) and its complement.
    expected = torch.where(tokens == 0, 0.8807971, 0.1192029).log()
    torch.testing.assert_close(logprobs, expected, rtol=1e-5, atol=1e-5)
    assert set(tokens.tolist()) == {0, 1}


def test_greedy_reports_the_models_own_log_probability() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    tokens, logprobs = choose(logits, torch.zeros(2, 1, dtype=torch.float64), SamplingRule(temperature=0.0))
    assert tokens.tolist() == [1]
    torch.testing.assert_close(logprobs, torch.log_softmax(logits, dim=1)[:, 1])


@pytest.mark.parametrize("steps", [1, LONG_ENOUGH])
def test_weights_come_back_to_their_own_memory(steps: int) -> None:
    model = GPT(DecoderConfig(vocab_size=31, n_positions=12, n_layer=1, n_head=2, n_embd=16)).eval()
    before = [(parameter.data_ptr(), parameter.stride()) for parameter in model.parameters()]
    logits = model(torch.tensor([[1, 2]])).detach()

    def use() -> None:
        with input_major(model, steps) as head:
            assert torch.equal(head, model.head_weight.t())
            torch.testing.assert_close(model(torch.tensor([[1, 2]])).detach(), logits)
            raise InterruptedError

    with pytest.raises(InterruptedError):
        use()
    assert [(parameter.data_ptr(), parameter.stride()) for parameter in model.parameters()] == before


def test_the_longer_axis_of_a_matrix_lies_side_by_side() -> None:
    model = GPT(DecoderConfig(vocab_size=31, n_positions=12, n_layer=1, n_head=2, n_embd=16))
    with input_major(model, LONG_ENOUGH) as head:
        weights = [model.decoder.blocks[0].get_submodule(name).weight for name in ("attn.qkv", "mlp.fc", "mlp.proj")]
        for matrix in (head, *weights):
            assert matrix.shape[matrix.stride().index(1)] == max(matrix.shape)


def test_weights_that_lie_elsewhere_are_not_whole() -> None:
    model = GPT(DecoderConfig(vocab_size=31, n_positions=12, n_layer=1, n_head=2, n_embd=16))
    assert is_whole(model)

    class Sharded(torch.nn.Parameter):
        """Known by its type, as torch's own."""

    model.decoder.blocks[0].mlp.fc.weight = Sharded(model.decoder.blocks[0].mlp.fc.weight.data)
    assert not is_whole(model)
    with input_major(model, LONG_ENOUGH) as head:
        assert head.data_ptr() == model.head_weight.data_ptr()


BANDED: dict[str, Any] = {"attention": ("dense", "banded"), "window": 6}
TURNED: dict[str, Any] = BANDED | {"positions": "rotary", "n_kv_head": 1, "head_size": 16, "norm_kind": "rms"}
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [12, 13]]


def wide(**fields: Any) -> GPT:
    """Far from uniform, so that a near tie is unlikely."""
    model = GPT(DecoderConfig(vocab_size=320, n_positions=64, n_layer=2, n_head=2, n_embd=32, **fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5.0)
    return model


@pytest.mark.parametrize("eos_id", [None, [17, *range(40, 80)]], ids=["to the end", "rows retire"])
@pytest.mark.parametrize("fields", [{}, BANDED, TURNED], ids=["dense", "banded", "turned"])
def test_a_graph_says_what_its_step_says(
    fields: dict[str, Any], eos_id: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawn and with their log-probabilities; also where rows leave and another graph goes on, of fewer."""
    monkeypatch.setattr("gpt_modules.backbone.decoding.generation.STEPS_OF_A_CAPTURE", 1)
    model = wide(**fields)

    def drawn() -> Any:
        noise = torch.Generator().manual_seed(0)
        return generate(model, PROMPTS, max_new_tokens=24, eos_id=eos_id, generator=noise)

    expected = drawn()
    with device():
        model.to(CUDA)
        Device.waits.clear()
        found = drawn()
        captures = Device.waits["backbone/decoding/step.py", "CapturedStep.__init__"]
        asked = sum(Device.waits.values()) - captures
        tokens, logprobs, mask = (part.cpu() for part in found)
    assert captures == 1 if eos_id is None else captures > 1
    assert asked < 16  # of 24 steps
    assert torch.equal(tokens, expected.tokens)
    assert torch.equal(mask, expected.mask)
    torch.testing.assert_close(logprobs, expected.logprobs, atol=2e-5, rtol=1e-4)


def test_a_step_that_waits_is_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    own = step.choose
    monkeypatch.setattr(step, "choose", lambda logits, *rest: own(logits * bool(logits.sum() != 0), *rest))
    with device(), pytest.raises(AssertionError, match="waits for the device inside of a capture"):
        generate(wide().to(CUDA), PROMPTS, max_new_tokens=4, eos_id=None)


def test_where_algorithms_are_deterministic_a_device_draws_the_same() -> None:
    """It has no running sum of numbers with digits then, and torch raises for one."""
    model = wide()
    rule: dict[str, Any] = {"max_new_tokens": 12, "eos_id": None, "top_p": 0.9}
    expected = generate(model, PROMPTS, **rule, generator=torch.Generator().manual_seed(0))
    torch.use_deterministic_algorithms(True)
    try:
        with device():
            found = generate(model.to(CUDA), PROMPTS, **rule, generator=torch.Generator().manual_seed(0)).tokens.cpu()
            with pytest.raises(RuntimeError, match="cumsum"):
                torch.ones(2, 3, device=CUDA).cumsum(1)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(found, expected.tokens)


class Casts(TorchDispatchMode):
    """How often something was made another type."""

    def __init__(self) -> None:
        super().__init__()
        self.types: Counter[tuple[torch.dtype, torch.dtype]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.to):
            self.types[args[0].dtype, made.dtype] += args[0].ndim == 2 and args[0].shape[0] > 8
        return made


@pytest.mark.parametrize("kind", ["learns", "frozen", "low-rank"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("search", [False, True], ids=["sampled", "beam"])
def test_autocast_casts_a_matrix_once_and_not_at_every_token(kind: str, search: bool, mode: Any) -> None:
    model = wide()
    if kind == "low-rank":
        add_lora(model.decoder, LoRAConfig(2, targets=("attn.qkv",)))
    model.requires_grad_(kind == "learns") if kind != "low-rank" else None
    counts = []
    for length in (3, 9):
        with mode(), torch.autocast("cpu", torch.bfloat16), Casts() as seen:
            if search:
                beam_search(model, [[1, 2]], max_new_tokens=length, eos_id=None, width=2)
            else:
                generate(model, [[1, 2]], max_new_tokens=length, eos_id=None)
        counts.append(seen.types[torch.float32, torch.bfloat16])
    assert counts[0] == counts[1] > 0


def test_what_is_cast_comes_back() -> None:
    model = wide().requires_grad_(False)
    before = {name: (value.data_ptr(), value.dtype) for name, value in model.named_parameters()}
    with lend_cast(model):
        assert {name: (value.data_ptr(), value.dtype) for name, value in model.named_parameters()} == before
    with torch.autocast("cpu", torch.bfloat16), lend_cast(model):
        assert model.decoder.blocks[0].mlp.fc.bias.dtype == torch.bfloat16
        assert model.decoder.ln_f.weight.dtype == torch.float32
    assert {name: (value.data_ptr(), value.dtype) for name, value in model.named_parameters()} == before


def test_no_gradient_is_noted_where_weights_are_not_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inference mode, once it is left, has gradients on."""
    monkeypatch.setattr(generation, "is_whole", lambda _: False)
    noted: list[bool] = []
    own = step.choose
    monkeypatch.setattr(step, "choose", lambda *given: noted.append(torch.is_grad_enabled()) or own(*given))
    generate(wide(), PROMPTS, max_new_tokens=3, eos_id=None)
    assert noted == [False] * 3
