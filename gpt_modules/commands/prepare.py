"""`gpt prepare`: a text source becomes a folder of token shards that `gpt fit --data.train FOLDER` maps into memory."""

import argparse
import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_modules.commands.arguments import Arguments, number, path_name, whole_number
from gpt_modules.errors import UserError
from gpt_modules.storage.paths import path_of

if TYPE_CHECKING:
    from gpt_modules.data.corpus.cleaning.survey import Filter
    from gpt_modules.data.corpus.documents import Document
    from gpt_modules.data.corpus.shards import ShardManifest
    from gpt_modules.data.text.tokenizers import Tokenizer

FEWEST_TOKENS = 1000  # a shard: each is synced to the disk, and named in a manifest that is then written anew
LINE_EVERY = 30.0  # seconds between the lines of a log file
SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}


def main(words: list[str]) -> None:
    """`gpt prepare --source FILES_OR_HUB --tokenizer gpt2 --output DIR`: run it again to go on where it was cut off."""
    options = _parser().parse_args(words)
    shard_tokens = parse_size(options.shard_tokens)
    folder = path_of(options.output)
    from gpt_modules.data.corpus.shard_writer import refuse_other
    from gpt_modules.data.text.tokenizers import Tokenizer

    _check_sources(options, folder)
    _refuse_taken(folder)
    tokenizer = Tokenizer.load(options.tokenizer)
    with _only_writer(folder):
        made_from = _made_from(options, shard_tokens)
        refuse_other(folder, tokenizer, made_from)
        _save_tokenizer(folder, tokenizer)
        _prepare(options, folder, tokenizer, made_from, shard_tokens)


def _parser() -> Arguments:
    parser = Arguments(prog="gpt prepare", description="Encode a text source into a folder of token shards.")
    parser.add_argument("--source", nargs="+", required=True, help="files, folders, globs, a hub name, or reviews")
    parser.add_argument("--output", required=True, type=path_name, metavar="DIR")
    parser.add_argument("--tokenizer", default="gpt2", help="gpt2, a folder with tokenizer.json, or a hub name")
    parser.add_argument("--split", choices=("train", "validation"), help="part of a hub data set (default train)")
    parser.add_argument("--shard-tokens", default="100M", metavar="N", help="tokens a shard (default 100M)")
    parser.add_argument("--text-field", default="text", metavar="FIELD")
    parser.add_argument("--streaming", action="store_true", help="read the source without storing a copy of it")
    parser.add_argument(
        "--near-duplicates", type=number(lambda value: 0 < value <= 1, "a similarity above 0 to 1"), metavar="S",
        help="leave out what is S similar to an earlier document: 0.8",
    )  # fmt: skip
    parser.add_argument("--exclude", nargs="+", default=[], metavar="FILE", help="test sets to take out of the text")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument(
        "--workers",
        type=whole_number(1),
        default=max(1, cores - 1),
        metavar="N",
        help="processes that encode (default: one a core, but one core reads)",
    )
    return parser


def parse_size(text: str) -> int:
    """A number of tokens: 5000, 100M, 1.5G.

    Raises:
        UserError: It is none, or too small to be a shard.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([kmgbKMGB]?)", text.replace("_", ""))
    size = round(float(match[1]) * SIZES[match[2].lower()]) if match and len(text) < 30 else 0
    if size < FEWEST_TOKENS:
        raise UserError(f"--shard-tokens: found {text[:40]!r}, expected a number of tokens like 5000, 100M or 1G, from "
                        f"{FEWEST_TOKENS}")  # fmt: skip
    return size


def _check_sources(options: argparse.Namespace, folder: Path) -> None:
    """What can be told of the sources before anything is written; fills in the split.

    Raises:
        UserError: A file is missing or named twice, a split is named of files, which have none, or the output would lie
            among what is read, which a second run would find there.
    """
    from gpt_modules.data.rows.sources import has_own_splits, parts_of

    if not all(item.strip() for item in options.exclude):
        raise UserError("--exclude: found an empty name, expected the name of a file, a folder or a data set")
    own = has_own_splits(_source(options))
    sources = [] if own else parts_of(options.source)
    files = [part for part in sources if isinstance(part, Path)]
    if options.split is not None and not own and len(files) == len(sources):
        raise UserError(f"--split: found {options.split!r}, which nothing would follow, expected none beside files, "
                        "which are taken whole")  # fmt: skip
    options.split = options.split or "train"
    place = folder.resolve()
    for path in [*files, *(part for part in parts_of(options.exclude) if isinstance(part, Path))]:
        if any(one.is_relative_to(place) for one in (path.resolve(), path.parent.resolve())):
            raise UserError(f"--output: found {folder}, where {path} is read from, expected a folder for shards alone")
    for item in (*options.source, *options.exclude):
        if _would_read(item, place):
            raise UserError(f"--output: found {folder}, which {item} would read, expected a folder for shards alone")


def _would_read(item: str, place: Path) -> bool:
    """Whether a source lies around a folder, or is a glob that takes what `gpt prepare` writes there for rows."""
    from gpt_modules.data.corpus.shards import MANIFEST
    from gpt_modules.storage.model_files import TOKENIZER_FILE

    path = path_of(item).absolute()
    if path.is_dir():
        return place.is_relative_to(path.resolve())
    if not any(fnmatchcase(name, path.name) for name in (MANIFEST, TOKENIZER_FILE)):
        return False
    if "**" in path.parts:
        return fnmatchcase(str(place), str(path.parent))  # whose * matches / too
    found, wanted = place.parts, path.parent.parts
    return len(found) == len(wanted) and all(map(fnmatchcase, found, wanted))


def _refuse_taken(folder: Path) -> None:
    """What a run, a stage or a model stands in is no folder for shards.

    Raises:
        UserError: Such a file is there.
    """
    from gpt_modules.commands.pipelines.provenance import ORIGIN_FILE
    from gpt_modules.commands.run_folder import RECIPE_FILE
    from gpt_modules.storage.model_files import CONFIG_FILE, WEIGHTS_FILE

    for name in (CONFIG_FILE, WEIGHTS_FILE, RECIPE_FILE, ORIGIN_FILE, "summary.json", "checkpoints", "export"):
        if (folder / name).exists():
            raise UserError(f"--output: found {folder / name}, which belongs to a run or a model, expected a folder "
                            "for shards alone")  # fmt: skip


def _save_tokenizer(folder: Path, tokenizer: "Tokenizer") -> None:
    """Saves the tokenizer beside the shards, unless it is there.

    Raises:
        UserError: Another one is there.
    """
    from gpt_modules.data.text.tokenizers import Tokenizer
    from gpt_modules.storage.model_files import TOKENIZER_FILE

    if not (folder / TOKENIZER_FILE).exists():
        tokenizer.save(folder)
    elif Tokenizer.load(folder).fingerprint != tokenizer.fingerprint:
        raise UserError(f"{folder / TOKENIZER_FILE}: found another tokenizer, expected the same, or an empty folder")


def _made_from(options: argparse.Namespace, shard_tokens: int) -> dict[str, Any]:
    """All that the tokens depend on beside the tokenizer: what may not change between two runs on a folder."""
    from gpt_modules.data.corpus.documents import CHUNK, PIECE
    from gpt_modules.data.rows.sources import fingerprint

    return {
        "source": fingerprint(_source(options), options.split),
        "split": options.split,
        "text_field": options.text_field,
        "shard_tokens": shard_tokens,
        "near_duplicates": options.near_duplicates,
        "exclude": fingerprint(options.exclude, "validation") if options.exclude else None,
        "cut": [PIECE, CHUNK],
    }


def _source(options: argparse.Namespace) -> str | list[str]:
    source: list[str] = options.source
    return source[0] if len(source) == 1 else source


def _prepare(
    options: argparse.Namespace, folder: Path, tokenizer: "Tokenizer", made_from: dict[str, Any], shard_tokens: int
) -> None:
    from gpt_modules.data.corpus.shard_writer import write_shards

    left_out = _survey(options, folder, made_from)
    documents = _documents(options, made_from)
    with _Bar("encode", options) as bar:
        manifest = write_shards(
            folder,
            documents if left_out is None else left_out(documents),
            tokenizer,
            shard_tokens=shard_tokens,
            made_from=made_from,
            workers=options.workers,
            report=bar.update,
        )
        bar.print(_summary(folder, manifest))
        if left_out is not None and bar.moved:
            bar.print(_left_out(left_out))


def _documents(options: argparse.Namespace, made_from: dict[str, Any]) -> "Iterator[Document]":
    """The source, which is still the same when it has been read to its end.

    Raises:
        UserError: it is not, so that nobody can say what the shards hold.
    """
    from gpt_modules.data.corpus.documents import source_documents
    from gpt_modules.data.rows.sources import fingerprint, name_of

    source, split = _source(options), options.split
    yield from source_documents(source, split, streaming=options.streaming, text_field=options.text_field)
    if fingerprint(source, split) != made_from["source"]:
        raise UserError(f"{name_of(source)}: found it changed while it was read, expected it to stay as it is; remove "
                        f"{options.output} and prepare it anew")  # fmt: skip


def _survey(options: argparse.Namespace, folder: Path, made_from: dict[str, Any]) -> "Filter | None":
    """The filter of what is to be left out; None where nothing is."""
    if options.near_duplicates is None and not options.exclude:
        return None
    from gpt_modules.data.corpus.cleaning.survey import Filter, grams_of_tests, open_or_make_survey
    from gpt_modules.data.rows.sources import fingerprint, name_of

    grams, short = grams_of_tests(options.exclude, None)
    if options.exclude and fingerprint(options.exclude, "validation") != made_from["exclude"]:
        raise UserError(f"--exclude: found {name_of(options.exclude):.200} changed while it was read, expected it to "
                        "stay as it is")  # fmt: skip
    with _Bar("survey", options) as bar:
        settings = (made_from, options.near_duplicates, grams, short, options.workers)
        survey = open_or_make_survey(folder, _documents(options, made_from), *settings, report=bar.update)
        bar.print(
            f"{len(survey.duplicates):,} near-duplicates among {survey.documents:,} documents; {survey.test_grams:,} "
            f"runs of words in the test sets, {len(survey.common_grams):,} of them too common to take out, "
            f"{short:,} test texts too short to be found"
        )
    return Filter(survey, grams)


def _left_out(left_out: "Filter") -> str:
    removed = len(left_out.removed)
    return (
        f"left out: {removed:,} near-duplicates; of test sets, something in {left_out.cut:,} documents and "
        f"{left_out.dropped:,} documents whole"
    )


def _summary(folder: Path, manifest: "ShardManifest") -> str:
    return (
        f"{folder}: {manifest.documents:,} documents, {manifest.text_bytes / 1e6:,.1f} MB of text, "
        f"{manifest.count:,} tokens in {len(manifest.shards)} shard{'s' * (len(manifest.shards) != 1)}"
    )


@contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """The folder, for this process alone; what a killed one left half-written is cleared away, and nothing else.

    Raises:
        UserError: Another process writes there, or it cannot be made.
    """
    from gpt_modules.data.corpus.cleaning.survey import SURVEY
    from gpt_modules.data.corpus.shard_writer import SHARD
    from gpt_modules.data.corpus.shards import MANIFEST
    from gpt_modules.storage.durable import check_writable, clear_leftovers
    from gpt_modules.storage.model_files import TOKENIZER_FILE

    check_writable(folder)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            found = "another gpt prepare at work on it" if isinstance(error, BlockingIOError) else "no way to lock it"
            raise UserError(f"{folder}: found {found}, expected to be the only one") from error
        for name in (SHARD, MANIFEST, SURVEY, TOKENIZER_FILE, "tokenizer_config.json"):
            clear_leftovers(folder / name)
        yield
    finally:
        os.close(handle)


class _Bar:
    """Documents, text and speed of a pass: a bar in a terminal, in a log file a line now and then."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.name, self.console, self.moved = name, Console(), False
        columns = (TextColumn(name), BarColumn(), TextColumn("{task.fields[text]}"), TimeElapsedColumn())
        self.progress = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.progress.add_task(name, total=_text_size(options), text="")
        self.began = self.told = time.perf_counter()
        self.first: int | None = None

    def __enter__(self) -> "_Bar":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def update(self, documents: int, size: int, tokens: int | None = None) -> None:
        """After a chunk. The first one starts the clock: before it, what is done already was skipped."""
        now, self.moved = time.perf_counter(), True
        if self.first is None:
            self.first, self.began = size, now
        speed = (size - self.first) / 1e6 / max(now - self.began, 1e-9)
        text = f"{documents:,} documents, {size / 1e6:,.1f} MB, {speed:.1f} MB/s"
        text += "" if tokens is None else f", {tokens:,} tokens"
        self.progress.update(self.task, completed=size, text=text)
        if not self.console.is_terminal and now - self.told > LINE_EVERY:
            self.told = now
            self.print(f"{self.name}: {text}")

    def print(self, line: str) -> None:
        """A line that stays."""
        self.console.print(line, highlight=False, soft_wrap=True)


def _text_size(options: argparse.Namespace) -> int | None:
    """Bytes of a source of text files; of others, how much text is in them shows only at the end."""
    from gpt_modules.data.rows.sources import has_own_splits, parts_of

    if has_own_splits(_source(options)):
        return None
    parts = parts_of(options.source)
    texts = [part for part in parts if isinstance(part, Path) and part.suffix.lower() == ".txt"]
    return sum(path.stat().st_size for path in texts) if len(texts) == len(parts) else None
