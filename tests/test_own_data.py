"""The commands of README's "Your own data", as they stand there, on data of one's own."""

import json
import re
import shlex
from itertools import cycle, islice
from pathlib import Path

import pytest

from gpt_modules.backbone import GPT, save_pretrained
from gpt_modules.commands import fit
from gpt_modules.errors import UserError

ROOT = Path(__file__).parents[1]
SECTION = re.search(r"^## Your own data\n+```\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.M | re.S)
assert SECTION is not None
COMMANDS = [shlex.split(line, comments=True)[1:] for line in SECTION[1].splitlines()]
BEGINNINGS = ("pretraining/tiny", "gpt1/pretraining", "sft/tiny")
SHORT = "--trainer.max_steps 1 --trainer.limit_val_batches 1 --trainer.accelerator cpu --trainer.default_root_dir run"
GOOD, BAD = ("warm", "bright", "kind"), ("cold", "grim", "weak")
RANKED = {"responses": ["It is warm.", "It is grim.", "So."], "ranking": [1, 3, 2]}


def write(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


@pytest.fixture
def folder(micro, tmp_path):
    """Files of README's names, and the folders that its recipes begin from."""
    config = micro.config(n_positions=128)
    for name in BEGINNINGS:
        save_pretrained(tmp_path / "runs" / name / "export", GPT(config), tokenizer_json=micro.tokenizer.to_json())
    (tmp_path / "my_texts").mkdir()
    for number, word in enumerate(islice(cycle(GOOD + BAD), 120)):
        (tmp_path / "my_texts" / f"{number}.txt").write_text(f"The song {number} is {word} and {number + 1} is not.\n")
    words = list(islice(cycle(GOOD + BAD), 120))
    rows = [f"The song {number} is {word},{'yes' if word in GOOD else 'no'}" for number, word in enumerate(words)]
    (tmp_path / "my_labels.csv").write_text("\n".join(["comment,verdict", *rows]))
    prompts = [{"prompt": f"Say {number}.\n"} for number in range(150)]
    write(tmp_path / "my_prompts.jsonl", prompts)
    write(tmp_path / "my_answers.jsonl", [{**row, "response": "It is warm."} for row in prompts])
    write(tmp_path / "my_rankings.jsonl", [{**row, **RANKED} for row in prompts])
    write(tmp_path / "my_pairs.jsonl", [{**row, "chosen": "It is warm.", "rejected": "So."} for row in prompts])
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package/scores.py").write_text("def politeness(prompts, responses): return [*map(len, responses)]")
    return tmp_path


def test_readme_has_a_command_for_every_procedure_that_reads_rows():
    procedures = [words[2].partition("/")[0] for words in COMMANDS]
    assert procedures == ["pretraining", "finetuning", "sft", "reward", "ppo", "dpo"]


@pytest.mark.parametrize(
    "words",
    [
        *COMMANDS,
        shlex.split("fit --config reward/tiny --data.train my_pairs.jsonl"),
        shlex.split("fit --config pretraining/shakespeare-tiny --data.train my_texts/*.txt"),
    ],
    ids=lambda words: " ".join(words[2:]),
)
def test_it_trains(gpt, folder, words):
    extra = ["--data.episodes", "8"] if "ppo/tiny" in words else []
    ended = gpt.run(*words, *SHORT.split(), *extra, cwd=folder, GPT_MODULES_CACHE=str(folder / "cache"))
    assert (ended.status, "done: step 1 " in ended.stdout) == (0, True), ended.stderr


def build(monkeypatch, words):
    """Build what the words describe, run nothing."""
    built = []
    monkeypatch.setattr(fit.TrainerCLI, "_run_subcommand", lambda cli, subcommand: built.append(cli))
    monkeypatch.setattr("sys.argv", ["gpt"])
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    fit.run_trainer("fit", [*words, "--trainer.accelerator", "cpu"])
    return built.pop()


OTHER_DATA = ["-c", "reward/tiny", "--data.train", "my_rankings.jsonl"]


def test_what_a_recipe_says_of_its_own_data_is_left_out_of_others_and_told(monkeypatch):
    cli = build(monkeypatch, OTHER_DATA)
    assert cli.datamodule.k == 2
    assert cli.config["fit"]["data"]["init_args"]["k"] is None
    (line,) = cli.left_out
    told = "data.k: left out: 4 beside my_rankings.jsonl, whose rows bring their answers, where it has no"
    assert re.search(rf"reward/tiny\.yaml:\d+: {told} effect$", line)


def test_what_is_said_together_or_later_is_refused(monkeypatch, tmp_path):
    (tmp_path / "own.yaml").write_text("data: {init_args: {train: a.jsonl, k: 3}}")
    (tmp_path / "k.yaml").write_text("data.k: 3")
    for words in (
        [*OTHER_DATA, "--data.k", "3"],
        ["-c", "reward/tiny", "-c", str(tmp_path / "own.yaml")],
        ["-c", "reward/tiny", "-c", str(tmp_path / "own.yaml"), "-c", str(tmp_path / "k.yaml")],
    ):
        with pytest.raises(UserError, match=r"k: found 3 beside \S+\.jsonl, whose rows bring their answers"):
            build(monkeypatch, words)


def test_of_a_mixture_and_other_text_the_one_said_last_counts(monkeypatch):
    cli = build(monkeypatch, ["-c", "pretraining/gpt3-tiny", "--data.train", "my.txt"])
    assert (cli.datamodule.mixture, cli.datamodule.train_source) == (None, "my.txt")
    with pytest.raises(UserError, match=r"expected either; null unsets the other one$"):
        build(monkeypatch, ["-c", "pretraining/tiny", "--data.mixture", '[{"source": "reviews", "weight": 1.0}]'])
