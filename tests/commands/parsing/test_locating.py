"""What a class refuses is told where the recipe says it."""

import pytest
import yaml

from gpt_modules.commands.fit import run_trainer
from gpt_modules.commands.parsing.composition import compose
from gpt_modules.commands.parsing.locating import located
from gpt_modules.errors import UserError

RECIPE = {
    "trainer": {"default_root_dir": "run", "max_steps": 1},
    "model": {"class_path": "MAMLModule", "init_args": {"config": {"vocab_size": 16, "n_positions": 64, "n_layer": 1}}},
    "data": {"class_path": "EpisodicDataModule", "init_args": {"families": [{"class_path": "Cloze"}]}},
}


def refusal(tmp_path, monkeypatch, addition, *words):
    """The line for the recipe with another file laid over it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(RECIPE))
    (tmp_path / "own.yaml").write_text(addition)
    with pytest.raises(UserError) as refused:
        run_trainer("fit", ["--config", "base.yaml", "--config", "own.yaml", *words])
    assert not (tmp_path / "run").exists()
    return str(refused.value)


FAMILIES = "data:\n  init_args:\n    families: [{class_path: %s}]\n"
LABELS = "LabelledClasses, init_args: {source: reviews, labels: [a, a]}"
TWO = "Cloze}, {class_path: Cloze, init_args: {ways: 1}"


@pytest.mark.parametrize(
    ("addition", "words", "line"),
    [
        ("data:\n  init_args:\n    support: 0\n", [], ":3: data.support: found 0, expected at least 1"),
        ("trainer: {max_steps: 2}", ["--data.steps", "0"], "--data.steps: found 0, expected at least 1"),
        (FAMILIES % TWO, [], ":3: data.families.1.ways: found 1, expected at least 2"),
        (
            FAMILIES % LABELS,
            [],
            ":3: data.families.0.labels: found ['a', 'a'], expected each name once",
        ),
        (
            FAMILIES % "Sinusoid",
            [],
            ":3: data.families.0.class_path: found 'Sinusoid', expected a list (each a Family) or a "
            "PointFamily; Sinusoid is a PointFamily",
        ),
        (
            "model: {init_args: {optimizer: {lr: -1}}}",
            [],
            ":1: model.optimizer.lr: found -1.0, expected a number in [0, inf)",
        ),
        ("checkpoint: {keep: 1}", [], ":1: checkpoint.keep: found 1, expected a whole number in [2, inf)"),
        ("checkpoint: {every_n_steps: null}", [], ":1: checkpoint.every_n_steps: found null, expected a whole number"),
        ("export: {mode: null}", [], ":1: export.mode: found null, expected one of min, max"),
        ("samples: {enabled: null}", [], ":1: samples.enabled: found null, expected true or false"),
        ("data: {init_args: {in_context: null}}", [],
         ":1: data.in_context: found null, expected true or false"),
        ("trainer: {callbacks: [{class_path: NgramBaseline, init_args: {order: 0}}]}", [],
         ":1: trainer.callbacks.0.order: found 0, expected at least 1"),
    ],
)  # fmt: skip
def test_the_line_of_a_key_is_told(tmp_path, monkeypatch, addition, words, line):
    assert refusal(tmp_path, monkeypatch, addition, *words) == (f"own.yaml{line}" if line[0] == ":" else line)


def told(message, *words):
    """The line of a mistake that nobody found before the data were read."""
    own = [
        "--model.class_path",
        "MAMLModule",
        "--data",
        "EpisodicDataModule",
        "--data.families",
        "[{class_path: Cloze}]",
    ]
    return str(located(UserError(message), compose([*own, *words])))


@pytest.mark.parametrize(
    ("message", "words", "line"),
    [
        ("data.context: found 65", ["--data.init_args.context", "65"], "--data.context: found 65"),
        ("data.context: found 65", [], "data.context: found 65"),  # as the class has it by itself
        ("tokenizer: found 'a/b'", ["--data.tokenizer", "${model.init_args.init_from}", "--model.init_from", "a/b"],
         "--model.init_from: found 'a/b'"),  # where it was said
        ("data.seed: found 7", ["--data.seed", "${model.init_args.seed}", "--model.seed", "${seed_everything}",
         "--seed_everything", "7"], "--seed_everything: found 7"),
        ("data.seed: found 7", ["--data.seed", "${model.init_args.seed}"], "--data.seed: found 7"),
        ("data.seed: found 7", ["--data.seed", "${data.init_args.seed}"], "--data.seed: found 7"),
        ("schedule.unit: found 'tokens'", ["--model.schedule", "{unit: tokens}"], "--model.schedule.unit: found "
         "'tokens'"),
        ("schedule.total: not given", [], "model.schedule.total: not given"),
        ("Cloze: ways: found 1", ["--data.families.0.ways", "1"], "--data.families.0.ways: found 1"),
        ("Cloze: context: found 1", ["--data.context", "1"], "Cloze: context: found 1"),  # of other data
        ("trainer.callbacks: EarlyStopping: monitor: found 'x'", ["--trainer.callbacks+", "EarlyStopping",
         "--trainer.callbacks.monitor", "x"], "--trainer.callbacks.0.monitor: found 'x'"),
        ("seed: found 1", ["--model", "PPOModule"], "seed: found 1"),  # which model and data have
        ("seed: found 1", ["--model", "PPOModule", "--data.seed", "1"], "--data.seed: found 1"),
        ("rows.jsonl:3: context: found 1", ["--data.context", "1"], "rows.jsonl:3: context: found 1"),
        ("--data.context: found 1", ["--data.context", "1"], "--data.context: found 1"),
        ("data: found two", ["--trainer.max_steps", "1"], "--data: found two"),
        ("runs/data: holds a run", [], "runs/data: holds a run"),
    ],
)  # fmt: skip
def test_whatever_a_mistake_calls_a_key_its_name_is_that_of_the_command_line(message, words, line):
    assert told(message, *words) == line
