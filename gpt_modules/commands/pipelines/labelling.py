"""A round's answers ranked, by models and functions or by people, as a step of a round."""

import hashlib
import json
import shlex
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt_modules.commands.pipelines.comparing import option_words
from gpt_modules.commands.pipelines.document import Pipeline
from gpt_modules.commands.pipelines.plan import Plan, check_kind, check_metrics
from gpt_modules.commands.pipelines.steps import REWARD, Step, check_model
from gpt_modules.commands.scorers import Term, open_scorer, read_term
from gpt_modules.errors import UserError
from gpt_modules.storage.comparisons import ComparisonStore, Ranking
from gpt_modules.storage.documents import Positive, typed
from gpt_modules.storage.durable import replace_durably
from gpt_modules.storage.summary import SUMMARY_FILE, Summary, read_summary, write_summary

METRICS = ("votes", "new_votes", "agreement", "reward_accuracy")
DECIDING = ("name", "temperature", "margin", "seed")
_ACTS = "acts"  # votes in the store, with those that count no more


class LabelPlan(Plan):
    """`gpt label` on the answers of the step's round: a process where it says --by, else people, who are waited for.

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
        self.command = [str(step.store), *option_words(options)]
        self.options: Namespace = label.parse(self.command)

    remedy = "its votes are kept: name another --root"

    @property
    def by_people(self) -> bool:
        """Whether people rank."""
        return self.options.by is None

    @property
    def terms(self) -> list[Term]:
        """What else ranks."""
        return [read_term(text) for text in self.options.by or ()]

    @property
    def cut_off(self) -> bool:
        return False  # a vote is kept or not, and asking again changes none

    @property
    def title(self) -> str:
        return "people" if self.by_people else " + ".join(self.options.by)

    @property
    def made_from(self) -> Mapping[str, Any]:
        with ComparisonStore.open(self.step.store, writing=False) as store:
            contents = store.contents(self._number(store))
        tasks = hashlib.sha256("\n".join(contents).encode()).hexdigest()
        if self.by_people:
            return {"tasks": f"SHA-256 {tasks}"}
        by = {f"by.{number}": list(term[:2]) for number, term in enumerate(self.terms, start=1)}
        return {"tasks": f"SHA-256 {tasks}", **by, **{name: getattr(self.options, name) for name in DECIDING}}

    def _number(self, store: ComparisonStore) -> int:
        """The store's number of the step's round."""
        if (number := store.round_named(self.step.round_name)) is None:
            raise UserError(f"{self.step.store}: found no answers of {self.step.round_name}, expected some; name "
                            "another --root")  # fmt: skip
        return number

    def check(self) -> None:
        check_metrics(self.step.stage, METRICS)
        for folder in self.rewards:
            check_kind(REWARD, str(folder), "reward")
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
        from gpt_modules.feedback.labelers import function_scorer

        for term in self.terms:
            if term.is_function:
                function_scorer(term.name)
            elif self.step.root not in Path(term.name).parents:
                check_model("by", term.name)
                check_kind("by", term.name, "reward")

    def words(self) -> list[str]:
        if self.by_people:
            return []
        with ComparisonStore.open(self.step.store, writing=False) as store:
            return ["label", *self.command, "--round", str(self._number(store))]

    def waiting(self) -> str | None:
        """What people are to do before the step can end, or None: until all tasks are ranked or skipped, and one is
        ranked, or until it is enough that are ranked.
        """
        if not self.by_people:
            return None
        with ComparisonStore.open(self.step.store, writing=False) as store:
            number = self._number(store)
            tasks, (ranked, answered) = len(store.contents(number)), store.answered(number)
        enough = None if self.enough is None else min(tasks, self.enough)
        if (ranked and answered == tasks) if enough is None else ranked >= enough:
            return None
        more = "none is ranked" if enough is None and answered == tasks else ""
        more = f"{enough - ranked} until it is enough" if enough is not None else more
        words = shlex.join(["gpt", "label", *self.command, "--round", str(number)])
        return f"{tasks - answered} of {tasks} tasks wait to be ranked{f' ({more})' if more else ''}: {words}"

    def finish(self, seconds: float) -> None:
        from gpt_modules.feedback.exchange import exported

        with ComparisonStore.open(self.step.store, writing=False) as store:
            number = self._number(store)
            self._expect_all(acts := store.acts(number))
            rankings = [found for found in store.rankings() if found.round <= number]
            rows = [json.dumps(row, ensure_ascii=False) + "\n" for row in exported(rankings, store.kind_of)]
        new = [found for found in rankings if found.round == number]
        if not new:
            raise UserError(f"{self.step.store}: found no ranking of {self.step.round_name}, expected at least one")
        after = {"votes": float(len(rankings)), "new_votes": float(len(new)), _ACTS: float(acts)}
        measured = self._measured(new)
        replace_durably(self.step.artefact, "".join(rows))
        write_summary(self.step.folder, Summary({}, after | measured, seconds))

    def _expect_all(self, acts: int) -> None:
        """Nothing, where the store has all votes that it had when the round before ended: they are never deleted.

        Raises:
            UserError: it is an older copy.
        """
        assert self.step.round is not None
        before = self.step.root / f"round-{self.step.round - 1}" / self.step.stage.name
        if (before / SUMMARY_FILE).exists() and acts < (known := read_summary(before).after.get(_ACTS) or 0):
            raise UserError(f"{self.step.store}: found {acts} votes, expected the {known:.0f} of the round before: is "
                            "it an older copy?")  # fmt: skip

    def _measured(self, rankings: list[Ranking]) -> dict[str, float | None]:
        """How far labelers agree, and how many of the pairs that they order the reward model orders alike."""
        from gpt_modules.feedback.agreement import by_task, pairwise

        found: dict[str, float | None] = {"agreement": pairwise(by_task(rankings)).part}
        for folder in self.rewards:
            from gpt_modules.feedback.predicting import predicted

            scorer = open_scorer(Term(str(folder), 1.0, is_function=False), self.options)
            found["reward_accuracy"] = predicted(scorer, rankings).part
        return found
