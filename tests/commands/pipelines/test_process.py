"""A step's process gets the signals of the pipeline's, and hands its status on."""

import signal
import subprocess
import sys

import pytest

from gpt_modules.commands.pipelines.process import run_process


@pytest.mark.parametrize(("code", "status"), [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)])
def test_a_stages_status_is_handed_on(code, status):
    assert run_process([sys.executable, "-c", code]) == status


STOPPED = """
import os, signal, sys
from gpt_modules.commands.pipelines.process import run_process
stage = "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [15])"
stage += "; os.kill(os.getppid(), 15); sys.exit(128 + signal.sigwait([15]))"
sys.exit(run_process([sys.executable, "-c", stage]))
"""
# The signal comes while the stage is being started: nothing is left running, and nothing is waited for.
EARLY = """
import os, signal, subprocess, sys
from gpt_modules.commands.pipelines.process import run_process
real = subprocess.Popen
def start(command):
    process = real(command)
    os.kill(os.getpid(), NUMBER)
    return process
subprocess.Popen = start
sys.exit(run_process([sys.executable, "-c", "import signal; signal.sigwait([signal.SIGUSR1])"]))
"""


def test_a_signal_reaches_the_stage_and_its_status_comes_back():
    ended = subprocess.run([sys.executable, "-c", STOPPED], check=False, capture_output=True, text=True)
    assert ended.returncode == 143, ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_while_the_stage_is_started_reaches_it_too(number):
    code = EARLY.replace("NUMBER", str(int(number)))
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert ended.returncode == 128 + number, ended.stderr


# The stage takes no notice: it was at its last step.
LATE = """
import os, sys
from gpt_modules.commands.pipelines.process import run_process
stage = "import os, signal; signal.signal(NUMBER, lambda *_: None); os.kill(os.getppid(), NUMBER); "
stage += "import time; time.sleep(0.3)"
sys.exit(run_process([sys.executable, "-c", stage]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_no_other_stage_begins_after_a_signal_that_a_stage_did_not_end_by(number):
    code = LATE.replace("NUMBER", str(int(number)))
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert ended.returncode == 128 + number, ended.stderr
