from hashlib import sha256
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
import torch.distributed as dist

from gpt_modules.data import FinetuningDataModule, PPODataModule, RewardDataModule, SFTDataModule
from gpt_modules.data.loader import BatchLoader, Examples
from gpt_modules.data.resumable import ResumableDataModule
from gpt_modules.errors import UserError

LIGHTNING = ["ignore:.isinstance.treespec, LeafSpec.:FutureWarning"]  # its own, on newer torch


class Numbers(Examples):
    """Batches are (epoch, indices): what was asked for."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def batch(self, epoch, indices):
        return torch.tensor([[epoch, i] for i in indices.tolist()]).reshape(-1, 2)


def indices(batches):
    return [i for batch in batches for _, i in batch]


class NumbersData(ResumableDataModule):
    def __init__(self, batch_size=4):
        super().__init__("gpt2")
        self.batch_size = batch_size

    def setup(self, stage):
        self.forget_loader()

    def train_dataloader(self):
        return self.training_loader(Numbers(23), self.batch_size, seed=2)

    def val_dataloader(self):
        return self.validation_loader(Numbers(5), 4)


def rank_of(rank, world):
    module = NumbersData()
    module.trainer = SimpleNamespace(distributed_sampler_kwargs={"rank": rank, "num_replicas": world})
    return module


def limited(limit, world, fn="fit", batch_size=4, alone=None, count=21):
    """What all processes measure under a limit, each as many batches as the Trainer then takes."""
    found = []
    for rank in range(world):
        module = rank_of(rank, world)
        module.trainer.state = SimpleNamespace(fn=SimpleNamespace(value=fn))
        for stage in ("val", "test", "predict"):
            setattr(module.trainer, f"limit_{stage}_batches", limit if fn[:3] == stage[:3] or fn == "fit" else 1.0)
        loader = module.validation_loader(Numbers(count), batch_size, alone)
        taken = loader if isinstance(limit, float) else islice(loader, limit)
        found += [index for batch in taken for _, index in batch.tolist()]
    return sorted(found)


@pytest.mark.parametrize("fn", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize("limit", [1, 2, 3, 5, 6, 9, 1.0])
def test_a_limit_leaves_the_same_rows_to_any_number_of_processes(limit, fn):
    alone = limited(limit, 1, fn)
    assert alone == list(range(min(21, 4 * limit if isinstance(limit, int) else 21)))
    assert [limited(limit, world, fn) for world in (2, 3, 5)] == [alone] * 3


def test_a_limit_counts_the_batches_that_one_process_would_have():
    """Of data whose processes share a batch, each has a part of it."""
    assert limited(1, 4, batch_size=2, alone=8) == limited(1, 1, batch_size=8) == list(range(8))


@pytest.mark.parametrize("steps", [1, 2, 4, 9, float("inf")])
def test_so_does_the_look_before_the_first_step_and_what_follows_has_all(steps):
    """With as many batches as a limit leaves, of which it is to look at some."""
    for world in (1, 2, 3, 5):
        looked, after = [], []
        for rank in range(world):
            module = rank_of(rank, world)
            for name, value in {"limit_val_batches": 5, "num_sanity_val_steps": steps, "sanity_checking": True}.items():
                setattr(module.trainer, name, value)
            loader = module.validation_loader(Numbers(21), 4)
            most = int(min(steps, 5, len(loader)))
            looked += [index for batch in islice(loader, most) for _, index in batch.tolist()]
            module.trainer.sanity_checking = False
            after += [index for batch in islice(loader, 5) for _, index in batch.tolist()]
        assert sorted(looked) == list(range(min(20, int(4 * min(steps, 5)))))
        assert sorted(after) == list(range(20))


def test_a_share_of_each_processs_batches_is_refused():
    assert limited(0.5, 1) == list(range(21)), "the Trainer's own to count"
    with pytest.raises(UserError, match=r"^trainer\.limit_val_batches: found 0\.5 beside 2 processes, expected a "):
        limited(0.5, 2)
    with pytest.raises(UserError, match=r"^trainer\.limit_test_batches: found 0\.5 beside 2 processes, expected a "):
        limited(0.5, 2, "test")


def test_no_batches_are_left_to_the_trainer():
    assert limited(0, 2) == []


def test_every_rank_has_its_share_of_each_loader():
    assert NumbersData().sharding() == (0, 1)
    assert rank_of(1, 3).sharding() == (1, 3)
    alone = BatchLoader(Numbers(23), 8, seed=2).batch_at(0, 0)
    for rank in range(2):
        assert torch.equal(rank_of(rank, 2).train_dataloader().batch_at(0, 0), alone[rank::2])
    held_out = [[batch.tolist() for batch in rank_of(rank, 2).val_dataloader()] for rank in range(2)]
    assert held_out == [[[[0, 0], [0, 2], [0, 4]]], [[[0, 1], [0, 3]]]]


def test_what_is_tested_and_predicted_is_the_validation_source():
    module = NumbersData()
    expected = [batch.tolist() for batch in module.val_dataloader()]
    for loader in (module.test_dataloader(), module.predict_dataloader()):
        assert [batch.tolist() for batch in loader] == expected


def test_a_place_is_kept_before_and_after_there_is_a_loader():
    place = {"loader": {"epoch": 1, "examples": 8, "of": 23, "size": 4, "batches": 2}}
    early, late = NumbersData(), NumbersData()
    assert early.state_dict() == {}
    early.load_state_dict(place)
    assert early.state_dict() == place
    loader = late.train_dataloader()
    late.load_state_dict(place)
    for own in (early.train_dataloader(), loader):
        assert next(iter(own)).tolist() == BatchLoader(Numbers(23), 4, seed=2).batch_at(1, 2).tolist()
    later = {"loader": {**place["loader"], "examples": 12, "batches": 3}}
    assert early.state_dict() == late.state_dict() == later
    early.load_state_dict({})
    assert early.state_dict() == late.state_dict()


def test_the_tokenizer_is_opened_once_and_when_it_is_asked_for():
    module = NumbersData()
    assert module.tokenizer.vocab_size == 50257
    assert module.tokenizer is module.tokenizer


class Recorder(L.LightningModule):
    """Notes its batches, and learns just enough to have a global step."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch.tolist())
        return self.weight * 1.0

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        steps = self.trainer.estimated_stepping_batches  # makes Lightning build the loader before it restores
        assert steps
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder, steps, checkpoint=None, batch_size=4, **kwargs):
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        num_sanity_val_steps=0,
        **kwargs,
    )
    module = Recorder()
    trainer.fit(
        module, datamodule=NumbersData(batch_size), ckpt_path=checkpoint, weights_only=True if checkpoint else None
    )
    trainer.save_checkpoint(folder / f"{steps}.ckpt")
    return module.seen


@pytest.mark.filterwarnings(*LIGHTNING)
@pytest.mark.parametrize(("stop", "limit"), [(3, 1.0), (5, 1.0), (7, 1.0), (2, 2), (3, 2), (2, 0.5)])
def test_a_resumed_trainer_sees_the_same_batches(tmp_path, stop, limit):
    whole = fit(tmp_path, 12, limit_train_batches=limit)
    first = fit(tmp_path, stop, limit_train_batches=limit)
    second = fit(tmp_path, 12, tmp_path / f"{stop}.ckpt", limit_train_batches=limit)
    assert first + second == whole


@pytest.mark.filterwarnings(*LIGHTNING)
def test_reloading_the_loader_does_not_start_over(tmp_path):
    assert fit(tmp_path, 12, reload_dataloaders_every_n_epochs=1) == fit(tmp_path, 12)


@pytest.mark.filterwarnings(*LIGHTNING)
@pytest.mark.parametrize(("batch_size", "left"), [(2, 7), (8, 1), (3, 5), (16, 0)])
def test_a_trainer_that_resumes_with_another_batch_size_ends_the_epoch_and_has_whole_ones_after(
    tmp_path, batch_size, left
):
    """Of 23 examples, two batches of 4 are seen, and then `left` batches of what is left."""
    first = fit(tmp_path, 2)
    an_epoch = 23 // batch_size
    rest = fit(tmp_path, 2 + left + 2 * an_epoch, tmp_path / "2.ckpt", batch_size=batch_size)
    epochs = [rest[:left], rest[left : left + an_epoch], rest[left + an_epoch :]]
    assert [{epoch for batch in batches for epoch, _ in batch} for batches in epochs[1:]] == [{1}, {2}]
    for batches in (first + epochs[0], *epochs[1:]):
        assert len(set(indices(batches))) == len(indices(batches)) == sum(map(len, batches))
    assert [len(batches) for batches in epochs] == [left, an_epoch, an_epoch]


class RowsData(NumbersData):
    """Reads a file of texts and one that validates."""

    def __init__(self, folder):
        super().__init__()
        self.train_source, self.validation_source = str(folder / "a.jsonl"), str(folder / "b.jsonl")
        (folder / "a.jsonl").write_text("a")
        (folder / "b.jsonl").write_text("b")

    def read(self):
        return Path(self.train_source).read_text()


def test_what_is_read_is_of_one_state(tmp_path):
    """A file that grows while it is read is read again; one that always does is refused."""
    data, growing = RowsData(tmp_path), iter("bc")

    def read():
        found = data.read()
        Path(data.train_source).write_text(found + next(growing, ""))
        return found

    assert data.read_whole(read) == "abc" == data.read()
    assert data.files == {
        data.train_source: sha256(b"abc").hexdigest(),
        data.validation_source: sha256(b"b").hexdigest(),
    }
    assert data.files_of(data.train_source) == {data.train_source: sha256(b"abc").hexdigest()}
    digest = data.content
    growing = iter("x" * 9)
    with pytest.raises(
        UserError, match=r"^data: found .*a\.jsonl, .*b\.jsonl changed whenever read, expected files that"
    ):
        data.read_whole(read)
    again = RowsData(tmp_path)
    Path(again.train_source).write_text("abc")
    assert again.content == digest, "of what was read, not of what came later"


def test_who_reads_again_finds_the_same_or_is_told(tmp_path):
    data = RowsData(tmp_path)
    data.expect_unchanged()
    data.read_whole(data.read)
    data.expect_unchanged()
    Path(data.validation_source).write_text("other")
    with pytest.raises(
        UserError, match=r"b\.jsonl: found it changed since the run has read it, expected it left alone; begin anew$"
    ):
        data.expect_unchanged()


def test_processes_that_have_read_other_content_are_told(tmp_path, monkeypatch):
    data, theirs = RowsData(tmp_path), {}
    data.expect_agreement()
    data.read_whole(data.read)
    data.expect_agreement()
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)

    def gather(everyone, own):
        everyone[:] = [own, theirs.get("files", own)]

    monkeypatch.setattr(dist, "all_gather_object", gather)
    data.expect_agreement()
    theirs["files"] = [data.files[data.train_source], "other"]
    with pytest.raises(
        UserError, match=r"b\.jsonl: found other content on another process of the run, expected it left"
    ):
        data.expect_agreement()


@pytest.mark.parametrize("word", ["sft", "reward", "ppo", "finetuning"])
def test_a_run_knows_the_digests_of_what_it_has_read(micro, tmp_path, word):
    kind, source = {
        "sft": (SFTDataModule, micro.sft),
        "reward": (RewardDataModule, micro.comparisons),
        "ppo": (PPODataModule, micro.prompts),
        "finetuning": (FinetuningDataModule, micro.labelled),
    }[word]
    data = kind(str(source), tokenizer=str(micro.gpt), cache_dir=str(tmp_path), validation_fraction=0.3)
    data.prepare_data()
    data.setup("fit")
    assert data.files == {str(source): sha256(source.read_bytes()).hexdigest()}
