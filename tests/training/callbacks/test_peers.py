"""Processes that look after one another, here threads with a store of their own: who ends is let go, who falls silent
is told once, and everyone else leaves.
"""

import os
import signal
import subprocess
import sys
import threading
import time

import lightning.pytorch as L
import pytest
import torch.distributed as dist
from torch.distributed import DistBackendError, HashStore, Store

from gpt_modules.training.callbacks.peers import MISSES, PeerWatch, at_work, lost_peer, of_lost_peer, watch, whereabouts

EVERY = 0.01


class Peers:
    """So many watches, each in a thread."""

    def __init__(self, world, store=None):
        self.world, self.store, self.found = world, store or HashStore(), {}
        self.ended = [threading.Event() for _ in range(world)]
        self.threads = [threading.Thread(target=self.run, args=(rank,)) for rank in range(world)]

    def run(self, rank):
        self.found[rank] = watch(self.store, rank, self.world, self.ended[rank], EVERY)
        if self.found[rank] is None:
            self.store.set(f"peer {rank} has ended", "")

    def alive(self, *ranks):
        """Until all of these have said so."""
        while not all(self.store.add(f"peer {rank} lives", 0) for rank in ranks):
            time.sleep(EVERY)

    def join(self, *ranks):
        for rank in ranks:
            self.threads[rank].join(timeout=30)
            assert not self.threads[rank].is_alive()


def test_one_that_is_stopped_before_its_first_look_is_missed():
    peers = Peers(2)
    stopped = threading.Thread(target=watch, args=(peers.store, 1, 2, threading.Event(), 3600.0), daemon=True)
    stopped.start()
    peers.threads[0].start()
    peers.join(0)
    assert peers.found == {0: 1}


@pytest.mark.parametrize("world", [2, 3])
def test_who_has_ended_is_no_loss(world):
    peers = Peers(world)
    for thread in peers.threads:
        thread.start()
    peers.alive(*range(world))
    for rank in range(world):
        peers.ended[rank].set()
        peers.join(rank)
        time.sleep(2 * MISSES * EVERY)
    assert peers.found == dict.fromkeys(range(world))


@pytest.mark.parametrize("world", [2, 4])
def test_who_falls_silent_is_told_by_one_and_all_leave(world):
    """The last one said once that it lives; of it nothing runs."""
    peers = Peers(world)
    peers.store.add(f"peer {world - 1} lives", 1)
    for thread in peers.threads[:-1]:
        thread.start()
    peers.join(*range(world - 1))
    assert peers.found == {**dict.fromkeys(range(world - 2), -1), world - 2: world - 1}


def test_who_has_not_begun_is_waited_for():
    peers = Peers(2)
    peers.threads[0].start()
    time.sleep(3 * MISSES * EVERY)
    assert peers.threads[0].is_alive()
    peers.ended[0].set()
    peers.join(0)
    assert peers.found == {0: None}


@pytest.mark.parametrize("hook", ["teardown", "on_exception"])
def test_a_process_does_not_end_while_its_watch_is_at_the_store(monkeypatch, hook):
    """Which takes its time to note that it ends."""
    noted = threading.Event()

    class Slow(Store):
        def clone(self):
            return self

        def add(self, key, amount):
            return 1

        def set(self, key, value):
            time.sleep(20 * EVERY)
            noted.set()

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", Slow)
    monkeypatch.setattr(L.Trainer, "world_size", 2)
    callback, trainer = PeerWatch(), L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    module = L.LightningModule()
    callback.setup(trainer, module, stage="fit")
    if hook == "on_exception":
        callback.on_exception(trainer, module, KeyboardInterrupt())
    else:  # as Lightning calls it
        callback.teardown(trainer, module, stage="fit")
    assert noted.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name == "peer-watch"]


@pytest.fixture
def silent():
    """A process without a thread that could say that it lives."""
    process = subprocess.Popen([sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"],
                               stdout=subprocess.PIPE)  # fmt: skip
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_who_is_silent_and_at_work_is_no_loss_until_it_is_stopped_or_killed(silent, number):
    """As code that lets no other thread of Python run."""
    peers = Peers(2)
    peers.store.set("peer 1 is", whereabouts(silent.pid))
    peers.store.add("peer 1 lives", 1)
    peers.threads[0].start()
    time.sleep(5 * MISSES * EVERY)
    assert peers.threads[0].is_alive()
    os.kill(silent.pid, number)
    peers.join(0)
    assert peers.found == {0: 1}


def test_a_process_is_known_where_it_runs_alone(silent):
    where = whereabouts(silent.pid)
    assert at_work(where)
    assert at_work(whereabouts())
    machine, rest = where.split(maxsplit=1)
    assert not at_work(f"{machine[::-1]} {rest}"), "of another machine"
    assert not at_work(where[:-1] + str((int(where[-1]) + 1) % 10)), "of an earlier process of that number"
    assert not at_work("")


class Gone(Store):
    """A store whose keeper has ended."""

    def add(self, key, amount):
        raise RuntimeError("connection reset")


class Stopped(Store):
    """A store whose keeper was stopped: no call has an end."""

    def add(self, key, amount):
        threading.Event().wait()


@pytest.mark.parametrize("store", [Gone, Stopped])
@pytest.mark.parametrize(("rank", "lost"), [(2, 0), (0, -1), (1, -1)])
def test_a_store_that_does_not_answer_is_the_first_process(store, rank, lost):
    assert watch(store(), rank, 3, threading.Event(), EVERY / 10) == lost
    ended = threading.Event()
    threading.Timer(2 * EVERY, ended.set).start()
    assert watch(store(), rank, 3, ended, EVERY) is None, "it had ended before"


def test_a_collective_call_that_fails_has_lost_a_peer():
    """The text is gloo's, of a process whose peer was killed."""
    text = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:545] Connection closed by peer [127.0.0.1]:31216"
    assert of_lost_peer(RuntimeError(text))
    assert of_lost_peer(DistBackendError("NCCL error"))
    assert not of_lost_peer(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not of_lost_peer(ValueError(text))


def test_the_line_says_how_to_go_on(tmp_path):
    line = lost_peer("process 1 has not been heard of for 30 s", tmp_path)
    assert line.startswith("process 1 has not been heard of for 30 s: ")
    assert line.endswith("; begin anew: nothing was saved")
    assert "\n" not in line
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step=00000002.ckpt").touch()
    assert lost_peer("it", tmp_path).endswith("; go on with --ckpt_path last")


ORPHAN = """
import os, subprocess, sys, time
if len(sys.argv) == 2:
    subprocess.Popen([sys.executable, __file__, sys.argv[1], str(os.getpid())], env={**os.environ, "LOCAL_RANK": "1"})
    sys.exit()
from gpt_modules import one_voice
from gpt_modules.training.callbacks import peers
one_voice.begin()
if os.environ.get("MEET"):
    peers.leave_with(int(sys.argv[2]))
    peers._met.set()
else:
    peers.leave_with(int(sys.argv[2]))
time.sleep(8)
open(sys.argv[1], "w").write("slept")
"""


@pytest.mark.slow
@pytest.mark.parametrize("meet", ["", "yes"])
def test_a_process_whose_launcher_is_gone_before_all_have_met_ends_with_a_line(tmp_path, meet):
    """It would sleep, as one that waits for the others does; where they have met, its peers look after it."""
    (tmp_path / "orphan.py").write_text(ORPHAN)
    environment = {**os.environ, "MEET": meet, "TMPDIR": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, tmp_path / "orphan.py", tmp_path / "slept"], env=environment, capture_output=True, timeout=60
    )  # until both have closed what they write to
    assert (tmp_path / "slept").exists() == bool(meet)
    line = "error: the process that has started this one has ended before the processes had met\n"
    assert ended.stderr.decode() == ("" if meet else line)
