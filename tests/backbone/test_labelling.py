"""Task models: states read at the extract token, answers that are not there, and trunks copied from language models."""

import math

import pytest
import torch
import torch.nn.functional as F

from gpt_modules.backbone import GPT, DecoderConfig, LabellingModel
from gpt_modules.errors import UserError
from gpt_modules.labelling import Labelling

SIZES = {"vocab_size": 31, "n_positions": 12, "n_layer": 3, "n_head": 2, "n_embd": 16}
CONFIG = DecoderConfig.from_dict(SIZES).without_dropout()
CLASSES, PAIRS, CHOICES = (
    Labelling(labels=("a", "b", "c")),
    Labelling("similarity", ("no", "yes")),
    Labelling("multiple_choice"),
)
TOKENS = torch.tensor([[4, 5, 6, 0, 0], [7, 8, 9, 10, 11], [3, 2, 0, 0, 0], [1, 1, 1, 1, 0]])
LENGTHS = torch.tensor([3, 5, 2, 4])
SPECIAL = (31, 32, 33)


def states(model: LabellingModel) -> torch.Tensor:
    """Each row's last state, from the row alone."""
    rows = [model.hidden(row[None, :n])[0, -1] for row, n in zip(TOKENS, LENGTHS, strict=True)]
    return torch.stack(rows)


@pytest.mark.parametrize(
    "task", [CLASSES, Labelling("regression"), Labelling("entailment", ("x", "y")), Labelling(levels=(1, 5))]
)
def test_classes_are_read_at_the_last_token_whatever_the_padding(task: Labelling) -> None:
    model = LabellingModel(CONFIG, task).eval()
    found = model(TOKENS, LENGTHS, torch.tensor([[2], [0], [3], [1]]))
    expected = states(model)[[2, 0, 3, 1]] @ model.head.linear.weight.T
    assert found.shape == (4, task.n_outputs)
    torch.testing.assert_close(found, expected)


def test_the_order_of_a_pair_does_not_matter() -> None:
    model, index = LabellingModel(CONFIG, PAIRS).eval(), torch.tensor([[0, 1], [2, 3]])
    found = model(TOKENS, LENGTHS, index)
    torch.testing.assert_close(found, model(TOKENS, LENGTHS, index.flip(1)))
    torch.testing.assert_close(found, states(model).view(2, 2, -1).sum(1) @ model.head.linear.weight.T)


def test_answers_that_are_not_there_have_no_chance_and_no_gradient() -> None:
    model = LabellingModel(CONFIG, CHOICES).eval()
    scores = model(TOKENS, LENGTHS, torch.tensor([[0, 1, 2], [3, -1, -1]]))
    torch.testing.assert_close(scores[0], states(model)[:3] @ model.head.linear.weight[0])
    assert scores[1, 0].isfinite()
    assert scores[1, 1:].tolist() == [-math.inf, -math.inf]
    assert F.cross_entropy(scores[1:], torch.tensor([0])).item() == 0.0
    F.cross_entropy(scores, torch.tensor([1, 0])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(("task", "width"), [(CLASSES, 1), (PAIRS, 2), (CHOICES, 3)])
def test_filler_examples_are_finite_and_change_no_gradient(task: Labelling, width: int) -> None:
    model = LabellingModel(CONFIG, task).eval()
    index, labels = torch.arange(width)[None], torch.tensor([0, -100])
    filled = torch.cat([index, torch.full((1, width), -1)])
    outputs = model(TOKENS, LENGTHS, filled)
    assert outputs.isfinite().all()
    parameters = list(model.parameters())
    with_filler = torch.autograd.grad(F.cross_entropy(outputs, labels), parameters)
    without = torch.autograd.grad(F.cross_entropy(model(TOKENS, LENGTHS, index), labels[:1]), parameters)
    torch.testing.assert_close(with_filler, without)


@pytest.mark.parametrize("task", [CLASSES, PAIRS, CHOICES])
def test_a_batch_of_nothing_but_filler(task: Labelling) -> None:
    model = LabellingModel(CONFIG, task)
    outputs = model(torch.tensor([[0]]), torch.tensor([1]), torch.full((2, 1), -1))
    assert outputs.shape == (2, task.n_outputs)
    assert outputs.isfinite().all()


def test_outputs_of_hidden_states_are_those_of_tokens() -> None:
    model, index = LabellingModel(CONFIG, CHOICES).eval(), torch.tensor([[0, 1], [2, 3]])
    hidden = model.hidden(TOKENS)
    assert torch.equal(model.outputs(hidden, LENGTHS, index), model(TOKENS, LENGTHS, index))
    assert model.head_weight is model.decoder.wte.weight


# From a language model


def test_all_of_the_trunk_is_copied_and_three_tokens_are_new() -> None:
    gpt = GPT(CONFIG)
    model = LabellingModel.from_gpt(gpt, CLASSES, SPECIAL)
    assert model.config.vocab_size == 34
    assert torch.equal(model.hidden(TOKENS), gpt.hidden(TOKENS))
    assert torch.equal(model.head_weight[:31], gpt.head_weight)
    with torch.no_grad():
        gpt.head_weight.zero_()
    assert model.head_weight[:31].abs().sum() > 0  # a copy, not shared


def test_rows_of_special_tokens_are_drawn_and_the_others_kept() -> None:
    config = DecoderConfig.from_dict({**SIZES, "vocab_size": 40, "n_head": 4, "n_embd": 512, "n_layer": 1})
    gpt = GPT(config)
    with torch.no_grad():
        gpt.head_weight.fill_(3.0)
    model = LabellingModel.from_gpt(gpt, CLASSES, (38, 39, 40))
    assert model.head_weight.shape == (41, 512)
    assert (model.head_weight[:38] == 3.0).all()
    assert model.head_weight[38:].std().item() == pytest.approx(0.02, rel=0.05)
    assert LabellingModel.from_gpt(gpt, CLASSES, ()).head_weight.equal(gpt.head_weight)


def test_an_output_matrix_of_its_own_comes_along_and_grows_with_the_embedding() -> None:
    gpt = GPT(DecoderConfig.from_dict({**SIZES, "tied": False, "positions": "rotary"}).without_dropout())
    model = LabellingModel.from_gpt(gpt, CLASSES, SPECIAL)
    assert model.head_weight is model.lm_head.weight
    known = len(gpt.head_weight)
    for found, given in ((model.lm_head, gpt.lm_head), (model.decoder.wte, gpt.decoder.wte)):
        assert torch.equal(found.weight[:known], given.weight)
        assert found.weight[known:].shape == (len(SPECIAL), SIZES["n_embd"])
    tokens = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(model.hidden(tokens), gpt.hidden(tokens))


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("layers", [0, 1, 3])
def test_the_lowest_layers_are_transferred_and_the_rest_is_fresh(norm: str, layers: int) -> None:
    gpt = GPT(DecoderConfig.from_dict({**SIZES, "norm": norm}))
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.fill_(5.0)
    model = LabellingModel.from_gpt(gpt, CLASSES, SPECIAL, init_layers=layers)
    copied = {name for name, p in model.decoder.named_parameters() if (p[:31] == 5.0).all()}
    expected = {"wte.weight", "wpe.weight"}
    expected |= {name for name, _ in gpt.decoder.named_parameters() if name.startswith("blocks.")}
    fresh = tuple(f"blocks.{layer}." for layer in range(layers, 3))
    expected = {name for name in expected if not name.startswith(fresh)} if fresh else expected
    assert copied == expected | ({"ln_f.weight", "ln_f.bias"} if norm == "pre" and layers == 3 else set())
    assert all(not p.eq(5.0).any() for name, p in model.decoder.named_parameters() if name not in copied)


def test_settings_are_carried_over() -> None:
    gpt = GPT(CONFIG).to(torch.float64)
    model = LabellingModel.from_gpt(gpt, PAIRS, SPECIAL, classifier_dropout=0.3)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    assert (model.task, model.head.drop.p) == (PAIRS, 0.3)


@pytest.mark.parametrize("layers", [-1, 4])
def test_more_layers_than_there_are(layers: int) -> None:
    with pytest.raises(UserError, match=rf"^init_layers: found {layers}, expected a number of layers between 0 and 3$"):
        LabellingModel.from_gpt(GPT(CONFIG), CLASSES, SPECIAL, init_layers=layers)


def test_a_task_without_classes_and_a_dropout_that_is_none() -> None:
    with pytest.raises(UserError, match=r"^labels: found none, expected the names of the task's classes$"):
        LabellingModel(CONFIG, Labelling())
    with pytest.raises(UserError, match=r"^classifier_dropout: found 1.5, expected a probability in \[0, 1\)$"):
        LabellingModel(CONFIG, CLASSES, 1.5)
