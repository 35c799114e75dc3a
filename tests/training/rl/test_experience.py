"""The loader over a rollout: every episode once an epoch, exact means over accumulation and processes, resumable."""

import lightning.pytorch as L
import pytest
import torch

from gpt_modules.errors import UserError
from gpt_modules.training.rl.experience import ExperienceLoader, Parts, expect_whole_iterations, read_place
from gpt_modules.training.rl.shaping import Cut, Rollout

EPISODES = 12


def rollout(episodes=EPISODES, width=5):
    numbers = torch.arange(episodes)
    mask = torch.arange(width) < (1 + numbers % width)[:, None]
    cells = torch.randn(5, episodes, width, generator=torch.Generator().manual_seed(0))
    return Rollout(numbers[:, None].repeat(1, width + 2), numbers + 1, numbers[:, None].repeat(1, width), mask, *cells)


class Owner:
    def __init__(self, iteration=0, episodes=EPISODES):
        self.iteration, self.device = iteration, torch.device("cpu")
        self.rollout, self.episodes, self.collected, self.policy_rests = None, episodes, 0, False

    def collect(self):
        self.rollout, self.collected = rollout(self.episodes), self.collected + 1
        return self.rollout


def loader(epochs=2, minibatches=3, accumulate=1, seed=0, iteration=0, rank=0, world=1, episodes=EPISODES):
    owner = Owner(iteration, episodes)
    return ExperienceLoader(owner, Parts(epochs, minibatches, accumulate), episodes, seed, rank, world)


def episodes(batches):
    return [batch.rows.tolist() for batch in batches]


@pytest.mark.parametrize(("accumulate", "world"), [(1, 1), (2, 1), (2, 2)])
def test_a_minibatch_is_the_rows_of_a_step_over_its_micro_batches_and_processes(accumulate, world):
    loaders = [loader(accumulate=accumulate, rank=rank, world=world) for rank in range(world)]
    for found in zip(*loaders, strict=True):
        minibatches = [of.minibatch.rows.tolist() for of in loaders]
        assert all(minibatch == minibatches[0] for minibatch in minibatches)
        assert len(minibatches[0]) == EPISODES // 3
        assert {row for batch in found for row in batch.rows.tolist()} <= set(minibatches[0])


def test_a_cut_is_as_wide_as_its_longest_text_and_its_longest_response():
    whole, source = rollout(), loader(accumulate=2)
    responses = whole.mask.sum(1)
    texts = whole.prompt_lengths + responses
    for batch in source:
        for rows, text, response, tokens in (batch.cut, source.minibatch):
            assert (text, response) == (max(texts[rows].tolist()), max(responses[rows].tolist()))
            assert tokens == sum(responses[rows].tolist())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_episode_once_an_epoch(accumulate):
    source = loader(accumulate=accumulate)
    seen = episodes(source)
    assert len(seen) == len(source) == 2 * 3 * accumulate
    half = len(seen) // 2
    for epoch in (seen[:half], seen[half:]):
        assert sorted(number for batch in epoch for number in batch) == list(range(EPISODES))
    assert seen[:half] != seen[half:]


@pytest.mark.parametrize("world", [1, 2])
def test_micro_batches_hold_rows_of_like_length(world):
    """Those of a minibatch in order of their length, on each process: what is padded is least."""
    whole = rollout()
    lengths = whole.prompt_lengths + whole.mask.sum(1)
    for rank in range(world):
        batches = list(loader(epochs=1, minibatches=1, accumulate=3, rank=rank, world=world))
        found = [length for batch in batches for length in lengths[batch.rows].tolist()]
        assert found == sorted(found)


def test_what_a_rollout_does_not_have_is_neither_taken_nor_stored():
    bare = rollout()._replace(values=None, returns=None, ref_logprobs=None, rewards=None)
    source = loader()
    source.owner.collect = lambda: source.owner.__dict__.update(rollout=bare) or bare
    next(iter(source))
    stored, names = source.state()["rollout"], set(Rollout._fields) - {"values", "returns", "ref_logprobs", "rewards"}
    assert stored.keys() == names == bare.take(Cut(torch.tensor([3, 1]), 5, 4)).present().keys()
    other = loader()
    other.restore(source.state())
    assert other.owner.rollout.present().keys() == names


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"advantages": None},
            "found .*expected at least advantages, logprobs, mask, prompt_lengths, responses, tokens",
        ),
        ({"others": torch.zeros(EPISODES, 5)}, "found .*expected at least advantages"),
        ({"values": torch.zeros(EPISODES, 4)}, "found .*expected tensors of as many episodes, and of as many response"),
        ({"tokens": torch.zeros(2, 5)}, "found .*expected tensors of as many episodes"),
        ({"returns": [0.0]}, "found .*'returns': 'list'.*expected tensors of as many episodes"),
    ],
)
def test_a_rollout_of_a_checkpoint_is_one(changes, told):
    source = loader()
    next(iter(source))
    state = source.state()
    fields = state["rollout"] | changes
    state["rollout"] = {name: field for name, field in fields.items() if field is not None}
    with pytest.raises(UserError, match=rf"^ppo: experience\.rollout: {told}") as error:
        loader().restore(state)
    assert "\n" not in str(error.value)


def test_the_order_is_a_function_of_seed_and_iteration():
    assert episodes(loader()) == episodes(loader())
    assert episodes(loader()) != episodes(loader(iteration=1))
    assert episodes(loader()) != episodes(loader(seed=1))


@pytest.mark.parametrize(("accumulate", "world", "count"), [(1, 1, 12), (2, 1, 13), (4, 1, 12), (1, 2, 12), (2, 2, 13)])
def test_parts_average_to_the_minibatch_mean(accumulate, world, count):
    """What Lightning does with losses: divide by `accumulate`, add, and average over processes; whatever divides."""
    whole = rollout(count)
    minibatches = episodes(loader(minibatches=3, episodes=count))
    ranks = [
        list(loader(minibatches=3, accumulate=accumulate, rank=r, world=world, episodes=count)) for r in range(world)
    ]
    for number, rows in enumerate(minibatches):
        window = slice(number * accumulate, (number + 1) * accumulate)
        parts = [part for rank in ranks for part in rank[window]]
        assert sorted(row for part in parts for row in part.rows.tolist()) == sorted(rows)
        sums = [whole.logprobs[part.rows][whole.mask[part.rows]].sum() / part.normaliser for part in parts]
        mean = whole.logprobs[rows][whole.mask[rows]].mean()
        assert (sum(sums) / accumulate / world).item() == pytest.approx(mean.item(), abs=1e-5)
        assert sum(len(part.rows) / part.sequences for part in parts) / accumulate / world == pytest.approx(1.0)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("cut", [1, 2, 5])
def test_a_cut_iteration_goes_on_where_it_was_on_any_number_of_processes(cut, world, tmp_path):
    uninterrupted = list(loader())
    source = loader()
    batches = iter(source)
    for _ in range(cut):
        next(batches)
    torch.save(source.state(), tmp_path / "state")
    ranks = []
    for rank in range(world):
        stranger = Owner()
        resumed = ExperienceLoader(stranger, Parts(2, 3, 1), EPISODES, 0, rank, world)
        resumed.restore(torch.load(tmp_path / "state", weights_only=True))
        ranks.append(list(resumed))
        assert stranger.collected == 0, "what was stored is used"
        assert len(list(resumed)) == 6, "the next iteration is a whole one"
        assert stranger.collected == 1
    for old, *new in zip(uninterrupted[cut:], *ranks, strict=True):
        assert sorted(row for part in new for row in part.rows.tolist()) == sorted(old.rows.tolist())
        assert all(part.normaliser * world == pytest.approx(old.normaliser) for part in new)


def test_between_iterations_nothing_is_stored():
    source = loader()
    nothing = {"position": 0, "parts": [2, 3, 1, 0], "rollout": None}
    assert source.state() == nothing
    source.owner.collect()  # by the run before, of which the module still holds it
    assert source.state() == nothing
    list(source)
    assert source.state() == nothing
    assert source.state_dict() == {}, "Lightning stores it beside the module's"


def test_a_cut_iteration_keeps_its_parts():
    source = loader()
    next(iter(source))
    other = loader(minibatches=2)
    with pytest.raises(UserError, match=r"found ppo_epochs x .* = 2 x 2 x 1 \+ 0, expected 2 x 3 x 1 \+ 0"):
        other.restore(source.state())


CELLS = torch.zeros(2, 3)
STORED = {"prompt_lengths": CELLS[:, 0]} | dict.fromkeys(
    ("tokens", "responses", "mask", "logprobs", "advantages"), CELLS
)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"position": 18}, "position: found 18, expected 1 to 17"),
        ({"position": 0}, "position: found 0, expected 1 to 17"),
        ({"rollout": None}, "position: found 17, expected 0 where there is no rollout"),
        (
            {"rollout": STORED | {"values": CELLS / 0}},
            "rollout.values: found 'NaN or infinity', expected finite numbers",
        ),
        ({"rollout": STORED | {"values": CELLS[:, :2]}}, "rollout: found {"),
        ({"rollout": STORED | {"values": CELLS[:1]}}, "rollout: found {"),
        ({"rollout": STORED | {"values": 0.0}}, "rollout: found {"),
        ({"rollout": STORED | {"value": CELLS}}, "rollout: found ['advantages', 'logprobs', "),
        ({"rollout": {"tokens": CELLS}}, "rollout: found ['tokens'], expected at least advantages, logprobs, "),
    ],
)
def test_a_place_is_one_in_a_rollout(changes, line):
    """Of 2 x 3 optimizer steps of 1 + 2 micro-batches, the one before the last has the place 17."""
    place = {"position": 17, "parts": [2, 3, 1, 2], "rollout": STORED}
    assert read_place(place).position == 17
    with pytest.raises(UserError) as refused:
        read_place(place | changes)
    assert str(refused.value).startswith(f"ppo: experience.{line}")


@pytest.mark.parametrize(("sizes", "world", "least"), [((1, 2, 2), 1, 4), ((1, 1, 1), 4, 4)])
def test_more_parts_than_episodes_is_the_users_mistake(sizes, world, least):
    """Before the first response is sampled."""
    with pytest.raises(UserError, match=rf"data\.episodes: found 3, expected at least .* = {least}$"):
        ExperienceLoader(Owner(), Parts(*sizes), 3, 0, 0, world)


@pytest.mark.parametrize(
    ("key", "values"),
    {
        "limit_train_batches": [1, 3, 0.5],
        "overfit_batches": [1, 0.5, 1.0],
        "reload_dataloaders_every_n_epochs": [1],
    }.items(),
)
def test_what_cuts_an_iteration_is_refused(key, values):
    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    for value in values:
        with pytest.raises(UserError, match=rf"^trainer\.{key}: found {value}, expected it left alone with PPO"):
            expect_whole_iterations(L.Trainer(**quiet, **{key: value}))
    whole = [{"limit_train_batches": 1.0}, {"limit_train_batches": 0}, {"overfit_batches": 0}, {"fast_dev_run": 1}]
    for settings in (*whole, {"max_steps": 3, "max_time": "00:01:00:00", "val_check_interval": 2, key: None}):
        expect_whole_iterations(L.Trainer(**quiet, **{name: of for name, of in settings.items() if of is not None}))
