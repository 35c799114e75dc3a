"""What an evaluation task is: a short YAML file that names its data, how a row becomes a question, and how an answer is
judged. Found by name in `recipes/evaluation/`, or by path.

Source: Radford et al. 2019, section 3; Brown et al. 2020, section 2.4.

choice      Which of some answers fits the context? The one with the best score (`scoring`).
cloze       The word that ends a text: right when each of its tokens is the model's first choice (LAMBADA).
partial     One continuation under several contexts: right when it is likeliest under the right one (Winograd).
generate    Free-form: the model writes on, and what it wrote is compared with one or more references.
perplexity  How well a whole text is predicted, a word, character or byte.

A template is text with `{field}` in it, replaced by that field of the row, and nothing else: no attributes, no formats.
Fields inside a field have both names, `{answers.text}`. Without templates, rows as commonly shipped are read:
{context, continuation}, {context, completion}, {query, choices, gold}, {context_options, continuation, gold}.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from gpt_modules.data.rows.files import is_local
from gpt_modules.data.rows.sources import has_own_splits
from gpt_modules.data.splits import Split
from gpt_modules.errors import UserError
from gpt_modules.evaluation.tasks.detokenizers import DETOKENIZERS
from gpt_modules.storage.documents import FileName, at, typed
from gpt_modules.storage.json_files import shown
from gpt_modules.storage.recipes import find_recipe, read_recipe, recipe_names

TaskKind = Literal["choice", "cloze", "partial", "generate", "perplexity"]
Scoring = Literal["sum", "token", "character", "byte", "ratio"]
Metric = Literal["exact_match", "normalized_exact_match", "f1", "bleu", "rouge"]
Draw = Literal["item", "task"]
Texts = str | tuple[str, ...]

FOLDER = Path("evaluation")  # of the recipes
_SHOWN = ("demonstrations", "draw", "instruction", "separator", "delimiter")
_GOLD = ("choices", "gold", "labels")
_GENERATED = ("metrics", "stop", "max_new_tokens", "temperature", "top_k", "beams", "length_penalty", "sentences")
# An empty context is no context, and an empty stop would end every answer before it begins.
_NEVER_EMPTY = ("name", "source", "split", "demonstrations", "context", "target", "text", "placeholder", "choices",
                "gold", "labels", "metrics", "stop")  # fmt: skip
_VARYING = {"choice": ("context",), "cloze": ("text", "context"), "generate": ("context",)}
FIELD = re.compile(r"\{([^{}]*)\}")
"""In a template."""
_KEYS: dict[str, tuple[str, ...]] = {
    "choice": (*_SHOWN, *_GOLD, "context", "scoring", "answer_context"),
    "cloze": (*_SHOWN, "text", "context", "target", "detokenizer"),
    "partial": (*_SHOWN, *_GOLD, "text", "placeholder", "target"),
    "generate": (*_SHOWN, *_GENERATED, "context", "target"),
    "perplexity": ("text", "detokenizer", "stride"),
}


@dataclass(frozen=True)
class EvaluationTask:
    """A task as its file says. Raises `UserError`, one line naming the key, for what no task can be."""

    name: FileName
    """Names the files that the items are written to, too."""
    kind: TaskKind
    source: Texts
    """Files, folders or globs, "synthetic:2D+", or a name on the hub (`data.sources`)."""
    split: str = "validation"
    """Of a source that has several; files are taken whole."""
    demonstrations: Texts | None = None
    """The source of the K demonstrations, its training split; by default the task's own source, without the item."""
    draw: Draw = "item"
    """item: demonstrations anew for each item (Brown et al. 2020, section 2.4). task: the same for all, which share
    the work of reading them."""
    instruction: str = ""
    """Stands in front, before the demonstrations."""
    separator: str = "\n\n"
    """Between the instruction, the demonstrations and the question."""
    delimiter: str = " "
    """Between a context and what continues it, unless one of them has white space there."""
    context: str | None = None
    """Template; by default the field `query` or `context`."""
    target: str | None = None
    """Template of what continues the context; by default the field `continuation` or `completion`. generate: a field
    that holds a list gives several references."""
    text: str | None = None
    """cloze: template of the whole text, whose last word is the target; `context` and `target` may then use the fields
    {context} and {target}. partial: template of a text in which the choices stand for `placeholder`. perplexity: the
    field that holds the text."""
    placeholder: str = "_"
    choices: Texts | None = None
    """A template that is one field, a list; or one template an answer."""
    gold: str = "{gold}"
    """Template of the right choice: its number from 0, its letter, or its text; or one of `labels`."""
    labels: Texts | None = None
    """What `gold` says in place of 0, 1, ...: a list, or a template that is one field, a list."""
    scoring: Scoring = "token"
    """Of a choice's log-probability: `sum`; a `token`, `character` or `byte`; or the `ratio` of its probability after
    the context to that after `answer_context`."""
    answer_context: str = "Answer:"
    metrics: tuple[Metric, ...] = ("exact_match",)
    stop: tuple[str, ...] = ("\n",)
    """An answer ends before the first of these, or with the end token."""
    max_new_tokens: int = 32
    temperature: float = 0.0
    top_k: int | None = None
    beams: int = 1
    length_penalty: float = 0.6
    sentences: int | None = None
    """Keep so many sentences of an answer."""
    detokenizer: str | None = None
    stride: int | None = None
    """perplexity: tokens that each window predicts; by default as many as the model's context has."""

    def __post_init__(self) -> None:
        if self.detokenizer is not None and self.detokenizer not in DETOKENIZERS:
            raise UserError(f"detokenizer: found {shown(self.detokenizer)}, expected one of {', '.join(DETOKENIZERS)}")
        for key in ("max_new_tokens", "beams", "top_k", "sentences", "stride"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UserError(f"{key}: found {value}, expected at least 1")
        for key in _NEVER_EMPTY:
            value = getattr(self, key)
            if value == "" or (value == () and key != "stop"):
                raise UserError(f"{key}: found nothing, expected something")
            if isinstance(value, tuple) and "" in value:
                raise UserError(f"{key}: found empty text among {shown(list(value))}, expected something")
        if not 0.0 <= self.temperature < math.inf or (self.temperature > 0.0 and self.beams > 1):
            raise UserError(f"temperature: found {self.temperature} with {self.beams} beams, expected 0 or more, and 0 "
                            "with more than one beam")  # fmt: skip
        if not 0.0 <= self.length_penalty < math.inf:
            raise UserError(f"length_penalty: found {self.length_penalty}, expected 0 or more")
        for key in _VARYING.get(self.kind, ()):
            value = getattr(self, key)
            if value is not None and not FIELD.search(value):
                raise UserError(f"{key}: found {shown(value)}, which is the same for every row, expected a template "
                                "with a {field} of the row")  # fmt: skip
        if isinstance(self.choices, tuple) and len(self.choices) < 2:
            raise UserError(f"choices: found {len(self.choices)}, expected at least 2 or one field that is a list")

    def to_dict(self) -> dict[str, Any]:
        """Plain values of the keys that its kind has."""
        keys = ("name", "kind", "source", "split", *_KEYS[self.kind])
        found = {key: getattr(self, key) for key in keys}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}


def find_tasks(names: Sequence[str]) -> list[EvaluationTask]:
    """The tasks of files, or of names in `recipes/evaluation/`, here or as shipped; a file whose one key is `tasks`
    stands for those that it lists, which may lie beside it.

    Raises:
        UserError: No such task (the known ones are listed), a file that describes none, or two of one name.
    """
    tasks: list[EvaluationTask] = []
    for path in map(_find, names):
        values = read_recipe(path)
        listed = values.get("tasks")
        if values.keys() == {"tasks"} and listed == []:
            raise UserError(f"{path}: tasks: found an empty list, expected names of tasks")
        if list(values) == ["tasks"] and isinstance(listed, list) and all(isinstance(one, str) for one in listed):
            tasks += [read_task(_find(one, path)) for one in listed]
        else:
            tasks.append(read_task(path))
    found = [task.name for task in tasks]
    if twice := next((name for name in found if found.count(name) > 1), None):
        raise UserError(f"tasks: found {twice} twice, expected each name once")
    return tasks


def _find(name: str, beside: Path | None = None) -> Path:
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return find_recipe(name, beside)
    if beside is not None and (beside.parent / f"{name}.yaml").is_file():
        return beside.parent / f"{name}.yaml"
    try:
        return find_recipe(FOLDER / path.name if len(path.parts) == 1 else path)
    except UserError:
        known = [one.removeprefix("evaluation/") for one in recipe_names() if one.startswith("evaluation/")]
        raise UserError(f"{at('', name)}: no such task, expected a .yaml file or one of: {', '.join(known)}") from None


def read_task(path: Path) -> EvaluationTask:
    """The task that a YAML file describes; its name is the file's unless the file says another."""
    values = {"name": path.stem, **read_recipe(path)}
    try:
        task = task_from(values)
        _refuse_idle(task, values)
        return task
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _refuse_idle(task: EvaluationTask, said: Mapping[str, Any]) -> None:
    """What a file says is followed.

    Raises:
        UserError: A key that nothing would read, beside the others.
    """
    sources = [task.source] if isinstance(task.source, str) else task.source
    idle = {
        "split": (all(map(is_local, sources)), "none beside files, which are taken whole"),
        "top_k": (task.temperature == 0.0, "a temperature above 0 beside it"),
        "length_penalty": (task.beams == 1, "more than one of beams beside it"),
        "answer_context": (task.scoring != "ratio", "scoring: ratio beside it"),
        "placeholder": (task.text is None, "text beside it"),
        "detokenizer": (task.kind == "cloze" and task.text is None, "text beside it"),
    }
    for key, (is_idle, expected) in idle.items():
        if said.get(key) is not None and is_idle:
            raise UserError(f"{key}: found {shown(said[key])}, which nothing would follow, expected {expected}")
    if "split" in said and any(map(has_own_splits, sources)) and task.split not in get_args(Split):
        raise UserError(f"split: found {shown(task.split)}, expected one of {', '.join(get_args(Split))}")


def task_from(values: Mapping[str, Any]) -> EvaluationTask:
    """The task of plain values, each of its key's type.

    Raises:
        UserError: A key is missing, unknown, not one of the kind's, or its value is of another type.
    """
    if "kind" in values:
        kind = typed(TaskKind, values["kind"], "kind")
        known = ("name", "kind", "source", "split", *_KEYS[kind])
        for key in values:
            if key not in known:
                raise UserError(f"{at('', key)}: found this key, expected one of {kind}'s: {', '.join(known)}")
    # All lists of a task are of texts, and YAML reads a label such as 1 as a number.
    texts = {key: [_as_text(item) for item in value] for key, value in values.items() if isinstance(value, list)}
    return typed(EvaluationTask, {**values, **texts})  # type: ignore[no-any-return]


def _as_text(item: object) -> object:
    return str(item) if isinstance(item, int) and not isinstance(item, bool) else item
