"""What several processes wrote in parts, any number of them reads, all of it or their own rows; what is damaged,
missing or more than data is told by its file.
"""

import json
import os
import pickle
import random
from pathlib import Path

import pytest
import torch

from gpt_modules.errors import UserError
from gpt_modules.storage.digests import sha256_of
from gpt_modules.training.callbacks.checkpointing import (
    VerifiedCheckpointIO,
    checkpoints,
    digest_path,
    newest_checkpoint,
    verifies,
)
from gpt_modules.training.sharding.files import (
    INDEX,
    MARK,
    REST,
    Stored,
    finish_folder,
    joined,
    parted,
    rows_of,
    shard_name,
    write_part,
)


class InShards(torch.Tensor):
    """Stands for a tensor of which each process has its rows."""


def tensors(rows=5):
    return {
        "weight": torch.arange(rows * 3.0).view(rows, 3),
        "bias": torch.arange(1.0),
        "half": torch.ones(4).bfloat16(),
    }


def document():
    sharded = {name: tensor.as_subclass(InShards) for name, tensor in tensors().items()}
    return {
        "state_dict": sharded,
        "optimizer_states": [{"step": torch.tensor(3.0), "m": [sharded["weight"]]}],
        "at": (1, 2),
    }


def write(folder, world, content=None):
    """As so many processes do, one after another."""
    content, new = content or document(), folder.with_name(f".{folder.name}.{'0' * 32}.tmp")
    new.mkdir(parents=True)
    digests = {}
    for rank in range(world):

        def part_of(value, rank=rank):
            first, last = rows_of(rank, world, len(value)) if isinstance(value, InShards) else (0, 0)
            return torch.Tensor(value)[first:last].to(value.dtype) if isinstance(value, InShards) else None

        rest, parts = parted(content, part_of)
        digests[shard_name(rank, world)] = write_part(new, shard_name(rank, world), parts)
    finish_folder(new, folder, digest_path(folder), rest, digests)
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "step=00000002.ckpt", 2)


@pytest.mark.parametrize(("world", "count"), [(2, 5), (4, 5), (3, 1), (4, 0), (1, 7)])
def test_rows_are_cut_as_torch_cuts_them(world, count):
    chunks = [len(chunk) for chunk in torch.zeros(count).chunk(world)]
    found = [rows_of(rank, world, count) for rank in range(world)]
    assert [last - first for first, last in found] == [*chunks, *[0] * (world - len(chunks))][:world]
    assert [row for first, last in found for row in range(first, last)] == list(range(count))


@pytest.mark.parametrize("written", [1, 2, 4])
@pytest.mark.parametrize("reading", [1, 2, 3])
def test_any_number_of_processes_reads_what_another_wrote(tmp_path, written, reading):
    path = write(tmp_path / "step=00000002.ckpt", written)
    parts = []
    for rank in range(reading):

        def own(stored, rank=rank):
            return stored.rows(*rows_of(rank, reading, stored.shape[0]))

        loaded = VerifiedCheckpointIO().load_checkpoint(path, own=own)
        assert loaded["at"] == (1, 2)
        assert loaded["optimizer_states"][0]["step"] == 3.0
        assert torch.equal(loaded["optimizer_states"][0]["m"][0], loaded["state_dict"]["weight"])
        parts.append(loaded["state_dict"])
    for name, whole in tensors().items():
        together = torch.cat([part[name] for part in parts])
        assert together.dtype == whole.dtype
        assert torch.equal(together, whole)
    alone = VerifiedCheckpointIO().load_checkpoint(path)["state_dict"]
    assert all(torch.equal(alone[name], whole) for name, whole in tensors().items())


def test_parts_joined_are_the_document():
    rest, parts = parted({"a": [1, (2.0, "x")], "b": {"c": None}}, lambda value: None)
    assert (rest, parts) == ({"a": [1, (2.0, "x")], "b": {"c": None}}, {})

    def rows(value):
        return value if isinstance(value, torch.Tensor) else None

    rest, parts = parted({"a": [torch.ones(2)]}, rows)
    assert rest == {"a": [{MARK: "/a/0", "shape": [2]}]}
    assert joined(rest, lambda name, shape: (parts[name] is not None, tuple(shape))) == {"a": [(True, (2,))]}
    shared = torch.ones(4, 2)
    rest, parts = parted(
        {"policy": shared[:], "critic": shared[:], "head": shared[2:], "other": torch.ones(4, 2)}, rows
    )
    assert list(parts) == ["/policy", "/head", "/other"], "a trunk of two models is written once"
    assert rest["critic"] == rest["policy"]
    assert Stored(torch.Size([3, 2]), lambda first, last: torch.zeros(last - first, 2)).whole().shape == (3, 2)


def test_all_of_it_is_as_readable_as_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        folder = write(tmp_path / "step=00000002.ckpt", 3)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o640}


@pytest.mark.parametrize("name", [REST, INDEX, shard_name(0, 2), shard_name(1, 2)])
def test_what_is_damaged_or_missing_is_told_and_the_one_before_it_taken(folder, name):
    before = write(folder.with_name("step=00000001.ckpt"), 3)
    assert newest_checkpoint(folder.parent) == folder
    assert checkpoints(folder.parent) == [before, folder]
    path = folder / name
    kept, place = path.read_bytes(), random.Random(name).randrange(path.stat().st_size)
    for damage in (kept[:place] + bytes([kept[place] ^ 1]) + kept[place + 1 :], kept[:place], None):
        path.unlink() if damage is None else path.write_bytes(damage)
        assert not verifies(folder)
        with pytest.warns(UserWarning, match=r"step=00000002\.ckpt: damaged"):
            assert newest_checkpoint(folder.parent) == before
        with pytest.raises(UserError, match="damaged" if damage is not None else "damaged|no such file") as told:
            VerifiedCheckpointIO().load_checkpoint(folder)
        assert name in str(told.value) or name == INDEX
    path.write_bytes(kept)
    assert verifies(folder)


def test_a_process_reads_no_file_but_its_own(folder):
    """Which may be all that its machine has room for."""
    (folder / shard_name(1, 2)).unlink()
    own = VerifiedCheckpointIO().load_checkpoint(folder, own=lambda stored: stored.rows(0, min(1, stored.shape[0])))
    assert torch.equal(own["state_dict"]["weight"], tensors()["weight"][:1])


def test_a_file_and_a_folder_take_each_others_place(folder):
    VerifiedCheckpointIO().save_checkpoint({"x": 1}, folder)
    assert VerifiedCheckpointIO().load_checkpoint(folder) == {"x": 1}
    write(folder, 2)
    assert verifies(folder)
    write(folder, 4)
    assert len(list(folder.iterdir())) == 6
    VerifiedCheckpointIO().remove_checkpoint(folder)
    assert list(folder.parent.iterdir()) == []


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("marker"),))


@pytest.mark.parametrize("name", [REST, shard_name(0, 2)])
def test_code_in_a_folder_does_not_run(folder, monkeypatch, tmp_path, name):
    """Though its digests are those of the files."""
    monkeypatch.chdir(tmp_path)
    files = {path.name: path for path in folder.iterdir()}
    files[name].write_bytes(pickle.dumps(Evil()))
    index = json.loads(files[INDEX].read_text())
    index["files"][name] = sha256_of(files[name])
    files[INDEX].write_text(json.dumps(index))
    digest_path(folder).write_text(sha256_of(files[INDEX]))
    with pytest.raises(UserError, match="not a checkpoint of plain data"):
        VerifiedCheckpointIO().load_checkpoint(folder)
    assert not (tmp_path / "marker").exists()
