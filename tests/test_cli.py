"""The command line: quick to answer, one line for a user's mistake, and what a recipe says is what runs."""

import errno
import gc
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gpt_modules import cli
from gpt_modules.backbone import load_pretrained
from gpt_modules.errors import Stopped, UserError
from gpt_modules.storage.recipes import read_recipe


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture
def sft(micro, tmp_path):
    """A recipe of three steps, its parts open to change."""
    return micro.recipe("sft", tmp_path / "run", trainer__max_steps=3, trainer__limit_val_batches=1)


def assert_refused(ended, *parts):
    """One line on standard error, exit status 2."""
    assert ended.status == 2, ended.stderr
    lines = ended.stderr.strip().splitlines()
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0], lines[0]


def test_help_imports_nothing_heavy():
    heavy = "sorted({'torch', 'lightning', 'yaml'} & set(sys.modules))"
    code = f"import sys; from gpt_modules.cli import main; main(['--help']); print({heavy})"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.endswith("[]\n")
    for command in cli.COMMANDS:
        assert f"  {command} " in ended.stdout


def test_a_mistake_in_a_file_is_told_without_the_libraries(tmp_path):
    write(tmp_path / "r.yaml", "trainer:\n  max_steps: 1\n  max_steps: 2\n")
    code = "import sys; from gpt_modules.cli import main; sys.modules['torch'] = None; main(['fit', '-c', 'r.yaml'])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (
        2,
        "error: r.yaml:3: key 'max_steps' stands twice, on lines 2 and 3\n",
    )


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_no_command_prints_the_help(capsys, words):
    cli.main(words)
    assert capsys.readouterr().out == cli.HELP + "\n"


@pytest.mark.parametrize("command", ["fit", "validate", "run", "generate", "chat"])
def test_commands_explain_themselves(gpt, command):
    ended = gpt.run(command, "--help")
    assert ended.status == 0
    assert "usage: gpt" in ended.stdout


def test_an_unknown_command(gpt):
    assert_refused(gpt.run("train"), "'train'", "fit, validate")


def test_a_command_that_only_prints_ends_quietly_when_nobody_reads():
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "gpt_modules", "recipes"]
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize(("shell", "line"), [
    ("recipes > /dev/full", "error: standard output: could not be written (No space left on device), expected room\n"),
    ("recipes >&-", "error: standard output: found it closed, expected somewhere to print to\n"),
])  # fmt: skip
def test_nowhere_to_print_to_is_one_line(shell, line):
    command = f"{sys.executable} -m gpt_modules {shell}"
    ended = subprocess.run(command, shell=True, stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (2, line)


@pytest.mark.parametrize(("words", "name", "line"), [
    (["prepare"], None, "error: a file: could not be written (No space left on device), expected room\n"),
    (["prepare"], "out/x", "error: out/x: could not be written (No space left on device), expected room\n"),
    (["recipes"], None, "error: standard output: could not be written (No space left on device), expected room\n"),
])  # fmt: skip
def test_a_full_disk_is_told_by_what_could_not_be_written(monkeypatch, capsys, words, name, line):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device", *([name] if name else []))

    monkeypatch.setattr(cli, "_run", full)
    monkeypatch.setattr(cli, "_discard_output", lambda: None)
    with pytest.raises(SystemExit):
        cli.main(words)
    assert capsys.readouterr().err == line


def test_no_line_is_longer_than_a_person_reads(capsys):
    with pytest.raises(SystemExit):
        cli.fail(f"{'x' * 5000}: expected less")
    line = capsys.readouterr().err
    assert len(line) <= 400
    assert line.endswith(": expected less\n")


def test_a_run_outlives_its_readers():
    reading, writing = os.pipe()
    os.close(reading)
    with cli._Unread(writing, "w") as stream:
        assert stream.write(b"step 1") == 6


@pytest.mark.parametrize(("number", "named"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_a_signal_while_the_libraries_load_is_one_line(tmp_path, number, named):
    """Also where a library lets no exception through, and goes on to fail without what it was to load."""
    write(tmp_path / "numpy.py", f"import signal\ntry:\n    signal.raise_signal({number})\nfinally:\n    1 / 0\n")
    code = "from gpt_modules.cli import main; main(['fit', '-c', 'sft/tiny'])"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(cli.__file__).parents[1]}"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (128 + number, "", f"stopped by {named}\n")


@pytest.mark.parametrize(
    ("stop", "line"),
    [
        (lambda words: signal.raise_signal(signal.SIGINT), "stopped by Ctrl-C\n"),
        (lambda words: signal.default_int_handler(signal.SIGINT, None), "stopped by Ctrl-C\n"),
        (lambda words: signal.raise_signal(signal.SIGHUP), "stopped by SIGHUP\n"),
        (lambda words: stopped_and_told(), ""),
    ],
)
def test_a_signal_while_a_command_is_at_work_is_told_once(monkeypatch, capsys, stop, line):
    monkeypatch.setattr(cli, "_command", lambda name: stop)
    with pytest.raises(SystemExit) as ended:
        cli.main(["recipes"])
    assert ended.value.code == 128 + (signal.SIGHUP if "HUP" in line else signal.SIGINT)
    assert capsys.readouterr().err == line


LOSES_THE_OTHER = """
import os, signal, types
from gpt_modules import cli

def lose(*_):
    from torch.distributed import TCPStore
    reading, writing = os.pipe()
    if (other := os.fork()) == 0:
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        os.write(writing, str(store.port).encode())
        signal.pause()
    store = TCPStore("127.0.0.1", int(os.read(reading, 9)), is_master=False)
    os.kill(other, signal.SIGKILL)
    os.wait()
    try:
        store.add("step", 1)
    except RuntimeError as error:
        print(type(error).__name__)

cli._imported = lambda name: types.SimpleNamespace(run_trainer=lose)
cli.main(["fit", "-c", "sft/tiny"])
"""


def test_of_several_processes_none_tells_pages_of_anothers_end():
    """What has to be told is told by who ends first, or by who misses it; torch's own code wrote 20 lines."""
    environment = {name: value for name, value in os.environ.items() if name != "TORCH_CPP_LOG_LEVEL"}
    command = [sys.executable, "-c", LOSES_THE_OTHER]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "DistNetworkError\n", "")


def stopped_and_told():
    """As of a run that has said at which step it was."""
    stopped = Stopped(signal.SIGINT)
    stopped.told = True
    raise stopped


def test_recipes_are_listed_printed_and_copied_once(gpt, tmp_path):
    listed = gpt.run("recipes", "ppo", cwd=tmp_path)
    files = (Path(__file__).parents[1] / "recipes/ppo").iterdir()
    assert [line.split()[0] for line in listed.stdout.splitlines()] == sorted(f"ppo/{file.stem}" for file in files)
    printed = gpt.run("recipes", "ppo/tiny", cwd=tmp_path)
    assert yaml.safe_load(printed.stdout)["model"]["class_path"] == "PPOModule"
    assert gpt.run("recipes", "ppo/tiny", "--copy", "my.yaml", cwd=tmp_path).status == 0
    assert (tmp_path / "my.yaml").read_text() == printed.stdout
    assert_refused(gpt.run("recipes", "sft/tiny", "--copy", "my.yaml", cwd=tmp_path), "my.yaml exists")


def test_validation_leaves_the_trainings_files_alone(gpt, sft, tmp_path):
    recipe, root = write(tmp_path / "r.yaml", sft), tmp_path / "run"
    assert gpt.run("fit", "--config", recipe).status == 0
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    for command in ("validate", "test"):
        ended = gpt.run(command, "--config", recipe, "--data.batch_size", 2, "--ckpt_path", "last")
        assert ended.status == 0, ended.stderr
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    assert_refused(gpt.run("fit", "--config", recipe), "earlier run", "summary.json")


def test_each_metric_is_told_once_and_whole(gpt, sft, micro, tmp_path):
    """Though text beside the demonstrations is a second loader, and names are longer than half a terminal."""
    sft["data"]["init_args"]["pretraining"] = {"train": str(micro.pretraining)}
    sft["data"]["init_args"]["pretraining_fraction"] = 0.1
    ended = gpt.run("validate", "--config", write(tmp_path / "r.yaml", sft), COLUMNS="40")
    assert ended.status == 0, ended.stderr
    names = ["val/loss", "val/perplexity", "val/pretraining_loss", "val/pretraining_perplexity"]
    weights, *lines = ended.stdout.splitlines()
    assert weights.startswith("weights: ")
    assert sorted(line.split()[0] for line in lines) == names, ended.stdout
    assert all(float(line.split()[1]) > 0 for line in lines)
    quiet = gpt.run("validate", "--config", tmp_path / "r.yaml", "--verbose", "false")
    assert quiet.stdout == f"{weights}\n"


DUPLICATE = "trainer:\n  max_steps: 10\n  max_epochs: 1\n  max_steps: 1000000\n"


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (DUPLICATE, [":4", "'max_steps'", "lines 2 and 4"]),
        ("trainer: [", ["bad.yaml:"]),
        ("- a\n- b\n", ["found list, expected a mapping"]),
        ("a: !!python/object/apply:os.system ['true']\n", ["bad.yaml:1"]),
        ("", ["found nothing"]),
    ],
)
def test_a_broken_recipe_is_named_with_its_line(gpt, tmp_path, content, parts):
    path = write(tmp_path / "bad.yaml", content)
    assert_refused(gpt.run("fit", "--config", path), "bad.yaml", *parts)
    with pytest.raises(UserError):
        read_recipe(path)


@pytest.mark.parametrize("form", [["--config"], ["-c"], ["--config="]])
def test_a_missing_recipe(gpt, form):
    words = ["--config=no/such.yaml"] if form == ["--config="] else [*form, "no/such.yaml"]
    assert_refused(gpt.run("fit", *words), "no/such.yaml", "no such recipe")


def test_a_recipe_is_never_fetched(gpt):
    assert_refused(gpt.run("fit", "--config", "http://127.0.0.1:9/recipe.yaml"), "local file")


def test_no_recipe_at_all(gpt):
    ended = gpt.run("fit")
    assert_refused(ended)


def test_an_unknown_key(gpt, sft, tmp_path):
    sft["trainer"]["max_stepz"] = 3
    assert_refused(gpt.run("fit", "--config", write(tmp_path / "r.yaml", sft)), "max_stepz")


def test_an_unknown_key_of_a_module(gpt, sft, tmp_path):
    sft["model"]["init_args"]["drop_out"] = 0.1
    assert_refused(gpt.run("fit", "--config", write(tmp_path / "r.yaml", sft)), "drop_out")


def test_a_wrong_type(gpt, sft, tmp_path):
    sft["trainer"]["max_steps"] = "many"
    assert_refused(gpt.run("fit", "--config", write(tmp_path / "r.yaml", sft)), "max_steps", "many")


def test_an_unknown_class(gpt, sft, tmp_path):
    sft["model"]["class_path"] = "STFModule"
    assert_refused(gpt.run("fit", "--config", write(tmp_path / "r.yaml", sft)), "STFModule")


def test_a_missing_folder_to_begin_from(gpt, sft, tmp_path):
    sft["model"]["init_args"]["init_from"] = str(tmp_path / "absent")
    assert_refused(gpt.run("fit", "--config", write(tmp_path / "r.yaml", sft)), "absent", "expected a model folder")


def test_a_bad_size_of_a_model(gpt, micro, tmp_path):
    recipe = micro.recipe("pretraining", tmp_path / "run")
    recipe["model"]["init_args"]["config"]["n_head"] = 3
    assert_refused(gpt.run("fit", "--config", write(tmp_path / "r.yaml", recipe)), "n_head")


def test_a_bad_row_of_data(gpt, sft, tmp_path):
    rows = [{"prompt": "a", "response": "b"}, {"prompt": "a"}]
    data = write(tmp_path / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    sft["data"]["init_args"]["train"] = str(data)
    assert_refused(gpt.run("fit", "--config", write(tmp_path / "r.yaml", sft)), "rows.jsonl:2", "response")


def test_what_is_found_when_the_data_are_read_is_told_where_the_recipe_says_it(gpt, sft, tmp_path):
    recipe = write(tmp_path / "r.yaml", yaml.safe_dump(sft))
    line = next(number for number, text in enumerate(recipe.read_text().splitlines(), 1) if " train:" in text)
    words = ["fit", "--config", recipe, "--data.init_args.context"]
    assert_refused(gpt.run(*words, "33"), "error: --data.context: found 33")
    ended = gpt.run(*words, "1")
    assert ended.stderr.splitlines()[-1].startswith(f"error: {recipe}:{line}: data.train: found no row that fits a ")


def test_no_folder_for_the_run(gpt, sft, tmp_path):
    del sft["trainer"]["default_root_dir"]
    assert_refused(gpt.run("fit", "--config", write(tmp_path / "r.yaml", sft)), "trainer.default_root_dir")


def test_a_monitor_that_nobody_logs(gpt, sft, tmp_path):
    sft["export"]["monitor"] = "val/los"
    assert_refused(gpt.run("fit", "--config", write(tmp_path / "r.yaml", sft)), "val/los", "val/loss")


@pytest.mark.parametrize("devices", [1, 4])
def test_a_launcher_has_as_many_processes_as_the_recipe_asks_for(gpt, sft, tmp_path, devices):
    sft["trainer"] |= {"accelerator": "cpu", "devices": devices}
    ended = gpt.run("fit", "--config", write(tmp_path / "r.yaml", sft), WORLD_SIZE="2")
    expected = "expected the launcher's 2, --trainer.devices 2: "
    assert_refused(ended, f"trainer: found devices x num_nodes = {devices}, {expected}")


def test_too_few_prompts_for_the_minibatches(gpt, micro, tmp_path):
    recipe = micro.recipe("ppo", tmp_path / "run", data__episodes=3, model__minibatches=4)
    assert_refused(gpt.run("fit", "--config", write(tmp_path / "r.yaml", recipe)), "found 3", "minibatches")


def test_a_run_from_its_first_step_to_its_second_life(gpt, sft, micro, tmp_path):
    """One run, and all that may be asked of it afterwards."""
    root, recipe = tmp_path / "run", write(tmp_path / "r.yaml", sft)
    assert_refused(gpt.run("fit", "--config", recipe, "--ckpt_path", "last"), "found no checkpoint, expected")
    ended = gpt.run("fit", "--config", recipe)
    assert ended.status == 0, ended.stderr
    assert json.loads((root / "summary.json").read_text())["steps"] == 3
    assert load_pretrained(root / "export", kind="gpt").config.vocab_size == micro.vocab_size
    assert_refused(gpt.run("fit", "--config", recipe), "earlier run", "--ckpt_path last")
    # The class and the rate are the recipe's, not the checkpoint's.
    saved = sorted((root / "checkpoints").glob("*.ckpt"))[-1]
    other = write(tmp_path / "o.yaml", micro.recipe("reward", tmp_path / "other"))
    assert_refused(
        gpt.run("fit", "--config", other, "--ckpt_path", saved),
        "model.class_path: found 'SFTModule', expected the recipe's RewardModule",
    )
    words = ["fit", "--config", recipe, "--ckpt_path", "last", "--trainer.max_steps", "4"]
    assert gpt.run(*words, "--model.init_args.optimizer.lr", "0.5").status == 0
    config = yaml.safe_load((root / "config.yaml").read_text())
    assert config["model"]["init_args"]["optimizer"]["lr"] == 0.5
    assert config["model"]["class_path"].endswith("SFTModule")
    # The saved recipe runs again, elsewhere.
    again = gpt.run("fit", "--config", root / "config.yaml", "--trainer.default_root_dir", tmp_path / "again")
    assert again.status == 0, again.stderr
    assert json.loads((tmp_path / "again" / "summary.json").read_text())["steps"] == 4
    # Validation of what was trained.
    for path in (saved, "last"):
        validated = gpt.run("validate", "--config", recipe, "--ckpt_path", path)
        assert validated.status == 0, validated.stderr


def test_interpolation_follows_an_override(gpt, sft, micro, tmp_path):
    sft["data"]["init_args"]["tokenizer"] = "${model.init_args.init_from}"
    sft["model"]["init_args"]["init_from"] = str(tmp_path / "nowhere")
    ended = gpt.run("fit", "--config", write(tmp_path / "r.yaml", sft), "--model.init_args.init_from", micro.gpt)
    assert ended.status == 0, ended.stderr
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["data"]["init_args"]["tokenizer"] in (str(micro.gpt), "${model.init_args.init_from}")


def test_a_later_recipe_is_laid_over_an_earlier_one(gpt, sft, tmp_path):
    overlay = write(tmp_path / "overlay.yaml", {"trainer": {"max_steps": 1}})
    ended = gpt.run("fit", "--config", write(tmp_path / "r.yaml", sft), "--config", overlay)
    assert ended.status == 0, ended.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 1


def test_secrets_of_the_environment_do_not_reach_the_disk(gpt, sft, tmp_path):
    sft["data"]["init_args"]["cache_dir"] = "${oc.env:REL_SECRET}"
    ended = gpt.run("fit", "--config", write(tmp_path / "r.yaml", sft), REL_SECRET=str(tmp_path / "s3cr3t"))
    assert_refused(ended, "r.yaml", "oc.env")
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file() and b"s3cr3t" in path.read_bytes()]


def test_a_second_process_in_the_same_folder_is_refused(gpt, sft, tmp_path):
    from gpt_modules.commands.fit import lock

    held = lock(tmp_path / "run")
    assert_refused(gpt.run("fit", "--config", write(tmp_path / "r.yaml", sft)), "another run writes here")
    held.close()
    assert gpt.run("fit", "--config", tmp_path / "r.yaml").status == 0


def test_a_loss_that_is_not_finite_stops_the_run(gpt, sft, tmp_path):
    """And no checkpoint holds what came of it."""
    import torch

    sft["trainer"] |= {"max_steps": 50, "gradient_clip_val": None, "max_epochs": -1}
    sft["model"]["init_args"]["optimizer"]["lr"] = 1e30
    sft["checkpoint"]["every_n_steps"] = 1
    assert_refused(gpt.run("fit", "--config", write(tmp_path / "r.yaml", sft)), "not finite", "step ")
    for path in (tmp_path / "run" / "checkpoints").glob("*.ckpt"):
        weights = torch.load(path, weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for value in weights.values())


def test_generate_continues_a_prompt(gpt, micro):
    words = ["generate", "--model", micro.gpt, "--max-new-tokens", 5, "--prompt", "the film", "--samples", 2]
    ended = gpt.run(*words)
    assert ended.status == 0, ended.stderr
    assert ended.stdout.startswith("the film")
    assert gpt.run(*words).stdout == ended.stdout, "the seed is fixed"
    assert gpt.run(*words, "--seed", 1).stdout != ended.stdout
    piped = gpt.run("generate", "--model", micro.gpt, "--max-new-tokens", 5, stdin="a story\n\nthis plot\n")
    assert piped.stdout.startswith("a story")
    assert "this plot" in piped.stdout


def test_chat_answers_each_line(gpt, micro):
    for extra in ([], ["--system", "Be brief."]):
        ended = gpt.run("chat", "--model", micro.gpt, "--max-new-tokens", 3, *extra, stdin="hello\n\nagain\n")
        assert ended.status == 0, ended.stderr
        assert ended.stdout.count("\n") >= 2
        lines = ended.stderr.splitlines()
        told = ("are not read", "chat template: ours", "cut off")
        assert all(any(of in line for of in told) for line in lines), ended.stderr


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["generate"], "--model"),
        (["generate", "--model", "no/such/folder", "--prompt", "x"], "no/such/folder"),
        (["generate", "--model", "GPT", "--prompt", "x", "--max-new-tokens", "many"], "many"),
        (["generate", "--model", "GPT", "--prompt", "x", "--max-new-tokens", "1000"], "--max-new-tokens"),
        (["generate", "--model", "GPT", "--prompt", "x", "--device", "abacus"], "abacus"),
        (["generate", "--model", "GPT", "--max-new-tokens", "5"], "--prompt"),
        (["chat", "--model", "GPT", "--no-such-option"], "--no-such-option"),
        (["run"], "pipeline"),
        (["run", "no/such.yaml"], "no/such.yaml"),
    ],
)
def test_mistakes_at_the_console(gpt, micro, words, part):
    assert_refused(gpt.run(*(str(micro.gpt) if word == "GPT" else word for word in words)), part)


@pytest.mark.slow
def test_compiled_blocks_train_alike_and_leave_no_mark_on_names(gpt, micro, tmp_path):
    """In processes of their own: the run-time type checks of these tests are no food for the compiler."""
    import torch

    losses = []
    for compiled in (False, True):
        root = tmp_path / f"run-{compiled}"
        recipe = micro.recipe(
            "pretraining", root, model__compile=compiled, trainer__max_steps=2, trainer__limit_val_batches=1,
            model__config=micro.config().without_dropout().to_dict(),
        )  # fmt: skip
        ended = gpt.run("fit", "--config", write(tmp_path / "r.yaml", recipe))
        assert ended.status == 0, ended.stderr
        losses.append(json.loads((root / "summary.json").read_text())["after"]["val/loss"])
        names = torch.load(next((root / "checkpoints").glob("*.ckpt")), weights_only=True)["state_dict"]
        assert not [name for name in names if "_orig_mod" in name]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


@pytest.mark.parametrize("word", ["best", "hpc", ""])
def test_a_word_that_is_no_checkpoint_is_refused_by_its_key(gpt, sft, tmp_path, word):
    assert_refused(
        gpt.run("fit", "--config", write(tmp_path / "sft.yaml", sft), "--ckpt_path", word),
        "ckpt_path: ",
        repr(word),
        "expected last",
    )


@pytest.mark.parametrize("share", ["0", "0.0"])
def test_a_run_of_no_batches_hands_on_no_untrained_weights(gpt, sft, tmp_path, share):
    ended = gpt.run("fit", "--config", write(tmp_path / "sft.yaml", sft), "--trainer.limit_train_batches", share)
    assert_refused(ended, "trainer.limit_train_batches", "expected a whole number of batches, 1 or more")
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_refused_late_leaves_no_curves(gpt, sft, tmp_path):
    stopping = '{"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val/los"}}'
    ended = gpt.run("fit", "--config", write(tmp_path / "sft.yaml", sft), "--trainer.callbacks", f"[{stopping}]")
    assert_refused(ended, "--trainer.callbacks.0.monitor: found 'val/los'", "val/loss")
    assert not [path.name for path in (tmp_path / "run").glob("*") if path.name != ".lock"]


def test_nobody_looks_for_garbage_among_what_was_imported(capsys):
    cli.main(["recipes"])
    assert gc.isenabled()
    assert gc.get_freeze_count() > 1000
