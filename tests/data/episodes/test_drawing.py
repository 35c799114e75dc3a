"""Tasks by number: a pure function of split, seed, epoch and number, the families in turn."""

import numpy as np
import pytest

from gpt_modules.data.batches import EpisodeBatch, EpisodeSet
from gpt_modules.data.episodes.ciphers import SubstitutionCipher
from gpt_modules.data.episodes.drawing import EpisodeLoader, EpisodeStream, PointEpisode, draw_from, mingled, stacked
from gpt_modules.data.episodes.families import Episode, Example
from gpt_modules.data.episodes.sinusoid import Sinusoid

SHORT, LONG = SubstitutionCipher(6, 1), SubstitutionCipher(6, 3)


def test_families_take_turns_and_every_argument_counts():
    draw = draw_from([SHORT, LONG], "train", 0, 4, 3)
    assert [len(draw(0, number).query[0].response) for number in range(4)] == [1, 3, 1, 3]
    assert [(len(draw(0, i).support), len(draw(0, i).query)) for i in range(2)] == [(4, 3)] * 2
    assert draw(1, 5) == draw_from([SHORT, LONG], "train", 0, 4, 3)(1, 5)
    others = [draw(2, 5), draw(1, 7), draw_from([SHORT, LONG], "train", 1, 4, 3)(1, 5)]
    assert draw(1, 5) not in [*others, draw_from([SHORT, LONG], "validation", 0, 4, 3)(1, 5)]


def test_points_are_parted_into_support_and_query():
    episode = draw_from([Sinusoid()], "train", 0, 4, 3)(0, 0)
    inputs, targets = Sinusoid().episode(np.random.default_rng((0, 0, 0, 0)), "train", 4, 3)
    assert isinstance(episode, PointEpisode)
    assert np.array_equal(np.concatenate([episode.support[0], episode.query[0]]), inputs)
    assert np.array_equal(np.concatenate([episode.support[1], episode.query[1]]), targets)
    points = stacked([episode.support, episode.support])
    assert (points.inputs[0].shape, points.targets.shape) == ((2, 4, 1), (2, 4, 1))


def test_a_stream_is_in_order_and_of_no_tasks_has_none():
    def encode(episodes):
        tasks = stacked([episode.support for episode in episodes])
        return EpisodeBatch(tasks, tasks)

    draw = draw_from([Sinusoid()], "train", 0, 4, 3)
    stream = EpisodeStream(draw, encode, 5)
    assert (len(stream), stream.order(3).tolist()) == (5, [0, 1, 2, 3, 4])
    batch = stream.batch(2, np.array([3, 1]))
    assert np.array_equal(batch.query.targets[1], draw(2, 1).support[1])
    nothing = stream.batch(2, np.array([], dtype=np.int64))
    assert isinstance(nothing.support, EpisodeSet)
    assert nothing.support.inputs[0].shape == nothing.query.targets.shape == (0, 4, 1)


def test_mingled_examples_are_all_of_them_in_an_order_of_the_episodes_own():
    episode = Episode([Example(f"{i}", "a") for i in range(6)], [Example(f"{i}", "a") for i in range(6, 9)])
    support, query = mingled(episode)
    assert support == []
    assert sorted(query) == sorted(episode.support + episode.query)
    assert mingled(episode) == (support, query) != ([], episode.support + episode.query)


@pytest.mark.parametrize(("before", "after"), [(3, 2), (2, 3), (4, 1), (1, 6), (2, 2)])
def test_an_epoch_goes_on_with_the_steps_that_are_left_of_it_and_tasks_that_nobody_has_seen(before, after):
    """With another number of tasks a step, as another number of processes has too."""

    def loader(tasks, state=None):
        stream = EpisodeStream(lambda *task: task, lambda tasks: EpisodeBatch(tasks, tasks), 5 * tasks)
        made = EpisodeLoader(stream, tasks, steps=5)
        if state is not None:
            made.restore(state)
        return made

    first = loader(before)
    seen = [task for _, batch in zip(range(2), first, strict=False) for task in batch.query]
    second = loader(after, first.state())
    assert (len(second), second.whole, second.over) == (5, 5, False)
    rest = [batch.query for batch in second]
    assert [len(batch) for batch in rest] == [after] * 3
    assert seen + [task for batch in rest for task in batch] == [(0, i) for i in range(2 * before + 3 * after)]
    third = loader(before, second.state())
    assert (len(third), third.over) == (5, True)
    assert [batch.query for batch in third] == [[(1, before * step + i) for i in range(before)] for step in range(5)]
