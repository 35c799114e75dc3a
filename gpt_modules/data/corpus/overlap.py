"""Documents that validate and are trained on too, counted as other procedures count rows."""

import hashlib
from contextlib import suppress

from gpt_modules.data.corpus.documents import PIECE, Document
from gpt_modules.data.corpus.streams import Corpus
from gpt_modules.data.rows.sources import cache_folder, content_of, name_of, tell_shared
from gpt_modules.errors import UserError
from gpt_modules.storage.durable import replace_durably


def warn_of_shared_documents(train: Corpus, validation: Corpus) -> None:
    """One line in the log that counts the documents of a validation source which the training text has too, but for
    what `normalise` ignores; of a long one, its beginning counts.

    Both are read to their end, once: the count is kept in the cache. Tokens are not compared, nor what is streamed from
    the hub, which would be fetched twice.
    """
    if any(corpus.has_tokens or corpus.is_fetched_anew for corpus in (train, validation)):
        return
    key = hashlib.sha256(f"{train.key('train')} {validation.key('validation')}".encode()).hexdigest()[:24]
    kept = cache_folder(train.cache_dir) / "shared" / key
    try:
        shared, count = map(int, kept.read_text().split())
    except (OSError, ValueError):
        shared, count = _count(train, validation)
        with suppress(OSError, UserError):  # it is only counted again
            kept.parent.mkdir(parents=True, exist_ok=True)
            replace_durably(kept, f"{shared} {count}\n")
    tell_shared(name_of(validation.source), shared, count, "documents")


def _count(train: Corpus, validation: Corpus) -> tuple[int, int]:
    """(documents that are shared, documents) of those that validate."""
    held_out = list(map(_content, validation.documents("validation")))
    known = set(held_out)
    found = known.intersection(map(_content, train.documents("train")))
    return sum(content in found for content in held_out), len(held_out)


def _content(document: Document) -> bytes:
    return content_of({"text": next(iter(document), "")[:PIECE]})
