"""What is forked from a command is no part of it: SIGTERM ends it, and so does the end of the code that forked it."""

import multiprocessing
import os
import signal
import sys
import time

import pytest

from gpt_modules.cli import _exit_on_signal
from gpt_modules.forks import forks_end_here
from gpt_modules.scoring import text_scores
from gpt_modules.training.callbacks.checkpointing import ExactCheckpoint

FORK = multiprocessing.get_context("fork")


def of_lightning(number, frame):
    """A handler as its own, which remembers that the signal came."""


of_lightning.__module__ = "lightning.pytorch.trainer.connectors.signal_connector"


@pytest.fixture(params=[ExactCheckpoint()._request_stop, _exit_on_signal, of_lightning])
def handler(request):
    before = signal.signal(signal.SIGTERM, request.param)
    yield request.param
    assert signal.getsignal(signal.SIGTERM) == request.param, "of the parent"
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, set())
    signal.signal(signal.SIGTERM, before)


def scores(prompts, responses):
    """Of a pool that `with` ends by SIGTERM."""
    with FORK.Pool(2) as pool:
        return pool.map(len, responses)


def test_a_pool_of_a_reward_function_ends(handler):
    assert text_scores("m:f", scores, ["a", "b"], ["one", "four"]) == [3.0, 4.0]


def test_sigterm_ends_a_fork_however_early_it_comes(handler):
    for _ in range(20):
        process = FORK.Process(target=time.sleep, args=(60,))
        process.start()
        process.terminate()
        process.join(20)
        assert process.exitcode == -signal.SIGTERM


def test_a_handler_of_the_users_stays(capfd):
    before = signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
    try:
        process = FORK.Process(target=time.sleep, args=(60,))
        process.start()
        process.terminate()
        process.join(20)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert process.exitcode == 7


def raised(error):
    raise error


@pytest.mark.parametrize(
    ("leave", "status", "told"),
    [
        (lambda: None, 0, ""),
        (lambda: sys.exit(), 0, ""),
        (lambda: sys.exit(3), 3, ""),
        (lambda: sys.exit("why"), 1, "why\n"),
        (lambda: raised(KeyError("boom")), 1, "KeyError: 'boom'\n"),
        (lambda: raised(KeyboardInterrupt()), 1, "KeyboardInterrupt\n"),
    ],
)
def test_a_fork_of_a_reward_function_ends_where_it_would_leave_it(leave, status, told, capfd):
    """And undoes nothing on its way, nor calls the function again."""
    forked = []

    def function(prompts, responses):
        forked.append(os.fork())
        if forked[-1] == 0:
            leave()
        return [1.0] * len(prompts)

    try:
        assert text_scores("m:f", function, ["a"], ["b"]) == [1.0]
    finally:
        if forked[-1] == 0:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(forked[0], 0)[1]) == status
    written = capfd.readouterr().err
    assert written.endswith(told)
    assert told or not written


def test_the_process_itself_leaves_as_it_likes():
    with pytest.raises(KeyError), forks_end_here():
        raise KeyError
    with forks_end_here():
        pass
