"""Where the critic begins, and what every model beside the policy must have room for."""

import pytest
import torch
from conftest import shaken

from gpt_modules.backbone import GPT, LabellingModel, RewardModel, load_pretrained, save_pretrained
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError
from gpt_modules.labelling import Labelling
from gpt_modules.training.rl.models import change_units, check_fit, critic_folder, on_trunk, open_critic, shared_critic
from gpt_modules.training.rl.rewards import RewardSource
from gpt_modules.training.rl.scores import Moments

TOKENS, LENGTHS = torch.tensor([[5, 6, 7, 8], [9, 3, 0, 0]]), torch.tensor([4, 2])
FUNCTION = RewardSource(function="a.b:c")


@pytest.mark.parametrize(
    ("told", "sources", "begins"),
    [
        (None, [FUNCTION], "policy"),
        (None, [FUNCTION, RewardSource(folder="first"), RewardSource(folder="second")], "first"),
        (None, [FUNCTION, RewardSource(ensemble=["one", "two"], combine="worst")], "one"),
        (None, [RewardSource(folder="foreign")], "policy"),
        (None, [RewardSource(ensemble=["foreign", "two"], combine="worst")], "two"),
        ("told", [RewardSource(folder="first")], "told"),
        ("told", [FUNCTION], "told"),
        ("", [FUNCTION], ""),
    ],
)
def test_the_critic_begins_as_told_or_as_the_first_reward_model_of_its_tokens_or_as_the_policy(
    told, sources, begins, micro, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for folder in ("policy", "first", "second", "one", "two"):
        micro.tokenizer.save(folder)
    Tokenizer.train(["entirely other words stand here, again and again"] * 5, 280).save("foreign")
    assert critic_folder(told, sources, "policy") == begins


@pytest.mark.parametrize("weight", [1.0, 2.5, -1.0])
def test_a_reward_model_values_the_last_token_as_it_adds_to_the_sum(micro, weight):
    """With the bias and the scale that its folder holds, in training mode too: there is no dropout."""
    other = RewardSource(folder="elsewhere", weight=7.0)
    ensemble = RewardSource(ensemble=["third", str(micro.reward)], combine="mean", weight=weight)
    scores = load_pretrained(micro.reward, kind="reward").eval()(TOKENS, LENGTHS)
    for source in (RewardSource(folder=str(micro.reward), weight=weight), ensemble):
        critic = open_critic(str(micro.reward), [other, source]).train()
        last = critic.token_values(TOKENS).gather(1, LENGTHS[:, None] - 1)[:, 0]
        torch.testing.assert_close(last, weight * scores)
        assert (critic.bias.item(), critic.scale.item()) == (0.0, 1.0)


def test_a_critic_that_changes_its_units_says_the_same_of_normalised_scores(micro):
    """From as they are to normalised, to normalised otherwise, and back."""
    scores = load_pretrained(micro.reward, kind="reward").eval()(TOKENS, LENGTHS)
    critic = open_critic(str(micro.reward), [RewardSource(folder=str(micro.reward))])

    def last():
        return critic.token_values(TOKENS).gather(1, LENGTHS[:, None] - 1)[:, 0]

    none, first, second = Moments(), Moments("running", 4, 2.0, 36.0), Moments("reference", 2, -1.0, 8.0)
    change_units(critic, none, first)
    torch.testing.assert_close(last(), (scores - 2.0) / 3.0)
    change_units(critic, first, second)
    torch.testing.assert_close(last(), (scores + 1.0) / 2.0)
    change_units(critic, second, none)
    torch.testing.assert_close(last(), scores)


@pytest.mark.parametrize("end", [0, 1])
def test_a_reward_model_has_room_for_the_end_token_where_it_reads_one(micro, end):
    policy, reward = micro.config(), load_pretrained(micro.reward, kind="reward")
    check_fit(policy, {"reward": reward, "policy": load_pretrained(micro.gpt, kind="gpt")}, 24, 8 - end, end)
    check_fit(policy, {"policy": load_pretrained(micro.gpt, kind="gpt")}, 24, 8, end)
    line = r"found 8 after prompts of up to 24 tokens and before the end-of-text token, expected at most n_positions"
    if end:
        with pytest.raises(UserError, match=line):
            check_fit(policy, {"reward": reward}, 24, 8, end)


def test_a_critic_that_is_no_term_of_the_sum_has_no_weight(micro):
    critic = open_critic(str(micro.reward), [RewardSource(folder="elsewhere", weight=7.0)])
    as_stored = load_pretrained(micro.reward, kind="reward").fold_scale()
    assert all(torch.equal(value, as_stored.state_dict()[name]) for name, value in critic.state_dict().items())


def test_a_language_models_critic_says_zero_and_keeps_the_trunk(micro):
    critic = open_critic(str(micro.gpt), [FUNCTION])
    assert torch.equal(critic.token_values(TOKENS), torch.zeros(2, 4))
    trunk = load_pretrained(micro.gpt, kind="gpt").decoder.state_dict()
    assert all(torch.equal(value, trunk[name]) for name, value in critic.decoder.state_dict().items())


def test_a_model_that_labels_is_no_critic(micro, tmp_path):
    save_pretrained(tmp_path, LabellingModel(micro.config(), Labelling("classification", ("a", "b"))))
    with pytest.raises(UserError) as refused:
        open_critic(str(tmp_path), [])
    assert str(refused.value) == f"{tmp_path}: found a model of kind 'task', expected 'reward' or 'gpt'"


def test_the_longest_prompt_and_its_answer_fill_the_positions(micro):
    others = {"runs/sft": RewardModel(micro.config()), "runs/small": RewardModel(micro.config(n_positions=20))}
    check_fit(micro.config(), others, longest=12, max_new_tokens=8)
    with pytest.raises(UserError) as refused:
        check_fit(micro.config(), others, longest=12, max_new_tokens=9)
    assert str(refused.value) == (
        "model.max_new_tokens: found 9 after prompts of up to 12 tokens, expected at most n_positions = 20 "
        "of runs/small together; data.max_prompt_tokens leaves out longer prompts"
    )


def test_every_model_knows_every_token_that_the_policy_may_say(micro):
    policy = micro.config(vocab_size=50)
    check_fit(policy, {str(size): RewardModel(micro.config(vocab_size=size)) for size in (50, 51)}, 1, 1)
    with pytest.raises(UserError) as refused:
        check_fit(policy, {"runs/reward": RewardModel(micro.config(vocab_size=49))}, 1, 1)
    assert str(refused.value) == (
        "runs/reward: found a vocabulary of 49, expected at least the policy's 50: it reads what the policy says"
    )


def test_a_shared_trunk_is_the_policys_own(micro):
    """Under a head of zeros it says zero, and what moves the policy moves it."""
    policy = load_pretrained(micro.gpt, kind="gpt")
    critic = shared_critic(policy, None, [FUNCTION])
    assert critic.decoder is policy.decoder
    assert torch.equal(critic.token_values(TOKENS), torch.zeros(2, 4))
    assert len(list(critic.parameters())) == len(list(policy.parameters())) + 2


def test_a_head_goes_on_with_the_trunk_that_it_was_exported_with(micro, tmp_path):
    policy = load_pretrained(micro.gpt, kind="gpt")
    head = load_pretrained(micro.reward, kind="reward").head
    save_pretrained(tmp_path / "critic", on_trunk(policy, head))
    critic = shared_critic(policy, str(tmp_path / "critic"), [FUNCTION])
    assert critic.decoder is policy.decoder
    assert torch.equal(critic.head.linear.weight, head.linear.weight)
    with pytest.raises(UserError, match=r"^critic\.init_from: .*/reward: found a head on another trunk than"):
        shared_critic(policy, str(micro.reward), [FUNCTION])


# --- in a run ---


def test_a_text_that_a_model_has_no_room_for_is_told_before_the_first_step(fit, ppo, micro, tmp_path):
    """Of the policy, or of the reward model alone; by a bound that is exact."""
    _, data = ppo()
    data.setup("fit")
    room = 32 - data.longest_prompt
    assert fit(*ppo(max_new_tokens=room), limit_train_batches=0, limit_val_batches=0).global_step == 0
    line = rf"^model\.max_new_tokens: found {room + 1} after prompts of up to .* n_positions = 32 of "
    with pytest.raises(UserError, match=line):
        fit(*ppo(max_new_tokens=room + 1))
    small = shaken(RewardModel(micro.config(n_positions=data.longest_prompt + 7)), 2)
    save_pretrained(tmp_path / "small", small, tokenizer_json=micro.tokenizer.to_json())
    with pytest.raises(UserError, match=r"max_new_tokens: found 8 .* of .*/small together"):
        fit(*ppo(rewards=str(tmp_path / "small")))


def test_a_reward_model_that_does_not_know_the_policys_tokens_is_told(fit, ppo, micro, tmp_path):
    """The policy's embedding has rows beyond the tokenizer, as padded vocabularies do; it may say them."""
    wide = shaken(GPT(micro.config(vocab_size=micro.vocab_size + 4)), 1)
    save_pretrained(tmp_path / "wide", wide, tokenizer_json=micro.tokenizer.to_json())
    with pytest.raises(
        UserError, match=r"/reward: found a vocabulary of \d+, expected at least the policy's \d+: it reads"
    ):
        fit(*ppo(init_from=str(tmp_path / "wide")))
