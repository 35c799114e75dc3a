"""Rows by name: embedded text (reviews, Shakespeare), generated tasks (`synthetic:2D+`), your own files (`files`) or a
data set on the hub (`hub`), each checked (`schemas`).
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from gpt_modules.data.builtin import reviews, shakespeare, synthetic
from gpt_modules.data.rows.files import file_rows, find_files, is_local
from gpt_modules.data.rows.hub import hub_version, open_hub
from gpt_modules.data.rows.schemas import Check, FieldError, Schema, check_row
from gpt_modules.data.splits import Row, Split, hash_fraction, normalise
from gpt_modules.errors import UserError

log = logging.getLogger(__name__)

Source = str | Sequence[str]
REVIEWS = "reviews"
SHAKESPEARE = "shakespeare"


def has_own_splits(source: Source) -> bool:
    """Whether a source parts itself into training and validation: what is embedded or generated does, files do not."""
    return isinstance(source, str) and (source in (REVIEWS, SHAKESPEARE) or source.startswith(synthetic.PREFIX))


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """Where downloads, token shards and trained tokenizers are kept: the argument, else $GPT_MODULES_CACHE, else
    ~/.cache/gpt_modules."""
    return Path(cache_dir or os.environ.get("GPT_MODULES_CACHE") or "~/.cache/gpt_modules").expanduser()


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
        source: "reviews", "shakespeare", "synthetic:TASK", a file, folder or glob (or a list of them), or a data set's
            name on the hub, "owner/name" or "owner/name:config".
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
    kept = [row for row in rows if schema != "reward" or len(set(row["ranking"])) > 1]
    if len(kept) < len(rows):
        log.warning(
            "%s: left out %d of %d rows whose answers are all tied", name_of(source), len(rows) - len(kept), len(rows)
        )
    if not kept:
        raise UserError(f"{name_of(source)}: found no usable row, expected at least one")
    return kept


def iter_rows(
    source: Source,
    split: Split,
    schema: Schema | Check,
    *,
    cache_dir: str | Path | None = None,
    streaming: bool = False,
    text_field: str = "text",
) -> Iterator[Row]:
    """As `load_rows`, one row at a time; `streaming` reads files and the hub without storing a copy in the cache."""
    check = schema if callable(schema) else partial(check_row, schema=schema, text_field=text_field)
    if isinstance(source, str) and has_own_splits(source):
        yield from _own_rows(source, split, schema, check)
        return
    folder = str(cache_folder(cache_dir) / "datasets")
    for item in [source] if isinstance(source, str) else source:
        if not is_local(item):
            yield from _hub_rows(item, split, text_field if schema == "pretraining" else None, check, folder, streaming)
            continue
        for path in find_files(item):
            yield from file_rows(path, schema, check, folder, streaming)


def split_rows(rows: Sequence[Row], schema: Schema | Check, fraction: float) -> tuple[list[Row], list[Row]]:
    """(training, validation) rows: the `fraction` of texts with the smallest hashes validate, at least one text.

    What is equal stays together: demonstrations by prompt and response, comparisons and prompts by prompt, labelled
    rows by their text.

    Raises:
        UserError: There are fewer than two different texts to part.
    """
    keys = [normalise(_key(row, schema)) for row in rows]
    distinct = sorted(set(keys), key=lambda key: (hash_fraction(key), key))
    if len(distinct) < 2:
        raise UserError("validation: found fewer than two different rows to split, expected a validation file")
    chosen = set(distinct[: max(1, round(fraction * len(distinct)))])
    parts = ([row for row, key in zip(rows, keys, strict=True) if (key in chosen) == side] for side in (False, True))
    train, validation = parts
    return train, validation


def load_splits(
    train: Source,
    validation: Source | None,
    schema: Schema | Check,
    *,
    cache_dir: str | Path | None = None,
    fraction: float = 0.05,
    k: int = 2,
) -> tuple[list[Row], list[Row]]:
    """(training, validation) rows; without a validation source, the reviews' own or a split by hash of the text."""
    if validation is None and train != REVIEWS:
        return split_rows(load_rows(train, "train", schema, cache_dir=cache_dir), schema, fraction)
    held_out = load_rows(validation or REVIEWS, "validation", schema, cache_dir=cache_dir, k=k)
    return load_rows(train, "train", schema, cache_dir=cache_dir, k=k), held_out


def fingerprint(source: Source, split: Split) -> str:
    """SHA-256 of a source's content: of the files' bytes; for the hub of the version that the library finds."""
    if isinstance(source, str) and has_own_splits(source):
        return hashlib.sha256(f"{split} {_own_fingerprint(source)}".encode()).hexdigest()
    digest = hashlib.sha256(split.encode())
    for item in [source] if isinstance(source, str) else source:
        if not is_local(item):
            digest.update(hub_version(item).encode())
            continue
        for path in find_files(item):
            digest.update(path.suffix.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def name_of(source: Source) -> str:
    """A source in an error message."""
    return source if isinstance(source, str) else ", ".join(source)


def _own_rows(source: str, split: Split, schema: Schema | Check, check: Check) -> Iterator[Row]:
    """Rows of what is embedded or generated; only generated tasks have columns of their own."""
    if source == REVIEWS and not callable(schema):
        yield from _review_rows(split, schema)
    elif source.startswith(synthetic.PREFIX) and callable(schema):
        yield from map(check, synthetic.synthetic_items(synthetic.task_of(source), split=split))
    elif schema != "pretraining":
        raise UserError(f"{source}: found text to pretrain on, expected rows for this procedure")
    elif source == SHAKESPEARE:
        yield {"text": shakespeare.shakespeare_text(split)}
    else:
        yield from synthetic.synthetic_documents(synthetic.task_of(source), split)


def _own_fingerprint(source: str) -> str:
    if source == REVIEWS:
        return reviews.fingerprint()
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
        try:
            yield check(record)
        except FieldError as error:
            raise UserError(f"{name}[{split}]:{number}: {error}") from error
    if empty:
        log.warning("%s[%s]: left out %d empty rows", name, split, empty)


def _key(row: Row, schema: Schema | Check) -> str:
    if schema == "pretraining" or callable(schema):
        return str(row["text"])
    if schema == "sft":
        return json.dumps(row["messages"]) if "messages" in row else f"{row['prompt']}\n{row['response']}"
    return str(row["prompt"])
