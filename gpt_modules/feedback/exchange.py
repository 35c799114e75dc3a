"""Votes as rows of a file: out, for any reward model's training; in, from what other projects wrote.

In come {"prompt", "responses", "ranking"}, {"prompt", "chosen", "rejected"}, best-of-K votes {"prompt", "responses",
"best"} (Ziegler et al. 2019: one answer is the best, nobody says how the others compare), and transcripts {"chosen",
"rejected"} of Anthropic's hh-rlhf, which share all but the last answer. A "labeler" in a row is who ranked it; "scores"
and "flags" stand parallel to "responses".
"""

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from gpt_modules.data.rows.schemas import FieldError, check_row, describe, items_of, mapping_of, text_of, texts_of
from gpt_modules.data.splits import Row
from gpt_modules.errors import UserError
from gpt_modules.storage.comparisons import SCORES, Answer, ComparisonStore, Judgement, Ranking, Source, Vote

LONGEST_LABELER = 1000  # characters of a labeler: a folder or a function may be one
ASSISTANT = "\n\nAssistant:"
IMPORTED = Source("file")


def exported(rankings: Iterable[Ranking]) -> Iterator[Row]:
    """A row for each vote that counts; `RewardDataModule` reads it, and `bring_in` makes the same vote of it."""
    for found in rankings:
        row: Row = {
            "prompt": found.prompt,
            "responses": [answer.text for answer in found.answers],
            "ranking": list(found.ranks),
            "labeler": found.labeler,
            "round": found.round,
            "models": [answer.source.name for answer in found.answers],
        }
        if any(score is not None for score in found.scores):
            row["scores"] = list(found.scores)
        if any(found.flags):
            row["flags"] = [sorted(of) for of in found.flags]
        yield row


def check_imported(record: object) -> Row:
    """A row of any of the kinds, as prompt, responses and ranking, with its labeler where it names one.

    Raises:
        FieldError: it is of none of them.
    """
    fields = mapping_of(record)
    if "best" in fields and fields.get("ranking") is None:
        row = _best_of(fields)
    elif "prompt" not in fields and "chosen" in fields:
        row = _transcripts(fields)
    else:
        row = check_row(fields, "reward")
    if fields.get("labeler") is not None:
        row["labeler"] = text_of(fields, "labeler")
        if not row["labeler"].isprintable() or len(row["labeler"]) > LONGEST_LABELER:
            raise FieldError(
                "labeler", describe(row["labeler"]), f"a name of up to {LONGEST_LABELER} printable characters"
            )
    for name in ("scores", "flags"):
        if fields.get(name) is not None:
            row[name] = _parallel(fields, name, row["responses"])
    return row


def _parallel(fields: Mapping[Any, Any], name: str, responses: Sequence[str]) -> list[Any]:
    values = items_of(fields, name)
    if len(values) != len(responses):
        raise FieldError(name, f"a list of {len(values)}", f"{len(responses)}, one for each response")
    for i, value in enumerate(values):
        if name == "scores" and not (value is None or (type(value) is int and value in SCORES)):
            raise FieldError(f"scores[{i}]", describe(value), f"a whole number, {SCORES[0]} to {SCORES[-1]}")
        if name == "flags" and not (isinstance(value, list) and all(isinstance(flag, str) for flag in value)):
            raise FieldError(f"flags[{i}]", describe(value), "a list of names")
    return values


def _best_of(fields: Mapping[Any, Any]) -> Row:
    prompt, responses, best = text_of(fields, "prompt"), texts_of(fields, "responses"), fields["best"]
    whole = isinstance(best, int) and not isinstance(best, bool)
    if not whole or not 0 <= best < len(responses):
        raise FieldError("best", describe(best), f"the number of a response, 0 to {len(responses) - 1}")
    ranking = [1 if i == best else 2 for i in range(len(responses))]
    return check_row({"prompt": prompt, "responses": responses, "ranking": ranking}, "reward")


def _transcripts(fields: Mapping[Any, Any]) -> Row:
    chosen, rejected = text_of(fields, "chosen"), text_of(fields, "rejected")
    prompt, sign, answer = chosen.rpartition(ASSISTANT)
    if not sign or not rejected.startswith(prompt + sign):
        raise FieldError("rejected", describe(rejected), f"a transcript like chosen up to its last {ASSISTANT!r}")
    return check_row({"prompt": prompt + sign, "chosen": answer, "rejected": rejected[len(prompt + sign) :]}, "reward")


class BroughtIn(NamedTuple):
    """Votes that are new, that took the place of the same labeler's earlier one, and rows that changed nothing."""

    new: int
    replaced: int
    known: int


def bring_in(store: ComparisonStore, rows: Sequence[Row], labeler: str) -> BroughtIn:
    """Votes of checked rows, in the round of imports: of the labelers that the rows name, else of this one.

    The same row again is the same vote. Another ranking of the same answers by the same labeler takes its place.

    Raises:
        UserError: a labeler is known as another kind, or a flag is none of the form's; before the first vote.
    """
    form = set(store.form)
    unknown = {flag for row in rows for flags in row.get("flags", ()) for flag in flags} - form
    if unknown:
        found = f"found {min(unknown)[:40]!r}, expected some of {sorted(form)}"
        raise UserError(f"flags: {found}; gpt label {store.path} --flags sets the form")
    for name in {row.get("labeler", labeler) for row in rows}:
        store.add_labeler(name, "file")
    number, new, replaced, known = store.round_of("imported"), 0, 0, 0
    for row in rows:
        judged = _judged(row)
        if len(judged) < 2:  # the same answer again and again
            known += 1
            continue
        name = row.get("labeler", labeler)
        store.add_task(number, row["prompt"], [Answer(text, IMPORTED) for text in judged])
        task = store.task_of(number, row["prompt"], list(judged))
        assert task is not None
        judgements = {answer.id: judged[answer.text] for answer in task.answers}
        before = store.vote_of(task.id, name)
        if before is not None and before.judgements == judgements:
            known += 1
            continue
        store.vote(Vote(task.id, name, judgements, uuid.uuid4().hex))
        new, replaced = new + (before is None), replaced + (before is not None)
    return BroughtIn(new, replaced, known)


def _judged(row: Row) -> dict[str, Judgement]:
    """What a row says of each answer; equal answers have one rank (`check_row`). A rank counts the better answers."""
    of, nothing = dict(zip(row["responses"], row["ranking"], strict=True)), [None] * len(row["responses"])
    ranks = [1 + len({text for text, other in of.items() if other < rank}) for rank in row["ranking"]]
    columns = (row["responses"], ranks, row.get("scores", nothing), row.get("flags", nothing))
    answers = zip(*columns, strict=True)
    return {text: Judgement(rank, score, frozenset(flags or ())) for text, rank, score, flags in answers}
