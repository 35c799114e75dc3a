"""What a command opens: a language model with a tokenizer that fits it, or one line."""

import pytest
import torch

from gpt_modules.backbone import GPT, save_pretrained
from gpt_modules.commands.opening import open_language_model
from gpt_modules.errors import UserError

CPU = torch.device("cpu")


def test_a_folder_with_its_tokenizer(micro):
    model, tokenizer = open_language_model(str(micro.gpt), CPU)
    assert not any(module.training for module in model.modules())
    assert tokenizer.fingerprint == micro.tokenizer.fingerprint


def test_another_kind_of_model_and_a_file(micro):
    with pytest.raises(UserError, match=r"reward: found a model of kind 'reward', expected 'gpt'"):
        open_language_model(str(micro.reward), CPU)
    with pytest.raises(UserError, match=r"sft\.jsonl: found a file, expected a model folder"):
        open_language_model(str(micro.sft), CPU)


def test_a_tokenizer_that_does_not_fit(micro, tmp_path):
    small = GPT(micro.config(vocab_size=100))
    save_pretrained(tmp_path / "small", small)
    with pytest.raises(UserError, match=r"small: found no tokenizer\.json in this folder"):
        open_language_model(str(tmp_path / "small"), CPU)
    (tmp_path / "small/tokenizer.json").write_text(micro.tokenizer.to_json())
    with pytest.raises(UserError) as caught:
        open_language_model(str(tmp_path / "small"), CPU)
    found = f"found {micro.vocab_size} tokens in its tokenizer, expected at most the model's 100"
    assert str(caught.value) == f"{tmp_path / 'small'}: {found}"
