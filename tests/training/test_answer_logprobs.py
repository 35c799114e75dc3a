"""What a model says of whole answers, against one token at a time; and a reference that reads each of them once."""

import itertools

import numpy as np
import pytest
import torch
from conftest import shaken, write_rows

from gpt_modules.backbone import GPT, load_pretrained, save_pretrained
from gpt_modules.data import RewardDataModule
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError
from gpt_modules.functional import token_logprobs
from gpt_modules.training import DPOModule, answer_logprobs
from gpt_modules.training.optimizers import OptimizerConfig

STILL = OptimizerConfig(lr=0.0, weight_decay=0.0)


def naive(model, tokens, prompt_length):
    """The sum over the answer, each token from its own prefix."""
    total = 0.0
    with torch.no_grad():
        for t in range(prompt_length, len(tokens)):
            logits = model(torch.tensor([tokens[:t].tolist()]))[0, -1].double()
            total += token_logprobs(logits, torch.tensor(int(tokens[t]))).item()
    return total


@pytest.fixture
def data(micro, tmp_path):
    settings = {"context": 32, "batch_size": 8, "cache_dir": str(tmp_path / "cache"), "validation_fraction": 0.1}
    return RewardDataModule(str(micro.comparisons), tokenizer=str(micro.gpt), **settings)


@pytest.fixture
def read(fit, data):
    """read(**arguments of DPOModule): the module after a fit that changed nothing."""

    def run(folder, **arguments):
        module = DPOModule(str(folder), optimizer=STILL, **arguments)
        fit(module, data, max_steps=1, limit_val_batches=1)
        return module

    return run


def values(module, answers):
    return module.reference._values[answers]


def test_the_answer_and_its_end_count_and_nothing_else(micro):
    model = load_pretrained(micro.gpt, kind="gpt").eval()
    rows = [([5, 6, 7], [8, 9, 0]), ([5], [0]), ([7, 7, 7, 7], [3, 0]), ([6, 5], [4, 4, 4, 4, 4, 0])]
    tokens = torch.zeros(4, 8, dtype=torch.long)
    for i, (prompt, answer) in enumerate(rows):
        tokens[i, : len(prompt + answer)] = torch.tensor(prompt + answer)
    counts = torch.tensor([(len(prompt), len(prompt + answer)) for prompt, answer in rows])
    found = answer_logprobs.answer_logprobs(model, tokens, *counts.unbind(1))
    assert found.tolist() == pytest.approx([naive(model, np.array(p + a), len(p)) for p, a in rows], abs=1e-4)
    assert found.dtype == torch.float32


def test_the_gradient_is_that_of_all_logits(micro):
    model = load_pretrained(micro.gpt, kind="gpt").eval()
    tokens, prompts, lengths = torch.randint(1, 40, (3, 9)), torch.tensor([2, 1, 5]), torch.tensor([9, 4, 6])
    weights = torch.tensor([0.3, -1.0, 2.0])
    (weights * answer_logprobs.answer_logprobs(model, tokens, prompts, lengths)).sum().backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    places = torch.arange(1, 9)
    counted = (places >= prompts[:, None]) & (places < lengths[:, None])
    whole = torch.where(counted, token_logprobs(model(tokens)[:, :-1], tokens[:, 1:]), 0.0).sum(1)
    (weights * whole).sum().backward()
    for own, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(own, parameter.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("lengths", [[], [5], [3, 9000, 2], [7] * 4000, list(range(1, 300))])
def test_pieces_hold_every_row_once_and_as_much_as_fits(lengths):
    found = list(answer_logprobs.pieces(lengths))
    assert sorted(itertools.chain(*found)) == list(range(len(lengths)))
    cells = [len(piece) * max(lengths[i] for i in piece) for piece in found]
    assert all(size <= answer_logprobs.CELLS or len(piece) == 1 for size, piece in zip(cells, found, strict=True))
    joined = [
        (len(one) + 1) * lengths[other[0]] for one, other in itertools.pairwise(found)
    ]  # the next row would have been too much
    assert all(size > answer_logprobs.CELLS for size in joined)


def test_the_reference_says_of_each_answer_what_its_folder_says(read, micro, data):
    module = read(micro.gpt)
    model = load_pretrained(micro.gpt, kind="gpt").eval()
    for examples in (data.train_examples, data.validation_examples):
        found = values(module, examples).tolist()
        assert len(found) == len(examples.answers) > 10
        for i in range(0, len(found), 37):
            assert found[i] == pytest.approx(naive(model, *examples.answers[i]), abs=1e-4)


def test_a_batch_finds_the_values_of_its_own_answers(read, micro, data):
    module = read(micro.gpt)
    batch = data.train_examples.batch(3, np.array([4, 0, 7]))
    found = module.reference.of(data.train_examples, batch)
    own = answer_logprobs.answer_logprobs(module.model.eval(), batch.tokens, batch.prompt_lengths, batch.lengths)
    torch.testing.assert_close(found[batch.mask], own[batch.index][batch.mask], atol=1e-4, rtol=0)


def test_it_reads_once_and_is_let_go(read, fit, micro, data, monkeypatch):
    opened, original = [], answer_logprobs.artefacts.open_gpt
    monkeypatch.setattr(answer_logprobs.artefacts, "open_gpt", lambda *a, **k: opened.append(a) or original(*a, **k))
    module = read(micro.gpt)
    fit(module, data, max_steps=2, limit_val_batches=1)
    assert len(opened) == 2, "the policy and the reference"
    assert [model for model in module.modules() if isinstance(model, GPT)] == [module.model]


def test_how_the_answers_are_read_changes_no_more_than_rounding(read, micro, data, monkeypatch):
    whole = values(read(micro.gpt), data.train_examples)
    monkeypatch.setattr(answer_logprobs, "CELLS", 40)
    torch.testing.assert_close(values(read(micro.gpt), data.train_examples), whole, atol=1e-4, rtol=0)


def test_new_data_is_read_anew(read, fit, micro, data, tmp_path):
    """By its object, for numbers of other data would name other answers."""
    module, before = read(micro.gpt), data.train_examples
    rows = [{"prompt": f"a story {n}", "chosen": " so.", "rejected": " no."} for n in range(30)]
    other = RewardDataModule(
        str(write_rows(tmp_path / "other.jsonl", rows)), tokenizer=str(micro.gpt), context=32, cache_dir=str(tmp_path)
    )
    fit(module, other, max_steps=1, limit_val_batches=1)
    assert len(values(module, other.train_examples)) == len(other.train_examples.answers)
    assert len(values(module, before)) == len(before.answers)


def test_a_reference_that_another_took_the_place_of_is_refused(read, fit, micro, data, tmp_path):
    folder = tmp_path / "reference"
    model = load_pretrained(micro.gpt, kind="gpt")
    save_pretrained(folder, model, tokenizer_json=micro.tokenizer.to_json())
    module = read(micro.gpt, reference_from=str(folder))
    module.trainer.save_checkpoint(tmp_path / "x.ckpt")
    save_pretrained(folder, shaken(model, 5), tokenizer_json=micro.tokenizer.to_json())
    again = DPOModule(str(micro.gpt), reference_from=str(folder), optimizer=STILL)
    with pytest.raises(UserError, match=r"^model\.reference_from or init_from: found another model"):
        fit(again, data, max_steps=3, ckpt_path=tmp_path / "x.ckpt")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"n_positions": 8},
            r"^data\.context: found 32 and in train .* at most n_positions = 8 of the refer",
        ),
        ({"vocab_size": 20}, r"^.*/reference: found a vocabulary of 20, expected at least the tokenizer's \d+$"),
    ],
)
def test_a_reference_that_cannot_read_the_answers_is_refused(read, micro, tmp_path, change, line):
    model = GPT(micro.config(**change))
    save_pretrained(tmp_path / "reference", model)
    (tmp_path / "reference" / "tokenizer.json").write_text(micro.tokenizer.to_json())
    with pytest.raises(UserError, match=line):
        read(micro.gpt, reference_from=str(tmp_path / "reference"))


def test_a_reference_that_reads_other_tokens_is_refused(read, micro, tmp_path):
    other = Tokenizer.train(["another text of other words, again and again"] * 9, micro.vocab_size)
    save_pretrained(tmp_path / "reference", GPT(micro.config()), tokenizer_json=other.to_json())
    with pytest.raises(UserError, match=r"reference/tokenizer\.json: differs from the policy's tokenizer"):
        read(micro.gpt, reference_from=str(tmp_path / "reference"))


def test_a_reward_model_is_no_reference(read, micro):
    with pytest.raises(UserError, match=r"reward: found a model of kind 'reward', expected 'gpt'"):
        read(micro.gpt, reference_from=str(micro.reward))
