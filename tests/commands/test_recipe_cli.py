"""The recipe that is parsed is the one that was said; a mistake is one line: where, key, found, expected."""

import sys
from pathlib import Path

import pytest

from gpt_modules.commands.recipe_cli import RecipeReader, open_recipe
from gpt_modules.errors import UserError

SFT = ["-c", "sft/tiny"]


@pytest.fixture
def parse(monkeypatch, tmp_path):
    """Parse words in an empty folder, without building anything."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["gpt"])
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

    def run(*words, command="fit"):
        return open_recipe(RecipeReader, command, list(words)).config[command]

    return run


def refusal(parse, *words):
    with pytest.raises(UserError) as refused:
        parse(*words)
    line = str(refused.value)
    assert "\n" not in line
    assert len(line) <= 400
    return line


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_keys_before_the_recipe_win_in_every_command(parse, command):
    config = parse("--trainer.max_steps", "2", "--data.batch_size", "${trainer.max_steps}", *SFT, command=command)
    assert (config["trainer"]["max_steps"], config["data"]["init_args"]["batch_size"]) == (2, 2)


def test_values_of_every_shape(parse):
    words = ["--model.optimizer.muon_lr", "null", "--model.optimizer.betas", "0.9", "0.5", "--model.dropout=null"]
    words += ["--data.train", "007", "8", "--seed_everything", "10", "--trainer.callbacks+=EarlyStopping"]
    config = parse(*words, "--trainer.callbacks.monitor=val/loss", *SFT)
    model = config["model"]["init_args"]
    assert (model["optimizer"]["muon_lr"], model["optimizer"]["betas"], model["dropout"]) == (None, (0.9, 0.5), None)
    assert model["optimizer"]["lr"] == 5e-3
    assert config["data"]["init_args"]["train"] == ["007", "8"]
    assert config["seed_everything"] == 10
    assert config["trainer"]["callbacks"][0]["init_args"]["monitor"] == "val/loss"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--trainer.max_step 2", "--trainer.max_step: no such key; near it: trainer.max_steps"),
        ("--trainer.max_steps many", "--trainer.max_steps: found 'many', expected a whole number"),
        ("--trainer.max_steps 1e3", "--trainer.max_steps: found '1e3', expected a whole number"),
        ("--trainer.max_steps 1:30", "--trainer.max_steps: found '1:30', expected a number"),
        ("--model.optimizer.lr null", "--model.optimizer.lr: found 'null', expected a number"),
        ("--model.optimizer.lrr 3", "--model.optimizer.lrr: no such key; near it: optimizer.lr"),
        ("--model.droput 3", "--model.droput: no such key; near it: dropout"),
        ("--model.optimizer.betas 0.9", "--model.optimizer.betas: found '0.9', expected a list of 2 (each a number)"),
        ("--model STFModule", "--model.class_path: found 'STFModule', expected one of Pret"),
        ("--data Nope", "--data.class_path: found 'Nope', expected one of PretrainingDataModule"),
        ("--trainer.callbacks+=EarlyStopping",
         "--trainer.callbacks.0.monitor: missing, expected text"),
        ("--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=v --trainer.callbacks.patience=q",
         "--trainer.callbacks.0.patience: found 'q', expected a whole number"),
        ("--trainer.callbacks+=EarlyStoping", "--trainer.callbacks.0: found 'EarlyStoping', expected a list"),
        ("--trainer f.yaml", "--trainer: found 'f.yaml', expected keys; a file of keys is given with --config"),
        ("--checkpoint f.yaml", "--checkpoint: found 'f.yaml', expected keys; a file of keys is given with --config"),
        ("--model.optimizer f.yaml", "--model.optimizer: found 'f.yaml', expected keys; a file of keys is given with"),
        ("--data f.yaml", "--data.class_path: found 'f.yaml', expected keys; a file of keys"),
        ("--trainer.callbacks f.yaml", "--trainer.callbacks: found 'f.yaml', expected keys; a file of keys is"),
        ("--model.dropout 1e400", "--model.dropout: found inf, expected a finite number"),
        ("--trainer.gradient_clip_val nan", "--trainer.gradient_clip_val: found 'nan', expected"),
        ("--trainer.gradient_clip_val -1", "--trainer.gradient_clip_val: found -1, expected a finite number, 0"),
        ("--trainer.log_every_n_steps 0", "--trainer.log_every_n_steps: found 0, expected 1 or more"),
        ("--trainer.limit_val_batches -1", "--trainer.limit_val_batches: found -1, expected a whole number of batches"),
        ("--seed_everything -1", "--seed_everything: found -1, expected 0 to 4294967295"),
        ("--data.batch_size ${trainer.max_epoch}", "--data.batch_size: found '${trainer.max_epoch}', expected the name "
         "of a key that has a value; near it: trainer.max_epochs"),
        ("--seed_everything 010", "--seed_everything: found '010', expected a number"),
        ("--data.context 0x10", "--data.context: found '0x10', expected a"),
        (f"--data.context {'9' * 3000}", f"--data.context: found '{'9' * 59}..., expected a number below 2**63"),
        ("--model.optimizer.betas [0.9,010]",
         "--model.optimizer.betas.1: found '010', expected a number"),
        ("--model.optimizer.betas 0.9 00.5",
         "--model.optimizer.betas.1: found '00.5', expected a number"),
        ("--tr\udcff 1", "--tr\\udcff: found bytes that are not UTF-8, expected text"),
        ("--checkpoint null", "--checkpoint: found null, expected keys; without any"),
        (f"--trainer.default_root_dir {'x' * 300}", f"--trainer.default_root_dir: found '{'x' * 59}..., expected"),
        ("--modl.x 3", "--modl.x: no such key"),
        ("--data FinetuningDataModule --data.test x", "--data.test: no such key; expected one of train, validation, "
         "tokenizer, task, columns, labels, levels, context, "),
        ("--data FinetuningDataModule --data.colums x", "--data.colums: no such key; near it: columns"),
    ],
)  # fmt: skip
def test_a_mistake_on_the_command_line(parse, tmp_path, words, line):
    (tmp_path / "f.yaml").write_text("x: 1\nx: ${oc.env:HOME}\n")
    assert refusal(parse, *words.split(), *SFT).startswith(line)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("trainer:\n  max_steps: many\n", "r.yaml:2: trainer.max_steps: found 'many', expected a whole number"),
        ("model:\n  init_args:\n    optimizer:\n      lr: fast\n",
         "r.yaml:4: model.optimizer.lr: found 'fast', expected a number"),
        *((f"{section}: {value}\n", f"r.yaml:1: {section}: found {value}, expected keys") for section in
          ("trainer", "checkpoint", "export") for value in ("3", "[]")),
        *((f"{section}: null\n", f"r.yaml:1: {section}: found null, expected keys") for section in
          ("model", "data", "trainer", "checkpoint", "export", "samples", "throughput", "progress")),
        ('trainer:\n  default_root_dir: "a\\0b"\n', "r.yaml:2: trainer.default_root_dir: found 'a\\x00b', expected a"),
        ("trainer:\n  max_stepz: 1\n", "r.yaml:2: trainer.max_stepz: no such key; near it: trainer.max_steps"),
        ("seed_everything: null\n", "r.yaml:1: seed_everything: found null, expected 0 to 4294967295"),
        ("data: f.yaml\n", "r.yaml:1: data.class_path: found 'f.yaml', expected keys; a file of keys"),
        ("trainer: f.yaml\n", "r.yaml:1: trainer: found 'f.yaml', expected keys; a file of keys is"),
        ("data:\n  init_args:\n    context: ${trainer.max_epoch}\n",
         "r.yaml:3: data.context: found '${trainer.max_epoch}', expected the name of a key that has a value"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_file(parse, tmp_path, text, line):
    (tmp_path / "r.yaml").write_text(text)
    assert refusal(parse, *SFT, "-c", "r.yaml").startswith(line)


@pytest.mark.parametrize(
    "callback",
    [
        "{class_path: evil.Callback}",
        "{class_path: LambdaCallback, init_args: {setup: os.system}}",
        "{class_path: lightning.pytorch.callbacks.lambda_function.LambdaCallback}",
        "{class_path: StochasticWeightAveraging, init_args: {swa_lrs: 0.1, avg_fn: evil.run}}",
        "StochasticWeightAveraging",
        "LearningRateFinder",
        "{class_path: lightning.pytorch.callbacks.lr_finder.LearningRateFinder}",
        "{class_path: lightning.pytorch.callbacks.BatchSizeFinder}",
        "{class_path: subprocess.Popen, init_args: {args: [touch, marker]}}",
        "{class_path: gpt_modules.commands.pipelines.process.run_process}",
    ],
)
@pytest.mark.parametrize("key", ["callbacks", "plugins", "logger"])
def test_nothing_is_imported_or_called_that_a_recipe_may_not_name(parse, tmp_path, monkeypatch, callback, key):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "r.yaml").write_text(f"trainer:\n  {key}: [{callback}]\n")
    assert "r.yaml:2: trainer." in refusal(parse, *SFT, "-c", "r.yaml")
    assert not (tmp_path / "marker").exists()


def test_a_package_of_the_users_is_named_with_a_flag(parse, tmp_path, monkeypatch):
    (tmp_path / "mine_of_recipe_cli.py").write_text("import lightning.pytorch as L\nclass Mine(L.Callback): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    words = [*SFT, "--trainer.callbacks+=mine_of_recipe_cli.Mine"]
    assert "a package of yours named with --allow mine_of_recipe_cli" in refusal(parse, *words)
    assert parse(*words, "--allow", "mine_of_recipe_cli")["trainer"]["callbacks"][0]["class_path"].endswith("Mine")


@pytest.fixture
def callbacks(tmp_path, monkeypatch):
    """Files with callbacks in the current folder, which Python does not look into by itself; the command in it."""
    (tmp_path / "callbacks_here.py").write_text("import lightning.pytorch as L\nclass Mine(L.Callback): pass\n")
    package = tmp_path / "package_here"
    package.mkdir()
    (package / "broken.py").write_text("\n1 / 0\n")
    (package / "lacks.py").write_text("import no_such\n")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    yield lambda name: [*SFT, "--allow", "callbacks_here", "package_here", "--trainer.callbacks+", name]
    for name in [name for name in sys.modules if name.endswith("_here")]:
        del sys.modules[name]


def test_a_package_of_the_users_is_found_in_the_current_folder(parse, callbacks):
    assert parse(*callbacks("callbacks_here.Mine"))["trainer"]["callbacks"][0]["class_path"] == "callbacks_here.Mine"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("callbacks_here.Mien", ", which is not in callbacks_here; near it: Mine"),
        ("{class_path: callbacks_here.Mien}", ", which is not in callbacks_here; near it: Mine"),
        ("package_here.broken.Mine", "@: ZeroDivisionError: division by zero (package_here/broken.py:2)"),
        ("package_here.lacks.Mine", "@: ModuleNotFoundError: No module named 'no_such' (package_here/lacks.py:1)"),
        ("package_here.none.Mine", "@: ModuleNotFoundError: No module named 'package_here.none'"),
    ],
)
def test_a_class_of_the_users_that_cannot_be_had_is_one_line_that_says_why(parse, callbacks, name, told):
    class_path = name.strip("{}").removeprefix("class_path: ")
    key = "--trainer.callbacks.0" + (".class_path" if name != class_path else "")
    expected = told.replace("@", ", expected a class of a package, installed or in the current folder")
    assert refusal(parse, *callbacks(name)) == f"{key}: found {class_path!r}{expected}"


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["--samples.enabled", "false"], {"sample_prompts": None, "sample_tokens": 48, "seed": 0}),
        (["--samples.enabled", "false", "--model.seed", "3"], {"sample_prompts": None, "sample_tokens": 48, "seed": 3}),
        (["-c", "own.yaml"], {"sample_prompts": ["A"], "sample_tokens": 5, "seed": 2}),  # the file says both
        ([], {"sample_prompts": ["A"], "sample_tokens": 5, "seed": 2}),
    ],
)
def test_samples_that_are_turned_off_take_their_prompts_along(parse, tmp_path, words, kept):
    """What is said with them, or after them, stays to be refused."""
    model = "model: {init_args: {sample_prompts: [A], sample_tokens: 5, seed: 2}}\n"
    (tmp_path / "base.yaml").write_text(model)
    (tmp_path / "own.yaml").write_text(f"{model}samples: {{enabled: false}}\n")
    found = parse(*SFT, "-c", "base.yaml", *words)["model"]["init_args"]
    assert {name: found[name] for name in kept} == kept


def test_samples_of_ppo_are_a_number_and_its_seed_is_the_rollouts(parse, tmp_path):
    (tmp_path / "own.yaml").write_text("model: {init_args: {sample_prompts: 2, seed: 2}}\n")
    found = parse("-c", "ppo/tiny", "-c", "own.yaml", "--samples.enabled", "false")["model"]["init_args"]
    assert (found["sample_prompts"], found["seed"]) == (8, 2)


@pytest.mark.parametrize("command", ["fit", "predict"])
def test_no_recipe(parse, command):
    with pytest.raises(UserError, match="found no recipe, expected --config RECIPE; gpt recipes lists"):
        parse(command=command)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (
            ["--help", "sft"],
            ["--model.init_from", "--model.optimizer.lr", "--data.train", "required", "--export.monitor"],
        ),
        ([*SFT, "--help"], ["0.05 in ", "sft/tiny.yaml:"]),
        (["--help", "trainer"], ["--trainer.max_steps", "--trainer.precision"]),
        (["--help", "EarlyStopping"], ["--monitor", "--patience"]),
        (["--help", "pretraining"], ["--model.config.n_layer"]),
    ],
)
def test_help_on_keys(parse, capsys, words, parts):
    with pytest.raises(SystemExit) as ended:
        parse(*words)
    assert ended.value.code == 0
    page = capsys.readouterr().out
    assert all(part in page for part in parts)
    assert len(page.splitlines()) < 240


FOLDER = ("--model.init_from", "a_folder")


def test_a_recipes_new_model_gives_way_to_a_folder_that_is_named_after_it(monkeypatch, tmp_path):
    """In every procedure that has both, and the other way round; what one and the same says is left for the procedure
    to refuse.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["gpt"])

    def left(*words):
        read = open_recipe(RecipeReader, "validate", [*words])
        arguments = read.config["validate"]["model"]["init_args"]
        return arguments["config"] is None, arguments["init_from"], read.left_out

    for name in ("pretraining/tiny", "maml/tiny"):
        gone, folder, told = left("-c", name, *FOLDER)
        assert (gone, folder) == (True, "a_folder")
        [line] = told
        assert ".yaml:" in line
        assert line.endswith(": model.config: left out: found beside model.init_from, which was named after it")
        assert left("-c", name) == (False, None, [])
        assert left("-c", name, *FOLDER, "--model.config", "null") == (True, "a_folder", [])
        assert left("-c", name, *FOLDER, "--model.config.n_layer", "1") == (False, "a_folder", [])
    sizes = ("--model.config.vocab_size", "300", "--model.config.n_layer", "1")
    gone, folder, [line] = left("-c", "finetuning/tiny", *sizes)
    assert (gone, folder) == (False, None)
    assert line.endswith(": model.init_from: left out: found beside model.config, which was named after it")
    Path("mine.yaml").write_text("model: {init_args: {init_from: a_folder}}")
    gone, folder, [line] = left("-c", "pretraining/tiny", "-c", "mine.yaml")
    assert (gone, folder) == (True, "a_folder")
