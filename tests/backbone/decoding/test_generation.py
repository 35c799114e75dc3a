"""Cached decoding against full forwards and `transformers`; what is reported; what may not change an answer."""

import math
from types import ModuleType
from typing import Any

import pytest
import torch
from their_models import FAMILIES, our_model, their_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gpt_modules.backbone import GPT, DecoderConfig, Generation, generate
from gpt_modules.backbone.decoding import generation
from gpt_modules.backbone.folders.weightmap import to_transformers
from gpt_modules.errors import UserError

VOCAB = 37
CONFIG = DecoderConfig(vocab_size=VOCAB, n_positions=80, n_layer=2, n_head=2, n_embd=16, embd_pdrop=0.3)
PROMPTS = [[3], [5, 9, 2, 11, 30, 8], [1, 1, 4], [7, 22, 36, 15]]


def make(norm: str = "pre") -> GPT:
    torch.manual_seed(0)
    model = GPT(DecoderConfig.from_dict({**CONFIG.to_dict(), "norm": norm})).eval()
    with torch.no_grad():  # fresh weights repeat one token for ever; these do not
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


def greedy_by_full_forwards(model: GPT, prompt: list[int], steps: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(steps):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


def seeded(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def padded(side: str) -> tuple[Tensor, Tensor]:
    width = 9
    tokens, mask = torch.full((4, width), 17), torch.zeros(4, width, dtype=torch.bool)
    for row, prompt in enumerate(PROMPTS):
        where = slice(width - len(prompt), width) if side == "left" else slice(len(prompt))
        tokens[row, where], mask[row, where] = torch.tensor(prompt), True
    return tokens, mask


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("layout", ["list", "left", "right"])
def test_greedy_equals_full_forwards_in_any_layout(norm: str, layout: str) -> None:
    model = make(norm)
    prompts = PROMPTS if layout == "list" else padded(layout)
    out = generate(model, prompts, max_new_tokens=12, eos_id=None, temperature=0.0)
    assert out.tokens.tolist() == [greedy_by_full_forwards(model, prompt, 12) for prompt in PROMPTS]
    assert out.mask.all()


def test_greedy_equals_transformers(transformers: ModuleType) -> None:
    model = make()
    sizes = {"vocab_size": VOCAB, "n_positions": 80, "n_layer": 2, "n_head": 2, "n_embd": 16}
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=None)).eval()
    theirs.load_state_dict(to_transformers(model.state_dict(), CONFIG, "gpt"), strict=False)
    tokens, mask = padded("left")
    answer = theirs.generate(
        tokens, attention_mask=mask.long(), max_new_tokens=20, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    out = generate(model, PROMPTS, max_new_tokens=20, eos_id=None, temperature=0.0)
    assert torch.equal(out.tokens, answer[:, tokens.shape[1] :])


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_decoding_of_every_family_equals_transformers(
    family: str, transformers: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy, from unequal prompts; with the cache that a CUDA graph uses, too."""
    theirs = their_model(transformers, family)
    ours, prompts = our_model(theirs, family), PROMPTS[:1] + PROMPTS[3:]
    expected = [
        theirs.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=24, do_sample=False,
            pad_token_id=0, eos_token_id=None,
        )[0, len(prompt) :].tolist()
        for prompt in prompts
    ]  # fmt: skip
    out = generate(ours, prompts, max_new_tokens=24, eos_id=None, temperature=0.0)
    assert out.tokens.tolist() == expected
    monkeypatch.setattr(generation, "can_capture", lambda _: True)
    monkeypatch.setattr(generation, "accelerated", lambda step, *_: step)
    assert torch.equal(generate(ours, prompts, max_new_tokens=24, eos_id=None, temperature=0.0).tokens, out.tokens)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sampler_of_every_family_says_what_the_training_forward_says(family: str, transformers: ModuleType) -> None:
    model = our_model(their_model(transformers, family), family)
    out = generate(model, PROMPTS, max_new_tokens=40, eos_id=None, generator=seeded())
    for row, prompt in enumerate(PROMPTS):
        logits = model(torch.tensor([prompt + out.tokens[row].tolist()]))[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits, dim=1).gather(1, out.tokens[row, :, None])[:, 0]
        torch.testing.assert_close(out.logprobs[row], expected, atol=1e-4, rtol=0.0)


@pytest.mark.parametrize("steps", [10, 70])  # 70: long enough for the other layout of the weights
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_reported_log_probabilities_are_those_of_a_full_forward(steps: int, temperature: float) -> None:
    model = make()
    out = generate(model, PROMPTS, max_new_tokens=steps, eos_id=None, temperature=temperature, generator=seeded())
    for row, prompt in enumerate(PROMPTS):
        logits = model(torch.tensor([prompt + out.tokens[row].tolist()]))[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits / (temperature or 1.0), dim=1).gather(1, out.tokens[row, :, None])[:, 0]
        torch.testing.assert_close(out.logprobs[row], expected, atol=1e-4, rtol=0.0)


def test_what_was_said_can_be_learned_from() -> None:
    model = make()
    said = generate(model, PROMPTS, max_new_tokens=3, eos_id=3, generator=seeded())
    (model(said.tokens).logsumexp(-1) * said.mask * said.logprobs).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_sampling_is_a_function_of_the_generator() -> None:
    model = make()
    first, again, other = (
        generate(model, PROMPTS, max_new_tokens=15, eos_id=None, generator=seeded(number)) for number in (0, 0, 1)
    )
    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.logprobs, again.logprobs)
    assert not torch.equal(first.tokens, other.tokens)


def test_what_a_row_says_does_not_depend_on_those_after_it() -> None:
    model = make().double()
    whole = generate(model, PROMPTS, max_new_tokens=15, eos_id=None, generator=seeded())
    alone = generate(model, PROMPTS[:2], max_new_tokens=15, eos_id=None, generator=seeded())
    assert torch.equal(whole.tokens[:2], alone.tokens)


def test_with_a_generator_of_its_own_a_row_says_the_same_in_any_batch() -> None:
    model = make().double()
    whole = generate(model, PROMPTS, max_new_tokens=15, eos_id=None, generator=[seeded(n) for n in range(4)])
    other = generate(model, [PROMPTS[3], PROMPTS[1]], max_new_tokens=15, eos_id=None, generator=[seeded(3), seeded(1)])
    assert torch.equal(whole.tokens[[3, 1]], other.tokens)
    with pytest.raises(ValueError, match="generator: found 1, expected one, or one for each of 4 prompts"):
        generate(model, PROMPTS, max_new_tokens=1, eos_id=None, generator=[seeded()])


@pytest.mark.parametrize(("rows", "turns"), [(5.0, [5]), (4.9, [3, 2]), (2.0, [2, 2, 1]), (0.5, [1] * 5)])
@pytest.mark.parametrize("generator", ["one", "a row"])
def test_rows_that_wait_for_room_in_the_cache_say_the_same(
    rows: float, turns: list[int], generator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In their places; no turn has more rows than there is room for, nor is as wide as what it does not hold."""
    model, prompts, sizes = make().double(), [*PROMPTS, PROMPTS[0]], []

    def draw(cache_bytes: float) -> Generation:
        noise = seeded() if generator == "one" else [seeded(n) for n in range(5)]
        settings = {"max_new_tokens": 15, "eos_id": 4, "generator": noise}
        return generate(model, prompts, **settings, cache_bytes=cache_bytes)  # type: ignore[arg-type]

    whole, decode = draw(math.inf), generation._decode

    def counting(step: Any, tokens: Tensor, *rest: Any) -> Generation:
        sizes.append(tokens.shape)
        return decode(step, tokens, *rest)

    monkeypatch.setattr(generation, "_decode", counting)
    found = draw(rows * generation.new_cache(model, 1, 6 + 15, static=False).nbytes)
    assert torch.equal(found.tokens, whole.tokens)
    assert torch.equal(found.mask, whole.mask)
    torch.testing.assert_close(found.logprobs, whole.logprobs)
    assert [count for count, _ in sizes] == turns
    if turns == [1] * 5:
        assert [width for _, width in sizes] == [1, 1, 3, 4, 6]


def test_a_temperature_near_0_is_greedy() -> None:
    model = make()
    cold = generate(model, PROMPTS, max_new_tokens=15, eos_id=None, temperature=1e-38, generator=seeded())
    greedy = generate(model, PROMPTS, max_new_tokens=15, eos_id=None, temperature=0.0)
    assert torch.equal(cold.tokens, greedy.tokens)
    assert (cold.logprobs == 0).all()


def test_top_k_of_one_is_greedy() -> None:
    model = make()
    sampled = generate(model, PROMPTS, max_new_tokens=15, eos_id=None, top_k=1, generator=seeded())
    assert torch.equal(sampled.tokens, generate(model, PROMPTS, max_new_tokens=15, eos_id=None, temperature=0.0).tokens)
    assert (sampled.logprobs == 0).all()


def after_end_is_empty(out: Generation, eos_id: int) -> None:
    for tokens, logprobs, mask in zip(*out, strict=True):
        said = int(mask.sum())
        assert mask[:said].all()
        assert not mask[said:].any()
        assert (tokens[said:] == 0).all()
        assert (logprobs[said:] == 0).all()
        assert eos_id not in tokens[: said - 1].tolist()
        assert said == len(mask) or tokens[said - 1] == eos_id


def test_ends_at_end_of_text_and_says_no_more() -> None:
    model = make()
    free = generate(model, PROMPTS, max_new_tokens=30, eos_id=None, generator=seeded())
    eos_id = int(free.tokens[1, 4])
    out = generate(model, PROMPTS, max_new_tokens=30, eos_id=eos_id, generator=seeded())
    after_end_is_empty(out, eos_id)
    assert out.mask.sum() < out.mask.numel()
    assert torch.equal(out.tokens[out.mask], free.tokens[out.mask])


@pytest.mark.parametrize("eos_id", [0, 5])
def test_all_rows_ending_at_once(eos_id: int) -> None:
    model = make()
    with torch.no_grad():  # the final norm's bias decides: every answer is `eos_id`
        model.decoder.ln_f.bias.copy_(1e3 * model.head_weight[eos_id])
        model.head_weight[eos_id] *= 10
    out = generate(model, PROMPTS, max_new_tokens=6, eos_id=eos_id, temperature=0.0)
    assert out.tokens.tolist() == [[eos_id] + [0] * 5] * 4
    assert out.mask.tolist() == [[True] + [False] * 5] * 4


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_retiring_rows_changes_no_answer(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = make(), PROMPTS * 3
    free = generate(model, prompts, max_new_tokens=40, eos_id=None, temperature=temperature, generator=seeded())
    eos_id = int(free.tokens[:, :20].flatten().mode().values)

    def answer(part: float) -> Generation:
        monkeypatch.setattr(generation, "RETIRED_PART", part)
        return generate(model, prompts, max_new_tokens=40, eos_id=eos_id, temperature=temperature, generator=seeded())

    eager, never = answer(0.0), answer(2.0)
    assert torch.equal(eager.tokens, never.tokens)
    assert torch.equal(eager.mask, never.mask)
    torch.testing.assert_close(eager.logprobs, never.logprobs, atol=1e-4, rtol=0.0)
    after_end_is_empty(eager, eos_id)


@pytest.mark.parametrize(("capacity", "slots"), [(1, 8), (8, 8), (9, 16)])
def test_masks_of_a_static_cache_are_read_as_they_are(capacity: int, slots: int) -> None:
    """In rows of 16 bytes, whatever the prompts and answers are long; a sliced one has the room that is asked for."""
    model = GPT(CONFIG)
    assert generation.new_cache(model, 2, capacity, static=True).keys[0].shape[2] == slots
    assert generation.new_cache(model, 2, capacity, static=False).keys[0].shape[2] == capacity


def test_static_cache_gives_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    # What a CUDA graph replays, run as it is: same cache, same step, without the graph.
    model = make()
    sliced = generate(model, PROMPTS, max_new_tokens=20, eos_id=4, generator=seeded())
    monkeypatch.setattr(generation, "can_capture", lambda _: True)
    monkeypatch.setattr(generation, "accelerated", lambda step, *_: step)
    static = generate(model, PROMPTS, max_new_tokens=20, eos_id=4, generator=seeded())
    assert torch.equal(sliced.tokens, static.tokens)
    torch.testing.assert_close(sliced.logprobs, static.logprobs, atol=1e-4, rtol=0.0)


def test_the_mode_of_every_module_comes_back() -> None:
    model = make().train()
    model.decoder.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    first = generate(model, PROMPTS, max_new_tokens=5, eos_id=None, temperature=0.0)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(
        first.tokens, generate(model.eval(), PROMPTS, max_new_tokens=5, eos_id=None, temperature=0.0).tokens
    )


def test_a_compiled_model_is_not_compiled_again_for_every_length() -> None:
    model = make()
    expected = generate(model, PROMPTS, max_new_tokens=5, eos_id=None, temperature=0.0)
    for block in model.decoder.blocks:
        block.compile(backend=refuse)
    compiled = [block._compiled_call_impl for block in model.decoder.blocks]
    assert torch.equal(generate(model, PROMPTS, max_new_tokens=5, eos_id=None, temperature=0.0).tokens, expected.tokens)
    assert [block._compiled_call_impl for block in model.decoder.blocks] == compiled


def test_the_step_of_a_compiled_model_is_compiled_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the step's own compiler, for which blocks are open."""
    model, stances = make(), set()
    for block in model.decoder.blocks:
        block.compile(backend=refuse)

    def compiled(step: Any, **_: Any) -> Any:
        stances.add(torch._dynamo.eval_frame._stance.stance)
        return step

    monkeypatch.setattr(torch, "compile", compiled)
    generate(model, PROMPTS, max_new_tokens=5, eos_id=None, temperature=0.0, compile=True)
    assert stances == {"default"}


@pytest.mark.parametrize(("steps", "captures"), [(24, [8]), (78, [8, 4, 2, 1])])
def test_few_graphs_are_captured_as_rows_finish(
    steps: int, captures: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row i of 8 ends after i steps: with many to come, the batch is halved."""
    made: list[int] = []

    def record(transcript: Any, token: Tensor, logprob: Tensor) -> None:
        own(transcript, token, logprob)
        transcript.finished |= transcript.rows < transcript.steps

    own = generation._Transcript.record
    monkeypatch.setattr(generation._Transcript, "record", record)
    monkeypatch.setattr(generation, "can_capture", lambda _: True)
    monkeypatch.setattr(generation, "accelerated", lambda step, token, *_: made.append(len(token)) or step)
    generate(make(), [[row + 1] for row in range(8)], max_new_tokens=steps, eos_id=4, temperature=0.0)
    assert made == captures


def test_no_step_under_autocast_casts_the_output_matrix() -> None:
    model = make()

    class Casts(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            cast = func is torch.ops.aten._to_copy.default and args[0].numel() >= model.head_weight.numel()
            self.count += cast
            return func(*args, **(kwargs or {}))

    def casts(steps: int) -> int:
        with torch.autocast("cpu", torch.bfloat16), Casts() as seen:
            generate(model, PROMPTS, max_new_tokens=steps, eos_id=None, temperature=0.0)
        return seen.count

    assert casts(4) == casts(8) > 0


def refuse(*_: object) -> None:
    raise AssertionError("compiled while generating")


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ([], {}, "prompts: found none, expected at least one"),
        ([[1], []], {}, "prompt 2: found no tokens, expected at least one"),
        (
            [[1], [2] * 78],
            {},
            "prompt 2: found 78 tokens and max_new_tokens = 3, expected at most n_positions = 80 together",
        ),
        ([[1, 37]], {}, "prompts: found token 37, expected 0 to 36"),
        ([[-1]], {}, "prompts: found token -1, expected 0 to 36"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens: found 0, expected at least 1"),
        ([[1]], {"temperature": -0.5}, "temperature: found -0.5, expected a finite number from 0 (greedy)"),
        ([[1]], {"temperature": torch.nan}, "temperature: found nan, expected a finite number from 0 (greedy)"),
        ([[1]], {"temperature": torch.inf}, "temperature: found inf, expected a finite number from 0 (greedy)"),
        ([[1]], {"top_k": 0}, "top_k: found 0, expected at least 1"),
        ([[1]], {"top_p": 1.5}, "top_p: found 1.5, expected above 0, up to 1"),
        ([[1]], {"top_p": torch.nan, "temperature": 0.0}, "top_p: found nan, expected above 0, up to 1"),
    ],
)
def test_refusals(prompts: list[list[int]], settings: dict[str, float], message: str) -> None:
    with pytest.raises(UserError) as caught:
        generate(make(), prompts, **{"max_new_tokens": 3, "eos_id": None, **settings})
    assert str(caught.value) == message


def test_autocast_answers_with_the_dtype_of_the_region() -> None:
    model = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = generate(model, PROMPTS, max_new_tokens=6, eos_id=None, generator=seeded())
        loss = model(torch.tensor(PROMPTS[1:2])).float().logsumexp(2).sum()
    loss.backward()
    assert out.logprobs.dtype == torch.float32
    # Copies of the weights that autocast made without gradients must not be trained with.
    assert model.decoder.blocks[0].mlp.fc.weight.grad is not None


def test_any_of_several_tokens_ends_an_answer() -> None:
    model = make()
    free = generate(model, PROMPTS, max_new_tokens=30, eos_id=[], generator=seeded())
    assert free.mask.all()
    ends = [int(free.tokens[1, 4]), int(free.tokens[0, 7])]
    out = generate(model, PROMPTS, max_new_tokens=30, eos_id=ends, generator=seeded())
    for said, mask, all_said in zip(out.tokens.tolist(), out.mask.sum(1).tolist(), free.tokens.tolist(), strict=True):
        first = next((place for place, token in enumerate(all_said) if token in ends), 29)
        assert mask == first + 1
        assert said[:mask] == all_said[:mask]


def test_an_end_among_the_first_tokens_ends_nothing() -> None:
    model = make()
    free = generate(model, PROMPTS, max_new_tokens=30, eos_id=None, generator=seeded())
    ends = [int(free.tokens[1, 4]), int(free.tokens[0, 7])]
    out = generate(model, PROMPTS, max_new_tokens=30, eos_id=ends, ends_after=8, generator=seeded())
    assert any(token in ends for row in free.tokens[:, :8].tolist() for token in row)
    for said, mask, all_said in zip(out.tokens.tolist(), out.mask.sum(1).tolist(), free.tokens.tolist(), strict=True):
        first = next((place for place in range(8, 30) if all_said[place] in ends), 29)
        assert said[:mask] == all_said[: first + 1]
