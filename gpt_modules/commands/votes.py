"""Votes on two answers that stand side by side, into a store of comparisons."""

import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gpt_modules.commands.scorers import plain_name
from gpt_modules.commands.speaker import Sampling
from gpt_modules.commands.telling import Voice
from gpt_modules.errors import UserError
from gpt_modules.storage.comparisons import Answer, ComparisonStore, Judgement, Prompt, Source, Vote

RANKS = {"a": (1, 2), "b": (2, 1), "tie": (1, 1)}


class Idle(UserError):
    """A vote that nothing comes of, for what the models said: in a pipe, nothing that its writer could know."""


class Said(NamedTuple):
    """An answer, and whether it came to its end."""

    text: str
    ended: bool


class Ballot:
    """Where votes of one person go.

    Raises:
        UserError: the file is no store, or the name is one of a labeler that is no person.
    """

    def __init__(self, path: Path, labeler: str, voices: Sequence[Voice]) -> None:
        from gpt_modules.backbone import model_digest

        self._store, self._labeler = ComparisonStore.create(path), labeler
        self._digests = [(plain_name(voice.name), model_digest(voice.speaker.model)) for voice in voices]
        self._store.add_labeler(labeler, "person")

    def vote(self, prompt: Prompt, said: Sequence[Said], sampling: Sampling, choice: str) -> None:
        """Keep a vote: "a", "b" or "tie".

        Raises:
            Idle: the answers are the same, one is empty, or the prompt has them already.
        """
        texts = {answer.text for answer in said if answer.text.strip()}
        if len(texts) < len(said):
            raise Idle("found answers that are the same, or an empty one, expected two to choose from")
        settings = json.dumps(sampling._asdict(), sort_keys=True)
        sources = [Source(name, digest, settings) for name, digest in self._digests]
        number = self._store.round_of(json.dumps(["side by side", [[of.digest, of.settings] for of in sources]]))
        answers = [Answer(text, source, ended) for (text, ended), source in zip(said, sources, strict=True)]
        task = self._store.add_task(number, prompt, answers)
        if task is None:
            raise Idle("the store has a vote on these answers already")
        ids = {answer.text: answer.id for answer in self._store.task(task).answers}
        pairs = zip(said, RANKS[choice], strict=True)
        judgements = {ids[text]: Judgement(rank) for (text, _), rank in pairs}
        self._store.vote(Vote(task, self._labeler, judgements, uuid.uuid4().hex))

    def close(self) -> None:
        """At the end."""
        self._store.close()
