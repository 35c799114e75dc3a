"""Rewards: folders, functions and sums of them, on token ids or on texts."""

import sys
import types

import pytest
import torch

from gpt_modules.backbone import RewardModel, load_pretrained, save_pretrained
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError
from gpt_modules.training.rl.rewards import Reward, RewardSource, Sequences, reward_sources


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
    return Sequences(tokens, starts, torch.tensor([len(row) for row in rows]))


def test_a_string_is_a_function_or_a_folder(tmp_path):
    assert reward_sources("a.b:c") == [RewardSource(function="a.b:c")]
    assert reward_sources("runs/reward/export") == [RewardSource(folder="runs/reward/export")]
    odd = tmp_path / "with:colon"
    odd.mkdir()
    assert reward_sources(str(odd)) == [RewardSource(folder=str(odd))]
    assert reward_sources([{"folder": "x", "weight": 2.0}]) == [RewardSource(folder="x", weight=2.0)]


def test_a_function_reads_texts_without_the_end_token(functions, micro, sequences):
    scores = Reward([RewardSource(function="users_rewards:length")], micro.tokenizer, as_is)(sequences)
    assert functions.calls == [(["the film", "a story"], [" is good.", " is bad"])]
    assert scores.tolist() == [9.0, 7.0]


def test_a_folder_scores_ids_at_the_last_token_with_its_bias_and_scale(micro, sequences):
    scores = Reward([RewardSource(folder=str(micro.reward))], micro.tokenizer, as_is)(sequences)
    model = load_pretrained(micro.reward, kind="reward").eval()
    for i, end in enumerate(sequences.lengths.tolist()):
        with torch.no_grad():
            raw = model.token_values(sequences.tokens[i : i + 1, :end])[0, -1].item()
        assert scores[i].item() == pytest.approx((raw + 0.7) * 1.9, abs=1e-4)
    assert scores.dtype == torch.float32


def test_terms_are_weighted_and_summed(functions, micro, sequences):
    model, length = RewardSource(folder=str(micro.reward)), RewardSource(function="users_rewards:length")
    alone = [Reward([source], micro.tokenizer, as_is)(sequences) for source in (model, length)]
    mixed = [RewardSource(folder=model.folder, weight=2.0), RewardSource(function=length.function, weight=-0.5)]
    assert torch.allclose(Reward(mixed, micro.tokenizer, as_is)(sequences), 2.0 * alone[0] - 0.5 * alone[1])


def test_a_reward_model_is_frozen_and_without_dropout(micro, sequences):
    """The folder stores dropout 0.3."""
    reward = Reward([RewardSource(folder=str(micro.reward))], micro.tokenizer, as_is)
    first = reward(sequences)
    assert torch.equal(first, reward(sequences))
    assert not first.requires_grad


def test_another_tokenizer_is_refused(micro, tmp_path):
    other = Tokenizer.train(["entirely other words stand here, again and again"] * 5, 280)
    save_pretrained(tmp_path / "reward", RewardModel(micro.config()), tokenizer_json=other.to_json())
    with pytest.raises(UserError, match=r"reward/tokenizer\.json: differs from the policy's tokenizer"):
        Reward([RewardSource(folder=str(tmp_path / "reward"))], micro.tokenizer, as_is)


def test_the_tokens_of_labelled_rows_make_no_other_tokenizer(micro, tmp_path):
    """They add ids at the end; no text is read otherwise."""
    theirs = micro.tokenizer.with_task_tokens()
    model = RewardModel(micro.config(vocab_size=theirs.vocab_size))
    save_pretrained(tmp_path / "reward", model, tokenizer_json=theirs.to_json())
    Reward([RewardSource(folder=str(tmp_path / "reward"))], micro.tokenizer, as_is)


@pytest.mark.parametrize("source", [{}, {"folder": ""}, {"folder": "x", "function": "y:z"}])
def test_a_source_is_a_folder_or_a_function(source):
    found = "both" if len(source) == 2 else "neither"
    line = f"^rewards: found {found} of folder and function, expected exactly one of them$"
    with pytest.raises(UserError, match=line):
        RewardSource(**source)


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_weight_is_a_number(weight):
    with pytest.raises(UserError, match=r"^rewards\.weight: found (nan|inf), expected a number in "):
        RewardSource(folder="x", weight=weight)


def test_no_source_is_no_reward():
    with pytest.raises(UserError, match=r"^rewards: found \[\], expected at least one folder or function$"):
        reward_sources([])


def test_a_missing_folder_is_one_line(micro):
    with pytest.raises(UserError, match="no/such/folder") as error:
        Reward([RewardSource(folder="no/such/folder/at/all")], micro.tokenizer, as_is)
    assert "\n" not in str(error.value)


def test_a_language_model_is_no_reward(micro):
    with pytest.raises(UserError, match="reward"):
        Reward([RewardSource(folder=str(micro.gpt))], micro.tokenizer, as_is)


def test_a_score_that_is_no_number_stops_the_run(functions, micro, sequences):
    sources = [RewardSource(folder=str(micro.reward)), RewardSource(function="users_rewards:length")]
    reward = Reward(sources, micro.tokenizer, as_is)
    reward.terms[0].model.bias.fill_(float("nan"))
    with pytest.raises(UserError) as error:
        reward(sequences)
    names = f"{micro.reward}, users_rewards:length"
    assert str(error.value) == f"rewards: found a score that is not finite, expected numbers of {names}"


def test_a_half_precision_trunk_keeps_a_float32_head(micro, sequences):
    """The bias 0.7 is none of bf16's numbers, and 512 scores would share 94 values."""
    reward = Reward([RewardSource(folder=str(micro.reward))], micro.tokenizer, lambda model: model.bfloat16())
    (model,) = reward.models().values()
    assert model.decoder.wte.weight.dtype == torch.bfloat16
    assert model.head.linear.weight.dtype == model.bias.dtype == torch.float32
    assert model.bias.item() == torch.tensor(0.7).item()
    scores = reward(sequences)
    assert not torch.equal(scores, scores.bfloat16().float())
    exact = Reward([RewardSource(folder=str(micro.reward))], micro.tokenizer, as_is)(sequences)
    assert torch.allclose(scores, exact, atol=0.3)


def test_the_digest_is_of_what_was_read(micro, functions, tmp_path):
    sources = [RewardSource(folder=str(micro.reward)), RewardSource(function="users_rewards:length")]
    digests = Reward(sources, micro.tokenizer, as_is).digests()
    assert list(digests) == [str(micro.reward), "function users_rewards:length"]
    again = Reward(sources, micro.tokenizer, lambda model: model.bfloat16()).digests()
    assert again == digests, "whatever the precision of the run"
    assert all(len(digest) == 64 for digest in digests.values())
