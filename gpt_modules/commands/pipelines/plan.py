"""What a step of a pipeline will do: checked before the first step begins, compared with what has been done."""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_modules.commands.pipelines.document import STORE, Stage
from gpt_modules.commands.pipelines.provenance import ORIGIN_FILE, Origin, changes, origin_of, read_origin, write_origin
from gpt_modules.commands.pipelines.steps import BESIDE, EXPORT, VOTES, Step, check_model
from gpt_modules.errors import UserError
from gpt_modules.storage.model_files import CONFIG_FILE
from gpt_modules.storage.paths import is_there, path_of
from gpt_modules.storage.summary import SUMMARY_FILE

if TYPE_CHECKING:
    from gpt_modules.backbone.folders.weightmap import Kind


class Plan(ABC):
    """A step that has been parsed."""

    def __init__(self, step: Step) -> None:
        self.step = step

    @property
    def done(self) -> bool:
        """Whether the step is complete."""
        return (self.step.folder / SUMMARY_FILE).exists()

    @property
    @abstractmethod
    def cut_off(self) -> bool:
        """Whether there is something that the step goes on from."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What runs, for the reader."""

    @property
    @abstractmethod
    def made_from(self) -> Mapping[str, Any]:
        """Key -> value of all that decides the outcome."""

    @property
    def beside(self) -> list[str]:
        """Folders that it makes beside its outcome."""
        return []

    @abstractmethod
    def check(self) -> None:
        """Nothing, where all that the step reads is there, unless an earlier step is to make it.

        Raises:
            UserError: something is not.
        """

    @abstractmethod
    def words(self) -> list[str]:
        """Of `gpt`, to begin the step or to go on with it; none where there is nothing to run."""

    def waiting(self) -> str | None:
        """What people are to do before the step can go on; None: nothing."""
        return None

    @abstractmethod
    def finish(self, seconds: float) -> None:
        """See that what the process was to make is there, and write down that it is.

        Args:
            seconds: that this attempt took.

        Raises:
            UserError: it is not.
        """

    def origin(self) -> Origin:
        """What the step would be made from now."""
        return origin_of(self.made_from, self.step.root)

    def refuse_changes(self, whole: bool) -> None:
        """Nothing, where a step that has begun is still the same.

        Args:
            whole: also compare what earlier steps make; until they have run there may be nothing yet.

        Raises:
            UserError: something it was made from has changed since, each by its key.
        """
        now = self.origin()
        without = [*([] if whole else now.unmade), *(self.settled if self.done else ())]
        found = changes(read_origin(self.step.folder), now, without)
        if found:
            more = f" and {len(found) - 2} more" if len(found) > 2 else ""
            raise UserError(f"{self.step.folder}: since it was run, {'; '.join(found[:2])}{more}; {self.remedy}")

    remedy = "remove the folder to run it anew, or name another --root"
    settled: tuple[str, ...] = ()
    """Keys that decide nothing any more once the step is done."""

    def refuse_foreign(self) -> None:
        """Nothing, where the step may make its export anew.

        Raises:
            UserError: there is one that gpt run did not make.
        """
        export, origin = self.step.folder / EXPORT, self.step.folder / ORIGIN_FILE
        if export.exists() and not origin.exists():
            raise UserError(f"{export}: found a folder that gpt run did not make, expected none; name another --root")

    def begin(self) -> None:
        """Write down what it is made from, and clear away an attempt that left nothing to go on from."""
        self.refuse_foreign()
        for name in (EXPORT, *(f"{EXPORT}-{beside}" for beside in BESIDE)):
            shutil.rmtree(self.step.folder / name, ignore_errors=True)
        write_origin(self.step.folder, self.origin())

    def check_sources(self) -> None:
        """Nothing, where what it is fed with has been made.

        Raises:
            UserError: it is gone.
        """
        for path in (path for paths in self.step.sources.values() for path in paths):
            if self.step.root in path.parents:
                check_made(path)
            else:
                check_model("start", str(path))


def check_made(artefact: Path) -> None:
    """Nothing, where a step's outcome is there.

    Raises:
        UserError: it is not.
    """
    if artefact.name == STORE:
        if not artefact.is_file():
            raise UserError(f"{artefact}: missing, expected the comparisons of all rounds; or name another --root")
        return
    file = artefact if artefact.name == VOTES else artefact / CONFIG_FILE
    if not file.is_file():
        raise UserError(f"{file}: missing, though its stage is done; remove {artefact.parent} to run it anew")


def check_kind(where: str, name: str, kind: "Kind") -> None:
    """Nothing, where a model's folder holds a model of this kind, or is none of ours, or not there yet.

    Raises:
        UserError: it is of another kind.
    """
    from gpt_modules.backbone.folders.documents import open_document

    if not is_there(path_of(name) / CONFIG_FILE):
        return
    document = open_document(path_of(name))
    if document.is_ours and document.ours.kind != kind:
        raise UserError(f"{where}: {name}: found a model of kind {document.ours.kind!r}, expected {kind!r}")


def check_metrics(stage: Stage, known: Sequence[str]) -> None:
    """Nothing, where a command has all the numbers that a stage shows.

    Raises:
        UserError: it has not.
    """
    if unknown := [name for name in stage.metrics if name not in known]:
        raise UserError(f"metrics: found {unknown[0][:60]!r}, expected some of {', '.join(known)}")
