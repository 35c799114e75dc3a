"""A round's answers ranked, by models and functions or by people, as a step of a round."""

import hashlib
import json
import shlex
from argparse import Namespace
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from gpt_modules.commands.pipelines.comparing import option_words
from gpt_modules.commands.pipelines.document import Pipeline
from gpt_modules.commands.pipelines.plan import Plan
from gpt_modules.commands.pipelines.steps import REWARD, Step, check_model
from gpt_modules.errors import UserError
from gpt_modules.storage.comparisons import ComparisonStore, Ranking
from gpt_modules.storage.documents import Positive, typed
from gpt_modules.storage.durable import replace_durably
from gpt_modules.storage.summary import Summary, write_summary

DECIDING = ("by", "name", "temperature", "margin", "seed")


class LabelPlan(Plan):
    """`gpt label` on the round of the step's number: a process where it says --by, else people, who are waited for.

    It ends with a file of the votes of all rounds so far, so that what a later step learned from stays known, whoever
    votes afterwards: those votes count from the next round on.
    """

    def __init__(self, step: Step, pipeline: Pipeline) -> None:
        from gpt_modules.commands import label

        super().__init__(step)
        self.pipeline = pipeline
        options = {**step.sources, **step.stage.set}
        self.rewards: list[Path] = options.pop(REWARD, [])
        self.enough: int | None = typed(Positive | None, options.pop("enough", None), "enough")
        self.command = [str(step.store), *option_words(options), "--round", str(step.round)]
        self.options: Namespace = label.parse(self.command)
        if self.by_people and self.options.name is not None:
            raise UserError("name: found it without by, expected people to name themselves")

    @property
    def by_people(self) -> bool:
        """Whether people rank."""
        return self.options.by is None

    @property
    def cut_off(self) -> bool:
        return False  # a vote is kept or not, and asking again changes none

    @property
    def title(self) -> str:
        return "people" if self.by_people else " + ".join(self.options.by)

    @property
    def made_from(self) -> Mapping[str, Any]:
        with ComparisonStore.open(self.step.store, writing=False) as store:
            tasks = hashlib.sha256("\n".join(store.contents(self._round)).encode()).hexdigest()
        if self.by_people:
            return {"tasks": f"SHA-256 {tasks}"}
        return {"tasks": f"SHA-256 {tasks}", **{name: getattr(self.options, name) for name in DECIDING}}

    @cached_property
    def _round(self) -> int:
        assert self.step.round is not None
        return self.step.round

    def check(self) -> None:
        self._check_enough()
        self._check_by()

    def _check_enough(self) -> None:
        if self.enough is None:
            return
        if not self.by_people:
            raise UserError(f"enough: found {self.enough} beside by, which ranks all, expected it where people rank")
        counts = [of.set.get("count") for of in self.pipeline.round if of.command == "compare"]
        if isinstance(counts[0], int) and self.enough > counts[0]:
            raise UserError(f"enough: found {self.enough}, expected at most the {counts[0]} prompts of a round")

    def _check_by(self) -> None:
        """Functions are there, and folders, unless an earlier step is to make them."""
        from gpt_modules.commands.scorers import read_term
        from gpt_modules.feedback.labelers import function_scorer

        for term in map(read_term, self.options.by or ()):
            if term.is_function:
                function_scorer(term.name)
            elif self.step.root not in Path(term.name).parents:
                check_model("by", term.name)

    def words(self) -> list[str]:
        return [] if self.by_people else ["label", *self.command]

    def waiting(self) -> str | None:
        """What people are to do before the step can end, or None."""
        if not self.by_people:
            return None
        with ComparisonStore.open(self.step.store, writing=False) as store:
            tasks, answered = len(store.contents(self._round)), store.answered(self._round)
        left = min(tasks, self.enough or tasks) - answered
        if left <= 0:
            return None
        enough = "" if self.enough is None else f" ({left} until it is enough)"
        words = shlex.join(["gpt", "label", *self.command])
        return f"{tasks - answered} of {tasks} tasks wait to be ranked{enough}: {words}"

    def finish(self, seconds: float) -> None:
        from gpt_modules.feedback.exchange import exported

        with ComparisonStore.open(self.step.store, writing=False) as store:
            rankings = [found for found in store.rankings() if found.round <= self._round]
        new = [found for found in rankings if found.round == self._round]
        if not new:
            raise UserError(f"{self.step.store}: found no ranking of round {self._round}, expected at least one")
        after = {"votes": float(len(rankings)), "new_votes": float(len(new)), **self._measured(new)}
        rows = [json.dumps(row, ensure_ascii=False) + "\n" for row in exported(rankings)]
        replace_durably(self.step.artefact, "".join(rows))
        write_summary(self.step.folder, Summary({}, after, seconds))

    def _measured(self, rankings: list[Ranking]) -> dict[str, float | None]:
        """How far labelers agree, and how many of the pairs that they order the reward model orders alike."""
        from gpt_modules.feedback.agreement import by_task, pairwise

        found: dict[str, float | None] = {"agreement": pairwise(by_task(rankings)).part}
        for folder in self.rewards:
            from gpt_modules.commands.scorers import Term, open_scorer
            from gpt_modules.feedback.predicting import predicted

            scorer = open_scorer(Term(str(folder), 1.0, is_function=False), self.options)
            found["reward_accuracy"] = predicted(scorer, rankings).part
        return found
