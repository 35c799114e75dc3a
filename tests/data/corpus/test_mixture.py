from collections import Counter

import numpy as np
import pytest

from gpt_modules.data.corpus.mixture import MixedSource, MixtureWindows, apportion, check_mixture
from gpt_modules.data.corpus.windows import TrainingWindows
from gpt_modules.data.loader import BatchLoader
from gpt_modules.errors import UserError

SIZES, WEIGHTS, CONTEXT = (4000, 900, 150), (0.6, 0.25, 0.16), 10  # like table 2.2, the weights sum to 1.01


@pytest.fixture
def windows():
    """Three streams whose tokens say where they come from: stream 1 begins at 100,000."""
    streams = [np.arange(size) + 100_000 * i for i, size in enumerate(SIZES)]
    return MixtureWindows(streams, WEIGHTS, CONTEXT, 3, ["a", "b", "c"])


def seen(windows, epochs):
    """First token of every window in the order of training."""
    return [windows.batch(epoch, windows.order(epoch)).inputs[:, 0].numpy() for epoch in range(epochs)]


def test_apportion_by_largest_remainder():
    assert apportion(np.array([0.6, 0.22, 0.08, 0.08, 0.03]), 101).tolist() == [60, 22, 8, 8, 3]
    assert apportion(np.array([1.0, 1.0, 1.0]), 10).tolist() == [4, 3, 3]
    assert apportion(np.array([1.0, 1e-9]), 10).tolist() == [10, 1]


def test_every_beginning_of_an_epoch_has_the_shares(windows):
    share = np.array(WEIGHTS) / sum(WEIGHTS)
    for epoch in seen(windows, 3):
        sources = epoch // 100_000
        for count in range(1, len(sources) + 1):
            found = np.bincount(sources[:count], minlength=3)
            assert (np.abs(found - share * count) < 3).all()


def test_an_epoch_has_as_many_windows_as_all_sources(windows):
    assert len(windows) == sum(len(TrainingWindows(np.arange(size), CONTEXT, 0)) for size in SIZES)
    passes = windows.passes()
    assert passes["c"] == pytest.approx(0.16 / 1.01 * len(windows) / 14, rel=0.02)
    assert passes["a"] < 1 < passes["b"] < passes["c"]


@pytest.mark.parametrize("source", [0, 1, 2])
def test_no_window_comes_again_before_its_pass_is_over(windows, source):
    starts = np.concatenate(seen(windows, 4))
    starts = starts[starts // 100_000 == source] - 100_000 * source
    count = int(windows.counts[source])
    passes = [starts[i : i + count] for i in range(0, len(starts), count)]
    for chosen in passes:
        assert len(set(chosen.tolist())) == len(chosen)
        assert len({start % CONTEXT for start in chosen.tolist()}) == 1
        assert (np.diff(np.sort(chosen)) >= CONTEXT).all()
    whole = [chosen for chosen in passes if len(chosen) == count]
    assert len({tuple(chosen // CONTEXT) for chosen in whole}) == len(whole)
    assert len(whole) >= 2


def test_windows_are_a_function_of_seed_epoch_index(windows):
    streams = [source.tokens for source in windows.sources]
    again, other = (MixtureWindows(streams, WEIGHTS, CONTEXT, seed, ["a", "b", "c"]) for seed in (3, 4))
    indices = np.array([400, 3, 77])
    assert again.batch(2, indices).inputs.equal(windows.batch(2, indices).inputs)
    assert not other.batch(2, indices).inputs.equal(windows.batch(2, indices).inputs)
    assert other.order(1).tolist() != windows.order(1).tolist() != windows.order(2).tolist()


@pytest.mark.parametrize("examples", [0, 1, 57, 400])
def test_what_was_drawn_is_what_was_seen(windows, examples):
    epochs = seen(windows, 3)
    expected = Counter((np.concatenate([*epochs[:2], epochs[2][:examples]]) // 100_000).tolist())
    assert windows.drawn(2, examples) == {name: expected[i] for i, name in enumerate("abc")}
    assert windows.drawn(2, examples) == {name: expected[i] for i, name in enumerate("abc")}


def test_ranks_share_a_mixture(windows):
    def loader(rank, world, size):
        return BatchLoader(windows, size, rank=rank, world=world)

    alone = [batch.inputs.tolist() for batch in loader(0, 1, 6)]
    ranks = [[batch.inputs.tolist() for batch in loader(rank, 2, 3)] for rank in (0, 1)]
    for i, batch in enumerate(alone):
        assert sorted(ranks[0][i] + ranks[1][i]) == sorted(batch)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([], "mixture: found no source"),
        ([MixedSource("a", 0)], r"mixture\.0\.weight: found 0, expected a number above 0"),
        ([MixedSource("a", float("nan"))], r"mixture\.0\.weight: found nan"),
        ([MixedSource("a", 1), MixedSource("b", 1, name="a")], r"mixture\.1\.name: found 'a' a second time"),
    ],
)
def test_a_wrong_mixture_is_refused(sources, message):
    with pytest.raises(UserError, match=message):
        check_mixture(sources)


def test_a_source_shorter_than_a_window_is_named():
    with pytest.raises(UserError, match="context: found 10, expected less than the 5 tokens of small"):
        MixtureWindows([np.arange(100), np.arange(5)], (1, 1), 10, 0, ["large", "small"])
