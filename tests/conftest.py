"""One thread and one seed, so that a test gives the same numbers alone, beside others, and on any machine."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
