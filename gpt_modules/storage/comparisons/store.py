"""A store of comparisons: what `gpt compare` samples, `gpt label` has ranked and a reward model learns from."""

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from gpt_modules.errors import UserError
from gpt_modules.storage.comparisons.database import check_whole, connect, create, told, transaction
from gpt_modules.storage.comparisons.prompts import Prompt, Spelled, plain_prompt, prompt_of, said_last, spelled
from gpt_modules.storage.comparisons.records import (
    FLAGS,
    SCORES,
    Answer,
    Judgement,
    LabelerKind,
    Ranking,
    Source,
    Task,
    Vote,
    competition_ranks,
)

_ANSWERS = """
SELECT a.id, a.text, a.ended, s.name, s.digest, s.settings
FROM answers a JOIN sources s ON s.id = a.source WHERE a.task = ? ORDER BY a.id
"""
_TASK = "SELECT t.id, t.round, p.text, p.messages FROM tasks t JOIN prompts p ON p.id = t.prompt"
_COUNTING = "SELECT id, task, labeler FROM votes WHERE superseded IS NULL"

StoreT = TypeVar("StoreT", bound="ComparisonStore")


class ComparisonStore:
    """An open store. Each method that writes is one transaction; a store may be open in several processes.

    Raises:
        UserError: the file is no store, of another version, or cannot be written.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, writing: bool = True) -> None:
        self.path, self._connection, self._writing = path, connection, writing

    @classmethod
    def create(cls: type[StoreT], path: Path) -> StoreT:
        """A new store, or the one that is there."""
        return cls(path, create(path))

    @classmethod
    def open(cls: type[StoreT], path: Path, writing: bool = True) -> StoreT:
        """The store that is there."""
        return cls(path, connect(path, writing), writing)

    def check(self) -> None:
        """Read all of the file once, before it is worked with.

        Raises:
            UserError: a part of it is damaged.
        """
        check_whole(self.path, self._connection, self._writing)

    def close(self) -> None:
        """At the end; nothing is lost without it."""
        self._connection.close()

    def __enter__(self: StoreT) -> StoreT:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def together(self) -> AbstractContextManager[None]:
        """All that is written within, or nothing of it: one transaction."""
        return transaction(self.path, self._connection)

    # --- the labelling form ---

    @property
    def form(self) -> tuple[str, ...]:
        """The flags that an answer may get."""
        found = self._one("SELECT value FROM settings WHERE name = 'flags'")
        return FLAGS if found is None else tuple(json.loads(found[0]))

    def set_form(self, flags: Sequence[str]) -> None:
        """Other flags, for votes from now on."""
        with transaction(self.path, self._connection):
            self._run("INSERT OR REPLACE INTO settings VALUES ('flags', ?)", json.dumps(list(flags)))

    # --- rounds, tasks, answers ---

    def round_of(self, sampling: str, name: str | None = None) -> int:
        """The number of the round whose answers are sampled in this way, the newest; the next one where there is none.

        Args:
            name: of the round; the same sampling under another name, or under none, is another round.

        Raises:
            UserError: the round of that name was sampled in another way.
        """
        text = sampling if name is None else json.dumps({"name": name, "sampling": sampling})
        with transaction(self.path, self._connection):
            found = self._one("SELECT max(number) FROM rounds WHERE sampling = ?", text)
            if found is not None and found[0] is not None:
                return int(found[0])
            if name is not None and self.round_named(name) is not None:
                raise UserError(f"{self.path}: {name[:60]} was sampled from other models or in another way, expected "
                                "the same")  # fmt: skip
            number = 1 + max(self.rounds(), default=0)
            self._run("INSERT INTO rounds VALUES (?, ?)", number, text)
        return number

    def round_named(self, name: str) -> int | None:
        """The number of the round of a name; None where there is none."""
        begin = json.dumps({"name": name, "sampling": ""})[:-2]  # as `round_of` writes it
        found = self._one("SELECT number FROM rounds WHERE substr(sampling, 1, ?) = ?", len(begin), begin)
        return None if found is None else int(found[0])

    def rounds(self) -> list[int]:
        """Numbers of the rounds."""
        return [number for (number,) in self._run("SELECT number FROM rounds ORDER BY number")]

    def prompts(self, number: int) -> set[Spelled]:
        """Prompts that have a task in a round."""
        words = "SELECT text, messages FROM prompts WHERE id IN (SELECT prompt FROM tasks WHERE round = ?)"
        return {Spelled(*found) for found in self._run(words, number)}

    def add_task(self, number: int, prompt: Prompt, answers: Sequence[Answer]) -> int | None:
        """A task of a round that is there; its id, or None where the round has this prompt with these answers already.

        Raises:
            UserError: there are fewer than two answers, two are the same, or one is empty.
        """
        texts = [answer.text for answer in answers if answer.text.strip()]
        if len(texts) < 2 or len(set(texts)) < len(answers):
            found = f"found {len(set(texts))} different texts of {len(answers)} answers"
            raise UserError(f"answers to {said_last(prompt)[:40]!r}: {found}, expected at least 2, all different and "
                            "none empty")  # fmt: skip
        with transaction(self.path, self._connection):
            asked = spelled(prompt)
            self._run("INSERT INTO prompts (text, messages) VALUES (?, ?) ON CONFLICT DO NOTHING", *asked)
            added = self._run(_NEW_TASK, number, content_of(prompt, texts), *asked)
            if not added.rowcount:
                return None
            task = added.lastrowid
            words = "INSERT INTO answers (task, text, source, ended) VALUES (?, ?, ?, ?)"
            for answer in answers:
                self._run(words, task, answer.text, self._source(answer.source), answer.ended)
        return task

    def _source(self, source: Source) -> int:
        values = (source.name, source.digest or "", source.settings)
        self._run("INSERT INTO sources (name, digest, settings) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", *values)
        found = self._one("SELECT id FROM sources WHERE name = ? AND digest = ? AND settings = ?", *values)
        assert found is not None
        return int(found[0])

    def tasks(self, number: int | None = None) -> Iterator[Task]:
        """The tasks of a round, or all, in the order in which they were added."""
        which = "" if number is None else f" WHERE t.round = {number}"
        for row in self._run(f"{_TASK}{which} ORDER BY t.id").fetchall():
            yield self._task(row)

    def task(self, task: int) -> Task:
        """The task of an id."""
        row = self._one(f"{_TASK} WHERE t.id = ?", task)
        if row is None:
            raise UserError(f"{self.path}: found no task {task}")
        return self._task(row)

    def _task(self, row: Sequence[Any]) -> Task:
        answers = (
            Answer(text, Source(name, digest or None, settings), None if ended is None else bool(ended), id)
            for id, text, ended, name, digest, settings in self._run(_ANSWERS, row[0])
        )
        id, number, *asked = row
        return Task(id, number, prompt_of(*asked), tuple(answers))

    def contents(self, number: int) -> list[str]:
        """`content_of` each task of a round, sorted."""
        return [of for (of,) in self._run("SELECT content FROM tasks WHERE round = ? ORDER BY content", number)]

    def answered(self, number: int) -> tuple[int, int]:
        """Tasks of a round that people have ranked; that they have ranked or skipped."""
        ranked, answered = self._run(_ANSWERED, number).fetchone()
        return int(ranked), int(answered)

    def acts(self, number: int) -> int:
        """Votes on tasks of all rounds up to this one, with those that count no more: they never become fewer."""
        words = "SELECT count(*) FROM votes JOIN tasks ON tasks.id = task WHERE round <= ?"
        return int(self._run(words, number).fetchone()[0])

    def tasks_of(self, prompt: Prompt, answers: Sequence[str]) -> list[Task]:
        """The tasks with this prompt and these answers, in any order: at most one a round, the newest round's last."""
        words = (
            "SELECT id FROM rounds CROSS JOIN tasks ON round = number AND content = ? ORDER BY number"  # by the index
        )
        return [self.task(id) for (id,) in self._run(words, content_of(prompt, answers)).fetchall()]

    # --- labelers and their votes ---

    def add_labeler(self, name: str, kind: LabelerKind, settings: str = "") -> None:
        """Make a labeler known; `settings` is what it ranks by, as text.

        Raises:
            UserError: one of another kind, or that ranks by something else, has the name.
        """
        with transaction(self.path, self._connection):
            self._run("INSERT INTO labelers VALUES (?, ?, ?) ON CONFLICT DO NOTHING", name, kind, settings)
            found = self._one("SELECT kind, settings FROM labelers WHERE name = ?", name)
        assert found is not None
        if found != (kind, settings):
            kinds = {"person": "a person", "scores": "one that ranks by other scores", "file": "one of imported votes"}
            who = f"labeler {name[:60]!r}: found {kinds[found[0]]} under this name, expected another name (--name)"
            raise UserError(f"{self.path}: {who}")

    def kind_of(self, labeler: str) -> LabelerKind | None:
        """What a labeler is; None: nobody of this name is known."""
        found = self._one("SELECT kind FROM labelers WHERE name = ?", labeler)
        return None if found is None else found[0]

    def vote(self, vote: Vote) -> None:
        """Keep a vote, its ranks as `competition_ranks` has them. It takes the place of the labeler's earlier one for
        the task, which stays in the file; the same key again changes nothing.

        Raises:
            UserError: it does not judge every answer of the task once, or a rank, score or flag is out of bounds; or
                the key is of another vote.
        """
        self._check(vote)
        ranks = competition_ranks({answer: judgement.rank for answer, judgement in vote.judgements.items()})
        judged = {answer: replace(judgement, rank=ranks[answer]) for answer, judgement in vote.judgements.items()}
        now = time.time()
        with transaction(self.path, self._connection):
            if (known := self._one("SELECT id, task, labeler, note FROM votes WHERE key = ?", vote.key)) is not None:
                if (*known[1:], self._judgements(known[0])) != (vote.task, vote.labeler, vote.note, judged):
                    raise UserError(f"{self.path}: key: found {vote.key[:40]!r} on another vote, expected a new one")
                return
            self._supersede(vote.task, vote.labeler, now)
            words = "INSERT INTO votes (key, task, labeler, made, seconds, note) VALUES (?, ?, ?, ?, ?, ?)"
            made = vote.made or now
            id = self._run(words, vote.key, vote.task, vote.labeler, made, vote.seconds, vote.note).lastrowid
            for answer, judgement in judged.items():
                self._run("INSERT INTO judgements VALUES (?, ?, ?, ?)", id, answer, judgement.rank, judgement.score)
                for flag in sorted(judgement.flags):
                    self._run("INSERT INTO flags VALUES (?, ?, ?)", id, answer, flag)
            self._run("DELETE FROM claims WHERE task = ? AND labeler = ?", vote.task, vote.labeler)

    def withdraw(self, task: int, labeler: str) -> None:
        """A labeler's vote for a task counts no more; it stays in the file."""
        with transaction(self.path, self._connection):
            self._supersede(task, labeler, time.time())

    def _supersede(self, task: int, labeler: str, now: float) -> None:
        words = "UPDATE votes SET superseded = ? WHERE task = ? AND labeler = ? AND superseded IS NULL"
        self._run(words, now, task, labeler)

    def _check(self, vote: Vote) -> None:
        answers = {answer.id for answer in self.task(vote.task).answers}
        given, form = set(vote.judgements), set(self.form)
        if given and given != answers:
            raise UserError(f"{self.path}: task {vote.task}: found judgements of the answers {sorted(given)[:9]}, "
                            f"expected {sorted(answers)[:9]}")  # fmt: skip
        for answer, judgement in vote.judgements.items():
            where = f"{self.path}: task {vote.task}: answer {answer}"
            if judgement.rank < 1:
                raise UserError(f"{where}: found the rank {judgement.rank}, expected a number from 1, which is best")
            if judgement.score is not None and judgement.score not in SCORES:
                raise UserError(f"{where}: found the score {judgement.score}, expected {SCORES[0]} to {SCORES[-1]}")
            if unknown := judgement.flags - form:
                raise UserError(f"{where}: found the flag {min(unknown)!r}, expected some of {sorted(form)}")

    def vote_of(self, task: int, labeler: str) -> Vote | None:
        """The labeler's vote for a task that counts."""
        words = "SELECT id, key, seconds, note, made FROM votes WHERE superseded IS NULL AND task = ? AND labeler = ?"
        found = self._one(words, task, labeler)
        if found is None:
            return None
        id, key, seconds, note, made = found
        return Vote(task, labeler, self._judgements(id), key, seconds, note, made)

    def _judgements(self, vote: int) -> dict[int, Judgement]:
        flags: dict[int, set[str]] = {}
        for answer, name in self._run("SELECT answer, name FROM flags WHERE vote = ?", vote):
            flags.setdefault(answer, set()).add(name)
        rows = self._run("SELECT answer, rank, score FROM judgements WHERE vote = ? ORDER BY answer", vote)
        return {id: Judgement(rank, score, frozenset(flags.get(id, ()))) for id, rank, score in rows}

    def rankings(self, number: int | None = None) -> Iterator[Ranking]:
        """The votes that count and are no skips, of a round or of all, by task and labeler."""
        votes = self._run(f"{_COUNTING} ORDER BY task, labeler").fetchall()
        tasks: dict[int, Task] = {task.id: task for task in self.tasks(number)}
        for id, task_id, labeler in votes:
            judged = self._judgements(id)
            if (task := tasks.get(task_id)) is not None and judged:
                yield ranking_of(task, labeler, judged)

    def _run(self, words: str, *values: object) -> sqlite3.Cursor:
        with told(self.path, self._writing):
            return self._connection.execute(words, values)

    def _one(self, words: str, *values: object) -> tuple[Any, ...] | None:
        found: tuple[Any, ...] | None = self._run(words, *values).fetchone()
        return found


_ANSWERED = """
SELECT count(DISTINCT CASE WHEN EXISTS (SELECT 1 FROM judgements WHERE vote = votes.id) THEN task END),
       count(DISTINCT task)
FROM votes JOIN tasks ON tasks.id = task JOIN labelers ON labelers.name = labeler
WHERE superseded IS NULL AND kind != 'scores' AND round = ?
"""
_NEW_TASK = """
INSERT INTO tasks (round, prompt, content) SELECT ?1, id, ?2 FROM prompts WHERE text = ?3 OR messages = ?4
ON CONFLICT DO NOTHING
"""


def ranking_of(task: Task, labeler: str, judged: Mapping[int, Judgement]) -> Ranking:
    """A vote that is no skip, parallel to the answers of its task."""
    of = [judged[answer.id] for answer in task.answers]
    ranks, scores, flags = zip(*((j.rank, j.score, j.flags) for j in of), strict=True)
    return Ranking(task.id, task.round, task.prompt, labeler, task.answers, ranks, scores, flags)


def content_of(prompt: Prompt, answers: Sequence[str]) -> str:
    """SHA-256 of a prompt and its answers, in any order."""
    return hashlib.sha256(json.dumps([plain_prompt(prompt), *sorted(answers)]).encode()).hexdigest()


def votes_digest(path: Path) -> str:
    """SHA-256 of what a reward model learns from: the rankings that count, whatever else the file holds.

    Raises:
        UserError: it cannot be read.
    """
    with ComparisonStore.open(path, writing=False) as store:
        store.check()
        rows = sorted(
            json.dumps([r.round, r.prompt, r.labeler, [answer.text for answer in r.answers], r.ranks])
            for r in store.rankings()
        )
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()
