"""One recipe from files and words."""

import pytest

from gpt_modules.commands.parsing.composition import compose
from gpt_modules.errors import UserError


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(
        "trainer:\n  max_steps: 8\n  callbacks: [{class_path: A, init_args: {x: 1}}]\n"
        "model:\n  class_path: M\n  init_args:\n    optimizer: {lr: 0.1, muon_lr: 0.2}\n"
    )
    (tmp_path / "b.yaml").write_text("trainer:\n  max_steps: 4\n  callbacks+: [B]\nmodel: {compile: true}\n")


@pytest.mark.parametrize(
    "words",
    [
        "--trainer.max_steps 2 --config a.yaml",
        "--config a.yaml --trainer.max_steps 2",
        "--trainer.max_steps=2 -c a.yaml -c b.yaml",
        "-c=a.yaml --trainer.max_steps 2 -c=b.yaml",
        "--config a.yaml b.yaml --trainer.max_steps 3 --trainer.max_steps 2",
    ],
)
def test_a_key_of_the_command_line_wins_wherever_it_stands(files, words):
    assert compose(words.split()).values["trainer"]["max_steps"] == "2"


def test_a_later_file_wins_key_by_key_and_appends_where_it_says_so(files):
    recipe = compose(["-c", "a.yaml", "-c", "b.yaml"])
    assert recipe.values["trainer"] == {"max_steps": 4, "callbacks": [{"class_path": "A", "init_args": {"x": 1}}, "B"]}
    assert recipe.values["model"]["init_args"] == {"optimizer": {"lr": 0.1, "muon_lr": 0.2}, "compile": True}
    assert compose(["-c", "b.yaml", "-c", "a.yaml"]).values["trainer"]["max_steps"] == 8


def test_a_key_reaches_into_classes_and_lists(files):
    words = ["--model.optimizer.muon_lr", "null", "--trainer.callbacks+=C", "--trainer.callbacks.y=2", "-c", "a.yaml"]
    recipe = compose([*words, "--trainer.callbacks.0.x", "5", "--model", "N"])
    assert recipe.values["model"] == {"class_path": "N", "init_args": {"optimizer": {"lr": 0.1, "muon_lr": "null"}}}
    first, second = recipe.values["trainer"]["callbacks"]
    assert first == {"class_path": "A", "init_args": {"x": "5"}}
    assert second == {"class_path": "C", "init_args": {"y": "2"}}


@pytest.mark.parametrize("text", ["runs/reward/export", "my_package.scores:politeness", "./export"])
def test_a_text_that_names_no_class_gives_way_to_the_keys_of_a_mapping(files, tmp_path, text):
    """Whichever says them; a mapping's keys are laid over one another."""
    (tmp_path / "text.yaml").write_text(f"model: {{rewards: {text}}}\n")
    (tmp_path / "keys.yaml").write_text("model: {rewards: {ensemble: [a, b], combine: mean}}\n")
    found = compose(["-c", "text.yaml", "-c", "keys.yaml", "--model.rewards.combine", "worst"]).values["model"]
    assert found["init_args"]["rewards"] == {"ensemble": ["a", "b"], "combine": "worst"}
    found = compose(["-c", "text.yaml", "--model.rewards", "{ensemble: [a, b], combine: worst}"]).values["model"]
    assert found["init_args"]["rewards"] == {"ensemble": ["a", "b"], "combine": "worst"}
    found = compose(["-c", "keys.yaml", "--model.rewards", text]).values["model"]
    assert found["init_args"]["rewards"] == text


@pytest.mark.parametrize("words", ["--data.train x.txt y.txt -c a.yaml", "-c a.yaml --data.train x.txt y.txt",
                                   "--data.train=x.txt y.txt --seed_everything 1"])  # fmt: skip
def test_several_values_are_a_list(files, words):
    assert compose(words.split()).values["data"] == {"init_args": {"train": ["x.txt", "y.txt"]}}


def test_mappings_of_the_command_line_are_laid_over_like_those_of_files(files):
    recipe = compose(["-c", "a.yaml", "--model.optimizer", "{lr: 0.3}", "--model.template", "{prompt}"])
    assert recipe.values["model"]["init_args"] == {"optimizer": {"lr": 0.3, "muon_lr": 0.2}, "template": "{prompt}"}


def test_negative_numbers_are_values(files):
    assert compose(["--trainer.max_epochs", "-1", "--x", "-1e-3"]).values == {
        "trainer": {"max_epochs": "-1"},
        "x": "-1e-3",
    }


def test_where_a_value_was_said(files):
    recipe = compose(["-c", "a.yaml", "-c", "b.yaml", "--model.optimizer.lr", "1"])
    where = recipe.where
    assert where(("trainer", "max_steps")) == "b.yaml:2: trainer.max_steps"
    assert where(("trainer", "callbacks", 0, "init_args", "x")) == "a.yaml:3: trainer.callbacks.0.x"
    assert where(("trainer", "callbacks", 1)) == "b.yaml:3: trainer.callbacks.1"
    assert where(("model", "init_args", "optimizer", "lr")) == "--model.optimizer.lr"
    assert where(("model", "init_args", "optimizer", "muon_lr")) == "a.yaml:7: model.optimizer.muon_lr"
    assert where(("nowhere",)) == "nowhere"


@pytest.mark.parametrize(
    "words",
    [
        ["--model.optimizer.lr", "1"],
        ["--model.init_args.optimizer.lr", "1"],
        ["--model.optimizer", "{lr: 1}"],
        ["--model.init_args", "{optimizer: {lr: 1}}"],
    ],
)
def test_a_key_has_one_name_however_it_was_said(files, words):
    """Which is the name by which it can be said again."""
    place = ("model", "init_args", "optimizer", "lr")
    name = compose(["-c", "a.yaml", *words]).where(place)
    assert name == "--model.optimizer.lr"
    assert compose(["-c", "a.yaml", name, "2"]).at(place) == "2"


def test_a_key_of_an_item_can_be_said_by_the_name_that_a_message_gives_it(files):
    place = ("trainer", "callbacks", 0, "init_args", "x")
    name = compose(["--trainer.callbacks+", "A", "--trainer.callbacks.x", "1"]).where(place)
    assert compose(["-c", "a.yaml", name, "5"]).at(place) == "5"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["a.yaml"], "found 'a.yaml', which belongs to no option; expected --config RECIPE or --KEY VALUE"),
        (["--trainer.max_steps"], "--trainer.max_steps: found no value, expected one"),
        (["--config"], "--config: found no value, expected one"),
        (["--x", "${oc.env:HOME}"], "--x: found ${oc.env:...}, expected ${key} only: resolvers are not allowed"),
        (["-c", "b.yaml", "--trainer.max_steps.x", "1"],
         "--trainer.max_steps.x: found the value 4 where the key leads further in, expected keys or nothing"),
        (["-c", "a.yaml", "--trainer.callbacks.7.x", "1"], "--trainer.callbacks.7.x: found no item '7' in a list of 1"),
        (["--allow", ""], "--allow: found '', expected the name of a package"),
        (["--allow", "*"], "--allow: found '*', expected the name of a package"),
        (["--m..config", "1"], "--m..config: found key 'm..config', expected names with a dot between them"),
        (["--data.train", "\udcff"], "--data.train: found bytes that are not UTF-8, expected text"),
        (["--trainer.callbacks+=null"],
         "--trainer.callbacks+: found nothing to add, expected an item of the list callbacks"),
        (["--x", "{'': 3}"], "--x: found an empty key, expected a name"),
        (["--x+", "{a: [{'': 3}]}"], "--x+: a.0: found an empty key, expected a name"),
        (["--x", "{a: 1, a: 2}"], "--x:1: key 'a' stands twice, on lines 1 and 1"),
    ],
)  # fmt: skip
def test_words_that_make_no_sense(files, words, line):
    with pytest.raises(UserError) as refused:
        compose(words)
    assert str(refused.value) == line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{}\n", "c.yaml: found no key, expected those of a recipe"),
        ("# a comment\n", "c.yaml: found nothing, expected a mapping of keys"),
        ('x: 1\n"": 3\n', "c.yaml:2: found an empty key, expected a name"),
        ('trainer: {"": 3}\n', "c.yaml:1: trainer: found an empty key, expected a name"),
        ('trainer:\n  x: 1\n  "": {}\n', "c.yaml:3: trainer: found an empty key, expected a name"),
        ('x:\n- y: [{"": 3}]\n', "c.yaml:2: x.0.y.0: found an empty key, expected a name"),
        ('x:\n  .y: 3\n', "c.yaml:2: found key 'x..y', expected names with a dot between them"),
        ('"model ": {}\n', "c.yaml:1: found key 'model ', expected names with a dot between them"),
        (f"? {'k' * 900}\n: 1\n", f"c.yaml:1: found key '{'k' * 100}'... (900 characters), expected names with a dot "
         "between them"),
        ("x+: [null]\n", "c.yaml:1: found nothing to add, expected an item of the list x"),
    ],
)  # fmt: skip
def test_a_file_whose_keys_are_none(files, tmp_path, text, line):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError) as refused:
        compose(["-c", "c.yaml"])
    assert str(refused.value) == line


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("model:\n  config: 1\n  init_args: {config: 2}\n", "model.config"),
        ("trainer.max_steps: 1\ntrainer: {max_steps: 2}\n", "trainer.max_steps"),
        ("a.b: 1\na: 2\n", "a"),
        ("a: null\na.b: 1\n", "a.b"),
        ("model: M\nmodel.class_path: N\n", "model.class_path"),
        ("a+: [A]\na.b: 1\n", None),
        ("data.x: 1\ndata: D\n", None),
        ("model: M\nmodel.x: 1\n", None),
        ("trainer: {callbacks: [A]}\ntrainer.callbacks.y: 1\n", None),
        ("model: {x: {a: 1}, init_args: {x: {b: 2}}}\n", None),
    ],
)
def test_a_file_says_a_key_once_however_it_is_spelt(files, tmp_path, text, place):
    (tmp_path / "c.yaml").write_text(text)
    if place is None:
        compose(["-c", "a.yaml", "-c", "c.yaml"])
        return
    with pytest.raises(UserError, match=rf"c.yaml:\d: {place}: found this key a second time, in another spelling on"):
        compose(["-c", "c.yaml"])


def test_merged_keys_are_said_where_they_stand(files, tmp_path):
    (tmp_path / "c.yaml").write_text("x: &x {a: 1, b: {c: 2}}\ntrainer:\n  <<: [*x, {a: 3, d: 4}]\n  b: 5\n")
    recipe = compose(["-c", "c.yaml"])
    assert recipe.values["trainer"] == {"a": 1, "b": 5, "d": 4}
    places = [recipe.where(("trainer", key)) for key in "abd"]
    assert places == ["c.yaml:1: trainer.a", "c.yaml:4: trainer.b", "c.yaml:3: trainer.d"]


def test_a_recipe_names_no_other(files, tmp_path):
    (tmp_path / "c.yaml").write_text("trainer: {}\nconfig: a.yaml\n")
    with pytest.raises(UserError, match=r"c.yaml:2: config: a recipe names no other"):
        compose(["-c", "c.yaml"])
