"""What corpora did to their text before shipping it, undone: GPT-2 never saw text taken apart like theirs.

Radford et al. 2019, section 3.1: invertible de-tokenizers, worth 2.5 to 5 points of perplexity. The paper does not
print its rules; these are ours. Each undoes only what the corpus' own tokenizer would do again, so that the text is the
same text and its canonical units, counted before (`perplexity`), still fit. What no rule brings back stays: lower case,
`<unk>` (rare in any training text, section 3.1), and a quotation mark without its partner on the line.
"""

import re
from collections.abc import Callable, Iterable

Rule = tuple[re.Pattern[str], str]


def _rule(pattern: str, replacement: str) -> Rule:
    return re.compile(pattern, re.MULTILINE), replacement


# Single spaces only: a newline is a canonical word or the end of a document, and stays where it is.
_LINE_EDGES = _rule(r"^ +| +$", "")
_SUFFIXES = _rule(r"(?<=\S) (n't|'(?:s|t|re|ve|ll|d|m))\b", r"\1")
_PLURAL_POSSESSIVE = _rule(r"(?<=s) '(?= |$)", "'")
_QUOTED = _rule(r'"(?: ([^"\n]*))? "', r'"\1"')
_TREEBANK_QUOTES = [_rule(r"`` ", '"'), _rule(r" ''(?= |$)", '"'), _rule(r"(?<= )` |^` ", "'")]
_STOPS = _rule(r" (\.\.\.|[.,;:!?%])(?=[ \"')\].,;:!?]|$)", r"\1")
_OPENING = _rule(r"([(\[{]) ", r"\1")
_CLOSING = _rule(r" ([)\]}])", r"\1")
_CURRENCY = _rule(r"([$£€#]) (?=\d)", r"\1")
_BRACKETS = {"lrb": "(", "rrb": ")", "lsb": "[", "rsb": "]", "lcb": "{", "rcb": "}"}
_PROSE = [_SUFFIXES, _PLURAL_POSSESSIVE, _OPENING, _CLOSING, _STOPS, _CURRENCY]


def wikitext(text: str) -> str:
    """WikiText-2 and -103 (Merity et al. 2016).

    Undoes: ` @-@ `, ` @,@ ` and ` @.@ ` inside words and numbers; headings `= = Title = =`, whose equals signs
    MediaWiki writes without spaces; spaces around brackets, quotation marks, degrees and before stops, `%` and `'s`;
    `$ 5`; the space at both ends of a line.
    """
    inside = _rule(r" @([-,.])@ ", r"\1")
    headings = _rule(r"(?<==) (?==)", "")
    return _apply(text, [_LINE_EDGES, inside, headings, _rule(r" ° ", "°"), _QUOTED, *_PROSE])


def ptb(text: str) -> str:
    r"""The Penn Treebank (Marcus et al. 1993), above all in the cut of Mikolov et al. 2010: lower case, no punctuation,
    every number an `N`.

    Undoes: `do n't`, `it 's`, `firms ' profits`; `-lrb-` and its kin; quotation marks made of grave accents and
    apostrophes; `\/` and `\*`; `$ N`, `# N` and `N %`; spaces before stops; the space at both ends of a line. A number
    that was made `N` becomes 1, which the corpus' own rule makes `N` again. `<unk>` stays.
    """
    brackets = [_rule(rf"(?i:-{name}-)(?= |$)", mark) for name, mark in _BRACKETS.items()]
    numbers = [_rule(r"\\([/*])", r"\1"), _rule(r"(?<![\w.])N(?![\w.])", "1")]
    return _apply(text, [_LINE_EDGES, *brackets, *_TREEBANK_QUOTES, *numbers, *_PROSE])


def lm1b(text: str) -> str:
    """The One Billion Word Benchmark (Chelba et al. 2013), a sentence a line.

    Undoes: `didn 't` and `it 's`; spaces inside quotation marks and brackets, before stops and `%`, and in `$ 5`.
    """
    return _apply(text, [_LINE_EDGES, _QUOTED, *_PROSE])


def lambada(text: str) -> str:
    """LAMBADA as its authors ship it (Paperno et al. 2016): lower-cased and tokenised like the Penn Treebank.

    Undoes: quotation marks made of grave accents and apostrophes; `did n't` and `he 's`; spaces before stops. The
    last word, which is the question, stays the last word.
    """
    return _apply(text, [_LINE_EDGES, *_TREEBANK_QUOTES, *_PROSE])


DETOKENIZERS: dict[str, Callable[[str], str]] = {"lambada": lambada, "lm1b": lm1b, "ptb": ptb, "wikitext": wikitext}


def _apply(text: str, rules: Iterable[Rule]) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text
