"""Votes as rows of a file: out, for any reward model's training; in, from what other projects wrote.

In comes what a reward model reads (`data.rows.schemas`), conversations among it, and best-of-K votes {"prompt",
"responses", "best"} (Ziegler et al. 2019: one answer is the best, nobody says how the others compare). A "labeler" in a
row is who ranked it, "labeler_kind" whether scores do (whoever else comes from a file counts as people do); "scores",
"flags" and "models" (who answered) stand parallel to "responses"; "round" says of which round a task is.

A row keeps who ranked, ranks, scores, flags, and the models by name. Their digests and sampling settings, notes, time
spent, skips, and votes that count no more stay in their store.
"""

import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, get_args

from gpt_modules.data.rows.fields import FieldError, describe, items_of, mapping_of, text_of, texts_of
from gpt_modules.data.rows.messages import prompt_of
from gpt_modules.data.rows.schemas import check_row
from gpt_modules.data.splits import Row
from gpt_modules.errors import UserError
from gpt_modules.storage.comparisons import (
    Answer,
    ComparisonStore,
    Judgement,
    LabelerKind,
    Ranking,
    Source,
    Task,
    Vote,
    competition_ranks,
    prompt_field,
)

LONGEST_LABELER = 1000  # characters of a labeler: a folder or a function may be one
IMPORTED = Source("file")


def exported(rankings: Iterable[Ranking], kind_of: Callable[[str], LabelerKind | None] | None = None) -> Iterator[Row]:
    """A row for each vote that counts; `RewardDataModule` reads it, and `bring_in` makes the same vote of it.

    Args:
        kind_of: `ComparisonStore.kind_of`; None: rows do not say whether scores ranked.
    """
    for found in rankings:
        row: Row = {
            **prompt_field(found.prompt),
            "responses": [answer.text for answer in found.answers],
            "ranking": list(found.ranks),
            "labeler": found.labeler,
            "round": found.round,
            "models": [answer.source.name for answer in found.answers],
        }
        if kind_of is not None:
            row["labeler_kind"] = kind_of(found.labeler)
        if any(score is not None for score in found.scores):
            row["scores"] = list(found.scores)
        if any(found.flags):
            row["flags"] = [sorted(of) for of in found.flags]
        yield row


def check_imported(record: object) -> Row:
    """A row of any of the kinds, as prompt or messages, responses and ranking, with what else it says of them.

    Raises:
        FieldError: it is of none of them, or says two things of the same answer.
    """
    fields = mapping_of(record)
    row = _best_of(fields) if fields.get("best") is not None else check_row(fields, "reward")
    if fields.get("labeler") is not None:
        row["labeler"] = _name(text_of(fields, "labeler"), "labeler")
    if (kind := fields.get("labeler_kind")) is not None:
        if kind not in get_args(LabelerKind):
            raise FieldError("labeler_kind", describe(kind), " or ".join(get_args(LabelerKind)))
        row["labeler_kind"] = kind
    for name, check in (("flags", _flags), ("models", _name)):
        if fields.get(name) is not None:
            row[name] = _parallel(fields, name, check, row["responses"])
    return row


def _parallel(fields: Mapping[Any, Any], name: str, check: Callable[..., Any], responses: Sequence[str]) -> list[Any]:
    values = items_of(fields, name)
    if len(values) != len(responses):
        raise FieldError(name, f"a list of {len(values)}", f"{len(responses)}, one for each response")
    for i, value in enumerate(values):
        check(value, f"{name}[{i}]")
        first = responses.index(responses[i])
        if name != "models" and value != values[first]:
            both = f"{values[first]!s:.40} and {value!s:.40} for the same answer, {describe(responses[i])}"
            raise FieldError(f"{name}[{i}]", both, "the same")
    return values


def _name(value: object, field: str) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > LONGEST_LABELER:
        raise FieldError(field, describe(value), f"a name of up to {LONGEST_LABELER} printable characters")
    return value


def _flags(value: object, field: str) -> None:
    if not (isinstance(value, list) and all(isinstance(flag, str) for flag in value)):
        raise FieldError(field, describe(value), "a list of names")


def _best_of(fields: Mapping[Any, Any]) -> Row:
    responses, best = texts_of(fields, "responses"), fields["best"]
    if type(best) is not int or not 0 <= best < len(responses):
        raise FieldError("best", describe(best), f"the number of a response, 0 to {len(responses) - 1}")
    if fields.get("ranking") is None:
        return check_row({**fields, "ranking": [1 + (text != responses[best]) for text in responses]}, "reward")
    return check_row(fields, "reward")


class BroughtIn(NamedTuple):
    """Votes that are new, that took the place of the same labeler's earlier one, and rows that changed nothing."""

    new: int
    replaced: int
    known: int


def refuse_other_flags(rows: Iterable[Row], form: Collection[str]) -> None:
    """Raises:
    UserError: a row has a flag that is none of the form's.
    """
    if unknown := {flag for row in rows for flags in row.get("flags", ()) for flag in flags} - set(form):
        raise UserError(f"flags: found {min(unknown)[:40]!r}, expected some of {sorted(form)}; --flags sets the form")


def bring_in(store: ComparisonStore, rows: Sequence[Row], labeler: str) -> BroughtIn:
    """Votes of checked rows, all or none: of the labelers that the rows name, else of this one.

    A row whose prompt and answers are those of a task, in any order, is a vote on it: where several rounds have it, in
    the round that the row names, else in the newest. Others make a task in the round of imports, or in one for each
    round that they name. The same row again is the same vote. Another ranking of the same answers by the same labeler
    takes its place; of people and scores only what they said themselves comes back.

    Raises:
        UserError: a labeler is known as another kind and said something else, or a flag is none of the form's.
    """
    refuse_other_flags(rows, store.form)
    with store.together():
        admitted: set[tuple[str, LabelerKind]] = set()
        new, replaced, known = 0, 0, 0
        for row, task in zip(rows, _tasks(store, rows), strict=True):
            name = row.get("labeler", labeler)
            judged = _judged(row)
            judgements = {answer.id: judged[answer.text] for answer in task.answers} if task else {}
            before = store.vote_of(task.id, name) if task else None
            if task is None or (before is not None and before.judgements == judgements):
                known += 1
                continue
            kind: LabelerKind = "scores" if row.get("labeler_kind") == "scores" else "file"
            if (name, kind) not in admitted:
                store.add_labeler(name, kind)
                admitted.add((name, kind))
            store.vote(Vote(task.id, name, judgements, uuid.uuid4().hex))
            new, replaced = new + (before is None), replaced + (before is not None)
    return BroughtIn(new, replaced, known)


def _tasks(store: ComparisonStore, rows: Sequence[Row]) -> list[Task | None]:
    """Of each row; None where it has but one answer, again and again. All that are there are found before the first is
    made, so that equal ones of two rounds stay two.
    """
    found = [_known(store.tasks_of(prompt_of(row), [*_answers(row)]), row.get("round")) for row in rows]
    new = [i for i, row in enumerate(rows) if found[i] is None and len(_answers(row)) > 1]
    rounds = {}
    for said in sorted({rows[i].get("round", 0) for i in new}):
        rounds[said] = store.round_of(f"imported {said}" if said else "imported")
    for i in new:
        number, prompt, answers = rounds[rows[i].get("round", 0)], prompt_of(rows[i]), _answers(rows[i])
        store.add_task(number, prompt, [Answer(text, source) for text, source in answers.items()])
        found[i] = _known(store.tasks_of(prompt, list(answers)), number)
    return found


def _known(tasks: Sequence[Task], number: int | None) -> Task | None:
    return next((task for task in tasks if task.round == number), tasks[-1] if tasks else None)


def _answers(row: Row) -> dict[str, Source]:
    """The different answers of a row with their sources; of equal ones the first's."""
    sources = [Source(name) for name in row["models"]] if "models" in row else [IMPORTED] * len(row["responses"])
    found: dict[str, Source] = {}
    for text, source in zip(row["responses"], sources, strict=True):
        found.setdefault(text, source)
    return found


def _judged(row: Row) -> dict[str, Judgement]:
    """What a row says of each answer; of equal ones it says the same (`check_imported`)."""
    nothing = [None] * len(row["responses"])
    ranks = competition_ranks(dict(zip(row["responses"], row["ranking"], strict=True)))
    columns = (row["responses"], row.get("scores", nothing), row.get("flags", nothing))
    answers = zip(*columns, strict=True)
    return {text: Judgement(ranks[text], score, frozenset(flags or ())) for text, score, flags in answers}
