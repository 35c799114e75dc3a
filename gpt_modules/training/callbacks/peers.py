"""A run of several processes ends when one of them does, or stops answering: the rest would wait for it for half an
hour, the time that a collective call may take.

Each process says that it is alive, in the store by which the processes met, and looks after the next one, the last one
after the first: two questions a process, however many there are. What answers is a thread: a process that computes for
long is not silent, one that was killed or stopped is. Code that lets no other thread of Python run, such as a slow
regular expression, silences it, too: a process of this machine is then looked at from outside. (One whose own code
waits for ever is told of by `stalls`.)
"""

import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as L
import torch.distributed as dist
from torch.distributed import Store  # type: ignore[attr-defined]

from gpt_modules.one_voice import is_told
from gpt_modules.training.callbacks.checkpointing import way_on

_met = threading.Event()
EVERY, MISSES = 5.0, 6  # seconds between two looks, and how many in a row find nothing new
_LOST = "peer lost"
_PROC = Path("/proc")
_AT_REST = "TtZX"  # states of a process that is stopped, or has ended
T = TypeVar("T")


def whereabouts(process: int | None = None) -> str:
    """This process or another one of the machine, as every process there knows it; nothing where none can."""
    with suppress(OSError):
        process = os.getpid() if process is None else process
        machine = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{machine} {(_PROC / 'self/ns/pid').readlink()} {process} {_state(process)[19]}"
    return ""


def at_work(where: str) -> bool:
    """Whether a process, by its `whereabouts`, is of this machine and neither stopped nor at its end."""
    if not where:
        return False
    process = int(where.split()[2])
    with suppress(OSError):
        return whereabouts(process) == where and _state(process)[0] not in _AT_REST
    return False


def _state(process: int) -> list[str]:
    """What the kernel says of it, from its state on; the name before may have spaces."""
    return (_PROC / f"{process}/stat").read_text().rpartition(")")[2].split()


def watch(
    store: Store, rank: int, world: int, ended: threading.Event, every: float = EVERY, where: str = ""
) -> int | None:
    """Look after the next process until this one has `ended`: None; or until one is lost: its number, -1 where another
    process tells, or the store itself is gone.

    Looks are counted, not seconds: of a machine that slept nobody was silent.

    Args:
        where: this process's `whereabouts`.
    """
    peer = (rank + 1) % world
    seen, missed = 0, 0

    def ask() -> tuple[int, bool, bool]:
        store.add(f"peer {rank} lives", 1)
        return store.add(f"peer {peer} lives", 0), store.check([f"peer {peer} has ended"]), store.check([_LOST])

    def begin() -> None:
        store.set(f"peer {rank} is", where)
        store.add(f"peer {rank} lives", 1)

    def works() -> bool:
        return store.check([key := f"peer {peer} is"]) and at_work(store.get(key).decode())

    _answer(begin, every)  # one that is stopped before its first look has lived
    while not ended.wait(every):
        answer = _answer(ask, every * MISSES)
        if answer is None:
            return None if ended.is_set() else 0 if peer == 0 else -1
        count, done, told = answer
        missed = missed + 1 if count == seen and count and not done else 0
        seen = count
        if missed >= MISSES and _answer(works, every * MISSES):
            missed = 0
        if told or missed >= MISSES:
            store.set(_LOST, "")
            return -1 if told else peer
    return None


def _answer(ask: Callable[[], T], within: float) -> T | None:
    """What the store says; None, after so many seconds, where the process that keeps it is gone, or is stopped: then no
    call has an end.
    """
    answers: queue.SimpleQueue[T] = queue.SimpleQueue()

    def put() -> None:
        with suppress(RuntimeError):
            answers.put(ask())

    threading.Thread(target=put, daemon=True, name="peer-watch-asks").start()
    with suppress(queue.Empty):
        return answers.get(timeout=within)
    return None


def leave_with(launcher: int) -> None:
    """End this process, with a line if no other has told one, when the one that has started it is gone before all have
    met: it would wait for them for half an hour.

    Args:
        launcher: the number of that process.
    """

    def look() -> None:
        while not _met.wait(1.0):
            if os.getppid() != launcher:
                break
        else:
            return
        if not is_told(telling=True):
            sys.stderr.write("error: the process that has started this one has ended before the processes had met\n")
            sys.stderr.flush()
        os._exit(1)

    _met.clear()
    threading.Thread(target=look, daemon=True, name="launcher-watch").start()


class PeerWatch(L.Callback):
    """Ends this process, with a line from one of all, when another one is lost. Checkpoints are written whole or not at
    all, so that what is on disk verifies.
    """

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Begin to look, once the processes have met."""
        _met.set()
        if trainer.world_size > 1 and dist.is_available() and dist.is_initialized():
            self._ended.clear()
            self._thread = threading.Thread(target=self._look, args=(trainer,), daemon=True, name="peer-watch")
            self._thread.start()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Say that this process ends, which is no loss."""
        self._end()

    def on_exception(self, *_: Any) -> None:
        """The same."""
        self._end()

    def _end(self) -> None:
        """Say it, and wait until it is said.

        A thread that comes back from the store while Python is taken down is ended inside of C++, and the process of a
        run that is done aborts.
        """
        self._ended.set()
        if self._thread is not None:
            self._thread.join(EVERY)
            self._thread = None

    def _look(self, trainer: L.Trainer) -> None:
        # A connection of its own: a barrier would keep the one of the main thread busy.
        store: Store = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
        rank, world = dist.get_rank(), dist.get_world_size()
        lost = watch(store, rank, world, self._ended, where=whereabouts())
        if lost is None:
            with suppress(RuntimeError):  # the process that keeps the store was the first to end
                store.set(f"peer {rank} has ended", "")
            return
        if lost >= 0:
            silent = f"process {lost} has not been heard of for {EVERY * MISSES:g} s"
            sys.stderr.write(f"error: {lost_peer(silent, trainer.default_root_dir)}\n")
            sys.stderr.flush()
        launcher = trainer.strategy.launcher
        if launcher is not None:  # one that is stopped takes no other signal
            launcher.kill(signal.SIGKILL)
        os._exit(1)


def of_lost_peer(error: Exception) -> bool:
    """Whether a collective call failed as it does when another process has ended."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo/transport" in str(error))


def lost_peer(what: str, root: str | os.PathLike[str]) -> str:
    """The line for a run, in the folder `root`, that has lost a process."""
    return f"{what}: a run of several processes ends with any of them; {way_on(root)}"
