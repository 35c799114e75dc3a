"""A pipeline's file: stages in order, each a recipe or a command that reads what earlier ones made.

`stages` run once; those of `round` run `rounds` times after them, each time from what the round before made (Ouyang et
al. 2022, section 3.1: steps 2 and 3 can be iterated continuously). What a stage is fed with is named so:

- `sft`: a stage before this one; in a round, one of the same round, or one of `stages`, or what `start` says it is;
- `ppo@last`: the stage of the round before; in the first round, what `start` says it is;
- `ppo@1`: the stage of round 1, or of the round before where that is an earlier one; `ppo@0`: what `start` says it is.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from gpt_modules.errors import UserError
from gpt_modules.storage.documents import FileName, Positive, Rule, at
from gpt_modules.storage.json_files import shown
from gpt_modules.storage.paths import path_of

ROOT_KEY = "trainer.default_root_dir"
STORE = "comparisons.db"
BOARD = "rounds"
_KEY = re.compile(r"[A-Za-z_]\w*(\.\w+)*\+?")
_TAKEN = (ROOT_KEY, "ckpt_path", "config")  # what the pipeline itself says
_TAKEN_OF = {
    None: _TAKEN,
    "compare": ("output", "name", "help"),
    "label": ("store", "round", "import", "export", "statistics", "help"),
}
MOST_ROUNDS = 1000

Text = Annotated[str, Rule(bool, "text that is not empty")]
Recipe = Annotated[str, Rule(lambda name: name and name.isprintable(), "the path or the name of a recipe")]
Reference = Annotated[
    str,
    Rule(
        re.compile(r"[^@/]+(/(critic|ema))?(@(last|0|[1-9]\d{0,5}))?").fullmatch,
        "a stage, or a stage and its round: NAME, NAME@last or NAME@2; NAME/critic, NAME/ema: what PPO exports beside",
    ),
]
References = Annotated[list[Reference], Rule(bool, "at least one stage")]
Command = Literal["compare", "label"]
Recipes = Annotated[list[Recipe], Rule(bool, "at least one recipe")]


@dataclass(frozen=True)
class Stage:
    """One recipe or one command of a pipeline.

    Args:
        name: the stage's folder under the pipeline's root, or under the round's.
        config: a recipe, or several of which later ones win: paths, files beside the pipeline's, or names.
        command: in place of a recipe, in rounds: `compare` or `label`, on the pipeline's store of comparisons.
        feeds: recipe key, or option of the command -> the stage, or several, whose outcome it is set to: a recipe's
            exported folder, or with `/critic` or `/ema` after a stage of PPO the one beside it; the votes of all rounds
            up to that of a `label`.
        set: recipe key, or option of the command -> value, as on the command line. Of `label`, also `enough`: how many
            of the round's tasks must be ranked, where people do it (left out: all).
        metrics: that the closing table shows: of a recipe, validation metrics before and after.
    """

    name: FileName
    config: Recipe | Recipes | None = None
    command: Command | None = None
    feeds: dict[str, Reference | References] = field(default_factory=dict)
    set: dict[str, Any] = field(default_factory=dict)
    metrics: list[Text] = field(default_factory=list)

    def __post_init__(self) -> None:
        if (self.config is None) == (self.command is None):
            found = "neither" if self.config is None else "both"
            raise UserError(f"config: found {found} of config and command, expected one of them")
        if both := sorted(self.feeds.keys() & self.set.keys()):
            raise UserError(f"{at('set', both[0])}: found it in feeds, too, expected it once")
        for where, key in [("feeds", key) for key in self.feeds] + [("set", key) for key in self.set]:
            below = _below(key, self.set[key] if where == "set" else None)
            taken = _TAKEN_OF[self.command]
            if not _KEY.fullmatch(key) or any(name.rstrip("+") in taken for name in below):
                of = "the recipe" if self.command is None else "the command, with _ for -"
                raise UserError(f"{at(where, key)}: found this key, expected one of {of}, other than "
                                f"{', '.join(taken)}")  # fmt: skip

    @property
    def recipes(self) -> list[str]:
        """The recipes, one or several."""
        return [self.config] if isinstance(self.config, str) else self.config or []

    @property
    def references(self) -> dict[str, list[str]]:
        """What the keys of `feeds` name."""
        return {key: [of] if isinstance(of, str) else of for key, of in self.feeds.items()}


@dataclass(frozen=True)
class Pipeline:
    """A pipeline file.

    Args:
        root: where the stages' folders go.
        stages: in order, once.
        rounds: how often the stages of `round` run after them.
        round: in order, each time.
        start: what stages of a round stand for before the first one, by their names, and further names for folders: a
            folder, or one of `stages`.
        prompts: what the language models of the stages are asked at the end.
        sample_tokens: longest answer shown.
    """

    root: Annotated[Path, Rule(lambda path: str(path) != ".", "a folder to write into")]
    stages: list[Stage] = field(default_factory=list)
    rounds: Annotated[int, Rule(lambda number: 0 <= number <= MOST_ROUNDS, f"0 to {MOST_ROUNDS}")] = 0
    round: list[Stage] = field(default_factory=list)
    start: dict[str, Text] = field(default_factory=dict)
    prompts: list[Text] = field(default_factory=list)
    sample_tokens: Positive = 40

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", path_of(self.root))
        if not self.stages and not self.round:
            raise UserError("stages: found [], expected at least one stage")
        if bool(self.round) != bool(self.rounds):
            raise UserError(f"rounds: found {self.rounds} of {len(self.round)} stages in round, expected both or none")
        if self.start and not self.rounds:
            raise UserError("start: found it without rounds, whose beginning it is")
        for number, stage in enumerate(self.stages):
            self._check_name(f"stages[{number + 1}]", stage, self.stages[:number])
            if stage.command is not None:
                where = f"stages[{number + 1}].command"
                raise UserError(f"{where}: found {stage.command}, which belongs in round")
        for number, stage in enumerate(self.round):
            self._check_name(f"round[{number + 1}]", stage, [*self.stages, *self.round[:number]])
        commands = [stage.command for stage in self.round]
        if commands.count("compare") > 1:
            raise UserError("round: found several stages that compare, expected one: its answers are the round's")
        if "label" in commands and "compare" not in commands[: commands.index("label")]:
            where = f"round[{commands.index('label') + 1}].command"
            raise UserError(f"{where}: found label before compare, expected it after")

    def _check_name(self, where: str, stage: Stage, earlier: list[Stage]) -> None:
        if stage.name in [other.name for other in earlier]:
            raise UserError(f"{where}.name: found {shown(stage.name)}, expected a name that no earlier stage has")
        if "@" in stage.name or (self.rounds and (stage.name.startswith("round-") or stage.name in (STORE, BOARD))):
            raise UserError(f"{where}.name: found {shown(stage.name)}, which names something else of a pipeline")


def _below(key: str, value: Any) -> Iterator[str]:
    """A key and those of the mappings that are its value."""
    yield key
    for name, item in value.items() if isinstance(value, dict) else ():
        yield from _below(f"{key}.{name}", item)
