"""`transformers` as an oracle."""

import warnings
from types import ModuleType

import pytest


@pytest.fixture
def transformers() -> ModuleType:
    """The library, quiet: what it says on import and of its progress is not ours to mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        _ = transformers.GPT2LMHeadModel, transformers.OpenAIGPTLMHeadModel  # loaded on first use, with warnings
    return transformers
