import os
from operator import itemgetter

import pytest

from gpt_modules.data.corpus.processes import map_in_order
from gpt_modules.errors import UserError


def times(factor):
    """Pairs of (process, product), to see where the work was done."""
    return lambda item: (os.getpid(), factor * item)


def dies(_):
    return lambda item: os._exit(1)


def test_one_worker_works_here_and_reads_no_further_than_it_must():
    read = []
    items = (read.append(i) or i for i in range(10))
    results = map_in_order(times, (3,), items, 1)
    assert next(results) == (os.getpid(), 0)
    assert read == [0, 1]
    assert [product for _, product in results] == [3 * i for i in range(1, 10)]


@pytest.mark.parametrize("items", [[], [5]])
def test_fewer_than_two_items_need_no_process(items):
    assert list(map_in_order(times, (2,), items, 4)) == [(os.getpid(), 2 * item) for item in items]


def test_results_of_several_processes_come_in_order():
    found = list(map_in_order(times, (2,), range(20), 2))
    assert list(map(itemgetter(1), found)) == [2 * i for i in range(20)]
    assert os.getpid() not in {process for process, _ in found}


def test_a_process_that_dies_is_said_in_one_line():
    with pytest.raises(UserError, match=r"^workers: found that one of 2 processes died, expected enough memory"):
        list(map_in_order(dies, (0,), range(4), 2))
