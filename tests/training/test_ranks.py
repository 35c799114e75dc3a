"""Two processes on the CPU validate as one does, however few rows there are."""

import pytest
from conftest import shaken
from lightning.pytorch import Trainer

from gpt_modules.backbone import LabellingModel, load_pretrained, save_pretrained
from gpt_modules.labelling import Labelling

WORDS = ["pretraining", "finetuning", "sft", "reward", "ppo", "maml", "dpo"]
HEADED = ["finetuning", "reward"]


def held_out(micro, word, folder, rows):
    files = {"pretraining": micro.pretraining, "finetuning": micro.labelled, "sft": micro.sft}
    files |= {"reward": micro.comparisons, "dpo": micro.comparisons, "ppo": micro.prompts}
    source = folder / f"{rows}.jsonl"
    source.write_text("".join(files[word].read_text().splitlines(keepends=True)[:rows]))
    return str(source)


def headed(micro, word, folder):
    """A folder with the head that nobody could learn in a validation."""
    if word == "reward":
        return str(micro.reward)
    if (folder / "task").exists():
        return str(folder / "task")
    tokenizer = micro.tokenizer.with_task_tokens()
    task = Labelling("classification", ("blame", "praise"))
    model = shaken(LabellingModel.from_gpt(load_pretrained(micro.gpt, "gpt"), task, tokenizer.task_ids), 3)
    save_pretrained(folder / "task", model, tokenizer_json=tokenizer.to_json())
    return str(folder / "task")


@pytest.fixture
def validated(micro, procedure, tmp_path):
    """validated(word, rows, processes): the metrics."""

    def run(word, rows, processes, packing=True):
        module, data = procedure(word, **({"init_from": headed(micro, word, tmp_path)} if word in HEADED else {}))
        if word == "maml":
            data.validation_tasks, data.val_tasks_a_batch = rows, 1
        else:
            data.validation_source, data.val_batch_size = held_out(micro, word, tmp_path, rows), 1
        if word == "sft":
            data.packing = packing
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        strategy = "ddp_fork" if processes > 1 else "auto"
        trainer = Trainer(accelerator="cpu", devices=processes, strategy=strategy, logger=False, **quiet)
        (found,) = trainer.validate(module, data, verbose=False)
        return found

    return run


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("word", WORDS)
def test_metrics_of_two_processes_are_those_of_one(validated, word, rows):
    assert validated(word, rows, 2) == pytest.approx(validated(word, rows, 1), rel=1e-5, nan_ok=True)


@pytest.mark.slow
def test_a_rank_without_unpacked_rows_runs_on_padding(validated):
    one, two = (validated("sft", 1, processes, packing=False) for processes in (1, 2))
    assert two == pytest.approx(one, rel=1e-5)
