"""GPT-3's arithmetic and scrambled words as a family of tasks."""

from functools import cache

import numpy as np

from gpt_modules.data.builtin.synthetic import TASKS, synthetic_items
from gpt_modules.data.episodes.families import Episode, Example, Family
from gpt_modules.data.splits import Split
from gpt_modules.errors import UserError

POOL: dict[Split, int] = {"train": 10_000, "validation": 1_000}  # different questions of a task to draw from


class SyntheticTasks(Family):
    """A task is one of those named: examples of 2D+ are sums, of RW reversed words (Brown et al. 2020, sections 3.9.1
    and 3.9.2). The tasks are the same in training and in validation, the questions are not.

    Args:
        tasks: The paper's names: 2D+ to 5D-, 2Dx, 1DC, CL, A1, A2, RI, RW.

    Raises:
        UserError: None is named, or one that there is not.
    """

    def __init__(self, tasks: list[str]) -> None:
        unknown = [task for task in tasks if task not in TASKS]
        if unknown or not tasks:
            found = repr(unknown[0]) if unknown else "none"
            raise UserError(f"SyntheticTasks: tasks: found {found}, expected some of {', '.join(TASKS)}")
        self.tasks = tasks

    def episode(self, generator: np.random.Generator, split: Split, support: int, query: int) -> Episode:
        """Different questions of one of the tasks."""
        task = self.tasks[generator.integers(len(self.tasks))]
        pool, count = _pool(task, split), support + query
        if len(pool) < count:
            raise UserError(f"SyntheticTasks: {task}: found {len(pool)} {split} questions, expected {count} an episode")
        examples = [pool[i] for i in generator.choice(len(pool), count, replace=False).tolist()]
        return Episode(examples[:support], examples[support:])


@cache
def _pool(task: str, split: Split) -> list[Example]:
    """Drawn once a process, in a fraction of a second."""
    rows = synthetic_items(task, POOL[split], split=split)
    return [Example(row["context"], row["completion"]) for row in rows]
