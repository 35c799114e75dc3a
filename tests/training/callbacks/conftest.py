"""A module and its data for tests of what watches a run."""

import pytest

from gpt_modules.data import PretrainingDataModule
from gpt_modules.training import PretrainingModule
from gpt_modules.training.optimizers import OptimizerConfig


@pytest.fixture
def parts(micro, tmp_path):
    def build(lr=1e-2, **arguments):
        module = PretrainingModule(micro.config(), optimizer=OptimizerConfig(lr=lr), **arguments)
        source = str(micro.pretraining)
        cache = str(tmp_path / "cache")
        sizes = {"context": 16, "batch_size": 12, "validation_fraction": 0.2}
        return module, PretrainingDataModule(source, tokenizer=str(micro.gpt), cache_dir=cache, **sizes)

    return build
