"""Weights to compare with: a model of the same kind from a folder, or one line."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from gpt_modules.backbone import GPT, FeedForward, LabellingModel, load_pretrained, save_pretrained
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError
from gpt_modules.evaluation.adaptation.baseline import check_tokenizer, open_baseline
from gpt_modules.labelling import Labelling


def test_a_language_model_is_that_of_the_folder(micro):
    opened = open_baseline(str(micro.gpt), GPT(micro.config()), None)
    expected = load_pretrained(str(micro.gpt), kind="gpt").state_dict()
    assert opened.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in opened.state_dict().items())


def test_a_classifier_has_the_trunk_of_a_language_model(micro, tmp_path):
    tokenizer = micro.tokenizer.with_task_tokens()
    task, config = Labelling("classification", ("a", "b")), micro.config(vocab_size=tokenizer.vocab_size)
    save_pretrained(tmp_path / "gpt", GPT(config), tokenizer_json=tokenizer.to_json())
    data = SimpleNamespace(task_spec=task, tokenizer=tokenizer)
    opened = open_baseline(str(tmp_path / "gpt"), LabellingModel(config, task), data)
    assert isinstance(opened, LabellingModel)
    stored = load_pretrained(tmp_path / "gpt", kind="gpt").decoder.blocks[0].mlp.fc.weight
    assert torch.equal(opened.decoder.blocks[0].mlp.fc.weight, stored)
    three = LabellingModel(config, Labelling("classification", ("a", "b", "c")))
    save_pretrained(tmp_path / "three", three, tokenizer_json=tokenizer.to_json())
    with pytest.raises(UserError, match=r"three: found a LabellingModel of 3 outputs, expected a LabellingModel of 2"):
        open_baseline(str(tmp_path / "three"), LabellingModel(config, task), data)


def test_a_reward_model_is_no_language_model(micro):
    with pytest.raises(UserError, match=r"baseline: .*reward: found a RewardModel, expected a GPT"):
        open_baseline(str(micro.reward), GPT(micro.config()), None)


def test_a_network_of_numbers(tmp_path):
    network = FeedForward(hidden=[3])
    with pytest.raises(UserError, match=r"model\.safetensors: found no readable weights, expected those of a run's"):
        open_baseline(str(tmp_path), network, None)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"model\.safetensors: found no readable weights"):
        open_baseline(str(tmp_path), network, None)
    save_file({name: value + 1.0 for name, value in network.state_dict().items()}, tmp_path / "model.safetensors")
    opened = open_baseline(str(tmp_path), network, None)
    assert all(torch.equal(value, network.state_dict()[name] + 1.0) for name, value in opened.state_dict().items())
    with pytest.raises(UserError, match=r"found other weights, expected those of a FeedForward"):
        open_baseline(str(tmp_path), FeedForward(hidden=[4]), None)


def test_tokens_that_mean_something_else(micro, tmp_path):
    model = load_pretrained(str(micro.gpt), kind="gpt")
    check_tokenizer(str(micro.gpt), model, micro.tokenizer)
    other = Tokenizer.train(["and now for something else entirely"] * 3, 280)
    with pytest.raises(UserError, match="found another tokenizer, expected the run's"):
        check_tokenizer(str(micro.gpt), model, other)
    with pytest.raises(UserError, match=rf"found 100 tokens, expected at least the data's {micro.vocab_size}"):
        check_tokenizer(str(micro.gpt), GPT(micro.config(vocab_size=100)), micro.tokenizer)
    save_pretrained(tmp_path / "bare", model)
    check_tokenizer(str(tmp_path / "bare"), model, other)


def test_a_vocabulary_in_two_files_is_compared_too(micro, tmp_path):
    """As the release of GPT-1 has it: the same number of ids, other tokens."""
    ours = Tokenizer.train(["the film is good and its cast is fine"] * 5, 300, kind="gpt1")
    other = Tokenizer.train(["once upon another time there was no such word"] * 5, 300, kind="gpt1")
    model = GPT(micro.config(vocab_size=400))
    save_pretrained(tmp_path / "gpt", model)
    form = json.loads(ours.to_json())["model"]
    symbols = {**form["vocab"], ours.eos: ours.eos_id}
    (tmp_path / "gpt/vocab.json").write_text(json.dumps(symbols))
    (tmp_path / "gpt/merges.txt").write_text("".join(" ".join(pair) + "\n" for pair in form["merges"]))
    check_tokenizer(str(tmp_path / "gpt"), model, ours)
    with pytest.raises(UserError, match=r"gpt: found another tokenizer, expected the run's \(data\.tokenizer"):
        check_tokenizer(str(tmp_path / "gpt"), model, other)
