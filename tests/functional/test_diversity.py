import pytest
import torch

from gpt_modules.functional import distinct_ngrams, repeated_ngrams

TOKENS = torch.tensor([[1, 2, 1, 2, 1], [1, 2, 3, 9, 9], [4, 7, 7, 7, 7]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]).bool()


def said(row, keep, n):
    words = [token for token, counts in zip(row, keep, strict=True) if counts]
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def test_literals():
    """Nine tokens: 1 2 3 4 are different, and of pairs 12, 21, 23. The first says 4 pairs, 2 of them anew."""
    assert distinct_ngrams(TOKENS, MASK, 1).item() == pytest.approx(4 / 9)
    assert distinct_ngrams(TOKENS, MASK, 2).item() == pytest.approx(3 / 9)
    assert repeated_ngrams(TOKENS, MASK, 2).tolist() == [0.5, 0.0, 0.0]
    assert distinct_ngrams(TOKENS[2:], MASK[2:], 1).item() == 1.0


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6, 7])
def test_against_sets(n):
    generator = torch.Generator().manual_seed(n)
    tokens = torch.randint(0, 4, (20, 6), generator=generator)
    mask = torch.arange(6) < torch.randint(0, 7, (20, 1), generator=generator)
    rows = [said(row, keep, n) for row, keep in zip(tokens.tolist(), mask.tolist(), strict=True)]
    everything = {gram for row in rows for gram in row}
    assert distinct_ngrams(tokens, mask, n).item() == pytest.approx(len(everything) / int(mask.sum()))
    expected = [1 - len(set(row)) / len(row) if row else 0.0 for row in rows]
    assert repeated_ngrams(tokens, mask, n).tolist() == pytest.approx(expected)


def test_no_responses_say_nothing():
    nothing = torch.zeros(0, 3, dtype=torch.long)
    assert distinct_ngrams(nothing, nothing.bool(), 2).item() == 0.0
    assert repeated_ngrams(nothing, nothing.bool(), 2).tolist() == []
