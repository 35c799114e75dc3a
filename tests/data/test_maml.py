"""Episodes as batches: functions of (seed, epoch, index), the same validation for every run, one line for mistakes."""

import json
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

from gpt_modules.data.batches import EpisodeBatch, EpisodeSet
from gpt_modules.data.episodes.ciphers import AffineCipher, SubstitutionCipher
from gpt_modules.data.episodes.cloze import Cloze
from gpt_modules.data.episodes.families import Episode, Example, Family
from gpt_modules.data.episodes.sinusoid import Sinusoid
from gpt_modules.data.episodes.ways import LabelledClasses
from gpt_modules.data.maml import EpisodicDataModule
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError

SMALL = {"support": 4, "query": 3, "tasks": 2, "steps": 5, "validation_tasks": 5}


class Parity(Family):
    """Whether a row of `a` is even: two classes, in an order of the task's own."""

    classes = 2

    def episode(self, generator, split, support, query):
        swapped = int(generator.integers(2))
        labels = [(i + swapped) % 2 for i in range(support + query)]
        examples = [Example("a" * (2 + i % 2) + ">", "xy"[label], label) for i, label in enumerate(labels)]
        return Episode(examples[:support], examples[support:])


class Speechless(Family):
    """Its responses are longer than some contexts."""

    def episode(self, generator, split, support, query):
        return Episode([Example("a>", "b" * 9)] * support, [Example("a>", "b" * 9)] * query)


def make(families=None, **changes):
    text = {} if isinstance(families, Sinusoid) else {"tokenizer": "train"}
    settings = {**text, **SMALL, **changes}
    module = EpisodicDataModule(families or [SubstitutionCipher(6, 2)], **settings)
    module.prepare_data()
    module.setup("fit")
    return module


def lists(batch):
    return [tensor.tolist() for tensor in tree_leaves(batch)]


@pytest.mark.parametrize("families", [None, Sinusoid()])
def test_batches_are_a_function_of_seed_epoch_and_index(families):
    loader, again = make(families).train_dataloader(), make(families).train_dataloader()
    played = [[lists(batch) for batch in loader] for _ in range(2)]
    assert (len(played[0]), len(played[1])) == (5, 5)
    assert lists(again.batch_at(1, 3)) == played[1][3]
    assert played[0] != played[1]
    assert lists(make(families, seed=1).train_dataloader().batch_at(0, 0)) != played[0][0]


def test_a_resumed_run_sees_the_same_batches():
    whole = make().train_dataloader()
    expected = [lists(batch) for _ in range(3) for batch in whole]
    first, second = make(), make()
    loader = first.train_dataloader()
    seen = [lists(batch) for batch in loader] + [lists(batch) for batch in islice(loader, 2)]
    second.load_state_dict(first.state_dict())
    loader = second.train_dataloader()
    assert seen + [lists(batch) for _ in range(2) for batch in loader] == expected


def test_ranks_share_the_tasks_of_an_epoch():
    alone = make(tasks=4).train_dataloader()
    for rank in range(2):
        module = make()
        module.trainer = SimpleNamespace(distributed_sampler_kwargs={"rank": rank, "num_replicas": 2})
        loader, validation = module.train_dataloader(), module.val_dataloader()
        assert len(loader) == 5
        mine = loader.batch_at(0, 1).query.inputs[0]
        assert torch.equal(mine, alone.batch_at(0, 1).query.inputs[0][rank::2])
        assert sum(len(batch.query.targets) for batch in validation) == (3, 2)[rank], "5 tasks, each once"


def test_all_runs_validate_on_the_same_tasks_and_none_is_trained_on():
    one, other = make(), make(seed=7)
    batches = [lists(batch) for batch in one.val_dataloader()]
    assert batches == [lists(batch) for batch in one.val_dataloader()] == [lists(b) for b in other.val_dataloader()]
    drawn = one.episodes("validation", 5, 4, 3)
    assert lists(one.encode(drawn[:2])) == batches[0]
    assert one.episodes("validation", 5, 4, 3, seed=1) != drawn
    first = make(support=4).episodes("train", 2, 4, 3)
    assert lists(make().train_dataloader().batch_at(0, 0)) == lists(make().encode(first))


def test_families_take_turns_and_validation_may_have_its_own():
    module = make([SubstitutionCipher(6, 1), AffineCipher(6, 2)], validation_families=[AffineCipher(6, 4)])
    lengths = [len(episode.query[0].response) for episode in module.episodes("train", 4, 4, 3)]
    assert lengths == [1, 2, 1, 2]
    assert {len(episode.query[0].response) for episode in module.episodes("validation", 4, 4, 3)} == {4}


def test_numbers_are_regression():
    module = make(Sinusoid(), support=10, query=6)
    assert module.objective == "regression"
    batch = module.train_dataloader().batch_at(0, 0)
    assert isinstance(batch, EpisodeBatch)
    assert (batch.support.inputs[0].shape, batch.query.targets.shape) == ((2, 10, 1), (2, 6, 1))
    (episode,) = module.episodes("train", 1, 10, 6)
    assert np.array_equal(batch.query.inputs[0][0].numpy(), episode.query[0])
    assert np.array_equal(batch.support.targets[0].numpy(), episode.support[1])
    with pytest.raises(UserError, match="tokenizer: found families of numbers"):
        _ = module.tokenizer


def test_training_in_context_is_one_row_a_task_and_validation_one_a_query():
    module = make(in_context=True)
    (tokens,), targets = module.train_dataloader().batch_at(0, 0).query
    assert tokens.shape == targets.shape == (2, 1, 7 * 6 - 2), "seven of five tokens, and six line breaks"
    assert (targets >= 0).sum().item() == 2 * 7 * 2
    batch = next(iter(module.val_dataloader()))
    assert batch.support.targets.shape == (2, 4, 4)
    assert batch.query.targets.shape == (2, 3, 5 * 6 - 2)
    assert (batch.query.targets >= 0).sum(-1).eq(2).all()


def test_classes_are_targets_of_a_classifier():
    module = make([Parity()], objective="classification")
    assert module.task_spec.labels == ("0", "1")
    batch = module.train_dataloader().batch_at(0, 0)
    tokens, lengths, index = batch.support.inputs
    assert tokens.shape == (2, 4, 6)
    assert lengths.tolist() == [[5, 6, 5, 6]] * 2
    assert tokens[:, :, 0].eq(module.tokenizer.task_ids[0]).all()
    assert index.tolist() == [[[0], [1], [2], [3]]] * 2
    starts = [batch.support.targets[:, 0].tolist() for batch in module.train_dataloader()]
    assert {label for labels in starts for label in labels} == {0, 1}, "a class is another one in another task"


def test_a_tokenizer_of_the_families_own_text():
    tokenizer = make([SubstitutionCipher(6, 2), Parity()]).tokenizer
    assert tokenizer.vocab_size == len("abcdef>xy\n") + 2
    assert make(seed=9).tokenizer.fingerprint == make().tokenizer.fingerprint
    assert make(tokenizer="gpt2").tokenizer.vocab_size == Tokenizer.gpt2().vocab_size


def test_pinning_keeps_the_form_of_a_nested_batch(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 1)
    pinned = make().train_dataloader().batch_at(0, 0)
    monkeypatch.undo()
    plain = make().train_dataloader().batch_at(0, 0)
    assert isinstance(pinned.query, EpisodeSet)
    assert all(torch.equal(a, b + 1) for a, b in zip(tree_leaves(pinned), tree_leaves(plain), strict=True))


@pytest.mark.parametrize(
    ("families", "changes", "message"),
    [
        (None, {"support": 0}, "support: found 0, expected at least 1"),
        (None, {"validation_families": []}, "families: found none"),
        (None, {"validation_families": Sinusoid()}, "validation_families: found text beside numbers"),
        (None, {"objective": "classification"}, "families: found SubstitutionCipher with 0 classes"),
        (Sinusoid(), {"objective": "classification"}, "objective: found classification for families of numbers"),
        (Sinusoid(), {"in_context": True}, "in_context: found true without a language model"),
        ([Parity()], {"in_context": True, "objective": "classification"}, "in_context: found true without a language"),
        ([Speechless()], {"context": 8}, r"Speechless: context: found a prompt of 2 tokens \('a>'\) and a response"),
    ],
)
def test_mistakes_are_one_line(families, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        make(families, **changes)
    assert "\n" not in str(caught.value)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_texts_of_validation_that_another_family_trains_on_are_counted(tmp_path, caplog):
    """What a family holds out of its source is its own affair; another one may have all of it."""
    rows = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(80)]
    source = write(tmp_path / "a.jsonl", rows)
    other = write(tmp_path / "b.jsonl", [{**row, "text": f"other {row['text']}"} for row in rows])
    make([LabelledClasses(source), LabelledClasses(other)], support=2, query=2)
    assert not caplog.records
    module = make([LabelledClasses(source, other)], validation_families=[LabelledClasses(source)], support=2, query=2)
    (held_out,) = module.families["validation"]
    count = len(list(held_out.texts("validation")))
    assert [record.getMessage() for record in caplog.records] == [
        f"validation_families: {count} of {count} validation rows are in the training rows too"
    ]


@pytest.mark.parametrize("family", [LabelledClasses, Cloze])
def test_a_familys_file_may_not_train_and_validate(tmp_path, family):
    source = write(tmp_path / "a.jsonl", [{"text": f"one more text is number {i}", "label": i % 2} for i in range(80)])
    with pytest.raises(UserError) as caught:
        make([family(source, source)])
    assert str(caught.value) == (
        f"validation: found {source}, the training file too, expected rows that are not trained on"
    )
