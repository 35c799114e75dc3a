"""A store as people use it who rank at the same time: tasks are claimed, votes taken back, one's own seen again."""

import secrets
import time
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from gpt_modules.storage.comparisons.database import transaction
from gpt_modules.storage.comparisons.prompts import Prompt, prompt_of
from gpt_modules.storage.comparisons.records import Ranking, Task, Vote
from gpt_modules.storage.comparisons.store import ComparisonStore, ranking_of


class Wanted(NamedTuple):
    """What is asked of all labelers together.

    votes: on each task.
    overlap: the share of tasks that one more vote is wanted of, 0 to 1; which ones is a function of their content.
    round: whose tasks alone are asked for; None: of all.
    """

    votes: int = 1
    overlap: float = 0.0
    round: int | None = None


class OwnVote(NamedTuple):
    """A labeler's vote that counts. made: seconds since 1970."""

    task: int
    prompt: Prompt
    made: float
    skipped: bool


class Standing(NamedTuple):
    """How far a labeler is.

    ranked, skipped: its votes that count.
    open: tasks that it may rank now; held: those that it might, if others did not hold them.
    seconds: median of those spent on a ranking; None where none were measured.
    """

    ranked: int
    skipped: int
    open: int
    held: int
    seconds: float | None


class Desk(ComparisonStore):
    """What the labelling page does with a store."""

    def claim(self, labeler: str, seconds: float, wanted: Wanted = Wanted()) -> Task | None:
        """A task for this labeler alone, for some seconds: the one that it holds, else the first that has fewer than
        the wanted votes and claims of others and none of its own. None: there is nothing left for it.

        Votes of models and functions do not count: what they ranked is still to be ranked by people.
        """
        now = time.time()
        with transaction(self.path, self._connection):
            self._run("DELETE FROM claims WHERE expires <= ?", now)
            found = self._one(_HELD, labeler, wanted.round) or self._one(
                f"SELECT id FROM tasks WHERE {_WANTING} + {_CLAIMED} ORDER BY id LIMIT 1", *_values(labeler, wanted)
            )
            if found is None:
                return None
            self._run("INSERT OR REPLACE INTO claims VALUES (?, ?, ?)", found[0], labeler, now + seconds)
        return self.task(found[0])

    def hold(self, task: int, labeler: str, seconds: float) -> bool:
        """A labeler's claim lasts for some seconds from now; False: it has run out and others may have the task."""
        with transaction(self.path, self._connection):
            words = "UPDATE claims SET expires = ? WHERE task = ? AND labeler = ?"
            return self._run(words, time.time() + seconds, task, labeler).rowcount > 0

    def take_back(self, task: int, labeler: str, seconds: float) -> Vote | None:
        """A labeler's vote for a task counts no more; it stays in the file, and the labeler claims the task.

        What it gives is the newest vote, withdrawn now or before, so that asking twice gives the same.
        """
        now = time.time()
        words = "SELECT id, key, seconds, note, made FROM votes WHERE task = ? AND labeler = ? ORDER BY id DESC LIMIT 1"
        with transaction(self.path, self._connection):
            found = self._one(words, task, labeler)
            if found is None:
                return None
            self._supersede(task, labeler, now)
            self._run("DELETE FROM claims WHERE labeler = ?", labeler)
            self._run("INSERT INTO claims VALUES (?, ?, ?)", task, labeler, now + seconds)
        id, key, spent, note, made = found
        return Vote(task, labeler, self._judgements(id), key, spent, note, made)

    def own_votes(self, labeler: str) -> list[OwnVote]:
        """The labeler's votes that count, the newest first."""
        found = self._run(_OWN, labeler)
        return [OwnVote(task, prompt_of(*asked), made, not judged) for task, *asked, made, judged, _ in found]

    def standing(self, labeler: str, wanted: Wanted = Wanted()) -> Standing:
        """How far the labeler is with the tasks that `claim` gives."""
        own = self._run(_OWN, labeler).fetchall()
        times = [seconds for *_, judged, seconds in own if judged and seconds is not None]
        ranked = sum(1 for *_, judged, _ in own if judged)
        counts = []
        for claimed in (_CLAIMED, "0"):
            found = self._one(f"SELECT count(*) FROM tasks WHERE {_WANTING} + {claimed}", *_values(labeler, wanted))
            assert found is not None
            counts.append(int(found[0]))
        return Standing(ranked, len(own) - ranked, counts[0], counts[1] - counts[0], _median(times))

    def shared(self, labeler: str) -> list[list[Ranking]]:
        """People's rankings of the tasks that the labeler and another one ranked, task by task."""
        found = []
        for id, votes in groupby(self._run(_SHARED, labeler).fetchall(), key=lambda row: row[0]):
            task = self.task(id)
            found.append([ranking_of(task, name, self._judgements(vote)) for _, vote, name in votes])
        return [rankings for rankings in found if len(rankings) > 1]

    def secret(self) -> bytes:
        """What the links of labelers are made of: drawn once, the same as long as the file is there."""
        with transaction(self.path, self._connection):
            words = "INSERT INTO settings VALUES ('secret', ?) ON CONFLICT DO NOTHING"
            self._run(words, secrets.token_hex(32))
            found = self._one("SELECT value FROM settings WHERE name = 'secret'")
        assert found is not None
        return bytes.fromhex(found[0])


def _values(labeler: str, wanted: Wanted) -> tuple[object, ...]:
    """Contents are hexadecimal digits of a hash: a share of them is below the share of the largest."""
    below = f"{int(wanted.overlap * 2**64):016x}" if wanted.overlap < 1 else "g"
    return labeler, below, wanted.votes, wanted.round


def _median(values: Sequence[float]) -> float | None:
    ordered, half = sorted(values), len(values) // 2
    if not ordered:
        return None
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


_JUDGED = "EXISTS (SELECT 1 FROM judgements j WHERE j.vote = v.id)"
_OF_PEOPLE = "v.labeler NOT IN (SELECT name FROM labelers WHERE kind = 'scores')"
_HELD = """
SELECT c.task FROM claims c JOIN tasks t ON t.id = c.task WHERE c.labeler = ?1 AND (?2 IS NULL OR t.round = ?2)
"""
_WANTING = f"""
(?4 IS NULL OR tasks.round = ?4)
AND NOT EXISTS (SELECT 1 FROM votes v WHERE v.task = tasks.id AND v.labeler = ?1 AND v.superseded IS NULL)
AND ?3 + (tasks.content < ?2) >
    (SELECT count(*) FROM votes v WHERE v.task = tasks.id AND v.superseded IS NULL AND {_OF_PEOPLE} AND {_JUDGED})
"""
_CLAIMED = "(SELECT count(*) FROM claims c WHERE c.task = tasks.id AND c.labeler <> ?1)"
_OWN = f"""
SELECT v.task, p.text, p.messages, v.made, {_JUDGED}, v.seconds
FROM votes v JOIN tasks t ON t.id = v.task JOIN prompts p ON p.id = t.prompt
WHERE v.labeler = ? AND v.superseded IS NULL ORDER BY v.id DESC
"""
_SHARED = f"""
SELECT v.task, v.id, v.labeler FROM votes v WHERE v.superseded IS NULL AND {_OF_PEOPLE} AND {_JUDGED}
AND v.task IN (SELECT v.task FROM votes v WHERE v.labeler = ? AND v.superseded IS NULL AND {_JUDGED})
ORDER BY v.task, v.labeler
"""
