"""A function over many items on all cores, results in order."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing.connection import wait
from typing import Any, TypeVar

from gpt_modules.errors import UserError

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def map_in_order(
    start: Callable[..., Callable[[ItemT], ResultT]], settings: tuple[Any, ...], items: Iterable[ItemT], workers: int
) -> Iterator[ResultT]:
    """`map(start(*settings), items)`.

    Args:
        start: Called once in each process; a name at the top of a module.
        settings: Its arguments.
        items: Read a little ahead of what is asked for.
        workers: Processes. They are started for two items or more, and only the command line may ask for several: a
            user's script is imported anew by each.

    Raises:
        UserError: A process died, as one does that the system has no memory for.
    """
    items = iter(items)
    ahead = list(islice(items, 2))
    if workers < 2 or len(ahead) < 2:
        yield from map(start(*settings), chain(ahead, items))
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker, (start, settings))
    try:
        yield from _in_order(pool, chain(ahead, items), 2 * workers)
    except BrokenProcessPool as error:
        raise UserError(
            f"workers: found that one of {workers} processes died, expected enough memory; ask for fewer"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(pool: ProcessPoolExecutor, items: Iterator[Any], ahead: int) -> Iterator[Any]:
    waiting: deque[Future[Any]] = deque()
    for item in items:
        waiting.append(pool.submit(_work, item))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


_worker: list[Callable[[Any], Any]] = []


def _start_worker(start: Callable[..., Callable[[Any], Any]], settings: tuple[Any, ...]) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the cores
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends them
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker.append(start(*settings))


def _end_with_parent() -> None:
    """A killed parent tells nobody: without this its workers would wait forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _work(item: Any) -> Any:
    return _worker[0](item)
