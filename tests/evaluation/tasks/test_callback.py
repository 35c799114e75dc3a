"""Tasks measured beside a pretraining: when, of what, and without a mark on it."""

import json

import lightning.pytorch as L
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gpt_modules.data import PretrainingDataModule
from gpt_modules.errors import UserError
from gpt_modules.evaluation import FewShot
from gpt_modules.evaluation.tasks.callback import language_model
from gpt_modules.training import PretrainingModule, RewardModule


def pretrain(micro, folder, callbacks, logger=False):
    """Four steps with a validation before them and after every second one; the module."""
    torch.manual_seed(0)
    data = PretrainingDataModule(
        str(micro.pretraining), tokenizer=str(micro.gpt), context=16, batch_size=4, cache_dir=str(folder)
    )
    module = PretrainingModule(micro.config())
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_steps=4, val_check_interval=2, limit_val_batches=1, num_sanity_val_steps=1,
        default_root_dir=folder, callbacks=callbacks, logger=logger, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return module


def few_shot(folder, **keys):
    """A callback with a task of choices, a task of cloze, and a text."""
    choices = [{"query": "the film is so", "choices": ["good", "bad"], "gold": n % 2, "n": n} for n in range(6)]
    (folder / "pick.jsonl").write_text("".join(json.dumps(row) + "\n" for row in choices))
    clozes = [{"context": f"the film {n} is", "continuation": "good"} for n in range(4)]
    (folder / "fill.jsonl").write_text("".join(json.dumps(row) + "\n" for row in clozes))
    (folder / "read.txt").write_text("the film is good.")
    kinds = {"pick": ("choice", "context: '{n} {query}'\n"), "fill": ("cloze", ""), "read": ("perplexity", "")}
    for name, (kind, more) in kinds.items():
        data = folder / ("read.txt" if name == "read" else f"{name}.jsonl")
        (folder / f"{name}.yaml").write_text(f"kind: {kind}\nsource: {data}\n{more}")
    return FewShot([str(folder / f"{name}.yaml") for name in kinds], **{"shots": [2, 0], **keys})


def test_tasks_are_measured_with_every_validation_and_change_no_step(micro, tmp_path):
    callback, logger = few_shot(tmp_path), TensorBoardLogger(tmp_path, name="", version="")
    module = pretrain(micro, tmp_path, [callback], logger)
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    names = {"pick/0", "pick/2", "fill/0", "fill/2", "read/0"}
    found = {tag for tag in events.Tags()["scalars"] if tag.startswith("few_shot")}
    assert found == {f"{start}/{name}" for start in ("few_shot", "few_shot_by_tokens") for name in names}
    for name in names:
        by_step, by_tokens = (events.Scalars(f"{start}/{name}") for start in ("few_shot", "few_shot_by_tokens"))
        assert [event.step for event in by_step] == [0, 2, 4]
        assert [event.step for event in by_tokens] == [0, 2 * 4 * 16, 4 * 4 * 16]
        assert [event.value for event in by_step] == [event.value for event in by_tokens]
    assert len(events.Images("few_shot/shots")) >= 1
    assert set(callback.latest) == {"pick", "fill", "read"}
    assert callback.latest["read"][0].value == pytest.approx(events.Scalars("few_shot/read/0")[-1].value)
    without = pretrain(micro, tmp_path, [])
    for one, other in zip(module.parameters(), without.parameters(), strict=True):
        assert torch.equal(one, other), "dropout of a run with tasks draws the same numbers"


def test_a_bad_task_is_told_before_the_first_step(micro, tmp_path):
    callback = few_shot(tmp_path, shots=[7])
    with pytest.raises(UserError, match="pick: demonstrations: found 6, expected at least 7"):
        pretrain(micro, tmp_path, [callback])
    read = tmp_path / "read.yaml"
    with pytest.raises(UserError, match=r"^FewShot: shots: found 0,2 for tasks of perplexity alone, which have no dem"):
        pretrain(micro, tmp_path, [FewShot([str(read)], shots=[2, 0])])
    read.write_text(read.read_text() + "stride: 33\n")
    with pytest.raises(UserError, match=r"^read: stride: found 33, expected at most n_positions = 32$"):
        pretrain(micro, tmp_path, [FewShot([str(read)])])
    with pytest.raises(UserError, match=r"FewShot: found tasks \[\] and shots \(0,\), expected at least one of each"):
        FewShot([])


def test_a_recipe_names_tasks_and_shots():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callbacks", type=list[L.Callback])
    given = [{"class_path": "gpt_modules.evaluation.FewShot", "init_args": {"tasks": ["2D+"], "shots": [0, 5]}}]
    (callback,) = parser.instantiate(parser.parse_object({"callbacks": given})).callbacks
    assert (callback.tasks, callback.shots, callback.settings.limit) == (["2D+"], [0, 5], 200)


def test_it_needs_a_whole_language_model(micro):
    module = PretrainingModule(micro.config())
    module.configure_model()
    assert language_model(module, "FewShot") is module.model
    with pytest.raises(UserError, match="FewShot: found RewardModule, expected a module that trains a GPT"):
        language_model(RewardModule(str(micro.reward)), "FewShot")
