"""What a recipe may name: by what the parser itself then does."""

import lightning.pytorch as L
import pytest
from jsonargparse import ArgumentError, ArgumentParser
from torch import nn

from gpt_modules.commands.parsing.vocabulary import (
    CALLBACKS,
    FAMILIES,
    PROCEDURES,
    allow_only,
    named_classes,
)


@pytest.fixture
def names():
    """The parser's answer to a name where any object may stand; afterwards it allows what a recipe is allowed."""

    def asks(name, *packages):
        allow_only(packages)
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--x", type=nn.Module | L.Callback)
        return parser.parse_args(["--x", name]).x

    yield asks
    allow_only([])


@pytest.mark.parametrize(
    "name", ["torch.nn.Tanh", "gpt_modules.backbone.FeedForward", "lightning.pytorch.callbacks.DeviceStatsMonitor"]
)
def test_ours_lightnings_parts_and_torchs_layers_may_be_named(names, name):
    names(name)


@pytest.mark.parametrize(
    "name",
    [
        "subprocess.Popen",
        "torch.hub.load",
        "torch.utils.data.DataLoader",
        "lightning.pytorch.Trainer",
        "lightning.pytorch.callbacks.LambdaCallback",
        "lightning.pytorch.callbacks.lambda_function.LambdaCallback",
        "gpt_modules.cli.main",
        "gpt_modules.commands.run.main",
        "package_of_a_stranger.Marker",
    ],
)
def test_nothing_else_may_and_nothing_of_it_is_imported(names, tmp_path, monkeypatch, name):
    marker = tmp_path / "imported"
    (tmp_path / "package_of_a_stranger.py").write_text(f"open({str(marker)!r}, 'w')\nclass Marker: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ArgumentError, match="is not allowed"):
        names(name)
    assert not marker.exists()


def test_a_package_may_be_allowed_and_no_other_with_it(names, tmp_path, monkeypatch):
    for name in ("mine_of_test_vocabulary", "mine_of_test_vocabulary_too"):
        (tmp_path / f"{name}.py").write_text("from torch import nn\nclass Mine(nn.Module): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    names("mine_of_test_vocabulary.Mine", "mine_of_test_vocabulary")
    with pytest.raises(ArgumentError, match="is not allowed"):
        names("mine_of_test_vocabulary_too.Mine", "mine_of_test_vocabulary")
    with pytest.raises(ArgumentError, match="is not allowed"):
        names("mine_of_test_vocabulary.Mine")


SHARED = {"dpo": "reward"}  # a word without data of its own


def test_every_procedure_is_a_module_with_its_data():
    assert list(PROCEDURES) == ["pretraining", "finetuning", "sft", "reward", "ppo", "maml", "dpo"]
    for word, (module, data) in PROCEDURES.items():
        assert module.__module__ == f"gpt_modules.training.{word}"
        assert data.__module__ == f"gpt_modules.data.{SHARED.get(word, word)}"
        assert issubclass(module, L.LightningModule)
        assert issubclass(data, L.LightningDataModule)


def of_package(package, base):
    """Public classes below `base` that a package has, without those that others of it are made from."""
    kinds, seen = [base], set()
    while kinds:
        below = kinds.pop().__subclasses__()
        kinds += below
        seen |= {kind for kind in below if kind.__module__.startswith(f"{package}.")}
    seen = {kind for kind in seen if not kind.__name__.startswith("_")}
    return {kind for kind in seen if not any(other in seen for other in kind.__subclasses__())}


def test_no_callback_family_or_module_of_ours_was_forgotten():
    assert of_package("gpt_modules.evaluation", L.Callback) == set(CALLBACKS)
    assert of_package("gpt_modules.training", L.LightningModule) == {module for module, _ in PROCEDURES.values()}
    assert of_package("gpt_modules.data", L.LightningDataModule) == {data for _, data in PROCEDURES.values()}


def test_short_names_are_of_ours_and_of_lightnings():
    named = named_classes()
    for kind in (*FAMILIES, *CALLBACKS, *(kind for pair in PROCEDURES.values() for kind in pair)):
        assert named[kind.__name__] is kind
    assert named["EarlyStopping"] is L.callbacks.EarlyStopping
    assert not [name for name in named if name.startswith("_")]

    class Stranger(L.Callback):
        pass

    assert "Stranger" not in named_classes()
