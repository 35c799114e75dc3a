"""A run's folder says which votes made its model."""

import json
from hashlib import sha256

import pytest
from conftest import write_rows

from gpt_modules.data import RewardDataModule
from gpt_modules.errors import UserError
from gpt_modules.training import RewardModule
from gpt_modules.training.callbacks.dashboard import RunLogger
from gpt_modules.training.callbacks.votes import VOTES_FILE, VoteRecord
from gpt_modules.training.optimizers import OptimizerConfig


def rows(first, last, labeler):
    answers = {"responses": [" is good.", " is bad."], "ranking": [1, 2]}
    return [
        {"prompt": f"the film {n}", **answers, "labeler": labeler, "round": 1 + n // 40} for n in range(first, last)
    ]


@pytest.fixture
def run(fit, micro, tmp_path):
    """run(rows, **settings of the Trainer): a run on them, its Trainer."""

    def start(given, **settings):
        file = write_rows(tmp_path / "votes.jsonl", given)
        data = RewardDataModule(str(file), tokenizer=str(micro.gpt), context=32, cache_dir=str(tmp_path / "cache"))
        return fit(
            RewardModule(str(micro.gpt), optimizer=OptimizerConfig(lr=1e-3)), data, callbacks=[VoteRecord()], **settings
        )

    return start


def recorded(folder):
    return json.loads((folder / VOTES_FILE).read_text())["seen"]


def test_the_folder_says_which_votes_made_the_model(run, tmp_path):
    logger = RunLogger(tmp_path / "curves", name="", version="")
    trainer = run(rows(0, 80, "ann"), logger=logger, max_steps=1)
    logger.finalize("success")
    (seen,) = recorded(tmp_path)
    assert seen["from_step"] == 0
    digest = sha256((tmp_path / "votes.jsonl").read_bytes()).hexdigest()
    for part in ("train", "validation"):
        assert seen[part]["sha256"] == {str(tmp_path / "votes.jsonl"): digest}
    counts = {part: [vote["votes"] for vote in seen[part]["votes"]] for part in ("train", "validation")}
    assert sum(counts["train"]) == len(trainer.datamodule.train_examples)
    assert sum(counts["train"] + counts["validation"]) == 80
    assert [(vote["round"], vote["labeler"]) for vote in seen["train"]["votes"]] == [(1, "ann"), (2, "ann")]
    told = f"| train | 1 | ann | {counts['train'][0]} |".encode()
    assert any(told in events.read_bytes() for events in (tmp_path / "curves").glob("events*"))


def test_a_run_that_goes_on_with_other_votes_says_both(run, tmp_path):
    """With the same ones it says nothing new; in another folder, from which step on they were these."""
    resumed = {"max_epochs": 2, "ckpt_path": tmp_path / "2.ckpt"}
    run(rows(0, 80, "ann"), max_steps=2).save_checkpoint(tmp_path / "2.ckpt")
    before = recorded(tmp_path)
    run(rows(0, 80, "ann"), **resumed)
    assert recorded(tmp_path) == before
    for labeler in ("ben", "carl"):  # the second in place of the first: they go on from the same step
        run(rows(0, 120, labeler), **resumed)
        first, second = recorded(tmp_path)
        assert ([first], second["from_step"]) == (before, 2)
        assert {vote["labeler"] for vote in second["train"]["votes"]} == {labeler}
    run(rows(0, 120, "carl"), **resumed, default_root_dir=tmp_path / "other")
    assert recorded(tmp_path / "other") == [second]


def test_a_record_that_is_none_is_told_before_a_step(run, tmp_path):
    run(rows(0, 80, "ann"), max_steps=2).save_checkpoint(tmp_path / "2.ckpt")
    (tmp_path / VOTES_FILE).write_text("{}")
    with pytest.raises(UserError, match=r"votes\.json: seen: "):
        run(rows(0, 80, "ann"), max_epochs=2, ckpt_path=tmp_path / "2.ckpt")


def test_a_try_leaves_no_record(run, tmp_path):
    run(rows(0, 80, "ann"), fast_dev_run=True)
    assert not (tmp_path / VOTES_FILE).exists()
