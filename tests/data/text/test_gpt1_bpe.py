"""GPT-1's words and symbols. The words are those of spaCy 3.8.18's blank English pipeline after the original's
cleaning, copied from a run of it; merging is compared with a naive loop.
"""

import itertools
import json
import subprocess
import sys

import ftfy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_modules.data.text.gpt1_bpe import (
    NEWLINE,
    UNKNOWN,
    WORD_END,
    build,
    decoder,
    mend,
    normalizer,
    pre_tokenizer,
    train,
)

WORDS = {
    "It's a film that doesn't end.": "it 's a film that does n't end .",
    "Mr. Smith left the U.S. in 1999.": "mr. smith left the u.s. in 1999 .",
    "I can't; you cannot -- we're gonna!!": "i ca n't ; you can not -- we 're gon na ! !",
    "well-known (and 'good') actors...": "well - known ( and ' good ' ) actors ...",
    "He paid $20 for 15kg, didn't he?": "he paid $ 20 for 15 kg , did n't he ?",
    "so it ends.Then nothing": "so it ends . then nothing",
    "''The Rock'' isn't bad... is it?": "'' the rock '' is n't bad ... is it ?",
    "rock 'n' roll, give 'em R&B at 10am": "rock ' n ' roll , give 'em r&b at 10 am",
    "dont say im late: it's 5:30 p.m.": "do nt say i m late : it 's 5:30 p.m.",
    "C’est “déjà vu” — voilà…": 'c\'est " déjà vu " - voilà ...',
    "a_b c/d e+f <b>x</b> [y]": "a _ b c / d e + f < b > x < / b > [ y ]",
    "they'd've gone; who'll go?": "they 'd 've gone ; who 'll go ?",
    "schlock … and the like´s": "schlock ... and the like 's",
    "  THE\t\u00a0END  ": "the end",
    "First line.  \n\n Second\tline\n": "first line . \n second line",
}
TEXTS = [*WORDS, "low lower lowest, new newer newest", "naïve café 你好 🙂", "It's 'so' \"good\"!", "x</w> <unk> y"]


def words(text):
    return [word for word, _ in pre_tokenizer().pre_tokenize_str(normalizer().normalize_str(mend(text)))]


@pytest.mark.parametrize("text", WORDS)
def test_words_are_spacys(text):
    assert words(text) == WORDS[text].split(" ")


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(max_codepoint=0x17F), max_size=40))
def test_mending_is_ftfys_also_where_it_is_left_out(text):
    assert mend(text) == ftfy.fix_text(text)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_no_character_is_lost_but_white_space(text):
    plain = "".join(normalizer().normalize_str(mend(text)).split())
    assert "".join("".join(words(text)).split()) == plain


def merged(word, merges):
    """The symbols of a word by the definition: the earliest merge that applies, everywhere, until none does."""
    symbols = [*word[:-1], word[-1] + WORD_END]
    while True:
        pairs = set(itertools.pairwise(symbols))
        first = next((merge for merge in merges if merge in pairs), None)
        if first is None:
            return symbols
        i = 0
        while i < len(symbols) - 1:
            if (symbols[i], symbols[i + 1]) == first:
                symbols[i : i + 2] = ["".join(first)]
            i += 1


def test_ids_are_those_of_a_naive_loop():
    backend = build(train(TEXTS * 3, 220))
    model = json.loads(backend.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    assert len(merges) > 50
    for text in TEXTS:
        symbols = [symbol for word in words(text) for symbol in merged(word, merges)]
        expected = [model["vocab"].get(symbol, model["vocab"][UNKNOWN]) for symbol in symbols]
        assert backend.encode(text).ids == expected


def test_training_by_hand():
    # ab: 4, b</w> takes part in them and in cb; merges: (a, b</w>) 4 times, (c, ab</w>) and (c, b</w>) twice each
    model = json.loads(build(train(["ab ab cab cab cb cb\nq"], 60)).to_str())["model"]
    symbols = sorted(model["vocab"], key=model["vocab"].get)
    letters = ["b", "a", "c", "q"]
    assert symbols[0] == UNKNOWN
    assert symbols[1:9] == [*letters, *(letter + WORD_END for letter in letters)]
    assert model["merges"][0] == ["a", "b</w>"]
    assert sorted(symbols[9:-1]) == ["ab</w>", "cab</w>", "cb</w>"]
    assert symbols[-1] == NEWLINE


def test_rare_characters_give_way():
    model = train(["common words, common words " * 5 + "你好"], 36)  # 9 letters
    backend = build(model)
    assert backend.get_vocab_size() <= 36
    assert backend.encode("common 你").ids[-1] == backend.token_to_id(UNKNOWN) == 0
    assert backend.encode("c m n").ids.count(0) == 0


def test_a_size_is_met_exactly_where_there_are_enough_words():
    texts = [f"{a}{b}{c} {a}{b}{c}" for a in "abcdef" for b in "ghijkl" for c in "mnopqr"]
    for size in (100, 150, 201):
        assert build(train(texts, size)).get_vocab_size() == size


def test_another_process_finds_the_same_vocabulary():
    code = (
        "import sys\nfrom gpt_modules.data.text.gpt1_bpe import build, train\n"
        f"sys.stdout.buffer.write(build(train({TEXTS * 2!r}, 200)).to_str().encode())"
    )
    other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout.decode()
    assert json.loads(other) == json.loads(build(train(TEXTS * 2, 200)).to_str())


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (
            "It's (really) good,\n\nisn't it? 100%, $20: U.S. [see]!",
            "it's (really) good,\nisn't it? 100%, $20: u.s. [see]!",
        ),
        ("We'll see they're well-known... \"no\"", "we'll see they're well - known... \" no \""),
    ],
)
def test_decoded_text_reads_well(text, read):
    assert decoder().decode([word + WORD_END for word in words(text)]) == read
