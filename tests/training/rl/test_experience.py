"""The loader over a rollout: every episode once an epoch, exact means under accumulation, resumable in the middle."""

import pytest
import torch

from gpt_modules.errors import UserError
from gpt_modules.training.rl.experience import Experience, ExperienceLoader
from gpt_modules.training.rl.rollout import Rollout

EPISODES = 12


def rollout(episodes=EPISODES, width=5):
    numbers = torch.arange(episodes)
    mask = torch.arange(width) < (1 + numbers % width)[:, None]
    cells = torch.randn(4, episodes, width, generator=torch.Generator().manual_seed(0))
    return Rollout(numbers[:, None].repeat(1, width + 2), numbers + 1, numbers[:, None].repeat(1, width), mask, *cells)


class Owner:
    def __init__(self, iteration=0, episodes=EPISODES):
        self.iteration, self.device = torch.tensor(iteration), torch.device("cpu")
        self.rollout, self.episodes, self.collected = None, episodes, 0

    def collect(self):
        self.rollout, self.collected = rollout(self.episodes), self.collected + 1
        return self.rollout


def loader(epochs=2, minibatches=3, accumulate=1, seed=0, iteration=0):
    return ExperienceLoader(Owner(iteration), epochs, minibatches, accumulate, seed)


def episodes(batches):
    return [batch.rollout.tokens[:, 0].tolist() for batch in batches]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_episode_once_an_epoch(accumulate):
    source = loader(accumulate=accumulate)
    seen = episodes(source)
    assert len(seen) == len(source) == 2 * 3 * accumulate
    half = len(seen) // 2
    for epoch in (seen[:half], seen[half:]):
        assert sorted(number for batch in epoch for number in batch) == list(range(EPISODES))
    assert seen[:half] != seen[half:]


def test_fields_of_a_row_stay_together():
    whole = rollout()
    for batch in loader():
        for row, number in enumerate(batch.rollout.tokens[:, 0].tolist()):
            assert all(torch.equal(part[row], field[number]) for part, field in zip(batch.rollout, whole, strict=True))


def test_the_order_is_a_function_of_seed_and_iteration():
    assert episodes(loader()) == episodes(loader())
    assert episodes(loader()) != episodes(loader(iteration=1))
    assert episodes(loader()) != episodes(loader(seed=1))


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_micro_batches_average_to_the_minibatch_mean(accumulate):
    """What Lightning does with losses: divide by `accumulate` and add."""
    whole = rollout()
    expected = episodes(loader(minibatches=3))
    batches: list[Experience] = list(loader(minibatches=3, accumulate=accumulate))
    for minibatch in range(6):
        parts = batches[minibatch * accumulate : (minibatch + 1) * accumulate]
        sums = [torch.where(part.rollout.mask, part.rollout.logprobs, 0.0).sum() / part.normaliser for part in parts]
        rows = torch.tensor(expected[minibatch])
        mean = whole.logprobs[rows][whole.mask[rows]].mean()
        assert (sum(sums) / accumulate).item() == pytest.approx(mean.item(), abs=1e-5)


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_a_cut_iteration_goes_on_where_it_was(cut, tmp_path):
    uninterrupted = list(loader())
    source = loader()
    batches = iter(source)
    for _ in range(cut):
        next(batches)
    torch.save(source.state(), tmp_path / "state")
    stranger = Owner()
    resumed = ExperienceLoader(stranger, 2, 3, 1, 0)
    resumed.restore(torch.load(tmp_path / "state", weights_only=True))
    rest = list(resumed)
    assert episodes(rest) == episodes(uninterrupted)[cut:]
    assert all(torch.equal(a.normaliser, b.normaliser) for a, b in zip(rest, uninterrupted[cut:], strict=True))
    assert stranger.collected == 0, "what was stored is used"
    assert len(list(resumed)) == 6, "the next iteration is a whole one"
    assert stranger.collected == 1


def test_between_iterations_nothing_is_stored():
    source = loader()
    assert source.state() == {"position": 0, "rollouts": None}
    list(source)
    assert source.state() == {"position": 0, "rollouts": None}


def test_more_parts_than_episodes_is_the_users_mistake():
    source = ExperienceLoader(Owner(episodes=3), 1, 2, 2, 0)
    with pytest.raises(UserError, match=r"found 3 .* expected at least .* 4"):
        list(source)
