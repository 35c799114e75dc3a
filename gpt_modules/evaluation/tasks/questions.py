"""Rows of a task's data as questions: templates filled, borders between context and continuation set, the right answer
found.

Everything that can be wrong with a row is told when it is read, with file, row and field.
"""

import string
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

from gpt_modules.data.rows.fields import FieldError, describe, mapping_of, no_such_field
from gpt_modules.data.rows.labelled import class_number
from gpt_modules.data.rows.sources import iter_rows, name_of
from gpt_modules.data.splits import Row
from gpt_modules.errors import UserError
from gpt_modules.evaluation.tasks.definitions import FIELD, EvaluationTask, Texts
from gpt_modules.evaluation.tasks.detokenizers import DETOKENIZERS

_CONTEXTS, _TARGETS = ("query", "context"), ("continuation", "completion")


class Question(NamedTuple):
    """A row as the model meets it. answers: (context, continuation), one a choice or, of generate, one a reference.
    gold: which of them is right; generate: 0.
    """

    answers: tuple[tuple[str, str], ...]
    gold: int

    @property
    def demonstration(self) -> str:
        """The question with its answer."""
        return "".join(self.answers[self.gold])


class Questions(NamedTuple):
    """A task's items, and the demonstrations to draw from, each once."""

    items: list[Question]
    pool: list[str]


def read_questions(
    task: EvaluationTask, limit: int | None = None, cache_dir: str | Path | None = None, with_pool: bool = True
) -> Questions:
    """The first `limit` questions of a task, and all of its demonstrations; without the pool there are none, and their
    source need not be there.

    Raises:
        UserError: No row, or one that does not fit.
    """
    check = partial(_check, task=task)
    rows = iter_rows(task.source, cast(Any, task.split), check, cache_dir=cache_dir)
    # Demonstrations of the same source are drawn from all of it, whatever the limit.
    whole = with_pool and task.demonstrations is None
    items = [row["question"] for row in (rows if whole else islice(rows, limit))]
    if not items:
        raise UserError(f"{name_of(task.source)}: found no row, expected at least one")
    pool = items if whole else []
    if with_pool and task.demonstrations is not None:
        pool = [row["question"] for row in iter_rows(task.demonstrations, "train", check, cache_dir=cache_dir)]
    return Questions(items[:limit], list(dict.fromkeys(question.demonstration for question in pool)))


def read_texts(task: EvaluationTask, limit: int | None = None, cache_dir: str | Path | None = None) -> list[str]:
    """The first `limit` texts of a perplexity task.

    Raises:
        UserError: No row, or one without text.
    """
    field = _only_field(task.text or "{text}")
    if field is None:
        raise UserError(f"{task.name}: text: found {task.text!r}, expected one field, {{text}}")
    split = cast(Any, task.split)
    rows = iter_rows(task.source, split, "pretraining", cache_dir=cache_dir, text_field=field)
    texts = [row["text"] for row in islice(rows, limit)]
    if not texts:
        raise UserError(f"{name_of(task.source)}: found no row, expected at least one")
    return texts


def _check(record: object, task: EvaluationTask) -> Row:
    """{"question": Question} of a record.

    Raises:
        FieldError: It does not fit.
    """
    fields: dict[str, Any] = {}
    for name, value in _flatten(mapping_of(record)):
        if name in fields:
            raise FieldError(name, "it twice, as this name and inside another field", "one of the two")
        fields[name] = value
    build = {"choice": _choice, "cloze": _cloze, "partial": _partial, "generate": _free_form}[task.kind]
    return {"question": build(task, fields)}


def _choice(task: EvaluationTask, fields: Mapping[str, Any]) -> Question:
    context = _context(task, fields)
    choices = _texts(task.choices or "{choices}", fields, "choices")
    answers = tuple((context, _after(context, choice, task.delimiter)) for choice in choices)
    return Question(answers, _gold(task, fields, choices))


def _partial(task: EvaluationTask, fields: Mapping[str, Any]) -> Question:
    if task.text is None:
        contexts, target = _texts(task.choices or "{context_options}", fields, "choices"), _target(task, fields)
        answers = tuple((context, _after(context, target, task.delimiter)) for context in contexts)
        return Question(answers, _gold(task, fields, contexts))
    choices, text = _texts(task.choices or "{choices}", fields, "choices"), _fill(task.text, fields)
    before, *rest = text.split(task.placeholder)
    if len(rest) != 1 or not rest[0].strip():
        found = f"{task.placeholder!r} {len(rest)} times in {describe(text)}"
        raise FieldError(_name(task.text, "text"), found, "it once, and text after it")
    return Question(tuple((before + choice, rest[0]) for choice in choices), _gold(task, fields, choices))


def _cloze(task: EvaluationTask, fields: Mapping[str, Any]) -> Question:
    if task.text is not None:
        text = _fill(task.text, fields).strip()
        text = text if task.detokenizer is None else DETOKENIZERS[task.detokenizer](text)
        words = text.rsplit(maxsplit=1)
        if len(words) < 2:
            raise FieldError(_name(task.text, "text"), describe(text), "at least two words")
        fields = {**fields, "context": words[0], "target": words[1]}
    context = _context(task, fields)
    target = _fill_text(task.target or "{target}", fields) if task.text is not None else _target(task, fields)
    return Question(((context, _after(context, target, task.delimiter)),), 0)


def _free_form(task: EvaluationTask, fields: Mapping[str, Any]) -> Question:
    context = _context(task, fields)
    template = task.target or _first_of(fields, _TARGETS)
    value = fields.get(_only_field(template) or "")
    references = _texts(template, fields, "target", 1) if isinstance(value, list) else [_fill_text(template, fields)]
    return Question(tuple((context, _after(context, text, task.delimiter)) for text in references), 0)


def _context(task: EvaluationTask, fields: Mapping[str, Any]) -> str:
    return _fill(task.context or _first_of(fields, _CONTEXTS), fields)


def _target(task: EvaluationTask, fields: Mapping[str, Any]) -> str:
    return _fill_text(task.target or _first_of(fields, _TARGETS), fields)


def _after(context: str, text: str, delimiter: str) -> str:
    """`text` as it stands after `context`."""
    bordered = not context or context[-1].isspace() or text[0].isspace()
    return text if bordered else delimiter + text


def _gold(task: EvaluationTask, fields: Mapping[str, Any], choices: list[str]) -> int:
    """The number of the right choice."""
    field = _only_field(task.gold)
    value = _value(fields, field, "the right choice") if field is not None else _fill(task.gold, fields)
    labels = None if task.labels is None else _texts(task.labels, fields, "labels")
    number = _number(value, choices) if labels is None else class_number(value, labels, len(choices))
    if number is None:
        last = len(choices) - 1
        known = (
            f"one of {', '.join(labels)}" if labels else f"0 to {last}, A to {chr(65 + last)}, or one of the choices"
        )
        raise FieldError(_name(task.gold, "gold"), describe(value), known)
    twin = next((n for n, choice in enumerate(choices) if n != number and choice == choices[number]), None)
    if twin is not None:
        found = f"{describe(choices[number])} twice, as numbers {min(number, twin)} and {max(number, twin)}"
        raise FieldError("choices", found, "the right one once")
    return number


def _number(value: object, choices: list[str]) -> int | None:
    """A label without names: a text that is one of the choices is that one, before it is a number or a letter."""
    word = value.strip() if isinstance(value, str) else value
    texts = [choice.strip() for choice in choices]
    if word in texts:
        return texts.index(str(word))
    return class_number(word, list(string.ascii_uppercase[: len(choices)]), len(choices))


def _texts(template: Texts, fields: Mapping[str, Any], key: str, least: int = 2) -> list[str]:
    """One text a template, or the list in the one field that a template is."""
    if not isinstance(template, str):
        return [_fill_text(one, fields) for one in template]
    field = _only_field(template)
    if field is None:
        raise FieldError(key, repr(template), "a template that is one field, or a list of templates")
    value = _value(fields, field, f"a list of at least {least} texts")
    if not isinstance(value, list) or len(value) < least:
        found = f"a list of {len(value)}" if isinstance(value, list) else describe(value)
        raise FieldError(field, found, f"a list of at least {least} texts")
    return [_fill_text("{item}", {"item": item}, f"{field}[{i}]") for i, item in enumerate(value)]


def _fill_text(template: str, fields: Mapping[str, Any], name: str | None = None) -> str:
    """As `_fill`, and not empty."""
    text = _fill(template, fields, name)
    if not text.strip():
        raise FieldError(name or _name(template, "template"), "empty text", "non-empty text")
    return text


def _fill(template: str, fields: Mapping[str, Any], name: str | None = None) -> str:
    """The template with its fields replaced; braces in a row's own text are text."""
    return FIELD.sub(lambda found: _plain(fields, found[1], name or found[1]), template)


def _plain(fields: Mapping[str, Any], field: str, name: str) -> str:
    value = _value(fields, field, "text or a number")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise FieldError(name, describe(value), "text or a number")
    text = str(value)
    if any(0xD800 <= ord(letter) <= 0xDFFF for letter in text):
        raise FieldError(name, "half of a surrogate pair", "text that UTF-8 can hold")
    return text


def _value(fields: Mapping[str, Any], field: str, expected: str) -> Any:
    if field not in fields:
        raise FieldError(field, no_such_field(fields), expected)
    return fields[field]


def _first_of(fields: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """A template of the first of these fields that the row has."""
    found = next((name for name in names if name in fields), None)
    if found is None:
        raise FieldError(" or ".join(names), no_such_field(fields), "one of them, or a template")
    return f"{{{found}}}"


def _only_field(template: str) -> str | None:
    found = FIELD.fullmatch(template)
    return found[1] if found else None


def _name(template: str, key: str) -> str:
    """What to call a template in an error: its field, where it is just one."""
    return _only_field(template) or key


def _flatten(record: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Fields by name, those inside others as `outer.inner`; a list of objects is, inside, a list a field."""
    for key, value in record.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{name}.")
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            shared = set.intersection(*(set(item) for item in value))
            yield from _flatten(
                {part: [item[part] for item in value] for part in value[0] if part in shared}, f"{name}."
            )
        else:
            yield name, value
