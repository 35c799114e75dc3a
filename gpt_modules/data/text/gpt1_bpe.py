"""GPT-1's way from text to words to symbols, as parts of the `tokenizers` library, so that all but one step of it
travels in `tokenizer.json`.

Source: Radford et al. 2018, section 4.1 (ftfy, spaCy's tokenizer, 40,000 merges), and the original code's order of
steps: mend the text, even out its punctuation and white space, split it into words, lower-case the words, merge the
symbols of each word, the last of which carries `</w>`.

The step that does not travel is `ftfy`: `mend` does it before. spaCy's English tokenizer is rendered by the regular
expressions below: its prefixes, suffixes and infixes, and the contractions and abbreviations among its exceptions, but
no smileys, addresses or slang. Under the released vocabulary, as many texts get the very ids that spaCy 3.8.18 gives
(2026-11-23; `transformers` splits as BERT does):

    texts                                             these rules   BERT's way
    14,313 embedded review sentences, seen meanwhile       99.9 %       59.1 %
    1,000 answers to instructions, not seen before         99.1 %       56.9 %

What is lost, in the original too: case, runs of white space, and whether a word stood beside a mark or apart from it.
`decoder` sets marks and contractions as English does; quotes and dashes keep a space on both sides.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

WORD_END = "</w>"
UNKNOWN = "<unk>"
NEWLINE = "\n" + WORD_END
# ftfy alters no text of these characters alone; the rest of ASCII may be control codes or HTML's entities.
_ODD = re.compile(r"[^\t\n -%'-~]")
_MARKS = r"""-~!";?+,)(/*[]}{|_"""  # set apart wherever they stand
_EDGES = r"""'`‘’“”«»‚„§%=:<>#&$£€¥¿¡"""  # set apart at the ends of a chunk only
_CLASS = re.escape(_MARKS)
_LAST = rf"(?=[{re.escape(_EDGES)}]*(?:[\s{_CLASS}]|$))"  # nothing but marks up to the end of the chunk
_ABBREVIATIONS = (
    "Mr Mrs Ms Dr Prof Jr St Mt Messrs Gen Gov Rep Rev Sen Adm Co Corp Inc Ltd Bros Jan Feb Mar Apr Jun Jul Aug Sep "
    "Sept Oct Nov Dec co vs v.s a.m p.m e.g E.g i.e I.e Ph.D Ala Ariz Ark Calif Colo Conn Del Fla Ga Ia Ill Ind Kan Ky "
    "La Mass Md Mich Minn Miss Mo Mont Neb Nev Okla Ore Pa Tenn Va Wash Wis"
)
_ASKING = "how what when where who why"
_POINTING = "that there these this those"
_HEADS = {
    "n't": "ai are ca could dare did do does had has have is may might must need ought sha should was were wo would",
    "nt": "ai are ca could dare did do does had has have is may might must need ought sha should was were wo would",
    "'d": f"i you he she it we they {_POINTING} {_ASKING}",
    "'ll": f"i you he she it we they {_POINTING} {_ASKING}",
    "'ve": f"i you we they there these those {_ASKING} could might must should would not",
    "'re": "you we they there these those how what when where why",
    "'m": "i",
    "ve": "i you we they could might must should would",
    "re": "you they",
    "ll": "you they it that there",
    "d": "i you they it that",
    "m": "i",
    "s": "that there he she what where who",
    "not": "can",
    "na": "gon",
    "ta": "got",
}
_UNITS = "km m dm cm mm ha µm nm yd in ft kg g mg µg t lb oz kmh mph hpa pa mbar mb kb gb tb %"


def mend(text: str) -> str:
    """Text with its encoding mended (mojibake, odd quotes and spaces, HTML entities) by `ftfy`, as the original does
    first.
    """
    if not _ODD.search(text):
        return text
    import ftfy

    return ftfy.fix_text(text)


def build(model: models.BPE) -> tokenizers.Tokenizer:
    """A tokenizer of GPT-1's kind around a vocabulary whose words end in `</w>`; its texts are to be mended before."""
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizer()
    backend.pre_tokenizer = pre_tokenizer()
    backend.decoder = decoder()
    return backend


def normalizer() -> normalizers.Normalizer:
    """Characters, white space and case.

    A full stop is parted from its word here: whether it ends a sentence or an abbreviation ("end.", "U.S.") is read
    off the case of the letters before it, which the last step takes away.
    """
    abbreviation = "|".join(rf"\b{re.escape(name)}\." for name in _ABBREVIATIONS.split())
    letter = rf"^[a-z]\.|[\s{_CLASS}][a-z]\."  # a lone letter, as in a list
    ends = r"[\p{Ll}0-9%²'`:<>&#]\.|\p{Lu}\p{Lu}\."
    return normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(Regex("[ʼ‘-‛´]"), "'"),  # of these, the original leaves all but the last to ftfy
            normalizers.Replace(Regex("[“-‟]"), '"'),
            normalizers.Replace(Regex("[—–―]"), "-"),
            normalizers.Replace("…", "..."),
            normalizers.Replace(Regex(r"\s*\n\s*"), " \n "),
            normalizers.Replace(Regex(r"[^\S\n]+"), " "),
            normalizers.Strip(),
            # Each starts with the full stop and looks back over it: a search for one character is quick.
            normalizers.Replace(Regex(rf"\.(?<={ends})(?<!{abbreviation}|{letter}){_LAST}"), " . "),
            normalizers.Replace(Regex(r"""\.(?<=[\p{Ll}'"]\.)(?=[\p{Lu}'"])"""), " . "),
            normalizers.Lowercase(),
        ]
    )


def pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Words, marks and newlines, each apart. From the third step on, `^` and `$` are the ends of a chunk."""
    edges = re.escape(_EDGES)
    heads = "|".join(
        rf"{tail}(?<={'|'.join(f'^{head}{tail}' for head in heads.split())})$" for tail, heads in _HEADS.items()
    )
    steps = [
        (r"[^\S\n]+", "removed"),
        (r"""[!";?,)(*\[\]}{_]|-+|~+|\++|/+|\|+""", "isolated"),
        (r"\.{2,}|(?<=[\p{L}0-9])[:<>=](?=\p{L})", "isolated"),
        (rf"^(?!'(?:em|cause|cuz|cos|bout|nuff)$)[{edges}]+", "isolated"),
        (rf"(?:''|(?<!^ol|^goin|^doin|^nothin|^somethin)[{edges}])(?=[{edges}]*$)", "isolated"),
        (r"'s$", "isolated"),
        (r"'ve(?<=n't've|'ll've|'d've)$", "isolated"),
        (heads, "isolated"),
        (rf"(?<=[0-9])(?:{_UNITS.replace(' ', '|')})$|(?<=^[0-9]|^1[0-2])[ap](?:m|\.m\.)$", "isolated"),
    ]
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior) for pattern, behavior in steps])


def decoder() -> decoders.Decoder:
    """Words to text: a space between any two, except where English has none."""
    return decoders.Sequence(
        [
            decoders.BPEDecoder(suffix=WORD_END),
            decoders.Fuse(),
            decoders.Replace(Regex(r" *\n *"), "\n"),
            decoders.Replace(Regex(r" (?=[.,!?;:%)\]}])"), ""),
            decoders.Replace(Regex(r"(?<=[(\[{$£€#]) "), ""),
            decoders.Replace(Regex(r" (?=(?:n't|'(?:s|re|ve|ll|d|m))(?!\w))"), ""),
        ]
    )


def train(texts: Iterable[str], size: int) -> models.BPE:
    """A vocabulary of your own text: `<unk>`, the characters, the characters that end a word, merges, the newline.

    The most frequent characters count, at most a quarter of the ids; of the others `<unk>` is made. Equal texts give
    equal vocabularies: the library numbers the characters that end a word at random, so they are given to it.

    Args:
        texts: Read once; the distinct words are held in memory.
        size: Ids in all; fewer come out where the text is too small to have that many merges.
    """
    words = _count_words(texts)
    letters = Counter[str]()
    for word, count in words.items():
        for letter in word:
            letters[letter] += count
    kept = sorted(letters, key=lambda letter: (-letters[letter], letter))[: max(1, size // 4)]
    merges = _merges({word: words[word] for word in sorted(words) if set(word) <= set(kept)}, kept, size - 2)
    ends = [letter + WORD_END for letter in kept]
    symbols = [UNKNOWN, *kept, *ends, *(left + right for left, right in merges), NEWLINE]
    vocabulary = {symbol: i for i, symbol in enumerate(dict.fromkeys(symbols))}
    return models.BPE(vocab=vocabulary, merges=merges, unk_token=UNKNOWN, end_of_word_suffix=WORD_END)


def _count_words(texts: Iterable[str]) -> Counter[str]:
    clean, split = normalizer(), pre_tokenizer()
    words = Counter[str]()
    for text in texts:
        words.update(word for word, _ in split.pre_tokenize_str(clean.normalize_str(mend(text))))
    words.pop("\n", None)  # a symbol of its own
    return words


def _merges(words: dict[str, int], letters: list[str], size: int) -> list[tuple[str, str]]:
    """The merges of counted words; `size` ids for the letters, those that end a word and what the merges make."""
    backend = tokenizers.Tokenizer(models.BPE(end_of_word_suffix=WORD_END))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[letter + WORD_END for letter in letters],
        initial_alphabet=letters,
        end_of_word_suffix=WORD_END,
    )
    backend.train_from_iterator(_repeat(words), trainer=trainer)
    return [(left, right) for left, right in json.loads(backend.to_str())["model"]["merges"]]


def _repeat(words: dict[str, int], at_once: int = 10_000) -> Iterator[str]:
    for word, count in words.items():
        for start in range(0, count, at_once):
            yield " ".join([word] * min(at_once, count - start))
