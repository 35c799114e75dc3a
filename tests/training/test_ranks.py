"""Two processes on the CPU validate as one does, however few rows there are."""

import pytest
from lightning.pytorch import Trainer

import gpt_modules.data
from gpt_modules import training
from gpt_modules.data.episodes.ciphers import SubstitutionCipher
from gpt_modules.training.inner_loop import InnerLoop
from gpt_modules.training.optimizers import OptimizerConfig
from gpt_modules.training.ppo import KLConfig

WORDS = ["pretraining", "finetuning", "sft", "reward", "ppo", "maml"]
QUIET = [
    "ignore:.*sync_dist=True",  # the metrics are of all ranks already
    "ignore:.*was called before the ``update``",  # by the rank that has no rows
]


def held_out(micro, word, folder, rows):
    files = {"pretraining": micro.pretraining, "finetuning": micro.labelled, "sft": micro.sft}
    files |= {"reward": micro.comparisons, "ppo": micro.prompts}
    source = folder / f"{rows}.jsonl"
    source.write_text("".join(files[word].read_text().splitlines(keepends=True)[:rows]))
    return str(source)


@pytest.fixture
def validated(micro, tmp_path):
    """validated(word, rows, processes): the metrics."""

    def run(word, rows, processes, **changes):
        recipe = micro.recipe(word, tmp_path / "run")
        model, data = (recipe[key]["init_args"] for key in ("model", "data"))
        if word == "maml":
            model["inner"] = InnerLoop(**model["inner"])
            data |= {"families": [SubstitutionCipher(5)], "validation_tasks": rows, "val_tasks_a_batch": 1}
        else:
            data |= {"validation": held_out(micro, word, tmp_path, rows), "val_batch_size": 1}
        module = getattr(training, recipe["model"]["class_path"])(**typed_arguments(word, micro, model))
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        strategy = "ddp_fork" if processes > 1 else "auto"
        trainer = Trainer(accelerator="cpu", devices=processes, strategy=strategy, logger=False, **quiet)
        datamodule = getattr(gpt_modules.data, recipe["data"]["class_path"])(**data | changes)
        (found,) = trainer.validate(module, datamodule, verbose=False)
        return found

    return run


def typed_arguments(word, micro, arguments):
    """What the recipe's parser would make of the mappings."""
    arguments = {**arguments, "optimizer": OptimizerConfig(**arguments["optimizer"])}
    if word == "pretraining":
        arguments["config"] = micro.config()
    if word == "ppo":
        arguments["kl"] = KLConfig(**arguments["kl"])
    return arguments


@pytest.mark.slow
@pytest.mark.filterwarnings(*QUIET)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("word", WORDS)
def test_metrics_of_two_processes_are_those_of_one(validated, word, rows):
    assert validated(word, rows, 2) == pytest.approx(validated(word, rows, 1), rel=1e-5, nan_ok=True)
