"""`gpt adapt`: the steps it takes, the folder it writes, and the one line that a mistake gets."""

import logging
import re
import shutil

import pytest
import tokenizers
import torch
from conftest import GOOD, REST, shaken, write_rows

from gpt_modules.backbone import GPT, LabellingModel, RewardModel, load_pretrained, save_pretrained
from gpt_modules.backbone.folders.inner_rates import InnerRates, load_inner_rates
from gpt_modules.commands import adapt as adapt_cli
from gpt_modules.data.collate import next_token_labels
from gpt_modules.data.demonstrations import encode_demonstrations
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError
from gpt_modules.labelling import Labelling
from gpt_modules.storage.digests import sha256_of

ROWS = [{"prompt": rest, "response": f" is {good}."} for rest in REST for good in GOOD[:2]]
LABELLED = [
    {"text": f"{row['prompt']}{row['response']}", "label": ("low", "high")[i % 2]} for i, row in enumerate(ROWS)
]


@pytest.fixture
def world(micro, tmp_path, monkeypatch):
    """A folder with a model that has no rates, rows to adapt on, and the words of a command."""
    monkeypatch.setenv("GPT_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    model = shaken(GPT(micro.config()), 3)
    save_pretrained("model", model, tokenizer_json=micro.tokenizer.to_json())
    write_rows(tmp_path / "rows.jsonl", ROWS)
    words = ["--model", "model", "--support", "rows.jsonl", "--output", "out", "--device", "cpu"]
    return tmp_path, words


def adapt(words):
    """Once more, in a folder that is new each time."""
    shutil.rmtree("out", ignore_errors=True)
    adapt_cli.main(words)


def table(capsys):
    """Header and rows of the printed table, in numbers."""
    header, *lines, last = capsys.readouterr().out.splitlines()
    assert last == f"done: step {len(lines) - 1}  out"
    return header.split(), [[float(cell.rstrip("%")) for cell in line.split()] for line in lines]


def by_hand(rows, tokenizer, model, steps, rate):
    """Plain SGD on the mean over all response tokens, one row after the other."""
    model = model.eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    losses = []
    for step in range(steps + 1):
        total, count, right = 0.0, 0, 0
        for row in rows:
            prompt, response = tokenizer.encode(row["prompt"]), [*tokenizer.encode(row["response"]), tokenizer.eos_id]
            logits = model(torch.tensor([prompt + response]))[0, len(prompt) - 1 : -1]
            total = total + torch.nn.functional.cross_entropy(logits, torch.tensor(response), reduction="sum")
            count, right = count + len(response), right + int((logits.argmax(-1) == torch.tensor(response)).all())
        losses.append([step, (total / count).item(), 100 * right / len(rows)])
        if step < steps:
            optimizer.zero_grad()
            (total / count).backward()
            optimizer.step()
    return losses


@pytest.mark.parametrize("batch_tokens", [1, 20, 2048])
def test_steps_are_those_of_gradient_descent_on_all_rows(world, micro, capsys, monkeypatch, batch_tokens):
    _, words = world
    monkeypatch.setattr(adapt_cli, "BATCH_TOKENS", batch_tokens)
    adapt([*words, "--steps", "3", "--lr", "0.05"])
    expected = load_pretrained("model", "gpt")
    lines = by_hand(ROWS, micro.tokenizer, expected, 3, 0.05)
    header, found = table(capsys)
    assert header == ["step", "support", "loss", "support", "right"]
    assert found == [pytest.approx(line, abs=0.051) for line in lines]  # in per cent, to one digit
    assert [line[1] for line in found] == [pytest.approx(line[1], abs=2e-4) for line in lines]
    adapted = load_pretrained("out", "gpt")
    for name, value in adapted.state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[name], rtol=1e-4, atol=1e-5)
    assert adapted.config == expected.config
    assert Tokenizer.load("out").fingerprint == micro.tokenizer.fingerprint


@pytest.mark.parametrize("meta_learned", [False, True])
def test_rows_are_those_of_sft_but_for_a_meta_learned_folder_without_the_end(world, micro, meta_learned):
    model = load_pretrained("model", "gpt")
    sets = adapt_cli._read("rows.jsonl", model, micro.tokenizer, not meta_learned)
    found = [(one.inputs[0][i], one.targets[i]) for one in sets for i in range(len(one.targets))]
    wanted = [next_token_labels(example) for example in encode_demonstrations(ROWS, micro.tokenizer, 32, "rows")]
    if meta_learned:
        wanted = [(inputs[:-1], targets[:-1]) for inputs, targets in wanted]
    cut = {
        (tuple(i[: k + 1].tolist()), tuple(t[: k + 1].tolist()))
        for i, t in found
        for k in [int((t >= 0).nonzero()[-1])]
    }
    assert cut == {(tuple(inputs.tolist()), tuple(targets.tolist())) for inputs, targets in wanted}


def test_the_folders_own_rates_and_steps(world, micro, capsys):
    model = load_pretrained("model", "gpt")
    name = "decoder.blocks.1.mlp.fc.weight"
    rates = torch.stack([torch.full((64, 16), 0.3), torch.zeros(64, 16)])
    rates[0, :32] = 0.0
    save_pretrained(
        "model", model, tokenizer_json=micro.tokenizer.to_json(), inner_rates=InnerRates("maml", 3, {name: rates})
    )
    adapt(world[1])
    _, lines = table(capsys)
    assert [line[0] for line in lines] == [0, 1, 2, 3]
    assert lines[0][1] != lines[1][1] == lines[2][1] == lines[3][1], (
        "the second step's rates are zero, for all later ones"
    )
    adapted = load_pretrained("out", "gpt").state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(value, adapted[key]) == (key != name)
    assert torch.equal(adapted[name][:32], model.state_dict()[name][:32])
    assert load_inner_rates("out") is None
    adapt([*world[1], "--lr", "0.1", "--steps", "1"])
    again = load_pretrained("out", "gpt").state_dict()
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, again[key])}
    assert moved == {name}, "another number for the same parameters"
    assert not torch.equal(again[name][:32], model.state_dict()[name][:32])


def test_a_query_set_is_measured_and_not_learned(world, capsys):
    folder, words = world
    adapt([*words, "--steps", "2", "--lr", "0.05"])
    alone, weights = table(capsys)[1], sha256_of(folder / "out/model.safetensors")
    write_rows(folder / "query.jsonl", ROWS[:3])
    adapt([*words, "--steps", "2", "--lr", "0.05", "--query", "query.jsonl"])
    header, lines = table(capsys)
    assert header == ["step", "support", "loss", "support", "right", "query", "loss", "query", "right"]
    assert [line[:3] for line in lines] == alone
    assert sha256_of(folder / "out/model.safetensors") == weights
    adapt([*words, "--steps", "0", "--lr", "1", "--support", "query.jsonl"])
    assert table(capsys)[1] == [[0, *lines[0][3:]]]


def test_a_classifier(world, micro, capsys):
    folder, words = world
    tokenizer = micro.tokenizer.with_task_tokens()
    model = shaken(
        LabellingModel(micro.config(vocab_size=tokenizer.vocab_size), Labelling("classification", ("low", "high"))), 4
    )
    save_pretrained("model", model, tokenizer_json=tokenizer.to_json())
    write_rows(folder / "rows.jsonl", [{**row, "label": ("low", "high").index(row["label"])} for row in LABELLED])
    adapt([*words, "--steps", "1", "--lr", "0.05"])
    by_number = table(capsys)[1]
    write_rows(folder / "rows.jsonl", LABELLED)
    adapt([*words, "--steps", "1", "--lr", "0.05"])
    assert table(capsys)[1] == by_number
    start, _, extract = tokenizer.task_ids
    logits = torch.cat(
        [
            model.eval()(torch.tensor([row]), torch.tensor([len(row)]), torch.tensor([[0]]))
            for row in ([start, *tokenizer.encode(row["text"]), extract] for row in LABELLED)
        ]
    )
    answers = torch.tensor([("low", "high").index(row["label"]) for row in LABELLED])
    expected = torch.nn.functional.cross_entropy(logits, answers).item()
    right = 100 * (logits.argmax(-1) == answers).float().mean().item()
    assert by_number[0] == [0, pytest.approx(expected, abs=2e-4), pytest.approx(right, abs=0.051)]
    assert by_number[1][1] != by_number[0][1]
    assert isinstance(adapted := load_pretrained("out"), LabellingModel)
    assert adapted.task == model.task
    theirs = tokenizers.Tokenizer.from_file("out/tokenizer.json")
    assert theirs.encode(LABELLED[0]["text"]).ids == [start, *tokenizer.encode(LABELLED[0]["text"]), extract]
    write_rows(folder / "rows.jsonl", [*LABELLED, {"text": "so so", "label": "middling"}])
    with pytest.raises(
        UserError, match=r"rows\.jsonl:9: label: found the unknown class 'middling', expected one of low, high$"
    ):
        adapt([*words, "--steps", "1", "--lr", "0.05"])


@pytest.mark.parametrize(
    ("classes", "names", "kept"),
    [
        (("0", "1"), ("high", "low"), ("high", "low")),
        (("0", "1"), (0, 1), ("0", "1")),
        (("no", "yes"), (0, 1), ("no", "yes")),
    ],
)
def test_classes_that_only_have_numbers_are_called_as_in_the_rows(world, micro, capsys, classes, names, kept):
    folder, words = world
    tokenizer = micro.tokenizer.with_task_tokens()
    model = LabellingModel(micro.config(vocab_size=tokenizer.vocab_size), Labelling("classification", classes))
    save_pretrained("model", model, tokenizer_json=tokenizer.to_json())
    write_rows(folder / "rows.jsonl", [{**row, "label": names[row["label"] == "low"]} for row in LABELLED])
    adapt([*words, "--steps", "1", "--lr", "0.05"])
    assert len(table(capsys)[1]) == 2
    assert load_pretrained("out").task.labels == kept


def test_more_classes_than_a_meta_learned_classifier_has(world, micro):
    folder, words = world
    tokenizer = micro.tokenizer.with_task_tokens()
    model = LabellingModel(micro.config(vocab_size=tokenizer.vocab_size), Labelling("classification", ("0", "1")))
    save_pretrained("model", model, tokenizer_json=tokenizer.to_json())
    write_rows(folder / "rows.jsonl", [*LABELLED, {"text": "neither", "label": "middle"}])
    with pytest.raises(UserError, match=r"label: found the unknown class '(high|low|middle)', expected one of 0, 1"):
        adapt([*words, "--steps", "1", "--lr", "0.05"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("--lr 0.1", "--steps: not given, and model was trained for none, expected a number such as 5"),
        ("--steps 1", "--lr: not given, and model has no learned rates, expected a number such as 0.01"),
        ("--steps -1 --lr 0.1", "--steps: found '-1', expected a whole number from 0"),
        ("--steps 1 --lr nan", "--lr: found 'nan', expected a number above 0"),
        ("--steps 1 --lr 0.1 --query=", "--query: found '', expected the name of a file"),
        ("--steps 1 --lr 0.1 --output=", "--output: found '', expected the name of a file or a folder"),
        ("--steps 1 --lr 0.1 --output long.jsonl/a", "long.jsonl: found a file, expected a folder to write to"),
        ("--steps 1 --lr 0.1 --support none.jsonl", "none.jsonl: found no such file, expected"),
        ("--steps 1 --lr 0.1 --support empty.jsonl", "empty.jsonl: found an empty file, expected rows"),
        ("--steps 1 --lr 0.1 --support prompts.jsonl", "prompts.jsonl:2: response: found no such field among"),
        ("--steps 1 --lr 0.1 --query prompts.jsonl", "prompts.jsonl:2: response: found no such field among"),
        ("--steps 1 --lr 0.1 --support long.jsonl", "long.jsonl: example 2: context: found a prompt of"),
        ("--steps 1 --lr 0.1 --model reward", "reward: found a reward model, expected a language model or"),
        ("--steps 1 --lr 0.1 --model scores", "scores: found a model for regression, expected a language model or"),
        ("--steps 1 --lr 0.1 --output ./model", "model: found config.json, expected a new folder: name another, or"),
        ("--steps 1 --lr 0.1 --output taken", "taken: found thesis.tex, expected a new folder: name another, or remo"),
        ("--steps 1 --lr 0.1 --output rows.jsonl", "rows.jsonl: found a file, expected a folder to write a model to"),
        ("--steps 9 --lr 1e30", "--support: found a loss of "),
    ],
)  # fmt: skip
def test_mistakes(world, micro, changes, message):
    folder, words = world
    (folder / "empty.jsonl").touch()
    write_rows(folder / "prompts.jsonl", [ROWS[0], {"prompt": "the film"}])
    write_rows(folder / "long.jsonl", [ROWS[0], {"prompt": "the film", "response": " is good." * 40}])
    if "scores" in changes:
        tokenizer = micro.tokenizer.with_task_tokens()
        scores = LabellingModel(micro.config(vocab_size=tokenizer.vocab_size), Labelling("regression"))
        save_pretrained("scores", scores, tokenizer_json=tokenizer.to_json())
    if "reward" in changes:
        save_pretrained("reward", RewardModel(micro.config()), tokenizer_json=micro.tokenizer.to_json())
    (folder / "taken").mkdir()
    (folder / "taken/thesis.tex").touch()
    before = {path for path in folder.glob("**/*") if "cache" not in path.parts}
    with pytest.raises(UserError, match=f"^{re.escape(message)}") as caught:
        adapt([*words, *changes.split()])
    assert "\n" not in str(caught.value)
    assert {path for path in folder.glob("**/*") if "cache" not in path.parts} == before


def test_a_long_prompt_loses_its_beginning_and_says_so(world, capsys, caplog):
    folder, words = world
    words = [*words, "--steps", "0", "--lr", "0.1"]
    write_rows(folder / "rows.jsonl", [{"prompt": "a story " * 100 + "the film", "response": " is good."}])
    with caplog.at_level(logging.WARNING):
        adapt(words)
    assert "context of 32 tokens" in caplog.text
    first = table(capsys)[1]
    write_rows(folder / "rows.jsonl", [{"prompt": "a story " * 60 + "the film", "response": " is good."}])
    adapt(words)
    assert table(capsys)[1] == first


def test_cut_off_or_diverged_it_leaves_nothing(world, monkeypatch):
    folder, words = world
    before = set(folder.iterdir())
    with pytest.raises(UserError, match="diverged"):
        adapt_cli.main([*words, "--steps", "5", "--lr", "1e30"])
    real, calls = adapt_cli._step, []

    def step(*arguments):
        calls.append(0)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(adapt_cli, "_step", step)
    with pytest.raises(KeyboardInterrupt):
        adapt_cli.main([*words, "--steps", "3", "--lr", "0.05"])
    assert {path for path in folder.iterdir() if path.name != "cache"} == before


def test_an_adapted_model_is_not_replaced(world):
    folder, words = world
    (folder / "out").mkdir()
    adapt_cli.main([*words, "--steps", "1", "--lr", "0.05"])
    before = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    with pytest.raises(UserError, match=r"^out: found chat_template\.jinja, expected a new folder: name another"):
        adapt_cli.main([*words, "--steps", "1", "--lr", "0.1"])
    assert {path.name: path.read_bytes() for path in (folder / "out").iterdir()} == before


def test_the_command(gpt, world):
    folder, words = world
    ended = gpt.run("adapt", *words, "--steps", "1", cwd=folder)
    assert (ended.status, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: --lr: not given, and model has no learned rates")
    assert not (folder / "out").exists()
