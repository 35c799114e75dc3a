"""Task files: what they may say, and the one line that a wrong one gets."""

from pathlib import Path

import pytest

from gpt_modules.errors import UserError
from gpt_modules.evaluation.tasks.definitions import find_tasks, read_task

RECIPES = sorted((Path(__file__).parents[3] / "recipes/evaluation").glob("*.yaml"))


@pytest.fixture
def write(tmp_path):
    def write(text, name="quiz.yaml"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_a_task_takes_its_name_from_the_file(write):
    task = read_task(write("kind: choice\nsource: rows.jsonl\nchoices: ['{a}', '{b}']\nlabels: [1, 2]\n"))
    assert (task.name, task.choices, task.labels) == ("quiz", ("{a}", "{b}"), ("1", "2"))
    assert read_task(write("kind: cloze\nsource: a.jsonl\nname: other\n")).name == "other"


FAULTS = {
    "kind: quiz\nsource: a": "kind: found 'quiz', expected one of choice, cloze, partial, generate, perplexity",
    "source: a": "kind: missing, expected one of choice, cloze, partial, generate, perplexity",
    "kind: choice": "source: missing, expected text or a list",
    "kind: choice\nsource: a\nquerry: '{a}'": "querry: found this key, expected one of choice's: name, kind, source",
    "kind: perplexity\nsource: a\ngold: '{a}'": "gold: found this key, expected one of perplexity's",
    "kind: choice\nsource: a\nscoring: mean": "scoring: found 'mean', expected one of sum, token, character",
    "kind: choice\nsource: a\nchoices: [false, true]": r"choices\[1\]: found False, expected text in quotation marks",
    "kind: choice\nsource: a\nchoices: ['no']": "choices: found 1, expected at least 2 or one field that is a list",
    "kind: generate\nsource: a\nmax_new_tokens: many": "max_new_tokens: found 'many', expected a whole number",
    "kind: generate\nsource: a\nmax_new_tokens: 0": "max_new_tokens: found 0, expected at least 1",
    "kind: generate\nsource: a\nbeams: true": "beams: found True, expected a whole number",
    "kind: generate\nsource: a\nmetrics: [chrf]": r"metrics\[1\]: found 'chrf', expected one of exact_match",
    "kind: generate\nsource: a\nmetrics: []": "metrics: found nothing, expected something",
    "kind: generate\nsource: a\nstop: ['']": "stop: found empty text among .*, expected something",
    "kind: generate\nsource: a\nstop: [\"\\n\", '']": "stop: found empty text among .*, expected something",
    "kind: generate\nsource: a\ntarget: ''": "target: found nothing, expected something",
    "kind: generate\nsource: a\ncontext: ''": "context: found nothing, expected something",
    "kind: generate\nsource: a\ncontext: question": "context: found 'question', which is the same for every row",
    "kind: choice\nsource: a\ncontext: 'Q:'": "context: found 'Q:', which is the same for every row, expected",
    "kind: cloze\nsource: a\ntext: text": "text: found 'text', which is the same for every row, expected",
    "kind: generate\nsource: a\ntemperature: -1": "temperature: found -1.0 with 1 beams, expected 0 or more",
    "kind: generate\nsource: a\ntemperature: .inf": "temperature: found .inf, expected a finite number",
    "kind: generate\nsource: a\nlength_penalty: -1": "length_penalty: found -1.0, expected 0 or more",
    "kind: generate\nsource: a\nlength_penalty: .nan": "length_penalty: found .nan, expected a finite number",
    "kind: choice\nsource: a\ngold: ''": "gold: found nothing, expected something",
    "kind: choice\nsource: a\nlabels: [a, '']": "labels: found empty text among .*, expected something",
    "kind: choice\nsource: a\nchoices: [a, '']": "choices: found empty text among .*, expected something",
    "kind: choice\nsource: [a, '']": "source: found empty text among .*, expected something",
    "kind: partial\nsource: a\nplaceholder: ''": "placeholder: found nothing, expected something",
    "kind: perplexity\nsource: a\ntext: ''": "text: found nothing, expected something",
    "kind: generate\nsource: a\nstop: text": r"stop: found 'text', expected a list \(text each\)",
    "kind: generate\nsource: a\nbeams: 4\ntemperature: 1": "temperature: found 1.0 with 4 beams, expected 0",
    "kind: cloze\nsource: a\ndetokenizer: odd": "detokenizer: found 'odd', expected one of",
    "kind: cloze\nsource: a\nkind: cloze": "key 'kind' stands twice, on lines 1 and 3",
    "kind: []\nsource: a": r"kind: found \[\], expected one of choice",
    "kind: cloze\nsource: a\nname: a/b": "name: found 'a/b', expected the name of a file, no path",
    "kind: cloze\nsource: a\ntext: 5": "text: found 5, expected text or nothing in quotation marks",
    "kind: generate\nsource: a\ntemperature: .nan": "temperature: found .nan, expected a finite number",
    "kind: generate\nsource: a\ntop_k: .5": "top_k: found 0.5, expected a whole number or nothing",
    "kind: generate\nsource: a\ntop_k: 3": "top_k: found 3, which nothing would follow, expected a temperature above 0",
    "kind: generate\nsource: a\nlength_penalty: 0.5": "length_penalty: found 0.5, which nothing would follow",
    "kind: choice\nsource: a\nanswer_context: 'A:'": "answer_context: found 'A:', which nothing would follow",
    "kind: partial\nsource: a\nplaceholder: _": "placeholder: found '_', which nothing would follow, expected text",
    "kind: cloze\nsource: a\ndetokenizer: ptb": "detokenizer: found 'ptb', which nothing would follow, expected text",
    "kind: cloze\nsource: a.jsonl\nsplit: nosuch": "split: found 'nosuch', which nothing would follow, expected none",
    "kind: cloze\nsource: reviews\nsplit: nosuch": "split: found 'nosuch', expected one of train, validation",
    "kind: cloze\nsource:\n": "source: found None, expected text or a list",
}  # fmt: skip


@pytest.mark.parametrize("text", FAULTS)
def test_a_file_that_is_no_task_is_told_with_its_key(write, text):
    with pytest.raises(UserError, match=rf"quiz\.yaml.*: {FAULTS[text]}") as caught:
        read_task(write(text + "\n"))
    assert "\n" not in str(caught.value)


def test_tasks_by_name_and_by_group(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes/evaluation").mkdir(parents=True)
    for name in ("one", "two"):
        write("kind: cloze\nsource: rows.jsonl\n", f"recipes/evaluation/{name}.yaml")
    write("tasks: [two, one]\n", "recipes/evaluation/both.yaml")
    alone = write("kind: cloze\nsource: rows.jsonl\n", "alone.yaml")
    assert [task.name for task in find_tasks(["both", str(alone)])] == ["two", "one", "alone"]
    with pytest.raises(
        UserError, match=r"three: no such task, expected a \.yaml file or one of: 1DC, .* both, .* one, .* two, "
    ):
        find_tasks(["three"])
    with pytest.raises(UserError, match="tasks: found one twice, expected each name once"):
        find_tasks(["one", "both"])
    with pytest.raises(UserError, match=r"empty\.yaml: tasks: found an empty list, expected names of tasks$"):
        find_tasks([str(write("tasks: []\n", "empty.yaml"))])
    with pytest.raises(UserError, match=r"none\.yaml: no such recipe"):
        find_tasks(["none.yaml"])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"one: no such task, expected a \.yaml file or one of: 1DC, "):
        find_tasks(["one"])
    group = tmp_path / "recipes/evaluation/both.yaml"
    assert [task.name for task in find_tasks([str(group)])] == ["two", "one"], "beside it"
    assert find_tasks(["2D+"])[0].source == "synthetic:2D+", "as shipped"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_a_task_and_says_what_it_is(path, monkeypatch):
    monkeypatch.chdir(path.parents[2])
    tasks = find_tasks([path.stem])
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert "et al. 20" in header[0]
    assert any(f"gpt evaluate --model FOLDER --tasks {path.stem} " in line for line in header)
    assert len(tasks) == {"arithmetic": 10, "scrambles": 5}.get(path.stem, 1)
