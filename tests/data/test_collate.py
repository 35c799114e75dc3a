import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt_modules.data.collate import (
    RankedAnswers,
    collate_packed,
    collate_prompts,
    collate_rankings,
    collate_tokens,
    collate_windows,
    empty_example,
    isolate_documents,
    make_example,
    pack_examples,
    pad_right,
    truncate_example,
)

EOS = 9


def test_answers_are_learned_with_their_end():
    example = make_example([([1, 2], False), ([3, 4], True)], EOS)
    batch = collate_tokens([example])
    assert batch.inputs.tolist() == [[1, 2, 3, 4]]
    assert batch.labels.tolist() == [[-100, 3, 4, EOS]]


def test_every_turn_of_a_conversation_is_closed():
    example = make_example([([1], False), ([2], True), ([3], False), ([4], True)], EOS)
    batch = collate_tokens([example])
    assert batch.inputs.tolist() == [[1, 2, EOS, 3, 4]]
    assert batch.labels.tolist() == [[2, EOS, -100, 4, EOS]]


def test_a_token_that_equals_padding_still_counts():
    batch = collate_tokens(
        [make_example([([0], False), ([0, 0], True)], 0), make_example([([5], False), ([6], True)], 0)]
    )
    assert batch.labels.tolist() == [[0, 0, 0], [6, 0, -100]]


def test_cut_answers_lose_their_end_and_full_prompts_are_dropped():
    example = make_example([([1, 2], False), ([3, 4], True)], EOS)
    cut = truncate_example(example, 3)
    assert cut.tokens.tolist() == [1, 2, 3, 4]
    assert truncate_example(example, 4).tokens.tolist() == [1, 2, 3, 4, EOS]
    assert truncate_example(example, 1) is None
    assert truncate_example(example, 2).learned.tolist() == [False, False, True]


def test_packed_row_by_hand():
    first = make_example([([1], False), ([2, 3], True)], EOS)
    second = make_example([([4, 5], False), ([6], True)], EOS)
    batch = collate_packed([[first, second], []], context=8)
    assert batch.inputs[0].tolist() == [1, 2, 3, 4, 5, 6, 0, 0]
    assert batch.labels[0].tolist() == [2, 3, EOS, -100, 6, EOS, -100, -100]
    assert batch.positions[0].tolist() == [0, 1, 2, 0, 1, 2, 0, 0]
    assert batch.segments[0].tolist() == [1, 1, 1, 2, 2, 2, 0, 0]
    assert batch.labels[1].eq(-100).all()
    assert batch.segments[1].eq(0).all()


@given(st.lists(st.integers(1, 20), max_size=60))
def test_packing_loses_nothing_and_overfills_nothing(lengths):
    rows = pack_examples(lengths, 20)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    used = [sum(lengths[i] for i in row) for row in rows]
    assert all(cells <= 20 for cells in used)
    assert sum(2 * cells <= 20 for cells in used) <= 1  # two rows half empty would have been one


def test_packing_finds_the_perfect_fit():
    assert len(pack_examples([7, 3, 6, 4, 5, 5], 10)) == 3


def test_example_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="example 1: found 11 cells"):
        pack_examples([3, 11], 10)


def test_windows_shift_by_one_and_pad_the_last():
    batch = collate_windows([np.array([5, 6, 7]), np.array([7, 8])], context=2)
    assert batch.inputs.tolist() == [[5, 6], [7, 0]]
    assert batch.labels.tolist() == [[6, 7], [8, -100]]


def test_rankings_by_hand():
    rows = [
        RankedAnswers([np.array([1, 2]), np.array([1, 3, 4])], [2, 1]),
        RankedAnswers([np.array([5]), np.array([6]), np.array([7])], [1, 1, 3]),
        RankedAnswers([], []),
    ]
    batch = collate_rankings(rows)
    assert batch.tokens.tolist() == [[1, 2, 0], [1, 3, 4], [5, 0, 0], [6, 0, 0], [7, 0, 0]]
    assert batch.lengths.tolist() == [2, 3, 1, 1, 1]
    assert batch[2].tolist() == [[0, 1, -1], [2, 3, 4], [-1, -1, -1]]
    assert batch.ranks.tolist() == [[2, 1, 0], [1, 1, 3], [0, 0, 0]]
    assert batch.mask.tolist() == [[True, True, False], [True] * 3, [False] * 3]


def test_prompts_need_a_token():
    batch = collate_prompts([np.array([1, 2]), np.array([3])])
    assert batch.tokens.tolist() == [[1, 2], [3, 0]]
    assert batch.lengths.tolist() == [2, 1]
    with pytest.raises(ValueError, match="empty prompt"):
        collate_prompts([np.array([], dtype=np.int64)])


def test_padding_is_on_the_right_and_never_cuts():
    assert pad_right([np.array([1]), np.array([2, 3])], fill=-100).tolist() == [[1, -100], [2, 3]]
    assert pad_right([], 4).shape == (0, 4)
    with pytest.raises(ValueError, match="row of 3 tokens, expected at most 2"):
        pad_right([np.arange(3)], 2)


def test_rows_without_an_example_teach_nothing():
    example = make_example([([1], False), ([2], True)], EOS)
    batch = collate_tokens([example, empty_example()])
    assert batch.labels[1].tolist() == [-100, -100]
    assert batch.inputs.dtype == torch.int64


def test_isolated_documents_restart_where_an_end_token_stands():
    eos = 9
    windows = [np.array([3, 4, eos, 5, 6, 7, 8]), np.array([eos, 1, eos])]
    batch = isolate_documents(collate_windows(windows, context=6), eos)
    assert batch.inputs.tolist() == [[3, 4, 9, 5, 6, 7], [9, 1, 0, 0, 0, 0]]
    assert batch.labels.tolist() == [[4, 9, 5, 6, 7, 8], [1, 9, -100, -100, -100, -100]]
    assert batch.positions.tolist() == [[0, 1, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]
    assert batch.segments.tolist() == [[1, 1, 2, 2, 2, 2], [2, 2, 2, 2, 2, 2]]
