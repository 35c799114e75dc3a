"""Text to token ids and back: GPT-2's byte-level BPE, GPT-1's lower-cased BPE, one of either kind or of characters
trained on your text, or one that travels with saved weights.

Byte-level BPE: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2; for GPT-1's see
`gpt1_bpe`. The merging itself is done by the `tokenizers` library; this file fixes what a language model in this
package may rely on (one end token, no surprises in data).
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from gpt_modules.data.arguments import expect_one_of, expect_whole
from gpt_modules.data.text.chat_template import ChatTemplate
from gpt_modules.data.text.edges import (
    begin_id,
    drop_task_edges,
    keep_apart,
    make_special,
    reason_of,
    set_task_edges,
    without_space,
)
from gpt_modules.data.text.gpt1_bpe import NEWLINE, UNKNOWN, WORD_END, build, mend, train
from gpt_modules.data.text.gpt2_bpe import byte_level, gpt2_bpe, with_end
from gpt_modules.data.text.reading import (
    SETTINGS_FILE,
    build_tokenizer,
    end_token_of,
    find_tokenizer,
    ids_beside,
    read_tokenizer,
)
from gpt_modules.data.text.turns import Parts, Turns, written
from gpt_modules.errors import UserError, expect
from gpt_modules.storage.durable import replace_durably, room_for
from gpt_modules.storage.model_files import END_OF_TEXT, TEMPLATE_FILE, TOKENIZER_FILE, ChatFiles

TokenizerKind = Literal["gpt2", "gpt1", "characters"]


class Tokenizer:
    """A `tokenizers.Tokenizer` with a known end token.

    Text is data: a text that happens to contain the characters `<|endoftext|>` is encoded as those characters, never
    as the end token, nor as any other that the tokenizer calls special. `encode` adds no token before or after a text,
    and nothing is padded or truncated here.

    Some families begin a sequence with a token (`bos_id`), and some put a space before its first word. `opening` gives
    the ids of a sequence that begins with a text; what goes on from there, such as an answer, is encoded and decoded by
    `within`.

    GPT-1's kind (words that end in `</w>`) differs in two ways. Text is mended by `ftfy` before it is encoded, which
    `transformers` does not do with the same `tokenizer.json`. And `decode` gives lower-cased text in plain spacing, not
    the text that was encoded.

    Args:
        backend: The library's tokenizer.
        eos: The token that ends a document or an answer; it must be in the vocabulary.
        template: What makes a text of a conversation; None: ours.
        ids: By the names of their fields, ids that the model's files say (`reading.ids_beside`): further tokens that
            end an answer, and what an export says again.

    Raises:
        UserError: The vocabulary lacks `eos`, or a text could come to have a special token.
    """

    START = "_start_"
    DELIMITER = "_delimiter_"
    EXTRACT = "_classify_"

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        eos: str = END_OF_TEXT,
        template: ChatTemplate | None = None,
        ids: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
    ) -> None:
        eos_id = backend.token_to_id(eos)
        if eos_id is None:
            raise UserError(f"tokenizer: found no token {eos!r} in its vocabulary, expected the end token")
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True  # as text; not stored in the JSON, so set at every construction
        self.template = (template or ChatTemplate()).with_end(eos)
        added = backend.get_added_tokens_decoder().values()
        make_special(backend, written(self.template, [token.content for token in added if not token.special]))
        if eos != NEWLINE:  # of GPT-1's released vocabulary, in which a line is a text
            keep_apart(backend, eos)
        self._backend = backend
        self._mends = getattr(backend.model, "end_of_word_suffix", None) == WORD_END
        self.eos = eos
        self.eos_id: int = eos_id
        drop_task_edges(backend, self.START)
        self.bos_id = begin_id(backend)
        """The token that begins every sequence; None where the family has none (GPT-1, GPT-2, Pythia, Qwen)."""
        self._ids = ids

    def encode(self, text: str) -> list[int]:
        """The ids of one text, without special tokens."""
        return self._encoded(lambda: [self._backend.encode(self._mended(text), add_special_tokens=False)])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of many texts, on all cores; equal to `[encode(text) for text in texts]`."""
        mended = [self._mended(text) for text in texts]
        return self._encoded(lambda: self._backend.encode_batch_fast(mended, add_special_tokens=False))

    @property
    def start_id(self) -> int:
        """The token that a text is read behind: the one that begins it, else the one that ended what was before."""
        return self.eos_id if self.bos_id is None else self.bos_id

    @property
    def between(self) -> list[int]:
        """What stands between two documents: the end of one and, where there is such a token, the begin of the next."""
        return [self.eos_id, *self.begin]

    @property
    def begin(self) -> list[int]:
        """The token that begins every sequence, if there is one."""
        return [] if self.bos_id is None else [self.bos_id]

    def opening(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of sequences that begin with these texts: `encode_batch` behind the begin token, if there is one."""
        return [[*self.begin, *ids] for ids in self.encode_batch(texts)]

    @cached_property
    def within(self) -> Tokenizer:
        """The same for texts that go on another one, and for their ids: no space is put before the first word, and none
        is taken off. Itself where there is none anyway, as in every byte-level BPE of GPT-2's kind.
        """
        form = without_space(self.to_json())
        return self if form == self.to_json() else Tokenizer(tokenizers.Tokenizer.from_str(form), self.eos)

    def encode_parts(self, rows: Sequence[Parts]) -> list[list[int]]:
        """The ids of texts between control tokens (`Turns`): those that the whole would have, were each control token
        written out and read as one, and that text never has.

        They are those of `transformers`, but where a vocabulary has its special tokens normalized (`normalized: true`)
        and its normalizer puts a space before a text (`Prepend`): there `transformers` puts none behind a token, and
        reads a token that another one touches as characters. Here each stays a token, and each text has its space.
        """
        backend, aliases, controls = self._aliased
        texts = [
            "".join(aliases[part] if isinstance(part, int) else self._mended(part) for part in row) for row in rows
        ]
        encoded = self._encoded(lambda: backend.encode_batch_fast(texts, add_special_tokens=False))
        return [[controls.get(i, i) for i in ids] for ids in encoded]

    @cached_property
    def _aliased(self) -> tuple[tokenizers.Tokenizer, dict[int, str], dict[int, int]]:
        """The library's tokenizer with a name for each control token that nobody can guess; the names by id, and back.
        So text between them is split, stripped and begun as between the tokens themselves.
        """
        backend, secret = tokenizers.Tokenizer.from_str(self.to_json()), secrets.token_hex(8)
        known = self._backend.get_added_tokens_decoder()
        aliases = {i: f"\ue000{secret} {i}\ue001" for i in self.turns.control.values()}
        for i, alias in aliases.items():
            flags = {name: getattr(known[i], name) for name in ("lstrip", "rstrip", "single_word") if i in known}
            backend.add_tokens([AddedToken(alias, special=False, normalized=False, **flags)])
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True
        read = backend.encode_batch([*aliases.values()], add_special_tokens=False)
        return backend, aliases, {of.ids[-1]: i for of, i in zip(read, aliases, strict=True)}

    @cached_property
    def turns(self) -> Turns:
        """The template over this vocabulary."""
        added = self._backend.get_added_tokens_decoder()
        special = {token.content: i for i, token in added.items() if token.special}
        return Turns(self.template, {**special, self.eos: self.eos_id})

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """Every token that ends an answer: the end token first, what the folder names, and what the template writes
        behind an answer.
        """
        named = self._backend.token_to_id(dict(self.template.names)["eos_token"])
        found = (self.eos_id, *self._ids.get("eos_token_id", ()), named, self.turns.end)
        return tuple(dict.fromkeys(i for i in found if i is not None))

    def _mended(self, text: str) -> str:
        return mend(text) if self._mends else text

    def _encoded(self, encode: Callable[[], Iterable[tokenizers.Encoding]]) -> list[list[int]]:
        """What the library finds out only when it meets a text: an expression that backtracks without end, a symbol for
        unknown ones that is none.
        """
        try:
            return [encoding.ids for encoding in encode()]
        except BaseException as error:
            raise UserError(
                f"tokenizer: could not encode a text ({reason_of(error)}), expected one that can"
            ) from error

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of ids; bytes that are no valid UTF-8 become U+FFFD. `skip_special` leaves out the end token."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id: the rows that an embedding needs."""
        return 1 + max(self._backend.get_vocab(with_added_tokens=True).values())

    def with_task_tokens(self) -> Tokenizer:
        """This tokenizer with the tokens of labelled rows (start, delimiter, extract) added as its last ids, in this
        order; itself where it has them.

        Source: Radford et al. 2018, section 3.3; the names are those of the original code.
        """
        names = [name for name in self._task_tokens() if self._backend.token_to_id(name) is None]
        if not names:
            return self
        backend = tokenizers.Tokenizer.from_str(self.to_json())
        backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
        return Tokenizer(backend, self.eos, self.template, self._ids)

    @property
    def task_ids(self) -> tuple[int, int, int]:
        """Ids of the start, delimiter and extract tokens.

        Raises:
            UserError: The vocabulary lacks one.
        """
        start, delimiter, extract = (self._task_id(name) for name in self._task_tokens())
        return start, delimiter, extract

    def task_json(self) -> str:
        """The content of the `tokenizer.json` beside a model that reads labelled rows: `transformers` puts the tokens
        of such a row around a text, or two. Who opens it here has this tokenizer again.

        Raises:
            UserError: The vocabulary lacks one of them.
        """
        backend = tokenizers.Tokenizer.from_str(self.to_json())
        names = [str(backend.id_to_token(i)) for i in (*self.begin, *self.task_ids)]
        set_task_edges(backend, names[:-3], (names[-3], names[-2], names[-1]))
        return backend.to_str()

    @classmethod
    def _task_tokens(cls) -> tuple[str, str, str]:
        return cls.START, cls.DELIMITER, cls.EXTRACT

    def _task_id(self, name: str) -> int:
        found = self._backend.token_to_id(name)
        if found is None:
            raise UserError(f"tokenizer: found no token {name!r}, expected the tokens of labelled rows (fine-tuning)")
        return found

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the tokenizer's JSON and its end token: equal for tokenizers that behave alike."""
        return hashlib.sha256(f"{self.eos}\n{self.to_json()}".encode()).hexdigest()

    def reads_like(self, other: Tokenizer) -> bool:
        """Whether both give the same ids for every text and end it with the same token: what decides whether a model's
        tokenizer may be exchanged. How ids become text again, and tokens of labelled rows that just one has, do not.
        """
        if self.fingerprint == other.fingerprint:
            return True
        ours, theirs = (tokenizer.with_task_tokens() for tokenizer in (self, other))
        return ours._reading == theirs._reading

    @cached_property
    def _reading(self) -> dict[str, Any]:
        """All of the JSON that ids depend on, in a form that does not depend on who wrote it."""
        form = json.loads(self.to_json())
        model = {name: value or None for name, value in form["model"].items() if name != "vocab"}
        matched = [token for token in form["added_tokens"] if not token["special"]]  # special ones are never, in a text
        return {
            "begin": self.bos_id,
            "eos": self.eos_id,
            "vocabulary": self._backend.get_vocab(with_added_tokens=True),
            "model": model,
            "matched": matched,
            "normalizer": form["normalizer"],
            "pre_tokenizer": _without_offsets(form["pre_tokenizer"]),
        }

    def to_json(self) -> str:
        """The library's JSON, the content of `tokenizer.json`."""
        return self._backend.to_str()

    def settings(self) -> dict[str, Any]:
        """What `transformers` is to know beside the JSON, the content of `tokenizer_config.json`."""
        begin = self.eos if self.bos_id is None else self._backend.id_to_token(self.bos_id)
        unknown = getattr(self._backend.model, "unk_token", None)
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self.eos,
            "bos_token": begin,
            "unk_token": self.eos if unknown is None else unknown,
            **dict(self.template.names),
        }

    def chat_files(self) -> ChatFiles:
        """What says beside a model how it talks."""
        begin = {} if self.bos_id is None else {"bos_token": str(self._backend.id_to_token(self.bos_id))}
        ids = {name: found[0] for name, found in self._ids.items() if found and name != "eos_token_id"}
        return ChatFiles(self.template.source, {**begin, **dict(self.template.names)}, self.end_ids, ids)

    def save(self, folder: str | Path) -> Path:
        """Writes `tokenizer.json`, `tokenizer_config.json` and the chat template (for `transformers`) into a folder;
        returns the first one's path.

        Raises:
            UserError: They cannot be written.
        """
        folder = Path(folder)
        with room_for(folder):
            folder.mkdir(parents=True, exist_ok=True)
        replace_durably(folder / TEMPLATE_FILE, self.template.source)
        replace_durably(folder / SETTINGS_FILE, json.dumps(self.settings(), indent=2) + "\n")
        replace_durably(folder / TOKENIZER_FILE, self.to_json())
        return folder / TOKENIZER_FILE

    @classmethod
    def gpt2(cls) -> Tokenizer:
        """GPT-2's and GPT-3's tokenizer, ids as OpenAI's (50,257 of them), rebuilt from the merges that ship with
        this package.
        """
        return _gpt2()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, kind: TokenizerKind = "gpt2") -> Tokenizer:
        """A vocabulary of your own text, `<|endoftext|>` as the last id like GPT-2's.

        Args:
            texts: Read once.
            vocab_size: Ids in all; fewer come out where the text is too small to have that many merges or characters.
            kind: "gpt2": BPE of bytes, so that any text survives. "gpt1": BPE of lower-cased words (`gpt1_bpe.train`).
                "characters": one id a character, the most frequent of them; others become `<unk>`.

        Raises:
            UserError: `vocab_size` is below 257 (256 bytes and the end token), for characters below 3.
        """
        check_training("train", vocab_size, kind)
        if kind == "characters":
            return cls(with_end(_characters(texts, vocab_size - 1)))
        if kind == "gpt1":
            return cls(with_end(build(train(texts, vocab_size - 1))))
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 1,
            min_frequency=2,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        backend.train_from_iterator(texts, trainer=trainer)
        return cls(with_end(byte_level(backend.model)))

    @classmethod
    def load(cls, name: str | Path) -> Tokenizer:
        """Opens "gpt2" (embedded), a folder with `tokenizer.json` or the two files of a vocabulary
        (`vocabularies.VOCABULARY_FILES`), such a `tokenizer.json`, or a model's name on the hub.

        The end token is what `tokenizer_config.json` says, else the model's configuration, else `<|endoftext|>`, else,
        for GPT-1's kind, the newline: the released vocabulary has no end token, and the newline is the only separator
        in it. A paragraph then counts as a document.

        Raises:
            UserError: Nothing there, not a tokenizer, or no end token in it.
        """
        if name == "gpt2" and not Path("gpt2").exists():
            return cls.gpt2()
        path = find_tokenizer(str(name))
        file = path / TOKENIZER_FILE if path.is_dir() else path
        backend = read_tokenizer(file) if file.is_file() else build_tokenizer(path)
        beside = file.parent
        return cls(backend, end_token_of(file, backend), ChatTemplate.beside(beside), ids_beside(beside, backend))


def load_fitting(name: str | Path, vocab_size: int) -> Tokenizer:
    """The tokenizer beside a model's weights.

    Raises:
        UserError: There is none, or it has tokens that the model, of `vocab_size`, does not.
    """
    tokenizer = Tokenizer.load(name)
    if tokenizer.vocab_size > vocab_size:
        found = f"{tokenizer.vocab_size} tokens in its tokenizer"
        raise UserError(f"{name}: found {found}, expected at most the model's {vocab_size}")
    return tokenizer


def _without_offsets(form: Any) -> Any:
    """A pre-tokenizer but for where it says that a word began."""
    if isinstance(form, dict):
        return {name: _without_offsets(value) for name, value in form.items() if name != "trim_offsets"}
    return [_without_offsets(part) for part in form] if isinstance(form, list) else form


def check_training(name: str, vocab_size: int | None, kind: str) -> None:
    """Settings of a tokenizer that is to be trained, where the `name` says so.

    Raises:
        UserError: A kind that there is not, or a number of ids that it cannot have.
    """
    expect_one_of(get_args(TokenizerKind), tokenizer_kind=kind)
    expect_whole(1, vocab_size=vocab_size)
    if name != "train":
        return
    if vocab_size is None:
        raise UserError("vocab_size: found none, expected a number of ids for tokenizer: train")
    least, parts = (3, f"{UNKNOWN}, a character") if kind == "characters" else (257, "256 bytes")
    expect(vocab_size >= least, "vocab_size", vocab_size, f"at least {least} ({parts} and {END_OF_TEXT})")


def of_size(tokenizer: Tokenizer, vocab_size: int | None, name: str) -> Tokenizer:
    """A tokenizer that was not trained here, where a `vocab_size` is given too.

    Raises:
        UserError: It has another number of ids.
    """
    found = f"{vocab_size} beside the tokenizer {name:.60}, which has {tokenizer.vocab_size} ids"
    if vocab_size not in (None, tokenizer.vocab_size):
        raise UserError(f"vocab_size: found {found}, expected {tokenizer.vocab_size}, or tokenizer: train")
    return tokenizer


def _characters(texts: Iterable[str], size: int) -> tokenizers.Tokenizer:
    """`<unk>` and the most frequent characters, in the order of Unicode: a BPE that has nothing to merge."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    frequent = sorted(counts, key=lambda character: (-counts[character], character))[: size - 1]
    vocabulary = {symbol: i for i, symbol in enumerate([UNKNOWN, *sorted(frequent)])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN))
    backend.decoder = decoders.Fuse()
    return backend


@cache
def _gpt2() -> Tokenizer:
    """Built once a process: it takes half a second, and nothing changes a tokenizer."""
    return Tokenizer(gpt2_bpe())
