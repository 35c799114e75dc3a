"""A pipeline's stages as they run: each once or once a round, in a folder of its own, with what it is fed."""

from dataclasses import dataclass
from pathlib import Path

from gpt_modules.commands.pipelines.document import STORE, Pipeline, Stage
from gpt_modules.errors import UserError
from gpt_modules.storage.documents import at
from gpt_modules.storage.hub import is_hub_name
from gpt_modules.storage.json_files import shown
from gpt_modules.storage.model_files import CONFIG_FILE
from gpt_modules.storage.paths import is_there, lies_in_folder, path_of

VOTES = "votes.jsonl"
EXPORT = "export"
BESIDE = ("critic", "ema")
"""What PPO exports beside its policy."""
REWARD = "reward"
"""What `label` may be fed with: a reward model that is measured by the round's votes."""


@dataclass(frozen=True)
class Step:
    """A stage, at its place.

    Args:
        root: the pipeline's.
        round: its number, from 1; None for a stage that runs once.
        sources: key of `feeds` -> what it is set to; empty where nothing is there yet.
    """

    stage: Stage
    root: Path
    round: int | None
    sources: dict[str, list[Path]]

    @property
    def name(self) -> str:
        """The stage, with its round."""
        return self.stage.name if self.round is None else f"{self.round_name}/{self.stage.name}"

    @property
    def round_name(self) -> str:
        """Of its round of comparisons in the store."""
        return f"round-{self.round}"

    @property
    def folder(self) -> Path:
        """Where the step writes."""
        return self.root / self.name

    @property
    def store(self) -> Path:
        """The pipeline's comparisons."""
        return self.root / STORE

    @property
    def artefact(self) -> Path:
        """What later steps are fed with: an exported folder; the votes of all rounds so far; the store."""
        outcome = {None: self.folder / EXPORT, "label": self.folder / VOTES, "compare": self.store}
        return outcome[self.stage.command]


def steps_of(pipeline: Pipeline) -> list[Step]:
    """All steps, in order.

    Raises:
        UserError: a stage is fed with what is not there at its time, by the key.
    """
    return _Unrolling(pipeline).steps


def start_folders(pipeline: Pipeline) -> dict[str, str]:
    """What `start` names, without what the pipeline makes itself."""
    own = {stage.name for stage in pipeline.stages}
    return {name: value for name, value in pipeline.start.items() if value not in own}


def check_start(pipeline: Pipeline) -> None:
    """Nothing, where the folders that `start` names are there, or may be on the hub.

    Raises:
        UserError: one is not.
    """
    for name, value in start_folders(pipeline).items():
        check_model(at("start", name), value)


def check_model(where: str, name: str) -> None:
    """Nothing, where a model's folder is there, or may be on the hub.

    Raises:
        UserError: it is not.
    """
    found = path_of(name) / CONFIG_FILE
    if not is_there(found) and (is_there(path_of(name)) or lies_in_folder(name) or not is_hub_name(name)):
        raise UserError(f"{where}: {found}: found no such file, expected an exported model's folder")


class _Unrolling:
    """The steps so far, by stage and round."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline, self.steps = pipeline, list[Step]()
        self.made: dict[tuple[str, int | None], Step] = {}
        self.begun_with: set[str] = set()
        for number, stage in enumerate(pipeline.stages, 1):
            self._add(stage, None, f"stages[{number}]")
        for turn in range(1, pipeline.rounds + 1):
            for number, stage in enumerate(pipeline.round, 1):
                self._add(stage, turn, f"round[{number}]")
        if unused := sorted(pipeline.start.keys() - self.begun_with):
            raise UserError(f"{at('start', unused[0])}: found it, expected names that a stage of round is fed with")

    def _add(self, stage: Stage, turn: int | None, where: str) -> None:
        sources = {}
        for key, references in stage.references.items():
            place = at(f"{where}.feeds", key)
            found = [path for of in references for path in self._outcome(of, turn, place)]
            optional = stage.command == "label" and key == REWARD
            if not found and not optional:
                raise UserError(
                    f"{place}: found {shown(stage.feeds[key])} before the first round, expected what it is to be then: "
                    "start"
                )
            sources[key] = list(dict.fromkeys(found))
        step = Step(stage, self.pipeline.root, turn, sources)
        self.steps.append(step)
        self.made[stage.name, turn] = step

    def _outcome(self, reference: str, turn: int | None, place: str) -> list[Path]:
        """What a reference means in a round: one path, or none where `start` does not say."""
        name, at_round, number = reference.partition("@")
        name, _, beside = name.partition("/")
        exports = self._exports(f"{name}{at_round}{number}", turn, place)
        return [path.with_name(f"{path.name}-{beside}") if beside else path for path in exports]

    def _exports(self, reference: str, turn: int | None, place: str) -> list[Path]:
        name, at_round, number = reference.partition("@")
        if at_round:
            if turn is None or name not in [stage.name for stage in self.pipeline.round]:
                expected = "a stage of round, for one that runs in rounds"
                raise UserError(f"{place}: found {shown(reference)}, expected {expected}")
            if number != "last" and int(number) >= self.pipeline.rounds:
                expected = f"a round before the last one, {self.pipeline.rounds}"
                raise UserError(f"{place}: found {shown(reference)}, expected {expected}")
            then = turn - 1 if number == "last" else min(int(number), turn - 1)
            return [self.made[name, then].artefact] if then else self._start(name)
        for key in ((name, turn), (name, None)):
            if key in self.made:
                return [self.made[key].artefact]
        in_rounds = [stage.name for stage in self.pipeline.round]
        if found := self._start(name) if turn is not None and name not in in_rounds else []:
            return found
        names = [stage for stage, of in self.made if of in (None, turn)]
        names += [other for other in self.pipeline.start if turn is not None and other not in in_rounds]
        later = f", or {name}@last" if turn is not None and name in in_rounds else ""
        expected = f"an earlier stage: {', '.join(names) or 'none'}{later}"
        raise UserError(f"{place}: found {shown(reference)}, expected {expected}")

    def _start(self, name: str) -> list[Path]:
        self.begun_with.add(name)
        value = self.pipeline.start.get(name)
        if value is None:
            return []
        return [self.made[value, None].artefact if (value, None) in self.made else path_of(value)]
