"""A checkpoint that could not be read again is not written."""

import pathlib
import pickle
from collections import Counter, OrderedDict, defaultdict, deque

import lightning.pytorch as L
import numpy as np
import pytest
import torch

from gpt_modules.errors import UserError
from gpt_modules.training.callbacks.checkpointing import ExactCheckpoint, VerifiedCheckpointIO, checkpoints
from gpt_modules.training.callbacks.plain_data import expect_plain


@pytest.mark.parametrize(
    "value",
    [None, True, 1, 0.5, 1j, "a", b"a", torch.ones(2), torch.nn.Parameter(torch.ones(2)), torch.Size([1]),
     torch.float32, {"a": [1, (2, {3})]}, OrderedDict(a=1), Counter("aab")],
)  # fmt: skip
def test_what_is_read_again_is_taken(value, tmp_path):
    expect_plain(value, "x")
    write_and_read(value, tmp_path / "x")


def write_and_read(value, path):
    torch.save(value, path)
    torch.load(path, weights_only=True)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (np.float32(1), "numpy.float32"),
        (np.ones(2), "numpy.ndarray"),
        (pathlib.PurePosixPath("a"), "pathlib.PurePosixPath"),
        (deque([1]), "collections.deque"),
        (defaultdict(int), "collections.defaultdict"),
        (L.Callback, "builtins.type"),
        (lambda: 1, "builtins.function"),
    ],
)
def test_what_is_not_is_refused_with_its_place(value, kind, tmp_path):
    with pytest.raises(UserError) as refused:
        expect_plain({"callbacks": {"Mine": {"best": [0, value]}}}, "")
    assert str(refused.value).startswith(f"callbacks: Mine: best: found {kind}, expected numbers and text of Python's")
    with pytest.raises((pickle.PickleError, AttributeError)):
        write_and_read(value, tmp_path / "x")


class Best(L.Callback):
    """Whose state is a number of numpy's, at once or after some steps."""

    def __init__(self, after):
        self.after, self.seen = after, 0

    def on_train_batch_start(self, *_):
        self.seen += 1

    def state_dict(self):
        return {"best": np.float64(1.0) if self.seen > self.after else 1.0}


@pytest.mark.parametrize(("after", "saved"), [(-1, 0), (2, 2)])
def test_a_callback_that_would_spoil_the_checkpoints_ends_the_run_before_one_is_lost(
    fit, procedure, tmp_path, after, saved
):
    settings = {"enable_checkpointing": True, "plugins": [VerifiedCheckpointIO()], "max_steps": 5}
    with pytest.raises(UserError, match=r"^callbacks: Best: best: found numpy\.float64, expected numbers"):
        fit(*procedure("sft"), callbacks=[ExactCheckpoint(1, keep=9), Best(after)], **settings)
    assert len(checkpoints(tmp_path / "checkpoints")) == saved
