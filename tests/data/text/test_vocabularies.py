import json

import pytest

from gpt_modules.data.text.vocabularies import VOCABULARY_FILES, find_vocabulary, read_vocabulary
from gpt_modules.errors import UserError


def pair(folder, names, symbols, merges):
    (folder / names[0]).write_text(json.dumps({symbol: i for i, symbol in enumerate(symbols)}), encoding="utf-8")
    (folder / names[1]).write_text(merges, encoding="utf-8")
    return folder / names[0], folder / names[1]


@pytest.mark.parametrize("names", VOCABULARY_FILES)
def test_each_pair_of_names_is_found_and_half_of_it_refused(tmp_path, names):
    assert find_vocabulary(tmp_path) is None
    files = pair(tmp_path, names, "ab", "")
    assert find_vocabulary(tmp_path) == files
    files[1].unlink()
    with pytest.raises(UserError) as caught:
        find_vocabulary(tmp_path)
    assert str(caught.value) == f"{files[1]}: no such file, expected the other half of {names[0]}"


def test_merges_make_the_symbols_that_they_name(tmp_path):
    model = read_vocabulary(*pair(tmp_path, VOCABULARY_FILES[2], ["a", "b", "ab", "abb"], "#version: 0.2\na b\nab b\n"))
    assert [token.value for token in model.tokenize("abbab")] == ["abb", "ab"]
    assert model.end_of_word_suffix is None


def test_words_end_where_symbols_of_the_vocabulary_do(tmp_path):
    model = read_vocabulary(*pair(tmp_path, VOCABULARY_FILES[0], ["<unk>", "a", "b</w>", "ab</w>"], "a b</w>\n"))
    assert (model.end_of_word_suffix, model.unk_token) == ("</w>", "<unk>")
    assert [token.value for token in model.tokenize("ab")] == ["ab</w>"]


def test_only_line_feeds_end_a_merge(tmp_path):
    odd = "\u2028"
    model = read_vocabulary(*pair(tmp_path, VOCABULARY_FILES[1], [odd, "a", f"{odd}a"], f"{odd} a\n"))
    assert [token.value for token in model.tokenize(f"{odd}a")] == [f"{odd}a"]


def test_a_merge_is_named_with_its_line(tmp_path):
    files = pair(tmp_path, VOCABULARY_FILES[2], ["a", "b", "ab"], "#version: 0.2\na b\nb a\n")
    with pytest.raises(UserError) as caught:
        read_vocabulary(*files)
    assert str(caught.value) == f"{files[1]}:3: found 'b a', expected two symbols of the vocabulary that make a third"


def test_merges_that_are_no_text_are_named_with_their_line(tmp_path):
    files = pair(tmp_path, VOCABULARY_FILES[2], ["a", "b", "ab"], "")
    files[1].write_bytes(b"a b\n\xff\n")
    with pytest.raises(UserError, match=r"merges\.txt:2: found bytes that are not UTF-8, expected a list of merges"):
        read_vocabulary(*files)
