"""The model card: what the hub's own reader finds in it."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from gpt_modules.backbone import GPT, DecoderConfig, LabellingModel, RewardModel, save_pretrained
from gpt_modules.backbone.folders.card import Facts, write_card
from gpt_modules.errors import UserError
from gpt_modules.labelling import Labelling

SMALL = DecoderConfig(vocab_size=31, n_positions=12, n_layer=1, n_head=2, n_embd=8)


def card(folder: Path, model: GPT | RewardModel | LabellingModel, **facts: object) -> ModelCard:
    save_pretrained(folder, model)
    write_card(folder, Facts("PPO", **facts))
    return ModelCard.load(folder / "README.md")


def test_it_says_where_a_model_comes_from_and_what_it_reached(tmp_path: Path) -> None:
    found = card(
        tmp_path / "m", GPT(SMALL), recipe="ppo/tiny", base="owner/name", data={"train": ["reviews", "a|b.jsonl"]},
        metrics={"val/score": 1.23456, "val/kl": 0.5}, steps=1200, versions={"torch": "2.13"},
    )  # fmt: skip
    assert found.data.to_dict() == {
        "library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["gpt_modules", "PPO"],
        "base_model": "owner/name",
    }  # fmt: skip
    for line in (
        "# ppo/tiny", "| Kind | language model |", "| Trained by | PPO, recipe `ppo/tiny` |", "| Steps | 1,200 |",
        "| Began from | `owner/name` |", "| Data (train) | `reviews`, `a\\|b.jsonl` |", "| Versions | torch 2.13 |",
        "| val/kl | 0.5 |", "| val/score | 1.235 |",
        f"| Decoder | gpt2, n_layer 1, n_embd 8, n_positions 12, {SMALL.n_params():,} parameters as a language model |",
    ):  # fmt: skip
        assert line in found.text.splitlines()


@pytest.mark.parametrize(
    ("model", "library", "opened"),
    [
        (RewardModel(SMALL), "transformers", "AutoModelForSequenceClassification.from_pretrained"),
        (LabellingModel(SMALL, Labelling("classification", ("a", "b"))), "transformers", "load_pretrained"),
        (GPT(DecoderConfig.from_dict({**SMALL.to_dict(), "attention": ["banded"]})), "gpt_modules", "load_pretrained"),
    ],
)
def test_it_says_who_opens_the_folder(model: GPT, library: str, opened: str, tmp_path: Path) -> None:
    found = card(tmp_path / "m", model, base=str(tmp_path))
    assert found.data.library_name == library
    assert found.data.base_model is None  # a path is no name on the hub
    assert found.data.pipeline_tag == ("text-generation" if isinstance(model, GPT) else "text-classification")
    assert opened in found.text
    assert ("transformers import" in found.text) == (opened != "load_pretrained")


def test_there_is_none_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        write_card(tmp_path, Facts("SFT"))
