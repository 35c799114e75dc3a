import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Categorical
from torch.utils._python_dispatch import TorchDispatchMode

from gpt_modules.functional import entropy, linear_cross_entropy, linear_logprobs, token_logprobs
from gpt_modules.functional import logprobs as logprobs_module
from gpt_modules.functional.logprobs import _balanced_chunk, _ChunkedHead, aligned

CHUNKS = [None, 1, 3, 4, 100]


def head(n: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    hidden, weight = torch.randn(n, 8, dtype=dtype), torch.randn(50, 8, dtype=dtype)
    return hidden.requires_grad_(), weight.requires_grad_(), torch.randint(50, (n,))


def from_full_logits(hidden, weight, labels):
    return F.cross_entropy(hidden @ weight.T, labels, reduction="sum")


# From logits


def test_token_logprobs_and_entropy_agree_with_torch_distributions():
    logits, tokens = torch.randn(2, 3, 11), torch.randint(11, (2, 3))
    oracle = Categorical(logits=logits / 0.7)
    torch.testing.assert_close(token_logprobs(logits, tokens, 0.7), oracle.log_prob(tokens))
    torch.testing.assert_close(entropy(logits, 0.7), oracle.entropy())


def test_probabilities_of_all_tokens_sum_to_one():
    logits = torch.randn(5, 11)
    logprobs = torch.stack([token_logprobs(logits, torch.full((5,), token), 2.0) for token in range(11)])
    torch.testing.assert_close(logprobs.exp().sum(0), torch.ones(5))


def test_low_precision_logits_are_normalised_in_float32():
    logits, tokens = torch.randn(4, 1000).bfloat16(), torch.randint(1000, (4,))
    for result, exact in [
        (token_logprobs(logits, tokens), token_logprobs(logits.double(), tokens)),
        (entropy(logits), entropy(logits.double())),
    ]:
        assert result.dtype == torch.float32
        torch.testing.assert_close(result.double(), exact, atol=1e-5, rtol=1e-5)


def test_entropy_of_uniform_certain_and_cut_distributions():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, -math.inf, -math.inf, -math.inf], [1.0, 1.0, -math.inf, -1e4]])
    logits.requires_grad_()
    result = entropy(logits)
    torch.testing.assert_close(result, torch.tensor([math.log(4), 0.0, math.log(2)]))
    result.sum().backward()
    assert logits.grad.isfinite().all()


# linear_cross_entropy


@pytest.mark.parametrize("chunk", CHUNKS)
def test_cross_entropy_equals_that_of_full_logits_with_its_gradients(chunk):
    hidden, weight, labels = head(10)
    labels[[0, 4, 5, 9]] = -100
    ours, theirs = linear_cross_entropy(hidden, weight, labels, chunk=chunk), from_full_logits(hidden, weight, labels)
    torch.testing.assert_close(ours, theirs)
    of_ours, of_theirs = (torch.autograd.grad(3 * loss, (hidden, weight)) for loss in (ours, theirs))
    torch.testing.assert_close(of_ours, of_theirs)


def test_cross_entropy_gradcheck():
    hidden, weight, labels = head(5, torch.float64)
    labels[2] = -100
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, labels, chunk=2), (hidden, weight))


def test_a_head_of_zeros_costs_ln_v_a_token():
    loss = linear_cross_entropy(torch.randn(6, 8), torch.zeros(50, 8), torch.randint(50, (6,)))
    assert loss.item() == pytest.approx(6 * math.log(50), rel=1e-6)


def test_ignored_rows_may_hold_anything_and_another_index_may_mark_them():
    hidden, weight, labels = head(6)
    dirty = hidden.detach().index_fill(0, torch.tensor([1, 3]), math.nan).requires_grad_()
    marked = labels.index_fill(0, torch.tensor([1, 3]), 7_777)
    loss = linear_cross_entropy(dirty, weight, marked, ignore_index=7_777)
    keep = [0, 2, 4, 5]
    torch.testing.assert_close(loss, from_full_logits(hidden[keep], weight, labels[keep]))
    loss.backward()
    assert torch.count_nonzero(dirty.grad[[1, 3]]) == 0
    assert weight.grad.isfinite().all()


def test_no_label_that_counts_gives_zero_and_zero_gradients():
    hidden, weight, labels = head(4)
    loss = linear_cross_entropy(hidden, weight, torch.full_like(labels, -100))
    loss.backward()
    assert loss.item() == 0
    assert torch.count_nonzero(hidden.grad) == torch.count_nonzero(weight.grad) == 0


@pytest.mark.parametrize("frozen", [0, 1])
def test_only_the_gradient_that_is_wanted_is_formed(frozen):
    tensors, labels = head(6)[:2], torch.randint(50, (6,))
    tensors[frozen].requires_grad_(False)
    linear_cross_entropy(*tensors, labels).backward()
    expected = torch.autograd.grad(from_full_logits(*tensors, labels), tensors[1 - frozen])[0]
    torch.testing.assert_close(tensors[1 - frozen].grad, expected)
    assert tensors[frozen].grad is None


def test_without_gradients_the_loss_is_the_same():
    hidden, weight, labels = head(6)
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, weight, labels)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, linear_cross_entropy(hidden, weight, labels))


def test_a_retained_graph_may_be_walked_twice_and_inputs_stay():
    hidden, weight, labels = head(6)
    before = [tensor.detach().clone() for tensor in (hidden, weight, labels)]
    loss = linear_cross_entropy(hidden, weight, labels, chunk=4)
    once, twice = (torch.autograd.grad(loss * 0.5, (hidden, weight), retain_graph=True) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(once, twice, strict=True))
    assert all(torch.equal(*pair) for pair in zip((hidden, weight, labels), before, strict=True))


class Largest(TorchDispatchMode):
    """How many numbers the largest tensor has that is made anew."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        places = [arg.data_ptr() for arg in args if isinstance(arg, torch.Tensor)]
        if isinstance(out, torch.Tensor) and out.data_ptr() not in places:
            self.numel = max(self.numel, out.numel())
        return out


def test_a_graph_that_is_walked_once_has_its_gradients_in_one_place():
    hidden, weight, labels = head(6)
    loss = linear_cross_entropy(hidden, weight, labels) * 0.5
    expected = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    with Largest() as made:
        loss.backward()
    assert made.numel < weight.numel()
    assert torch.equal(hidden.grad, expected[0])
    assert torch.equal(weight.grad, expected[1])


def test_a_head_used_twice_adds_up():
    hidden, weight, labels = head(6)
    (linear_cross_entropy(hidden, weight, labels) + linear_cross_entropy(2 * hidden, weight, labels)).backward()
    twice = from_full_logits(hidden, weight, labels) + from_full_logits(2 * hidden, weight, labels)
    expected = torch.autograd.grad(twice, (hidden, weight))
    torch.testing.assert_close((hidden.grad, weight.grad), expected)


def test_second_derivatives_are_refused_not_wrong():
    hidden, weight, labels = head(3)
    for loss in (linear_cross_entropy(hidden, weight, labels), linear_logprobs(hidden, weight, labels)[0].sum()):
        with pytest.raises(RuntimeError, match="no second derivatives, use the full logits"):
            torch.autograd.grad(loss, hidden, create_graph=True)


def test_logits_far_apart_do_not_overflow():
    hidden, weight, labels = head(4)
    torch.testing.assert_close(
        linear_cross_entropy(1e3 * hidden, weight, labels), from_full_logits(1e3 * hidden, weight, labels)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cross_entropy_under_autocast(dtype):
    hidden, weight, labels = head(64)
    with torch.autocast("cpu", dtype=dtype):
        ours = linear_cross_entropy(hidden, weight, labels, chunk=10)
        theirs = F.cross_entropy(F.linear(hidden, weight).float(), labels, reduction="sum")
    of_ours, of_theirs = (torch.autograd.grad(loss, (hidden, weight)) for loss in (ours, theirs))
    assert ours.dtype == of_ours[0].dtype == of_ours[1].dtype == torch.float32
    # bfloat16 products are autocast's own and equal; float16 is not used, for it cannot hold a softmax.
    tolerance = {"atol": 1e-4, "rtol": 1e-5} if dtype == torch.bfloat16 else {"atol": 0.05, "rtol": 1e-3}
    torch.testing.assert_close(ours, theirs, **tolerance)
    torch.testing.assert_close(of_ours, of_theirs, atol=0.05, rtol=0.02)


def test_a_bfloat16_model_gets_bfloat16_gradients_and_a_float32_loss():
    hidden, weight, labels = (t.detach().bfloat16().requires_grad_() if t.is_floating_point() else t for t in head(64))
    loss = linear_cross_entropy(hidden, weight, labels, chunk=10)
    of_ours = torch.autograd.grad(loss, (hidden, weight))
    exact = torch.autograd.grad(from_full_logits(hidden.double(), weight.double(), labels), (hidden, weight))
    assert loss.dtype == torch.float32
    assert of_ours[0].dtype == of_ours[1].dtype == torch.bfloat16
    torch.testing.assert_close(of_ours, exact, atol=0.1, rtol=0.05)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_weighted_cross_entropy_equals_that_of_full_logits_with_its_gradients(chunk):
    hidden, weight, labels = head(10)
    labels[[0, 5]] = -100
    row_weights = torch.tensor([1.0, 0.5, 2.0, 0.0, 1e-6, 3.0, -1.0, 0.25, 1.0, 7.0])
    ours = linear_cross_entropy(hidden, weight, labels, chunk=chunk, row_weights=row_weights)
    by_row = F.cross_entropy(hidden @ weight.T, labels, reduction="none")
    theirs = row_weights @ by_row
    torch.testing.assert_close(ours, theirs)
    of_ours, of_theirs = (torch.autograd.grad(3 * loss, (hidden, weight)) for loss in (ours, theirs))
    torch.testing.assert_close(of_ours, of_theirs)


def test_weighted_cross_entropy_gradcheck():
    hidden, weight, labels = head(5, torch.float64)
    row_weights = torch.tensor([0.1, 2.0, 1.0, -0.5, 0.3], dtype=torch.float64)
    loss = partial(linear_cross_entropy, labels=labels, chunk=2, row_weights=row_weights)
    assert torch.autograd.gradcheck(loss, (hidden, weight))


def test_rows_that_weigh_nothing_may_hold_anything():
    hidden, weight, labels = head(6)
    dirty = hidden.detach().index_fill(0, torch.tensor([1, 3]), math.nan).requires_grad_()
    row_weights = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 1.0])
    loss = linear_cross_entropy(dirty, weight, labels, row_weights=row_weights)
    keep = [0, 2, 4, 5]
    torch.testing.assert_close(loss, from_full_logits(hidden[keep], weight, labels[keep]))
    loss.backward()
    assert torch.count_nonzero(dirty.grad[[1, 3]]) == 0


def test_weights_of_one_change_no_bit():
    hidden, weight, labels = head(10)
    plain, weighted = (linear_cross_entropy(hidden, weight, labels, row_weights=w) for w in (None, torch.ones(10)))
    assert torch.equal(plain, weighted)
    grads = (torch.autograd.grad(loss, (hidden, weight)) for loss in (plain, weighted))
    assert all(torch.equal(*pair) for pair in zip(*grads, strict=True))


def test_weighted_cross_entropy_under_bfloat16_autocast():
    hidden, weight, labels = head(64)
    row_weights = torch.rand(64) / 1000
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = linear_cross_entropy(hidden, weight, labels, chunk=10, row_weights=row_weights)
        theirs = row_weights @ F.cross_entropy(F.linear(hidden, weight).float(), labels, reduction="none")
    of_ours, of_theirs = (torch.autograd.grad(1000 * loss, (hidden, weight)) for loss in (ours, theirs))
    assert ours.dtype == of_ours[0].dtype == of_ours[1].dtype == torch.float32
    torch.testing.assert_close(ours, theirs.float(), atol=1e-4, rtol=1e-2)
    torch.testing.assert_close(of_ours, of_theirs, atol=0.05, rtol=0.02)


def test_weights_that_want_a_gradient_are_refused():
    hidden, weight, labels = head(3)
    with pytest.raises(ValueError, match="found requires_grad, expected constants"):
        linear_cross_entropy(hidden, weight, labels, row_weights=torch.ones(3, requires_grad=True))


class Products(TorchDispatchMode):
    """How many matrix products run."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ in ("mm", "addmm", "addmm_")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("wanted", "grad"), [((1, 1), True), ((1, 0), True), ((0, 1), True), ((1, 1), False)])
def test_a_gradient_that_nobody_wants_costs_no_product(wanted, grad):
    tensors, labels = head(6)[:2], torch.randint(50, (6,))
    for tensor, is_wanted in zip(tensors, wanted, strict=True):
        tensor.requires_grad_(bool(is_wanted))
    with torch.set_grad_enabled(grad), Products() as products:
        linear_cross_entropy(*tensors, labels, chunk=2)
    assert products.count == 3 * (1 + grad * sum(wanted))


def test_gradients_of_a_bfloat16_head_add_up_in_float32():
    """In bfloat16, 512 equal shares added one by one would stop growing at the 256th."""
    hidden, weight = torch.ones(512, 4).bfloat16(), torch.zeros(2, 4).bfloat16().requires_grad_()
    linear_cross_entropy(hidden, weight, torch.zeros(512, dtype=torch.int64), chunk=1).backward()
    assert weight.grad.tolist() == [[-256.0] * 4, [256.0] * 4]


@pytest.mark.parametrize(("device", "mebibytes"), [("cpu", 64), ("meta", 512)])
def test_logits_held_at_a_time_are_bounded_and_their_parts_alike(device, mebibytes):
    vocab = 2**14
    most = mebibytes * 2**20 // 4 // vocab
    for rows, chunk in ((most, most), (most + 1, most // 2 + 1), (3 * most, most), (1, 1), (0, 1)):
        found = _balanced_chunk(torch.empty(rows, 0, device=device), torch.empty(vocab, 0, device=device), None)
        assert found == chunk
    assert _balanced_chunk(torch.empty(10, 0), torch.empty(vocab, 0), 4) == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float64_stays_float64_under_autocast(dtype):
    hidden, weight, tokens = head(6, torch.float64)
    exact = linear_cross_entropy(hidden, weight, tokens), *linear_logprobs(hidden, weight, tokens)
    with torch.autocast("cpu", dtype=dtype):
        ours = linear_cross_entropy(hidden, weight, tokens), *linear_logprobs(hidden, weight, tokens)
    for found, expected in zip(ours, exact, strict=True):
        assert found.dtype == torch.float64
        assert torch.equal(found, expected)


def test_float16_autocast_multiplies_in_float32():
    """float16 would round the products, and end at 65504."""
    hidden, weight, tokens = head(6)
    exact = linear_cross_entropy(hidden, weight, tokens), *linear_logprobs(hidden, weight, tokens)
    with torch.autocast("cpu", dtype=torch.float16):
        ours = linear_cross_entropy(hidden, weight, tokens), *linear_logprobs(hidden, weight, tokens)
    assert all(torch.equal(*pair) for pair in zip(ours, exact, strict=True))


# linear_logprobs


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_linear_logprobs_equal_those_of_full_logits_with_their_gradients(chunk, temperature):
    hidden, weight = torch.randn(2, 5, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
    tokens, slopes = torch.randint(50, (2, 5)), torch.randn(2, 5)
    logprobs, entropies = linear_logprobs(hidden, weight, tokens, temperature, chunk)
    logits = hidden @ weight.T
    expected = token_logprobs(logits, tokens, temperature)
    torch.testing.assert_close(logprobs, expected)
    torch.testing.assert_close(entropies, entropy(logits, temperature))
    assert not entropies.requires_grad
    of_ours, of_theirs = (
        torch.autograd.grad((slopes * values).sum(), (hidden, weight)) for values in (logprobs, expected)
    )
    torch.testing.assert_close(of_ours, of_theirs, atol=1e-5, rtol=1e-4)


def test_linear_logprobs_gradcheck():
    hidden, weight, tokens = head(5, torch.float64)
    assert torch.autograd.gradcheck(lambda h, w: linear_logprobs(h, w, tokens, 1.5, 2)[0], (hidden, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("elements", "products"), [(500, 12), (300, 14), (16, 16)])
def test_what_was_kept_and_what_is_computed_again_are_the_same_numbers(monkeypatch, dtype, elements, products):
    """Ten rows of 50 logits in chunks of 3: all of them kept, some, none. Backward has two products a chunk, and one
    more for a chunk that was not kept.
    """
    hidden, weight, tokens = head(10)
    monkeypatch.setattr(logprobs_module, "_CPU_CHUNK_ELEMENTS", elements // 4)

    def gradients():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            logprobs, _ = linear_logprobs(hidden, weight, tokens, 0.7, 3)
        return torch.autograd.grad((logprobs * torch.arange(10)).sum(), (hidden, weight))

    with Products() as counted:
        found = gradients()
    monkeypatch.setattr(logprobs_module, "_KEPT_CHUNKS", 0)
    assert counted.count == products
    assert all(torch.equal(*pair) for pair in zip(found, gradients(), strict=True))


def kept_bytes(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor.shape[1:] == (50,))


@pytest.mark.parametrize(("elements", "kept"), [(500, 2000), (300, 1200), (16, 0)])
def test_what_is_kept_for_backward_is_bounded(monkeypatch, elements, kept):
    hidden, weight, tokens = head(10)
    monkeypatch.setattr(logprobs_module, "_CPU_CHUNK_ELEMENTS", elements // 4)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        linear_logprobs(hidden, weight, tokens, chunk=3)
    assert kept_bytes(saved) == kept


@pytest.mark.parametrize("grad", [True, False])
def test_without_gradients_nothing_is_kept(grad):
    """Neither under no_grad nor for frozen models."""
    hidden, weight, tokens = (
        tensor.detach().requires_grad_(not grad and tensor.is_floating_point()) for tensor in head(10)
    )
    saved = []
    with torch.set_grad_enabled(grad), torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t):
        linear_logprobs(hidden, weight, tokens)
    assert not saved


@pytest.mark.parametrize("size", [1, 3 * 50, 10**6])
def test_the_blocks_of_the_softmax_change_no_bit(monkeypatch, size):
    hidden, weight, tokens = head(10)

    def numbers():
        logprobs, entropies = linear_logprobs(hidden, weight, tokens)
        loss = linear_cross_entropy(hidden, weight, tokens)
        return logprobs, entropies, loss, *torch.autograd.grad(logprobs.sum() + loss, (hidden, weight))

    whole = numbers()
    monkeypatch.setattr(logprobs_module, "_CPU_BLOCK_ELEMENTS", size)
    assert all(torch.equal(*pair) for pair in zip(whole, numbers(), strict=True))


def test_a_token_that_is_nearly_certain_keeps_its_gradient_in_bfloat16():
    """1 - π is formed before anything is rounded: of a product with π, rounded, less a row of weights, nothing would be
    left.
    """
    weight = torch.zeros(2, 4).bfloat16()
    weight[0] = 1.0
    hidden = torch.full((1, 4), 2.0).bfloat16().requires_grad_()
    logprobs, _ = linear_logprobs(hidden, weight, torch.tensor([0]))
    (found,) = torch.autograd.grad(logprobs.sum(), hidden)
    assert found.float().tolist() == [pytest.approx([1 - 1 / (1 + math.exp(-8.0))] * 4, rel=0.01)]


@pytest.mark.parametrize("frozen", [0, 1])
def test_linear_logprobs_of_a_frozen_side(frozen):
    tensors, tokens = head(6)[:2], torch.randint(50, (6,))
    tensors[frozen].requires_grad_(False)
    linear_logprobs(*tensors, tokens)[0].sum().backward()
    expected = torch.autograd.grad(-from_full_logits(*tensors, tokens), tensors[1 - frozen])[0]
    torch.testing.assert_close(tensors[1 - frozen].grad, expected)
    assert tensors[frozen].grad is None


def test_linear_logprobs_of_a_retained_graph_leave_their_inputs():
    hidden, weight, tokens = head(6)
    before = [tensor.detach().clone() for tensor in (hidden, weight, tokens)]
    logprobs, _ = linear_logprobs(hidden, weight, tokens, 0.5, 4)
    once, twice = (torch.autograd.grad(logprobs.sum(), (hidden, weight), retain_graph=True) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(once, twice, strict=True))
    assert all(torch.equal(*pair) for pair in zip((hidden, weight, tokens), before, strict=True))


def test_linear_logprobs_under_autocast_keep_a_float32_softmax():
    hidden, weight, tokens = head(64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logprobs, entropies = linear_logprobs(hidden, weight, tokens, 1.0, 10)
        logits = F.linear(hidden, weight)
        logprobs.sum().backward()
    assert logprobs.dtype == entropies.dtype == hidden.grad.dtype == weight.grad.dtype == torch.float32
    torch.testing.assert_close(logprobs, token_logprobs(logits, tokens), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropies, entropy(logits), atol=1e-5, rtol=1e-5)
    exact = torch.autograd.grad(-from_full_logits(hidden, weight, tokens), (hidden, weight))
    torch.testing.assert_close((hidden.grad, weight.grad), exact, atol=0.2, rtol=0.05)


def test_no_rows_no_values():
    hidden = torch.randn(2, 0, 8, requires_grad=True)
    logprobs, entropies = linear_logprobs(hidden, torch.randn(50, 8), torch.zeros(2, 0, dtype=torch.int64))
    assert logprobs.shape == entropies.shape == (2, 0)
    logprobs.sum().backward()


def test_rows_begin_where_a_processor_likes_them_to_whatever_the_vocabulary():
    room = aligned(3, 50_257, torch.float32, torch.device("cpu"))
    assert room.shape == (3, 50_257)
    assert (room.stride(0) * room.element_size()) % 256 == 0
    head = _ChunkedHead(torch.randn(3, 2), torch.randn(5, 2), (True, True), None, torch.float32)
    torch.testing.assert_close(head.logits(slice(0, 3)), head.hidden @ head.weight.T)
    assert head.logits(slice(0, 3)).stride() == head.logits(slice(0, 3), fresh=True).stride() == (64, 1)
