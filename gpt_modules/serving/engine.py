"""The one thread that computes. Requests wait in a bounded queue, their rows join a running batch, and what they say is
told as it comes.

Nothing here knows of HTTP: `tell` is called in this thread and has to be quick.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from gpt_modules.backbone.decoding.batching import Batch, Likely, Row, Said
from gpt_modules.data.text.streaming import AnswerText
from gpt_modules.errors import UserError


class Busy(Exception):
    """The queue is full."""


class Late(Exception):
    """A request's time is up."""


class Failed(Exception):
    """Computing failed, for no fault of the request."""


class Piece(NamedTuple):
    """What a choice says next: text that is certain, its tokens' log-probabilities where they were asked for, and,
    with its last piece, why it ended: "stop" or "length".
    """

    choice: int
    text: str
    likely: tuple[Likely, ...]
    end: str | None


@dataclass(eq=False)
class Choice:
    """One of the answers that a request asks for. spoken: tokens so far."""

    row: Row
    text: AnswerText
    spoken: int = 0

    def hear(self, said: Said) -> tuple[str, str | None]:
        """(text that is certain now, why it ends)."""
        self.spoken += said.token is not None
        text = "" if said.token is None else self.text.add(said.token)
        if said.end is not None:
            text += self.text.close()
        return text, "stop" if self.text.stopped else said.end


@dataclass(eq=False)
class Job:
    """A request at work.

    Args:
        streams: each piece is told as it comes; else all pieces of all choices at once, at the end.
        deadline: of `time.monotonic()`.
        tell: gets pieces, in order, or what went wrong, after which nothing comes.
    """

    choices: Sequence[Choice]
    streams: bool
    deadline: float
    tell: Callable[[list[Piece] | Exception], None]
    open: int = field(init=False)
    pieces: list[Piece] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.open = len(self.choices)


class Counts:
    """What the engine has done and does; read from other threads, each number for itself."""

    def __init__(self) -> None:
        self.prompt_tokens, self.spoken_tokens, self.turns = 0, 0, 0
        self.rows, self.waiting, self.cache_bytes = 0, 0, 0


class Engine:
    """See the module.

    Args:
        queue: rows that may wait.
    """

    def __init__(self, batch: Batch, queue: int) -> None:
        self.counts, self.error = Counts(), ""
        self._batch, self._queue = batch, queue
        self._waiting: deque[tuple[Job, int]] = deque()
        self._gone: set[Job] = set()
        self._at_work: dict[Row, tuple[Job, int]] = {}
        self._changed, self._closing = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it computes what it is given."""
        return self._thread.is_alive() and not self._closing

    def submit(self, job: Job) -> None:
        """Take a request.

        Raises:
            Busy: its rows do not fit behind those that wait.
            Failed: nothing is computed any more.
            UserError: the model cannot continue a row, or there are more than may ever wait.
        """
        if len(job.choices) > self._queue:
            raise UserError(f"n: found {len(job.choices)} answers in one request, expected at most the {self._queue} "
                            "that may wait")  # fmt: skip
        for choice in job.choices:
            choice.row.check(self._batch.model)
        with self._changed:
            if not self.is_alive:
                raise Failed("stopping")
            if len(self._waiting) + len(job.choices) > self._queue:
                raise Busy
            self._waiting.extend((job, i) for i in range(len(job.choices)))
            self.counts.waiting = len(self._waiting)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Nobody waits for it any more: its rows leave. Nothing happens where it is done."""
        with self._changed:
            if job.open:
                self._gone.add(job)
                self._changed.notify()

    def close(self) -> None:
        """End the thread; what is at work is told that it failed."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while self._arrange():
            try:
                said = self._batch.turn()
            except Exception as error:  # out of memory, say: those at work are told, the others go on
                self.error = f"{type(error).__name__}: {error}"
                self._end(list(dict.fromkeys(job for job, _ in self._at_work.values())), Failed(self.error[:200]))
                continue
            self._hear(said)
        self._end([*(job for job, _ in self._waiting), *(job for job, _ in self._at_work.values())], Failed("stopping"))

    def _arrange(self) -> bool:
        """Wait for work; let those leave whom nobody waits for, and join whom there is room for. False: at the end."""
        with self._changed:
            self._count()
            while not (self._waiting or self._at_work or self._closing):
                self._changed.wait()
            gone, self._gone = self._gone, set()
        self._end(gone, None)
        now = time.monotonic()
        with self._changed:
            known = dict.fromkeys([*(job for job, _ in self._waiting), *(job for job, _ in self._at_work.values())])
        self._end([job for job in known if job.deadline < now], Late())
        with self._changed:
            while self._waiting and self._batch.has_room(self._row(self._waiting[0])):
                self._join(*self._waiting.popleft())
            self._count()
        return not self._closing

    def _row(self, waiting: tuple[Job, int]) -> Row:
        job, choice = waiting
        return job.choices[choice].row

    def _join(self, job: Job, choice: int) -> None:
        row = job.choices[choice].row
        try:
            self._batch.join(row)
        except RuntimeError as error:  # no memory for its keys and values
            self._end([job], Failed(f"{type(error).__name__}: {error}"[:200]))
            return
        self._at_work[row] = job, choice
        self.counts.prompt_tokens += len(row.prompt)

    def _hear(self, said: Sequence[Said]) -> None:
        told: dict[Job, list[Piece]] = {}
        for each in said:
            job, i = self._at_work[each.row]
            text, end = job.choices[i].hear(each)
            self.counts.spoken_tokens += each.token is not None
            if end is not None:
                job.open -= 1
                self._leave(each.row)
            piece = Piece(i, text, () if each.likely is None else (each.likely,), end)
            told.setdefault(job, []).append(piece)
        self.counts.turns += 1
        for job, pieces in told.items():
            if job.streams:
                job.tell(pieces)
            else:
                job.pieces += pieces
                if not job.open:
                    job.tell(job.pieces)

    def _leave(self, row: Row) -> None:
        self._batch.leave(row)
        del self._at_work[row]

    def _end(self, jobs: Sequence[Job] | set[Job], error: Exception | None) -> None:
        ending = set(jobs)
        if not ending:
            return
        with self._changed:
            self._waiting = deque(waiting for waiting in self._waiting if waiting[0] not in ending)
        for row in [row for row, (job, _) in self._at_work.items() if job in ending]:
            self._leave(row)
        for job in ending:
            job.open = 0
            if error is not None:
                job.tell(error)

    def _count(self) -> None:
        self.counts.rows, self.counts.waiting = len(self._at_work), len(self._waiting)
        self.counts.cache_bytes = self._batch.held_bytes
