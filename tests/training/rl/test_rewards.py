"""Rewards: folders, ensembles, functions and sums of them, on token ids or on texts."""

import shutil
import statistics
import sys
import types
from collections import Counter

import pytest
import torch
from conftest import shaken
from ppo_variants import adam

from gpt_modules.backbone import RewardModel, load_pretrained, save_pretrained
from gpt_modules.errors import UserError
from gpt_modules.training.ppo import VALIDATION
from gpt_modules.training.rl.frozen import REFERENCE
from gpt_modules.training.rl.rewards import Reward, RewardSource, reward_sources, term_names
from gpt_modules.training.rl.sequences import Sequences


def as_is(model):
    """On the CPU in float32, where models are read to."""
    return model


@pytest.fixture
def functions(monkeypatch):
    """A module of the user's own."""
    module = types.ModuleType("users_rewards")
    module.calls = []

    def length(prompts, responses):
        module.calls.append((prompts, responses))
        return [float(len(response)) for response in responses]

    module.length = length
    module.matrix = lambda prompts, responses: [[1.0]] * len(prompts)
    module.number = 3
    monkeypatch.setitem(sys.modules, "users_rewards", module)
    return module


@pytest.fixture
def sequences(micro):
    rows = [
        micro.tokenizer.encode("the film") + micro.tokenizer.encode(" is good.") + [micro.tokenizer.eos_id],
        micro.tokenizer.encode("a story") + micro.tokenizer.encode(" is bad"),
    ]
    tokens = torch.zeros(2, max(map(len, rows)), dtype=torch.long)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    starts = torch.tensor([len(micro.tokenizer.encode(text)) for text in ("the film", "a story")])
    lengths = torch.tensor([len(row) for row in rows])
    return Sequences(tokens, starts, lengths, torch.tensor([True, False]), torch.tensor([7, 3]))


def test_a_string_is_a_function_or_a_folder(tmp_path):
    assert reward_sources("a.b:c") == [RewardSource(function="a.b:c")]
    assert reward_sources("runs/reward/export") == [RewardSource(folder="runs/reward/export")]
    odd = tmp_path / "with:colon"
    odd.mkdir()
    assert reward_sources(str(odd)) == [RewardSource(folder=str(odd))]
    twice = RewardSource(folder="x", weight=2.0)
    for given in (twice, [twice], {"folder": "x", "weight": 2.0}, [{"folder": "x", "weight": 2.0}]):
        assert reward_sources(given) == [twice]


def test_a_folder_scores_ids_at_the_last_token_with_its_bias_and_scale(micro, sequences):
    scores = Reward([RewardSource(folder=str(micro.reward))], micro.tokenizer, as_is)(sequences).totals
    model = load_pretrained(micro.reward, kind="reward").eval()
    for i, end in enumerate(sequences.lengths.tolist()):
        with torch.no_grad():
            raw = model.token_values(sequences.tokens[i : i + 1, :end])[0, -1].item()
        assert scores[i].item() == pytest.approx((raw + 0.7) * 1.9, abs=1e-4)
    assert scores.dtype == torch.float32


def test_terms_are_weighted_and_summed(functions, micro, sequences):
    model, length = RewardSource(folder=str(micro.reward)), RewardSource(function="users_rewards:length")
    alone = [Reward([source], micro.tokenizer, as_is)(sequences).totals for source in (model, length)]
    mixed = [RewardSource(folder=model.folder, weight=2.0), RewardSource(function=length.function, weight=-0.5)]
    assert torch.allclose(Reward(mixed, micro.tokenizer, as_is)(sequences).totals, 2.0 * alone[0] - 0.5 * alone[1])


def test_a_reward_model_is_frozen_and_without_dropout(micro, sequences):
    """The folder stores dropout 0.3."""
    reward = Reward([RewardSource(folder=str(micro.reward))], micro.tokenizer, as_is)
    first = reward(sequences).totals
    assert torch.equal(first, reward(sequences).totals)
    assert not first.requires_grad


THREE = {"ensemble": ["a", "b", "c"]}


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ({}, "rewards: found none of folder, function, ensemble, expected exactly one of them"),
        ({"folder": ""}, "rewards: found none of folder, function, ensemble, expected exactly one of them"),
        ({"folder": "x", "function": "y:z"}, "rewards: found folder and function of folder, function, ensemble, "),
        ({"folder": "x", **THREE}, "rewards: found folder and ensemble of folder, function, ensemble, "),
        ({"folder": "x", "combine": "mean"}, "rewards.combine: found 'mean', expected it left at None: a folder is"),
        ({"function": "y:z", "spread_coef": 1.0}, "rewards.spread_coef: found 1.0, expected it left at None: combine"),
        (THREE, "rewards.combine: found None, expected one of mean, worst, mean_minus_spread"),
        ({"ensemble": ["a"], "combine": "mean"}, "rewards.ensemble: found ['a'], expected at least two folders"),
        ({**THREE, "combine": "worst", "spread_coef": 1.0}, "rewards.spread_coef: found 1.0, expected it left at None"),
        ({**THREE, "combine": "mean_minus_spread"}, "rewards.spread_coef: found None, expected a number in (0, inf)"),
        ({**THREE, "combine": "mean_minus_spread", "spread_coef": -1.0}, "rewards.spread_coef: found -1.0, expected a"),
    ],
)  # fmt: skip
def test_a_source_is_a_folder_a_function_or_an_ensemble_and_has_no_idle_setting(source, line):
    with pytest.raises(UserError) as refused:
        RewardSource(**source)
    assert str(refused.value).startswith(line)


@pytest.fixture
def trio(micro, tmp_path):
    """Folders of three reward models that score apart."""
    folders = [tmp_path / name for name in "abc"]
    for seed, folder in enumerate(folders, 3):
        model = shaken(load_pretrained(micro.reward, kind="reward"), seed)
        save_pretrained(folder, model, tokenizer_json=micro.tokenizer.to_json())
    return list(map(str, folders))


def alone(folder, micro, sequences):
    return Reward([RewardSource(folder=folder)], micro.tokenizer, as_is)(sequences).totals


@pytest.mark.parametrize(
    ("combine", "weight", "expected"),
    [
        ("mean", 2.0, lambda a, b, c: 2 * (a + b + c) / 3),
        ("worst", 2.0, lambda a, b, c: 2 * min(a, b, c)),
        ("worst", -2.0, lambda a, b, c: -2 * max(a, b, c)),
        ("mean_minus_spread", 1.0, lambda a, b, c: (a + b + c) / 3 - 0.5 * statistics.pstdev((a, b, c))),
        ("mean_minus_spread", -2.0, lambda a, b, c: -2 * (a + b + c) / 3 - 1.0 * statistics.pstdev((a, b, c))),
    ],
)
def test_an_ensemble_is_a_term_like_any_other(micro, trio, functions, sequences, combine, weight, expected):
    """Worked from what each member says alone. The worst, and the spread, of a term that counts against the sum take
    from it, too.
    """
    coefficient = 0.5 if combine == "mean_minus_spread" else None
    term = RewardSource(ensemble=trio, combine=combine, spread_coef=coefficient, weight=weight)
    length = RewardSource(function="users_rewards:length")
    found = Reward([length, term], micro.tokenizer, as_is)(sequences)
    rows = list(zip(*(alone(folder, micro, sequences).tolist() for folder in trio), strict=True))
    sums = [count + expected(*row) for count, row in zip((9.0, 7.0), rows, strict=True)]
    assert found.totals.tolist() == pytest.approx(sums, abs=1e-4)
    apart = [abs(weight) * statistics.pstdev(row) for row in rows]
    assert found.spreads.tolist() == [[pytest.approx(spread, abs=1e-4)] for spread in apart]
    assert min(apart) > 0.1


def test_without_an_ensemble_there_is_no_spread(micro, sequences):
    assert Reward([RewardSource(folder=str(micro.reward))], micro.tokenizer, as_is)(sequences).spreads.shape == (2, 0)


def test_a_model_is_opened_once_and_reads_each_text_once(micro, trio, sequences, monkeypatch):
    """Whoever names it: two terms, and a monitor."""
    passes = Counter()
    forward = RewardModel.forward
    monkeypatch.setattr(RewardModel, "forward", lambda self, *a: passes.update([id(self)]) or forward(self, *a))
    opened = {}
    worst = RewardSource(ensemble=trio, combine="worst")
    reward = Reward([worst, RewardSource(folder=micro.reward.as_posix())], micro.tokenizer, as_is, opened)
    monitor = Reward([RewardSource(ensemble=trio[1:], combine="mean")], micro.tokenizer, as_is, opened)
    assert list(opened) == [*trio, str(micro.reward)] == list(reward.models())
    assert [monitor.models()[folder] is reward.models()[folder] for folder in trio[1:]] == [True, True]
    reward(sequences)
    assert passes == {id(model): 1 for model in reward.models().values()}


def test_every_member_has_its_digest(micro, trio):
    reward = Reward([RewardSource(ensemble=trio, combine="mean")], micro.tokenizer, as_is)
    singles = [Reward([RewardSource(folder=folder)], micro.tokenizer, as_is).digests() for folder in trio]
    assert reward.digests() == singles[0] | singles[1] | singles[2]
    assert len(set(reward.digests().values())) == 3


def test_a_model_that_is_twice_in_an_ensemble_is_told(micro, trio):
    """Under its name, or as a copy: it would count double, and the spread would say that it agrees with itself."""
    shutil.copytree(trio[0], f"{trio[0]}-copy")
    for again in (trio[0], f"{trio[0]}-copy"):
        with pytest.raises(UserError) as refused:
            Reward([RewardSource(ensemble=[*trio, again], combine="worst")], micro.tokenizer, as_is)
        line = f"rewards.ensemble: found the model of {trio[0]} in {again} again, expected another"
        assert str(refused.value) == line


def test_a_member_that_cannot_be_read_is_named(micro, trio, tmp_path):
    with pytest.raises(UserError, match=r"^no/such/folder") as error:
        Reward([RewardSource(ensemble=[*trio, "no/such/folder"], combine="mean")], micro.tokenizer, as_is)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_weight_is_a_number(weight):
    with pytest.raises(UserError, match=r"^rewards\.weight: found (nan|inf), expected a number in "):
        RewardSource(folder="x", weight=weight)


def test_no_source_is_no_reward():
    with pytest.raises(UserError, match=r"^rewards: found \[\], expected at least one folder, function or ensemble$"):
        reward_sources([])


def test_a_missing_folder_is_one_line(micro):
    with pytest.raises(UserError, match="no/such/folder") as error:
        Reward([RewardSource(folder="no/such/folder/at/all")], micro.tokenizer, as_is)
    assert "\n" not in str(error.value)


def test_a_language_model_is_no_reward(micro):
    with pytest.raises(UserError, match="reward"):
        Reward([RewardSource(folder=str(micro.gpt))], micro.tokenizer, as_is)


def test_a_score_that_is_no_number_stops_the_run(functions, micro, sequences):
    sources = [RewardSource(function="users_rewards:length"), RewardSource(folder=str(micro.reward))]
    reward = Reward(sources, micro.tokenizer, as_is)
    reward.models()[str(micro.reward)].bias.fill_(float("nan"))
    with pytest.raises(UserError) as error:
        reward(sequences)
    assert str(error.value) == f"rewards: found a score that is not finite, expected numbers of {micro.reward}"


def test_a_half_precision_trunk_keeps_a_float32_head(micro, sequences):
    """The bias 0.7 is none of bf16's numbers, and 512 scores would share 94 values."""
    reward = Reward([RewardSource(folder=str(micro.reward))], micro.tokenizer, lambda model: model.bfloat16())
    (model,) = reward.models().values()
    assert model.decoder.wte.weight.dtype == torch.bfloat16
    assert model.head.linear.weight.dtype == model.bias.dtype == torch.float32
    assert model.bias.item() == torch.tensor(0.7).item()
    scores = reward(sequences).totals
    assert not torch.equal(scores, scores.bfloat16().float())
    exact = Reward([RewardSource(folder=str(micro.reward))], micro.tokenizer, as_is)(sequences).totals
    assert torch.allclose(scores, exact, atol=0.3)


def test_the_digest_is_of_what_was_read(micro, functions, tmp_path):
    sources = [RewardSource(folder=str(micro.reward)), RewardSource(function="users_rewards:length")]
    digests = Reward(sources, micro.tokenizer, as_is).digests()
    assert list(digests) == [str(micro.reward), "function users_rewards:length"]
    again = Reward(sources, micro.tokenizer, lambda model: model.bfloat16()).digests()
    assert again == digests, "whatever the precision of the run"
    assert all(len(digest) == 64 for digest in digests.values())


def test_a_reward_model_knows_of_the_conversations_of_the_data(micro):
    """What it reads them by: `test_terms`."""
    data = types.SimpleNamespace(columns=lambda: {"messages": 0}, column=lambda name, rows: [])
    folder = str(micro.reward)
    for given, talks in ((data, True), (None, False)):
        reward = Reward([RewardSource(folder=folder)], micro.tokenizer, as_is, data=given)
        assert reward.readers()[folder].talks is talks


def test_terms_of_a_sum_have_names_that_tell_them_apart():
    sources = [
        RewardSource(function="rules:brief"),
        RewardSource(folder="runs/reward/export"),
        RewardSource("other/reward"),
    ]
    assert term_names(sources) == ["brief", "reward-2", "reward-3"]
    assert term_names([RewardSource(ensemble=["a/r-0/export", "a/r-1"], combine="worst"), sources[0]]) == [
        "r-0-ensemble",
        "brief",
    ]
    assert term_names(sources[:1]) == []
    assert RewardSource(folder="/export").label() == "export"


# --- in a run ---


def test_functions_are_summed_with_models_and_monitors_are_only_watched(fit, ppo, functions):
    twice, once = (RewardSource(function="users_rewards:length", weight=weight) for weight in (2.0, 1.0))
    trainer = fit(*ppo(rewards=[twice], monitors={"letters": once}, missing_eos_score=None))
    assert trainer.callback_metrics["val/score"].item() == pytest.approx(
        2 * trainer.callback_metrics["val/letters"].item()
    )


def test_an_ensemble_rewards_and_watches_and_its_spread_is_logged(fit, ppo, micro, tmp_path):
    """The score is the least of what the members say alone, as monitors; where the first is the least, it begins the
    critic. The spread is of the same answers, held out and in the rollout.
    """
    model = shaken(load_pretrained(micro.reward, kind="reward"), 5)
    save_pretrained(tmp_path / "other", model, tokenizer_json=micro.tokenizer.to_json())
    folders = [str(micro.reward), str(tmp_path / "other")]
    worst = RewardSource(ensemble=folders, combine="worst")
    monitors = {"first": RewardSource(folder=folders[0]), "second": RewardSource(folder=folders[1]), "worst": worst}
    module, data = ppo(rewards=worst, monitors=monitors, optimizer=adam(1e-2))
    trainer = fit(module, data)
    names = ("score", "worst", "first", "second", "reward_spread")
    scored = [module._score(batch, VALIDATION) for batch in data.val_dataloader()]
    texts = [answers.sequences for answers in scored]
    members = [
        torch.cat([model(text.tokens, text.lengths) for text in texts])
        for model in (module.frozen.reward.models()[folder] for folder in folders)
    ]
    least, apart = torch.minimum(*members), (members[0] - members[1]).abs() / 2
    expected = [least, least, *members, apart]
    found = [trainer.callback_metrics[f"val/{name}"].item() for name in names]
    assert found == pytest.approx([column.mean().item() for column in expected], abs=1e-4)
    assert trainer.logger.values("objective/reward_spread")[0] > 0.1
    assert list(module.frozen.digests) == [REFERENCE, *folders]


def test_without_an_ensemble_no_spread_is_logged(fit, ppo):
    names = {name for name, *_ in fit(*ppo()).logger.points}
    assert not [name for name in names if "spread" in name]


def test_each_term_of_a_sum_is_logged_and_together_they_are_the_score(fit, ppo, micro, functions):
    terms = [RewardSource(function="users_rewards:length", weight=-0.5), RewardSource(str(micro.reward))]
    logged = fit(*ppo(rewards=terms)).logger
    for room in ("objective", "val"):
        (length,), (model,) = (logged.values(f"{room}/score/{name}") for name in ("length", micro.reward.name))
        assert length < 0
        assert logged.values(f"{room}/score") == pytest.approx([length + model], rel=1e-5)
