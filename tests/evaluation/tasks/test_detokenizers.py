"""De-tokenizers against lines worked by hand, and against tokenizers of the corpora's kind that undo them again."""

import re

import pytest

from gpt_modules.evaluation.tasks.detokenizers import DETOKENIZERS

LINES = {
    "wikitext": [
        (" = Robert <unk> = ", "= Robert <unk> ="),
        (" = = Career = = ", "== Career =="),
        (" = = = 2000 – 2005 = = = ", "=== 2000 – 2005 ==="),
        (
            " It cost $ 1 @,@ 500 , about 2 @.@ 5 % more than the well @-@ known one . ",
            "It cost $1,500, about 2.5% more than the well-known one.",
        ),
        (
            " \" We didn 't know \" , he said ( in 1990 ) ; the critics ' view : it 's 20 ° C ! ",
            "\"We didn't know\", he said (in 1990); the critics' view: it's 20°C!",
        ),
        (' He called it " art " and " a game " . ', 'He called it "art" and "a game".'),
        (" ", ""),
    ],
    "ptb": [
        (
            " the firms ' profits do n't count N years and it 's $ N billion or N % \n",
            "the firms' profits don't count 1 years and it's $1 billion or 1%\n",
        ),
        (
            " mr. <unk> is N-year-old -lrb- a joke -rrb- with N\\/N of the index \n",
            "mr. <unk> is 1-year-old (a joke) with 1/1 of the index\n",
        ),
        (" `` we wo n't , '' said N.J. 's governor . \n", "\"we won't,\" said N.J.'s governor.\n"),
    ],
    "lm1b": [
        (
            'The deal , worth $ 5 million , " isn \'t dead , " she said ( again ) .',
            'The deal, worth $5 million, "isn\'t dead," she said (again).',
        ),
        ("It 's up 3 % -- the workers ' share ...", "It's up 3% -- the workers' share..."),
    ],
    "lambada": [
        ("`` do n't , '' he said , `` call me . '' then she", '"don\'t," he said, "call me." then she'),
        ("what ? he 'd never seen the girls ' room", "what? he'd never seen the girls' room"),
    ],
}


@pytest.mark.parametrize(("name", "before", "after"), [(name, *pair) for name in LINES for pair in LINES[name]])
def test_lines_worked_by_hand(name, before, after):
    assert DETOKENIZERS[name](before) == after


def split_prose(text: str, negation: str) -> str:
    """Takes words apart as the tokenizers of these corpora do: white space around all that is no letter or digit."""
    text = re.sub(rf"(?<=[\w.])({negation}|'(?:s|re|ve|ll|d|m)|(?<=s)'(?=\s|$))(?!\w)", r" \1", text)
    text = re.sub(r"(?<=\S)(\.\.\.|[,;:!?%)\]](?!\d)|\.(?=[\"\s]*$)|\.(?=\"))", r" \1", text, flags=re.MULTILINE)
    return re.sub(r"([(\[$])(?=\S)", r"\1 ", text)


def split_quotes(text: str, opening: str, closing: str) -> str:
    return re.sub(r'"([^"\n]*)"', rf"{opening} \1 {closing}", text)


def rewikitext(text):
    text = split_quotes(split_prose(text, "'t"), '"', '"').replace("°", " ° ")
    return re.sub(r"=(?==)", "= ", re.sub(r"(?<=\w)([-,.])(?=\w)", r" @\1@ ", text))


def reptb(text):
    text = re.sub(r"\((.*?)\)", r"-lrb- \1 -rrb-", text.replace("/", "\\/"))
    return re.sub(r"\b1\b", "N", split_quotes(split_prose(text, "n't"), "``", "''"))


RETOKENIZERS = {
    "wikitext": rewikitext,
    "ptb": reptb,
    "lm1b": lambda text: split_quotes(split_prose(text, "'t"), '"', '"'),
    "lambada": lambda text: split_quotes(split_prose(text, "n't"), "``", "''"),
}


@pytest.mark.parametrize(("name", "before"), [(name, before) for name in LINES for before, _ in LINES[name]])
def test_a_tokenizer_of_the_corpus_kind_brings_the_text_back(name, before):
    assert RETOKENIZERS[name](DETOKENIZERS[name](before)).split() == before.split()


@pytest.mark.parametrize("name", DETOKENIZERS)
def test_plain_text_and_the_number_of_lines_stay(name):
    plain = 'He didn\'t say "no", she did (twice): 3.5% of it.\n\nWhat an end...\n'
    assert DETOKENIZERS[name](plain) == plain
    shipped = "".join(before.removesuffix("\n") + "\n" for before, _ in LINES[name])
    assert DETOKENIZERS[name](shipped).count("\n") == shipped.count("\n")
    assert DETOKENIZERS[name](shipped).split("\n")[:-1] == [after.removesuffix("\n") for _, after in LINES[name]]
