import numpy as np
import pytest

from gpt_modules.data.corpus.mixture import MixtureWindows
from gpt_modules.data.corpus.shards import TokenStream
from gpt_modules.data.corpus.windows import IsolatedWindows, TrainingWindows, ValidationWindows
from gpt_modules.errors import UserError


@pytest.mark.parametrize(("count", "context"), [(100, 7), (23, 11), (12, 11), (1000, 10)])
def test_no_token_is_learned_twice_in_an_epoch(count, context):
    windows = TrainingWindows(np.arange(count), context, seed=0)
    for epoch in range(5):
        batch = windows.batch(epoch, np.arange(len(windows)))
        assert (batch.labels == batch.inputs + 1).all()
        assert batch.labels.unique().numel() == len(windows) * context
        assert len(windows) * context > count - 2 * context - 1


def test_borders_move_with_the_epoch_and_the_seed():
    windows, other = (TrainingWindows(np.arange(1000), 50, seed) for seed in (0, 1))
    offsets = [windows.offset(epoch) for epoch in range(1000)]
    assert set(offsets) == set(range(50))
    assert offsets != [other.offset(epoch) for epoch in range(1000)]


def test_a_text_shorter_than_a_window_is_refused():
    with pytest.raises(UserError, match="context: found 8, expected less than the 8 tokens of the training text"):
        TrainingWindows(np.arange(8), 8, 0)


@pytest.mark.parametrize("count", [2, 10, 11, 12, 21, 22])
def test_validation_predicts_every_token_once(count):
    windows = ValidationWindows(np.arange(count), 10)
    batch = windows.batch(0, np.arange(len(windows)))
    counted = batch.labels >= 0
    assert batch.labels[counted].tolist() == list(range(1, count))
    assert batch.inputs[counted].tolist() == list(range(count - 1))
    assert windows.batch(0, np.array([], dtype=np.int64)).labels.tolist() == [[-100] * 10]


@pytest.mark.parametrize("kind", [TrainingWindows, ValidationWindows])
def test_shards_give_the_windows_of_one_array(kind):
    whole = np.arange(100, dtype=np.uint16)
    arguments = (9, 0) if kind is TrainingWindows else (9,)
    one, many = kind(whole, *arguments), kind(TokenStream(np.split(whole, [3, 40, 41, 77])), *arguments)
    indices = np.arange(len(one))
    for epoch in range(3):
        assert many.batch(epoch, indices).inputs.equal(one.batch(epoch, indices).inputs)


def test_isolated_windows_are_the_same_windows_in_the_same_order():
    windows = MixtureWindows([np.arange(100) % 7, np.arange(60) % 5], [1.0, 2.0], 10, 0, ["a", "b"])
    isolated = IsolatedWindows(windows, start_id=3)
    assert len(isolated) == len(windows)
    assert (isolated.order(2) == windows.order(2)).all()
    plain, packed = (one.batch(2, np.array([0, 4])) for one in (windows, isolated))
    assert packed.inputs.equal(plain.inputs)
    assert packed.labels.equal(plain.labels)
    assert (packed.positions[packed.inputs == 3] == 0).all()
