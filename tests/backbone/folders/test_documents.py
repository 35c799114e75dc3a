"""Task models exchanged with `transformers` in both directions, and every way in which a config.json can be wrong."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import jaxtyping
import pytest
import torch

from gpt_modules.backbone import (
    GPT,
    DecoderConfig,
    LabellingModel,
    RewardModel,
    load_pretrained,
    read_config,
    save_pretrained,
)
from gpt_modules.backbone.folders.documents import is_language_model
from gpt_modules.errors import UserError
from gpt_modules.labelling import Labelling

SIZES = {"vocab_size": 41, "n_positions": 16, "n_layer": 2, "n_head": 2, "n_embd": 16}
FAMILIES = {"pre": "GPT2", "post": "OpenAIGPT"}
TOKENS = torch.randint(41, (6, 11), generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([11, 4, 7, 2, 9, 10])
CHOICES = Labelling("multiple_choice")
CLASSES = Labelling("entailment", ("no", "perhaps", "yes"))
TASKS = [
    CLASSES,
    CHOICES,
    Labelling("classification", ("bad", "good")),
    Labelling("similarity", ("differ", "alike")),
    Labelling("similarity", levels=(0, 5)),
    Labelling("regression", mean=2.5, std=0.7),
]


def perturb(model: Any) -> Any:
    """Biases and layer norms start at 0 and 1, where a mistake in them would not show."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def make(task: Labelling, norm: str = "post", dropout: float = 0.2) -> LabellingModel:
    config = DecoderConfig.from_dict({**SIZES, "norm": norm, "init": "gpt2" if norm == "pre" else "gpt1"})
    model: LabellingModel = perturb(LabellingModel(config, task, dropout))
    return model


def theirs(transformers: ModuleType, norm: str, head: str, **fields: Any) -> Any:
    """A model of `transformers` with random weights."""
    config = getattr(transformers, f"{FAMILIES[norm]}Config")(**SIZES, **fields)
    return perturb(getattr(transformers, f"{FAMILIES[norm]}{head}")(config))


def one_by_one(model: Any) -> torch.Tensor:
    """Logits (6, L) of their classifier: it takes the last token, and has no padding token to find it by."""
    rows = [model(row[None, :n]).logits[0] for row, n in zip(TOKENS, LENGTHS, strict=True)]
    return torch.stack(rows)


def two_by_three(model: Any) -> Any:
    """Their double-headed model of two examples with three answers each, of unequal length."""
    return model(TOKENS.view(2, 3, 11), mc_token_ids=(LENGTHS - 1).view(2, 3))


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_their_double_headed_model_opens_our_choices(norm: str, tmp_path: Path, transformers: ModuleType) -> None:
    model = make(CHOICES, norm)
    save_pretrained(tmp_path / "m", model)
    opened = getattr(transformers, f"{FAMILIES[norm]}DoubleHeadsModel").from_pretrained(tmp_path / "m").eval()
    found = two_by_three(opened)
    assert close(found.mc_logits, model(TOKENS, LENGTHS, torch.arange(6).view(2, 3)))
    assert close(found.logits.flatten(0, 1), model.hidden(TOKENS) @ model.head_weight.T)
    assert opened.multiple_choice_head.first_dropout.p == 0.2


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_we_open_their_double_headed_model(norm: str, tmp_path: Path, transformers: ModuleType) -> None:
    model = theirs(transformers, norm, "DoubleHeadsModel", summary_first_dropout=0.4)
    model.save_pretrained(tmp_path)
    expected, bias = two_by_three(model), model.multiple_choice_head.summary.bias
    task = load_pretrained(tmp_path, "task").eval()
    scores = task(TOKENS, LENGTHS, torch.arange(6).view(2, 3))
    assert (task.task, task.classifier_dropout) == (CHOICES, 0.4)
    assert close(scores + bias, expected.mc_logits)
    assert bias.item() != 0.0
    assert close(scores.softmax(1), expected.mc_logits.softmax(1))  # which the bias leaves alone
    for kind in ("gpt", None):
        assert close(load_pretrained(tmp_path, kind).eval()(TOKENS), expected.logits.flatten(0, 1))


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("task", [task for task in TASKS if task != CHOICES])
def test_their_classifier_opens_our_task(norm: str, task: Labelling, tmp_path: Path, transformers: ModuleType) -> None:
    model = make(task, norm)
    save_pretrained(tmp_path / "m", model)
    opened = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "m").eval()
    assert type(opened).__name__ == f"{FAMILIES[norm]}ForSequenceClassification"
    logits = one_by_one(opened)
    if task.kind == "similarity":  # the head is linear: what it says of the two orders adds up
        assert close(logits.view(3, 2, -1).sum(1), model(TOKENS, LENGTHS, torch.arange(6).view(3, 2)))
    else:
        assert close(logits, model(TOKENS, LENGTHS, torch.arange(6)[:, None]))
    names = task.labels or tuple(f"LABEL_{number}" for number in range(task.n_outputs))
    assert opened.config.id2label == dict(enumerate(names))
    assert opened.config.label2id == {name: number for number, name in enumerate(names)}
    labels = torch.tensor([1.0]) if task.kind == "regression" else torch.tensor([1])
    assert opened(TOKENS[:1], labels=labels).loss.isfinite()


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize(
    ("fields", "task"),
    [
        ({"num_labels": 2}, Labelling(labels=("LABEL_0", "LABEL_1"))),
        ({"id2label": {1: "yes", 0: "no", 2: "so"}}, Labelling(labels=("no", "yes", "so"))),
        ({"num_labels": 1}, Labelling("regression")),
    ],
)
def test_we_open_their_classifier(
    norm: str, fields: dict[str, Any], task: Labelling, tmp_path: Path, transformers: ModuleType
) -> None:
    model = theirs(transformers, norm, "ForSequenceClassification", **fields)
    model.save_pretrained(tmp_path)
    opened = load_pretrained(tmp_path, "task").eval()
    assert opened.task == task
    assert close(opened(TOKENS, LENGTHS, torch.arange(6)[:, None]), one_by_one(model))
    # Of a kind that nobody asked for, one output is a reward.
    assert isinstance(load_pretrained(tmp_path), RewardModel if task.kind == "regression" else LabellingModel)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("task", TASKS)
def test_our_folder_comes_back_exactly(norm: str, task: Labelling, tmp_path: Path) -> None:
    model = make(task, norm)
    save_pretrained(tmp_path / "m", model, extra={"step": 7})
    for again in (load_pretrained(tmp_path / "m"), load_pretrained(tmp_path / "m", "task")):
        assert isinstance(again, LabellingModel)
        assert (again.task, again.classifier_dropout) == (task, 0.2)
        assert again.config == model.config == read_config(tmp_path / "m")
        assert again.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
        assert all(parameter.requires_grad for parameter in again.parameters())


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("task", [CLASSES, CHOICES, TASKS[-1]])
def test_our_task_trained_on_by_them_comes_back(
    norm: str, task: Labelling, tmp_path: Path, transformers: ModuleType
) -> None:
    save_pretrained(tmp_path / "ours", make(task, norm))
    head = "DoubleHeadsModel" if task == CHOICES else "ForSequenceClassification"
    trained = perturb(getattr(transformers, f"{FAMILIES[norm]}{head}").from_pretrained(tmp_path / "ours"))
    trained.save_pretrained(tmp_path / "theirs")
    again = load_pretrained(tmp_path / "theirs").eval()
    assert isinstance(again, LabellingModel)
    assert again.task == task
    if task == CHOICES:
        found = again(TOKENS, LENGTHS, torch.arange(6).view(2, 3))
        assert close(found.diff(), two_by_three(trained).mc_logits.diff())
    else:
        assert close(again(TOKENS, LENGTHS, torch.arange(6)[:, None]), one_by_one(trained))


def test_a_head_they_added_or_took_away(tmp_path: Path, transformers: ModuleType) -> None:
    task = make(CLASSES)
    save_pretrained(tmp_path / "task", task)
    language_model = transformers.OpenAIGPTLMHeadModel.from_pretrained(tmp_path / "task")
    language_model.save_pretrained(tmp_path / "without")
    without = load_pretrained(tmp_path / "without", "gpt").eval()
    assert close(without.hidden(TOKENS), task.hidden(TOKENS))
    save_pretrained(tmp_path / "gpt", without)
    classifier = transformers.OpenAIGPTForSequenceClassification.from_pretrained(tmp_path / "gpt", num_labels=4)
    classifier.save_pretrained(tmp_path / "with")
    again = load_pretrained(tmp_path / "with").eval()
    assert close(again(TOKENS, LENGTHS, torch.arange(6)[:, None]), one_by_one(classifier.eval()))


@pytest.mark.parametrize("kind", ["gpt", "reward"])
def test_the_wrong_kind_of_model(kind: Any, tmp_path: Path) -> None:
    for name, task in (("classes", CLASSES), ("choices", CHOICES)):
        save_pretrained(tmp_path / name, make(task))
        with pytest.raises(UserError, match=rf"{name}: found a model of kind 'task', expected '{kind}'$"):
            load_pretrained(tmp_path / name, kind)


def test_a_reward_model_is_no_task(tmp_path: Path) -> None:
    save_pretrained(tmp_path / "m", RewardModel(make(CLASSES).config))
    with pytest.raises(UserError, match=r"m: found a model of kind 'reward', expected 'task'$"):
        load_pretrained(tmp_path / "m", "task")


def altered(folder: Path, **fields: Any) -> Path:
    document = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**document, **fields}))
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_pretrained(folder, "task")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{folder}/")
    return message.removeprefix(f"{folder}/")


@pytest.mark.parametrize(
    ("ours", "message"),
    [
        ({"kind": "tasks"}, "config.json: gpt_modules.kind: found 'tasks', expected one of gpt, reward, task"),
        ({"task": None}, "config.json: gpt_modules.task: found none, expected the task of a model"),
        ({"task": {"kind": "poetry"}}, "config.json: gpt_modules.task.kind: found 'poetry', expected one of class"),
        ({"task": {"sort": 1}}, "config.json: gpt_modules.task.sort: unknown key, expected one of kind, "),
        ({"task": {"labels": 3}}, "config.json: gpt_modules.task.labels: found 3, expected a list (text each)"),
        ({"task": {"labels": [1]}}, "config.json: gpt_modules.task.labels[1]: found 1, expected text in quotation"),
        ({"task": {"labels": []}}, "config.json: gpt_modules.task.labels: found none, expected the names"),
        ({"task": {"levels": [1]}}, "config.json: gpt_modules.task.levels: found 1 values, expected 2"),
        (
            {"task": {"levels": [2, 1]}},
            "config.json: gpt_modules.task.levels: found [2, 1] for classification, expected",
        ),
        ({"task": {"std": "1"}}, "config.json: gpt_modules.task.std: found '1', expected a number"),
        (
            {"task": {"labels": ["a", "b"]}},
            "model.safetensors: score.weight: found shape [3, 16], expected [2, 16]",
        ),
        (
            {"task": {"kind": "multiple_choice"}},
            "model.safetensors: multiple_choice_head.summary.weight: missing, expected a tensor of shape [1, 16]",
        ),
        ({"sorts": 1}, "config.json: gpt_modules.sorts: unknown key, expected one of format_version, kind, init"),
        ({"sha256": 5}, "config.json: gpt_modules.sha256: found 5, expected a SHA-256 in hexadecimal"),
        ({"bias": True}, "config.json: gpt_modules.bias: found True, expected a number"),
        ({"extra": []}, "config.json: gpt_modules.extra: found [], expected a mapping of keys"),
        (
            {"classifier_dropout": 1},
            "config.json: gpt_modules.classifier_dropout: found 1, expected a probability in [0, 1)",
        ),
    ],
)
def test_our_section_that_does_not_fit(
    ours: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The type checker that runs in tests only would speak first.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    save_pretrained(tmp_path / "m", make(CLASSES))
    section = json.loads((tmp_path / "m" / "config.json").read_text())["gpt_modules"]
    assert refusal(altered(tmp_path / "m", gpt_modules={**section, **ours})).startswith(message)


@pytest.mark.parametrize(
    ("task", "fields", "message"),
    [
        (CLASSES, {"id2label": {"0": "a"}}, "id2label: found {'0': 'a'}, expected a name for each of 0 to 2"),
        (CLASSES, {"id2label": ["a", "b", "c"]}, "id2label: found ['a', 'b', 'c'], expected a name for each"),
        (CLASSES, {"id2label": {"0": "a", "1": "a", "2": "b"}}, "id2label: found ['a', 'a', 'b'], expected each"),
        (
            CLASSES,
            {"problem_type": "multi_label_classification"},
            "problem_type: found 'multi_label_classification', expected 'single_label_classification'",
        ),
        (CHOICES, {"summary_type": "mean"}, "summary_type: found 'mean', expected 'cls_index'"),
        (CHOICES, {"summary_activation": "tanh"}, "summary_activation: found 'tanh', expected None"),
        (CHOICES, {"summary_first_dropout": "x"}, "summary_first_dropout: found 'x', expected a probability"),
    ],
)
def test_a_configuration_of_theirs_that_does_not_fit(
    task: Labelling, fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save_pretrained(tmp_path / "m", make(task))
    folder = altered(tmp_path / "m", gpt_modules={}, **fields)
    assert refusal(folder).startswith(f"config.json: {message}")


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_field_that_we_wrote_and_that_is_lost_is_not_made_up(norm: str, tmp_path: Path) -> None:
    """Without it, n_head would be 12 and the model another one, of the same shapes."""
    save_pretrained(tmp_path / "m", make(CLASSES, norm))
    path = tmp_path / "m" / "config.json"
    whole = json.loads(path.read_text())
    for name in ("n_head", "layer_norm_epsilon", "n_layer", "attn_pdrop"):
        path.write_text(json.dumps({key: value for key, value in whole.items() if key != name}))
        assert refusal(tmp_path / "m") == f"config.json: {name}: missing, expected every field of the decoder"


def test_a_number_that_no_float32_holds_is_no_score(tmp_path: Path) -> None:
    save_pretrained(tmp_path / "m", RewardModel(make(CLASSES).config))
    path = tmp_path / "m" / "config.json"
    path.write_text(path.read_text().replace('"scale": 1.0', '"scale": 1e300'))
    with pytest.raises(UserError, match=r"config.json: gpt_modules: scale: found inf, expected a finite number"):
        load_pretrained(tmp_path / "m")


def test_whose_model_speaks(tmp_path: Path) -> None:
    save_pretrained(tmp_path / "task", make(CLASSES))
    save_pretrained(tmp_path / "gpt", GPT(make(CLASSES).config))
    assert is_language_model(tmp_path / "gpt")
    assert not is_language_model(tmp_path / "task")
