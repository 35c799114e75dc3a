"""Rows by name: embedded text (reviews, Shakespeare), generated tasks (`synthetic:2D+`, brackets), your own files
(`files`) or a data set on the hub (`hub`), each checked (`schemas`).
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache, partial
from pathlib import Path

from gpt_modules.data.builtin import brackets, recall, reviews, shakespeare, synthetic
from gpt_modules.data.rows.fields import FieldError, NoComparison
from gpt_modules.data.rows.files import file_rows, find_files, is_local, near_files, refuse_twice, rows_digest
from gpt_modules.data.rows.hub import hub_version, open_hub
from gpt_modules.data.rows.schemas import Check, Schema, check_row
from gpt_modules.data.splits import PlacedRow, Row, Split, hold_out, normalise
from gpt_modules.errors import UserError
from gpt_modules.storage.digests import sha256_of
from gpt_modules.storage.paths import LIKENESS, path_of

log = logging.getLogger(__name__)

Source = str | Sequence[str]
REVIEWS = "reviews"
SHAKESPEARE = "shakespeare"
BRACKETS = "brackets"
RECALL = "recall"
# Whose rows for every procedure that reads them have a validation split of their own.
PARTED = (REVIEWS, BRACKETS, RECALL)
PRODUCTS, QUANTIFIERS, POSSESSIONS = LABELLED = ("products", "quantifiers", "possessions")
_UNORDERED = ("choices", "responses")
_SHOWN = ("text", "pair", "choices", "prompt", "response", "messages", "responses")


def has_own_splits(source: Source) -> bool:
    """Whether a source parts itself into training and validation: what is embedded or generated does, files do not."""
    return isinstance(source, str) and (source in (*PARTED, SHAKESPEARE) or source.startswith(synthetic.PREFIX))


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """Where downloads, token shards and trained tokenizers are kept: the argument, else $GPT_MODULES_CACHE, else
    ~/.cache/gpt_modules."""
    return path_of(str(cache_dir or os.environ.get("GPT_MODULES_CACHE") or "~/.cache/gpt_modules"))


def load_rows(
    source: Source,
    split: Split,
    schema: Schema | Check,
    *,
    cache_dir: str | Path | None = None,
    k: int = 2,
    seed: int = 0,
) -> list[Row]:
    """All rows of a source, checked.

    Args:
        source: "reviews", "shakespeare", "brackets", "recall", "synthetic:TASK", a file, folder or glob (or a list of
            them), or a data set's name on the hub, "owner/name" or "owner/name:config".
        split: Which part of what is embedded, generated or on the hub; files are taken whole.
        schema: The procedure that is to read the rows, or a check of its own for columns of any name.
        cache_dir: See `cache_folder`.
        k: For the reviews as comparisons: answers a prompt.
        seed: For the reviews as comparisons: which groups are drawn.

    Raises:
        UserError: Nothing there, nothing in it, or a row that does not fit; one line with file, row and field.
    """
    if source == REVIEWS and schema == "reward":
        return reviews.reward_rows(split, k, seed)
    rows = list(iter_rows(source, split, schema, cache_dir=cache_dir))
    compared = [row for row in rows if row]
    kept = [row for row in compared if schema != "reward" or len(set(row["ranking"])) > 1]
    if len(kept) < len(rows):
        _tell_left_out(name_of(source), len(compared) - len(kept), len(rows) - len(compared), len(rows))
    if not kept:
        raise UserError(f"{name_of(source)}: found no usable row, expected at least one")
    return kept


def _or_nothing(check: Check, record: object) -> Row:
    """An empty row, where a record holds no two answers to one question."""
    try:
        return check(record)
    except NoComparison:
        return {}


@cache
def _tell_left_out(source: str, ties: int, none: int, rows: int) -> None:
    """Once, as rows are read for each epoch and for each baseline."""
    if ties:
        log.warning("%s: left out %d of %d rows whose answers are all tied", source, ties, rows)
    if none:
        message = "%s: left out %d of %d rows whose transcripts are not one question with two answers: they part before"
        log.warning(f"{message} their last turns, somebody says nothing, or both end alike", source, none, rows)


def iter_rows(
    source: Source,
    split: Split,
    schema: Schema | Check,
    *,
    cache_dir: str | Path | None = None,
    streaming: bool = False,
    text_field: str = "text",
) -> Iterator[Row]:
    """As `load_rows`, one row at a time; `streaming` reads the hub without storing a copy in the cache. Files are never
    copied.
    """
    check = schema if callable(schema) else partial(check_row, schema=schema, text_field=text_field)
    check = partial(_or_nothing, check)
    if isinstance(source, str) and has_own_splits(source):
        yield from _own_rows(source, split, schema, check)
        return
    folder = str(cache_folder(cache_dir) / "datasets")
    for part in parts_of(source):
        if isinstance(part, Path):
            yield from file_rows(part, schema, check)
        else:
            _refuse_mistyped(part)
            yield from _hub_rows(part, split, text_field if schema == "pretraining" else None, check, folder, streaming)


def parts_of(source: Source) -> list[Path | str]:
    """A source without splits of its own, in order: each file that it means, and the names of data sets on the hub.

    Raises:
        UserError: There is no such file, or a part stands twice, under whatever name: it would count twice.
    """
    found: list[Path | str] = []
    for item in [source] if isinstance(source, str) else source:
        found += find_files(item) if is_local(item) else [item]
    refuse_twice(part for part in found if isinstance(part, Path))
    names = [part for part in found if isinstance(part, str)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{twice}: found this data set twice in one source, expected each once")
    return found


def local_files(source: Source) -> list[Path]:
    """The files here that a source means; what ships with the package or is on the hub has none."""
    if isinstance(source, str) and has_own_splits(source):
        return []
    return [part for part in parts_of(source) if isinstance(part, Path)]


def split_rows(
    rows: Sequence[Row], schema: Schema | Check, fraction: float, source: Source = "validation"
) -> tuple[list[Row], list[Row]]:
    """(training, validation) rows, each by the hash of what it shares with others: `split_key`. About `fraction` of
    those texts validate; a row stays where it is, whatever rows are added.

    Raises:
        UserError: The hash of so few texts leaves a side empty; `source` names them.
    """
    asked = "conversations (by what is asked first)" if rows and all("messages" in row for row in rows) else "prompts"
    shared = asked if schema in ("sft", "reward", "ppo") else "texts"
    return hold_out(rows, lambda row: split_key(row, schema), fraction, f"{name_of(source)}: different {shared}")


def split_key(row: Row, schema: Schema | Check) -> str:
    """The text that decides a row's split, so that rows which share it share the split.

    The prompt of demonstrations, comparisons and prompts; of a conversation what its user asks first. The text of
    documents and of labelled rows: pairs and answers follow their text.
    """
    if schema == "pretraining" or callable(schema):
        return str(row["text"])
    if "messages" not in row:
        return str(row["prompt"])
    asked = (message for message in row["messages"] if message["role"] == "user")
    return str(next(asked, row["messages"][0])["content"])


def load_splits(
    train: Source,
    validation: Source | None,
    schema: Schema | Check,
    *,
    cache_dir: str | Path | None = None,
    fraction: float = 0.05,
    k: int = 2,
) -> tuple[list[Row], list[Row]]:
    """(training, validation) rows; without a validation source, those of `PARTED` or a split by hash (`split_rows`).

    Raises:
        UserError: As `load_rows` and `split_rows`; or a file is given to train and to validate.
    """
    if validation is None and train not in PARTED:
        return split_rows(load_rows(train, "train", schema, cache_dir=cache_dir), schema, fraction, train)
    if validation is not None:
        refuse_shared_files(train, validation)
    held_out = load_rows(validation or train, "validation", schema, cache_dir=cache_dir)
    rows = load_rows(train, "train", schema, cache_dir=cache_dir, k=k)
    if validation is not None:
        warn_of_shared_rows(rows, held_out, name_of(validation))
    return rows, held_out


def refuse_shared_files(train: Source, validation: Source) -> None:
    """Files that train may not validate, under whatever name.

    Raises:
        UserError: A file of `validation` has the content of one of `train`; the line names both.
    """
    ours, theirs = local_files(train), local_files(validation)
    sizes = {path.stat().st_size for path in ours} & {path.stat().st_size for path in theirs}
    known = {sha256_of(path): path for path in ours if path.stat().st_size in sizes}
    for path in theirs:
        if path.stat().st_size in sizes and (twin := known.get(sha256_of(path))) is not None:
            same = "the training file too" if twin == path else f"the content of the training file {twin}"
            raise UserError(f"validation: found {path}, {same}, expected rows that are not trained on")


def warn_of_shared_rows(train: Sequence[Row], validation: Sequence[Row], source: str) -> None:
    """One line in the log that counts the validation rows which are trained on, but for what `normalise` ignores and
    for labels and ranks.
    """
    seen = set(map(content_of, train))
    tell_shared(source, sum(content_of(row) in seen for row in validation), len(validation), "rows")


@cache
def tell_shared(source: str, shared: int, count: int, what: str) -> None:
    """Once, as rows are read before a run and again in each of its processes."""
    if shared:
        log.warning("%s: %d of %d validation %s are in the training %s too", source, shared, count, what, what)


def fingerprint(source: Source, split: Split, known: Mapping[str, str] | None = None) -> str:
    """SHA-256 of a source's content: of the files' bytes, which are read unless their digest is `known`; for the hub of
    the version that the library finds.
    """
    if isinstance(source, str) and has_own_splits(source):
        return hashlib.sha256(f"{split} {_own_fingerprint(source)}".encode()).hexdigest()
    digest = hashlib.sha256(split.encode())
    for part in parts_of(source):
        if isinstance(part, Path):
            digest.update(part.suffix.encode())
            digest.update(bytes.fromhex((known or {}).get(str(part)) or rows_digest(part)))
        else:
            _refuse_mistyped(part)
            digest.update(hub_version(part).encode())
    return digest.hexdigest()


def name_of(source: Source) -> str:
    """A source in an error message."""
    return source if isinstance(source, str) else ", ".join(source)


def _refuse_mistyped(item: str) -> None:
    """Before the hub is asked: a name that is nearly one that is here.

    Raises:
        UserError: It is.
    """
    if item in LABELLED:
        raise UserError(f"{item}: found labelled rows, expected rows for this procedure")
    own = [*PARTED, SHAKESPEARE, *LABELLED, *(synthetic.PREFIX + task for task in synthetic.TASKS)]
    near = [*get_close_matches(item, own, 3, LIKENESS), *near_files(item)]
    if near:
        meant = " or ".join(near)
        raise UserError(f"{item}: found no such file; did you mean {meant}? A data set of the hub is owner/name")


def _own_rows(source: str, split: Split, schema: Schema | Check, check: Check) -> Iterator[Row]:
    """Rows of what is embedded or generated; only generated tasks have columns of their own."""
    if source == REVIEWS and not callable(schema):
        yield from _review_rows(split, schema)
    elif source == BRACKETS and schema == "ppo":
        yield from brackets.bracket_prompts(split)
    elif source == RECALL and schema == "ppo":
        yield from recall.recall_prompts(split)
    elif source == RECALL and schema == "sft":
        yield from recall.recall_demonstrations(split)
    elif source == RECALL:
        raise UserError(f"{source}: found conversations, expected rows for this procedure")
    elif source.startswith(synthetic.PREFIX) and callable(schema):
        yield from map(check, synthetic.synthetic_items(synthetic.task_of(source), split=split))
    elif schema != "pretraining":
        raise UserError(f"{source}: found text to pretrain on, expected rows for this procedure")
    elif source == BRACKETS:
        yield from brackets.bracket_texts(split)
    elif source == SHAKESPEARE:
        yield {"text": shakespeare.shakespeare_text(split)}
    else:
        yield from synthetic.synthetic_documents(synthetic.task_of(source), split)


def _own_fingerprint(source: str) -> str:
    if source == REVIEWS:
        return reviews.fingerprint()
    if source == BRACKETS:
        return f"{BRACKETS} {brackets.FORMAT_VERSION}"
    if source == RECALL:
        return f"{RECALL} {recall.FORMAT_VERSION}"
    words = shakespeare.fingerprint()
    return words if source == SHAKESPEARE else f"{synthetic.FORMAT_VERSION} {synthetic.task_of(source)} {words}"


def _review_rows(split: Split, schema: Schema) -> list[Row]:
    views: dict[Schema, Callable[[Split], list[Row]]] = {
        "pretraining": reviews.pretraining_rows,
        "sft": reviews.sft_rows,
        "reward": reviews.reward_rows,
        "ppo": reviews.ppo_rows,
    }
    return views[schema](split)


def _hub_rows(
    name: str, split: Split, text_field: str | None, check: Check, folder: str, streaming: bool
) -> Iterator[Row]:
    empty = 0
    for number, record in enumerate(open_hub(name, split, folder, streaming), start=1):
        if text_field is not None and record.get(text_field) == "":
            empty += 1  # data sets that were cut into lines hold many, and the user cannot mend them
            continue
        where = f"{name}[{split}]:{number}"
        try:
            yield PlacedRow(check(record), where)
        except FieldError as error:
            raise UserError(f"{where}: {error}") from error
    if empty:
        log.warning("%s[%s]: left out %d empty rows", name, split, empty)


def content_of(row: Row) -> bytes:
    """A short digest of a row but for its label: what is shown to the model. Answers have no order: their ranks, or
    which of them is right, say what is thought of them.
    """
    shown = (sorted(row[name]) if name in _UNORDERED else row[name] for name in _SHOWN if name in row)
    texts = (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in shown)
    return hashlib.blake2b("\0".join(map(normalise, texts)).encode(), digest_size=16).digest()
