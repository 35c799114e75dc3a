"""What a class refuses is told where the recipe says it."""

import pytest
import yaml

from gpt_modules.commands.fit import run_trainer
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
        ("data:\n  init_args:\n    support: 0\n", [], ":3: data.init_args.support: found 0, expected at least 1"),
        ("trainer: {max_steps: 2}", ["--data.steps", "0"], "--data.steps: found 0, expected at least 1"),
        (FAMILIES % TWO, [], ":3: data.init_args.families[1].init_args.ways: found 1, expected at least 2"),
        (
            FAMILIES % LABELS,
            [],
            ":3: data.init_args.families[0].init_args.labels: found ['a', 'a'], expected each name once",
        ),
        (
            FAMILIES % "Sinusoid",
            [],
            ":3: data.init_args.families[0].class_path: found 'Sinusoid', expected a list (each a Family) or a "
            "PointFamily; Sinusoid is a PointFamily",
        ),
        (
            "model: {init_args: {optimizer: {lr: -1}}}",
            [],
            ":1: model.init_args.optimizer.lr: found -1.0, expected a number in [0, inf)",
        ),
        ("checkpoint: {keep: 1}", [], ":1: checkpoint.keep: found 1, expected a whole number in [2, inf)"),
        ("checkpoint: {every_n_steps: null}", [], ":1: checkpoint.every_n_steps: found null, expected a whole number"),
        ("export: {mode: null}", [], ":1: export.mode: found null, expected one of min, max"),
        ("samples: {enabled: null}", [], ":1: samples.enabled: found null, expected true or false"),
        ("data: {init_args: {in_context: null}}", [],
         ":1: data.init_args.in_context: found null, expected true or false"),
    ],
)  # fmt: skip
def test_the_line_of_a_key_is_told(tmp_path, monkeypatch, addition, words, line):
    assert refusal(tmp_path, monkeypatch, addition, *words) == (line if line[0] == "-" else f"own.yaml{line}")
