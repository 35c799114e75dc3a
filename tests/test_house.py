"""The house is in order: who knows a word or a module finds its files."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE, TESTS = ROOT / "gpt_modules", ROOT / "tests"
WORDS = ["pretraining", "finetuning", "sft", "reward", "ppo", "maml", "dpo"]
SHARED = {"dpo": "reward"}  # a word without data of its own
NOTHING_TO_TEST = {"storage/model_files.py": "names of files", "storage/comparisons/records.py": "fields"}
# Of the whole package or of several of its modules together.
OF_SEVERAL = {"test_ddp", "test_fsdp", "test_house", "test_notebooks", "test_recipes", "test_resume", "test_rounds"}
OF_SEVERAL |= {"test_every_checkpoint", "test_one_module", "test_own_data", "test_ranks", "test_small_documents"}
OF_SEVERAL |= {"test_succeeding", "test_waits", "test_graphs", "test_precision"}


def modules():
    return [path for path in PACKAGE.rglob("*.py") if path.stem not in ("__init__", "__main__")]


def test_every_module_has_a_test_of_its_name():
    untested = {
        str(path.relative_to(PACKAGE))
        for path in modules()
        if not (TESTS / path.relative_to(PACKAGE)).with_name(f"test_{path.name}").exists()
    }
    assert untested <= set(NOTHING_TO_TEST)


def test_every_test_has_a_module_of_its_name():
    files = [path for path in TESTS.rglob("test_*.py") if path.parent.name != "benchmarks"]
    strangers = {
        str(path.relative_to(TESTS))
        for path in files
        if not (PACKAGE / path.relative_to(TESTS)).with_name(path.name.removeprefix("test_")).exists()
        and path.stem not in OF_SEVERAL
    }
    assert not strangers


def test_no_file_is_named_after_nothing():
    names = {path.stem for path in (*PACKAGE.rglob("*"), *TESTS.rglob("*.py"))}
    assert not names & {"utils", "util", "common", "helpers", "helper", "misc"}


def test_messages_name_keys_as_the_command_line_takes_them():
    """Where it takes them without `init_args`. A checkpoint knows a reference by a name that has it."""
    rooms = (path for room in ("training", "data", "evaluation") for path in (PACKAGE / room).rglob("*.py"))
    assert [path.name for path in rooms if "el.init_args" in (text := path.read_text()) or "ta.init_args" in text] == [
        "frozen.py"
    ]


@pytest.mark.parametrize("word", WORDS)
def test_a_word_names_its_files_everywhere(word):
    for path in (
        PACKAGE / "training" / f"{word}.py",
        PACKAGE / "data" / f"{SHARED.get(word, word)}.py",
        ROOT / "recipes" / word / "tiny.yaml",
        ROOT / "notebooks" / f"{word}.ipynb",
    ):
        assert path.exists(), path


def test_a_room_holds_about_twenty_files():
    for folder in {path.parent for path in modules()}:
        assert len(list(folder.glob("*.py"))) <= 25, folder
