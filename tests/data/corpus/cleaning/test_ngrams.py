from gpt_modules.data.corpus.cleaning.ngrams import gram_hashes, split_words


def test_words_are_lower_case_without_punctuation_and_know_their_place():
    text = "  Don't - stop,\n(NOW)!  état 3.5 _ "
    words = split_words(text)
    assert [text[start:end] for start, end in words.spans.tolist()] == ["Don't", "stop,", "(NOW)!", "état", "3.5"]
    assert words.hashes.tolist() == split_words("dont stop now ÉTAT 35").hashes.tolist()
    assert len(split_words(" - \n").hashes) == len(split_words("").hashes) == 0


def test_runs_are_equal_where_their_words_are():
    words = ["a", "b", "c", "d", "a", "b", "c", "a", "b", "d", "c", "a", "a", "a", "b", "c"]
    for n in (1, 3, 5):
        runs = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        numbers = gram_hashes(split_words(" ".join(words)).hashes, n).tolist()
        assert len(numbers) == len(runs)
        for i, run in enumerate(runs):
            assert [number == numbers[i] for number in numbers] == [other == run for other in runs]
    assert len(gram_hashes(split_words("a b").hashes, 3)) == 0
