"""The tree of shared beginnings: every row read once, from tokens that are its own."""

from hypothesis import given
from hypothesis import strategies as st

from gpt_modules.evaluation.tasks.prefixes import Branch, Strand, plan

SHARED = list(range(100, 130))


def walk(branch, depth=0):
    """(branch, depth of the branch that it lies on) of all of them."""
    yield branch, depth
    for longer in branch.branches:
        yield from walk(longer, branch.depth)


def test_a_beginning_of_all_is_read_once():
    """30 tokens for three rows: two readings saved, which is more than a call costs."""
    rows = [[*SHARED, 1], [*SHARED, 2, 3], [*SHARED, 4]]
    root = plan(rows, overhead=10, most=1000)
    (branch,) = root.branches
    assert root == Branch(0, 0, [], [branch])
    assert (branch.depth, branch.branches) == (30, [])
    assert branch.strands == [Strand([0], 31), Strand([1], 32), Strand([2], 31)]


def test_it_is_not_where_it_does_not_pay_or_there_is_no_room():
    rows = [[*SHARED, 1], [*SHARED, 2]]
    assert plan(rows, overhead=29, most=30).branches
    assert not plan(rows, overhead=30, most=30).branches
    assert not plan(rows, overhead=29, most=29).branches
    assert not plan([[*SHARED[:15], 1], [*SHARED[:15], 2]], overhead=0, most=1000).branches, "too short to bother"


def test_what_another_row_begins_with_is_not_read():
    assert plan([[1, 2], [1, 2, 3, 4], [5], [1, 2]], overhead=10, most=10).strands == [
        Strand([1, 3, 0], 4),
        Strand([2], 1),
    ]


def test_a_beginning_within_a_beginning():
    longer = [*SHARED, *range(200, 220)]
    rows = [[*longer, 1], [*longer, 2], [*SHARED, 3], [*SHARED, 4]]
    (outer,) = plan(rows, overhead=5, most=1000).branches
    (inner,) = outer.branches
    assert (outer.depth, inner.depth) == (30, 50)
    assert {row for strand in outer.strands for row in strand.rows} == {2, 3}
    assert {row for strand in inner.strands for row in strand.rows} == {0, 1}


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=60), min_size=1, max_size=12), st.integers(0, 40),
       st.integers(0, 200))  # fmt: skip
def test_every_row_is_read_once_behind_its_own_beginning(rows, overhead, most):
    root, seen = plan(rows, overhead, most), []
    for branch, depth in walk(root):
        assert branch is root or branch.depth >= depth + 16
        for strand in branch.strands:
            first = rows[strand.rows[0]]
            assert strand.length == len(first)
            assert first[: branch.depth] == rows[branch.row][: branch.depth]
            assert all(first[: len(rows[row])] == rows[row] for row in strand.rows)
            seen += strand.rows
    assert sorted(seen) == list(range(len(rows)))
