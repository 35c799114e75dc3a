"""The model card: what the hub's own reader finds in it."""

from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
import torch
from huggingface_hub import ModelCard

from gpt_modules.backbone import GPT, DecoderConfig, LabellingModel, RewardModel, load_pretrained, save_pretrained
from gpt_modules.backbone.folders.card import Facts, write_card
from gpt_modules.data.text.tokenizers import Tokenizer
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


def test_it_says_what_it_learnt_from_and_where_it_stood_before(tmp_path: Path) -> None:
    found = card(
        tmp_path / "m", RewardModel(SMALL), kind="critic", weights="an average",
        models={"Rewards": ["a", "b"], "No": []},
        before={"val/score": 1.0, "val/gone": 3.0}, metrics={"val/score": 2.5, "val/new": 0.5},
    )  # fmt: skip
    lines = found.text.splitlines()
    for line in ("| Kind | critic |", "| Weights | an average |", "| Rewards | `a`, `b` |",
                 "| metric | before | after |", "| val/score | 1 | 2.5 |", "| val/new |  | 0.5 |"):  # fmt: skip
        assert line in lines
    assert not [line for line in lines if line.startswith(("| No", "| val/gone"))]


def test_its_code_scores_texts_of_any_lengths(micro: Any, tmp_path: Path, transformers: ModuleType) -> None:
    """Run as it stands: their scores are ours but for the constant and the scale that the folder keeps."""
    model = cast(RewardModel, load_pretrained(micro.reward)).eval()
    tokenizer = Tokenizer.load(micro.reward)
    save_pretrained(tmp_path / "m", model, tokenizer_json=tokenizer.to_json(), chat=tokenizer.chat_files())
    write_card(tmp_path / "m", Facts("Reward"))
    code = (tmp_path / "m" / "README.md").read_text().split("```python\n")[-1].split("```")[0]
    said = ["good", "a film that is much longer than that", f"a film that ended{tokenizer.eos}"]
    values: dict[str, Any] = {"texts": said}
    exec(code.replace("FOLDER", str(tmp_path / "m")), values)
    for text, score in zip(values["texts"], values["scores"], strict=True):
        ended = [tokenizer.eos_id] if text.endswith(tokenizer.eos) else []
        ids = torch.tensor([tokenizer.encode(text.removesuffix(tokenizer.eos)) + ended])
        ours = model.token_values(ids)[0, -1].item()
        assert (score + model.head.linear.bias.item()) == pytest.approx(ours, abs=1e-5)


@pytest.mark.parametrize(
    ("model", "library", "opened"),
    [
        (RewardModel(SMALL), "transformers", "AutoModelForSequenceClassification.from_pretrained"),
        (
            LabellingModel(SMALL, Labelling("classification", ("a", "b"))),
            "transformers",
            "AutoModelForSequenceClassification.from_pretrained",
        ),
        (LabellingModel(SMALL, Labelling("multiple_choice")), "transformers", "GPT2DoubleHeadsModel.from_pretrained"),
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
