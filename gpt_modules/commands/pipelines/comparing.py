"""Answers of the newest policy to prompts that no other round has, as a step of a round."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from gpt_modules.commands.pipelines.document import Pipeline
from gpt_modules.commands.pipelines.plan import Plan, check_kind, check_metrics
from gpt_modules.commands.pipelines.steps import Step
from gpt_modules.errors import UserError
from gpt_modules.storage.comparisons import ComparisonStore
from gpt_modules.storage.summary import Summary, write_summary

METRICS = ("prompts", "answers")
NOT_COUNTED = ("output", "device")


class ComparePlan(Plan):
    """A run of `gpt compare`, into a round of its own name: the store may have others beside."""

    def __init__(self, step: Step, pipeline: Pipeline) -> None:
        from gpt_modules.commands import compare

        super().__init__(step)
        self.pipeline = pipeline
        self.command = option_words({**step.sources, **step.stage.set})
        self.command += ["--output", str(step.store), "--name", step.round_name]
        self.options: Namespace = compare.parse(self.command)

    remedy = "its answers and votes are kept: name another --root"
    settled = ("prompts", "count")  # the round's prompts are known by its tasks

    @property
    def cut_off(self) -> bool:
        return bool(self._tasks())

    @property
    def title(self) -> str:
        return f"answers of {', '.join(self.options.model)}"

    @property
    def made_from(self) -> Mapping[str, Any]:
        return {name: value for name, value in vars(self.options).items() if name not in NOT_COUNTED}

    def check(self) -> None:
        """As many prompts as all rounds need; and who answers can speak."""
        from gpt_modules.commands import compare

        check_metrics(self.step.stage, METRICS)
        for name in self.options.model:
            check_kind("model", name, "gpt")
        rounds, count = self.pipeline.rounds, self.options.count
        if count is None and rounds > 1:
            raise UserError(f"count: found none for {rounds} rounds, expected how many prompts each takes: all are new")
        there = len(compare.read_rows(self.options.prompts))
        if count is not None and rounds * count > there:
            raise UserError(f"count: found {count} in each of {rounds} rounds, expected at most {there // rounds}: "
                            f"there are {there} prompts")  # fmt: skip

    def words(self) -> list[str]:
        return ["compare", *self.command]

    def finish(self, seconds: float) -> None:
        if not (tasks := self._tasks()):
            raise UserError(f"{self.step.store}: found no task of {self.step.round_name}, expected some")
        summary = Summary({}, {"prompts": float(len(tasks)), "answers": float(sum(tasks))}, seconds)
        write_summary(self.step.folder, summary)

    def _tasks(self) -> list[int]:
        """How many answers each task of the round has."""
        if not self.step.store.exists():
            return []
        with ComparisonStore.open(self.step.store, writing=False) as store:
            number = store.round_named(self.step.round_name)
            return [] if number is None else [len(task.answers) for task in store.tasks(number)]


def option_words(options: Mapping[str, Any]) -> list[str]:
    """Options of a command by their names with _ for -, as words.

    Raises:
        UserError: a value that no word can be.
    """
    words = []
    for name, value in options.items():
        values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        if any(isinstance(item, bool | None | Mapping | list) for item in values):
            raise UserError(f"{name}: found {value!r:.60}, expected a number or text, or a list of them")
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return words
