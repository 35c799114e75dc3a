import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt_modules.data.collate import (
    RankedAnswers,
    TaskExample,
    TokenExample,
    collate_packed,
    collate_prompts,
    collate_rankings,
    collate_tasks,
    collate_tokens,
    collate_windows,
    cut_answer,
    cut_pair,
    isolate_documents,
    join_row,
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


def test_what_is_only_ever_read_is_not_an_example():
    """The first token is never predicted, the second may be."""
    learned = [[True, False], [False, True], [True, True]]
    kept = [truncate_example(TokenExample(np.array([1, 2]), np.array(places)), 5) for places in learned]
    assert [example is None for example in kept] == [True, False, False]


def test_nothing_is_of_the_right_kind_too():
    example = make_example([], EOS)
    assert (example.tokens.dtype, example.learned.dtype) == (np.int64, np.bool_)
    assert (pad_right([]).shape, pad_right([]).dtype) == ((0, 0), torch.int64)
    batches = collate_tokens([], 3), collate_packed([], 3), collate_windows([], 3), collate_prompts([])
    assert {field.dtype for batch in batches for field in batch} == {torch.int64}
    shapes = [(field.dtype, tuple(field.shape)) for field in collate_rankings([])]
    assert shapes == [(torch.int64, size) for size in ((1, 1), (1,), (0, 1), (0, 1))] + [(torch.bool, (0, 1))] + [
        (torch.int64, size) for size in ((0, 1), (0,), (0,), (1,), (0, 1))
    ]
    assert collate_tasks([], numeric=False).labels.shape == (0,)
    assert collate_tasks([], numeric=False)[2].shape == (0, 1)
    whole = [TaskExample([np.array([7, 9])], 2)]
    assert [collate_tasks(whole, numeric).labels.dtype for numeric in (False, True)] == [torch.int64, torch.float32]


def test_a_width_is_kept_where_no_row_needs_it():
    example = make_example([([1], False), ([2], True)], EOS)
    assert collate_tokens([example], 5).inputs.tolist() == [[1, 2, 0, 0, 0]]
    assert collate_tokens([example], 5).labels.tolist() == [[2, EOS, -100, -100, -100]]
    windows = collate_windows([np.array([5, 6])], context=3)
    assert (windows.inputs.tolist(), windows.labels.tolist()) == ([[5, 0, 0]], [[6, -100, -100]])


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


def test_packing_begins_with_the_longest_and_then_with_the_first():
    assert pack_examples([3, 5, 7, 5], 10) == [[2, 0], [1, 3]]
    assert pack_examples([4, 6, 6, 4], 10) == [[1, 0], [2, 3]]


@pytest.mark.parametrize("cells", [0, 11])
def test_example_that_fits_no_row_is_refused(cells):
    with pytest.raises(ValueError, match=f"example 1: found {cells} cells, expected 1 to 10"):
        pack_examples([3, cells], 10)
    assert pack_examples([1, 10], 10) == [[1], [0]]


def test_windows_shift_by_one_and_pad_the_last():
    batch = collate_windows([np.array([5, 6, 7]), np.array([7, 8])], context=2)
    assert batch.inputs.tolist() == [[5, 6], [7, 0]]
    assert batch.labels.tolist() == [[6, 7], [8, -100]]


def test_rankings_by_hand():
    rows = [
        RankedAnswers([np.array([1, 2]), np.array([1, 3, 4])], [2, 1]),
        RankedAnswers([np.array([5]), np.array([6]), np.array([7])], [1, 1, 3], [7, 0, 2], 4, 0, 1, [8, 2, 8]),
        RankedAnswers([], []),
        RankedAnswers([np.array([8]), np.array([9])], [1, 2]),
    ]
    batch = collate_rankings(rows)
    assert batch.tokens.tolist() == [[1, 2, 0], [1, 3, 4], [5, 0, 0], [6, 0, 0], [7, 0, 0], [8, 0, 0], [9, 0, 0]]
    assert batch.lengths.tolist() == [2, 3, 1, 1, 1, 1, 1]
    assert batch[2].tolist() == [[0, 1, -1], [2, 3, 4], [-1, -1, -1], [5, 6, -1]]
    assert batch.ranks.tolist() == [[2, 1, 0], [1, 1, 3], [0, 0, 0], [1, 2, 0]]
    assert batch.mask.tolist() == [[True, True, False], [True] * 3, [False] * 3, [True, True, False]]
    assert batch.scores.tolist() == [[0] * 3, [7, 0, 2], [0] * 3, [0] * 3]
    assert batch.labelers.tolist() == [-1, 4, -1, -1]
    assert batch.rounds.tolist() == [-1, 0, -1, -1]
    assert batch.prompt_lengths.tolist() == [0, 0, 1, 1, 1, 0, 0]
    assert batch.numbers.tolist() == [[0] * 3, [8, 2, 8], [0] * 3, [0] * 3]


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


def test_a_batch_of_no_text_is_one_row_that_teaches_nothing():
    narrow, *wide = collate_tokens([]), collate_tokens([], 3), collate_packed([], 3), collate_windows([], 3)
    assert (narrow.inputs.tolist(), narrow.labels.tolist()) == ([[0]], [[-100]])
    for batch in wide:
        assert (batch.inputs.tolist(), batch.labels.tolist()) == ([[0] * 3], [[-100] * 3])
    assert {field.dtype for batch in (narrow, *wide) for field in batch} == {torch.int64}


def test_a_batch_of_no_rankings_is_one_token_that_no_prompt_points_at():
    batch = collate_rankings([])
    assert (batch.tokens.tolist(), batch.lengths.tolist()) == ([[0]], [1])
    assert batch[2].shape == batch.ranks.shape == batch.mask.shape == (0, 1)


def test_isolated_documents_restart_where_an_end_token_stands():
    eos = 9
    windows = [np.array([3, 4, eos, 5, 6, 7, 8]), np.array([eos, 1, eos])]
    batch = isolate_documents(collate_windows(windows, context=6), eos)
    assert batch.inputs.tolist() == [[3, 4, 9, 5, 6, 7], [9, 1, 0, 0, 0, 0]]
    assert batch.labels.tolist() == [[4, 9, 5, 6, 7, 8], [1, 9, -100, -100, -100, -100]]
    assert batch.positions.tolist() == [[0, 1, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]
    assert batch.segments.tolist() == [[1, 1, 2, 2, 2, 2], [2, 2, 2, 2, 2, 2]]


def test_rows_of_a_task_are_those_of_the_paper():
    assert join_row([[1, 2]], (7, 8, 9)).tolist() == [7, 1, 2, 9]
    assert join_row([[1, 2], [3]], (7, 8, 9)).tolist() == [7, 1, 2, 8, 3, 9]


@pytest.mark.parametrize(
    ("text", "pair", "room", "cut"),
    [
        (b"abc", b"de", 5, (b"abc", b"de")),
        (b"abcdef", b"gh", 5, (b"abc", b"gh")),  # the longer gives way
        (b"ab", b"cdefgh", 5, (b"ab", b"cde")),
        (b"abcdef", b"ghijkl", 6, (b"abc", b"ghi")),
        (b"abcdef", b"ghijkl", 5, (b"abc", b"gh")),
        (b"abc", b"ghijklmn", 5, (b"abc", b"gh")),
        (b"a", b"b", 2, (b"a", b"b")),
    ],
)
def test_of_a_pair_the_longer_gives_way_and_each_keeps_its_beginning(text, pair, room, cut):
    assert cut_pair(text, pair, room) == cut


@pytest.mark.parametrize(
    ("text", "answer", "room", "cut"),
    [
        (b"abc", b"de", 5, (b"abc", b"de")),
        (b"abcdef", b"gh", 5, (b"def", b"gh")),  # the question at the end stays
        (b"abcdef", b"ghi", 6, (b"def", b"ghi")),  # half of the room is the answer's
        (b"abcdef", b"ghij", 6, (b"def", b"ghi")),
        (b"a", b"ghijkl", 6, (b"a", b"ghijk")),  # but what the text does not need is too
        (b"ab", b"cdef", 2, (b"b", b"c")),
        (b"", b"cdef", 3, (b"", b"cde")),
    ],
)
def test_before_an_answer_the_text_gives_way_from_its_left(text, answer, room, cut):
    assert cut_answer(text, answer, room) == cut


@given(st.text("ab", max_size=12), st.text("cd", max_size=12), st.integers(2, 20))
def test_cutting_wastes_no_room(text, pair, room):
    for cut in (cut_pair, cut_answer):
        first, second = (part.decode() for part in cut(text.encode(), pair.encode(), room))
        assert len(first) + len(second) == min(room, len(text) + len(pair))
        assert pair.startswith(second)
        assert text.startswith(first) if cut is cut_pair else text.endswith(first)


def test_tasks_by_hand():
    examples = [
        TaskExample([np.array([7, 1, 9]), np.array([7, 1, 2, 9])], 1),
        TaskExample([np.array([7, 3, 9])] * 3, None),
        TaskExample([np.array([7, 9])], 0),
    ]
    batch = collate_tasks(examples, numeric=False)
    assert batch.tokens.tolist() == [[7, 1, 9, 0], [7, 1, 2, 9], *[[7, 3, 9, 0]] * 3, [7, 9, 0, 0]]
    assert batch.lengths.tolist() == [3, 4, 3, 3, 3, 2]
    assert batch[2].tolist() == [[0, 1, -1], [2, 3, 4], [5, -1, -1]]
    assert batch.labels.tolist() == [1, -100, 0]
    assert batch.labels.dtype == torch.int64
    numbers = collate_tasks([examples[0]._replace(label=2.5), examples[1]], numeric=True).labels
    assert numbers.dtype == torch.float32
    assert numbers[0] == 2.5
    assert numbers[1].isnan()


def test_a_batch_of_nothing_still_has_a_row_to_run_on():
    batch = collate_tasks([], numeric=False)
    assert batch.tokens.shape == (1, 1)
    assert batch.lengths.tolist() == [1]
    assert batch[2].shape == (0, 1)
    assert batch.labels.shape == (0,)
