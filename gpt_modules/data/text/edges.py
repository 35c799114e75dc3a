"""What tokenizers of today put before a text: a token that begins a sequence, and a space before its first word.

Both belong to the beginning of a sequence and to nothing else. The begin token (Llama's `<s>` or `<|begin_of_text|>`,
OPT's `</s>`) is said by the post-processor of a `tokenizer.json`. The space is said by a normalizer (`Prepend`), by a
pre-tokenizer (`Metaspace`, `ByteLevel`), and taken off again by a decoder, so that a text survives; what goes on a text
that is already there, such as an answer, has neither.
"""

import json
from collections.abc import Collection, Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, processors

from gpt_modules.errors import UserError


def begin_id(backend: tokenizers.Tokenizer) -> int | None:
    """The token that the post-processor puts before every text; None where it puts none.

    Raises:
        UserError: It puts several.
    """
    before = _before(backend)
    if len(before) > 1:
        raise UserError(f"tokenizer: found {len(before)} tokens before a text, expected at most one that begins it")
    return before[0] if before else None


def _before(backend: tokenizers.Tokenizer) -> list[int]:
    """The tokens that the post-processor puts before a text."""
    if backend.post_processor is None:
        return []
    encoding = backend.encode("a")
    return encoding.ids[: [*encoding.special_tokens_mask, 0].index(0)]


def set_begin(backend: tokenizers.Tokenizer, token: str) -> None:
    """Have a token of the vocabulary before every text."""
    found = [(token, backend.token_to_id(token))]
    template = processors.TemplateProcessing(single=f"{token} $A", special_tokens=found)
    backend.post_processor = _sequence([*_marks(backend.post_processor), template])


def set_task_edges(backend: tokenizers.Tokenizer, begin: Sequence[str], names: tuple[str, str, str]) -> None:
    """Have a text, or two, between the tokens of a labelled row (`collate.join_row`), for who knows them only from the
    `tokenizer.json`.

    Args:
        begin: The token that begins every sequence, if there is one.
        names: Of the start, delimiter and extract tokens.
    """
    start, delimiter, extract = names
    before = " ".join([*begin, start, "$A"])
    found = [(token, backend.token_to_id(token)) for token in {*begin, *names}]
    template = processors.TemplateProcessing(
        single=f"{before} {extract}", pair=f"{before} {delimiter} $B {extract}", special_tokens=found
    )
    backend.post_processor = _sequence([*_marks(backend.post_processor), template])


def drop_task_edges(backend: tokenizers.Tokenizer, start: str) -> None:
    """Undo `set_task_edges`, if that was done: rows are labelled here, with the tokens of their task, and other text
    has none.
    """
    before = _before(backend)
    if not before or before[-1] != backend.token_to_id(start):
        return
    backend.post_processor = _sequence(_marks(backend.post_processor))
    for begin in before[:-1]:
        set_begin(backend, str(backend.id_to_token(begin)))


def _marks(processor: Any) -> list[Any]:
    """What of a post-processor adds no token."""
    several = isinstance(processor, processors.Sequence)
    parts = [*processor] if several else [processor]
    return [part for part in parts if isinstance(part, processors.ByteLevel)]


def _sequence(parts: Sequence[Any]) -> Any:
    return processors.Sequence([*parts]) if len(parts) > 1 else next(iter(parts), None)


def make_special(backend: tokenizers.Tokenizer, names: Collection[str]) -> None:
    """Added tokens become special ones, with the same id."""
    for token in backend.get_added_tokens_decoder().values():
        if token.content in names:
            flags = {name: getattr(token, name) for name in ("lstrip", "rstrip", "single_word", "normalized")}
            backend.add_special_tokens([AddedToken(token.content, special=True, **flags)])


def keep_apart(backend: tokenizers.Tokenizer, ends: str) -> None:
    """What ends a text is a special token, and no special token is ever made of characters.

    Raises:
        UserError: One is: its characters, typed by anybody, would end or steer what they stand in.
    """
    added = backend.get_added_tokens_decoder()
    if not any(token.special and token.content == ends for token in added.values()):
        backend.add_special_tokens([AddedToken(ends, special=True, normalized=False)])
    unknown = getattr(backend.model, "unk_token", None)  # what characters that are not in the vocabulary become
    special = [token.content for token in backend.get_added_tokens_decoder().values() if token.special]
    names = [name for name in special if name != unknown]
    try:
        read = backend.encode_batch_fast(names, add_special_tokens=False)
    except BaseException as error:  # a tokenizer that cannot encode them makes no token of them
        reason_of(error)
        return
    for name, encoding in zip(names, read, strict=True):
        if backend.token_to_id(name) in encoding.ids:
            raise UserError(f"tokenizer: found that the characters {name!r:.60} become the special token of that name, "
                            "expected one that tells them apart")  # fmt: skip


def reason_of(error: BaseException) -> str:
    """What the library says, in a line; a panic in its Rust code is no `Exception`."""
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit | MemoryError):
        raise error
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__


def without_space(form: str) -> str:
    """The JSON of a tokenizer that puts no space before a text and takes none off; the same JSON where it does not."""
    document = json.loads(form)
    changed = {name: _plain(name, document[name]) for name in ("normalizer", "pre_tokenizer", "decoder")}
    if all(changed[name] == document[name] for name in changed):
        return form
    return json.dumps({**document, **changed})


def _plain(place: str, part: Any) -> Any:
    """A normalizer, a pre-tokenizer or a decoder, or a sequence of them."""
    if not isinstance(part, dict):
        return part
    for inner in ("normalizers", "pretokenizers", "decoders"):
        if inner in part:
            return {**part, inner: [kept for one in part[inner] if (kept := _plain(place, one)) is not None]}
    match part["type"]:
        case "Prepend":
            return None
        case "Metaspace":
            return {**part, "prepend_scheme": "never"}
        case "ByteLevel" if place == "pre_tokenizer":  # as a decoder it takes nothing off
            return {**part, "add_prefix_space": False}
        case "Strip" if place == "decoder" and part["content"] == " ":
            return {**part, "start": 0}
    return part
