"""Of the processes of a run, one tells the mistake."""

import os
import subprocess
import sys
import time

import pytest

from gpt_modules.one_voice import begin, is_told


@pytest.fixture
def ranks(tmp_path, monkeypatch):
    """ranks(number, telling): what a process of that number is answered."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name, value in {"MASTER_ADDR": "localhost", "MASTER_PORT": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)

    def ask(number, telling, launcher=100):
        """Of a launcher's own number, where that is the Trainer."""
        with monkeypatch.context() as process:
            process.setattr(os, "getpid", lambda: number)
            process.setattr(os, "getppid", lambda: launcher)
            if number == launcher:  # has no number among the processes until it starts them
                process.delenv("LOCAL_RANK")
            begin()
            process.setenv("LOCAL_RANK", str(number))
            return is_told(telling)

    return ask


def test_the_first_to_tell_is_the_only_one_and_may_ask_twice(ranks):
    assert not ranks(1, telling=False), "the loss of a peer is no mistake that the others would tell"
    assert [ranks(number, telling=True) for number in (2, 1, 3, 2)] == [False, True, True, False]
    assert ranks(3, telling=False), "nor does the loss of the one that told"


def test_the_next_run_tells_its_own(ranks):
    assert not ranks(1, telling=True)
    assert not ranks(2, telling=True, launcher=200)
    assert ranks(3, telling=True, launcher=200)


def test_so_does_a_command_after_another_in_a_shell_that_names_a_rank(ranks):
    """One process a container, say, whose rank is in its environment."""
    assert [ranks(3, telling=True) for _ in range(2)] == [False, False]


def test_so_does_the_next_run_of_a_launcher_of_the_same_number(ranks, monkeypatch):
    assert not ranks(1, telling=True)
    monkeypatch.setattr("gpt_modules.one_voice.APART", -1e-9)
    assert not ranks(2, telling=True)


@pytest.mark.parametrize("order", [(7, 8, 9), (8, 7, 9)])
def test_a_trainer_that_starts_the_others_is_one_of_them(ranks, order):
    assert [ranks(number, telling=True, launcher=7) for number in order] == [False, True, True]


def test_runs_that_meet_elsewhere_know_nothing_of_each_other(ranks, monkeypatch):
    assert not ranks(1, telling=True)
    monkeypatch.setenv("MASTER_PORT", "2")
    assert not ranks(2, telling=True)


def test_one_process_leaves_no_file(ranks, tmp_path, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK")
    assert not is_told(telling=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", "100:1", "100:1 1", "100:1 1 x", "100:1 1 nan", "100:1 1 inf"])
def test_what_cannot_be_read_is_told(ranks, tmp_path, content):
    assert not ranks(1, telling=True)
    (file,) = tmp_path.iterdir()
    file.write_text(content)
    assert not ranks(2, telling=True)


def test_what_cannot_be_asked_is_told(ranks, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    assert not ranks(1, telling=True)
    assert not ranks(2, telling=True)


@pytest.mark.parametrize("failing", [[0, 1], [1]])
def test_a_mistake_in_a_word_is_told_by_one_process_whichever_makes_it(tmp_path, failing):
    """Long before the processes could meet."""
    environment = os.environ | {"MASTER_ADDR": "localhost", "MASTER_PORT": "1", "TMPDIR": str(tmp_path)}
    words = {rank: ["fit", "--config", "nowhere"] if rank in failing else ["--version"] for rank in (0, 1)}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "gpt_modules", *words[rank]],
            env=environment | {"LOCAL_RANK": str(rank), "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    errors = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [2 if rank in failing else 0 for rank in (0, 1)]
    assert "".join(errors).count("\n") == 1, errors
    assert "".join(errors).startswith("error: nowhere: no such recipe")


def test_what_was_told_in_the_future_silences_nobody(ranks, tmp_path):
    """By a clock that has been set back since."""
    assert not ranks(1, telling=True)
    (file,) = tmp_path.iterdir()
    file.write_text(f"100:1 1 {time.time() + 3600!r}")
    assert not ranks(2, telling=True)
