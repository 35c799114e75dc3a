"""What the models around a policy must be: the critic in units of the reward, all of them wide enough for its text."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from gpt_modules.backbone import GPT, DecoderConfig, RewardModel
from gpt_modules.backbone.heads import ScalarHead
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError
from gpt_modules.training import artefacts
from gpt_modules.training.rl.rewards import RewardSource
from gpt_modules.training.rl.scores import Moments
from gpt_modules.training.sharding.models import is_sharded, let_go


def critic_folder(told: str | None, sources: Sequence[RewardSource], init_from: str) -> str:
    """Where the critic begins: as it is told, or as the first reward model that reads the policy's tokens, or as the
    policy.
    """
    if told is not None:
        return told
    ours = Tokenizer.load(init_from)
    folders = (folder for source in sources for folder in source.folders)
    return next((folder for folder in folders if ours.reads_like(Tokenizer.load(folder))), init_from)


def open_critic(folder: str, sources: Sequence[RewardSource]) -> RewardModel:
    """The critic without dropout, in units of what is optimised.

    A reward model values with its bias, its scale and its weight in the sum, where a member stands for its ensemble:
    all of them say the same in the same units. The trunk of a language model gets a head
    of zeros (Ziegler et al. 2019, code): a random one on pretrained states is far off, and explains less than nothing.
    """
    critic = artefacts.open_scorer(folder, zero_head=True, **artefacts.dropout_changes(0.0))
    weight = next((source.weight for source in sources if folder in source.folders), 1.0)
    critic.scale.mul_(weight)
    return critic.fold_scale()


def shared_critic(policy: GPT, folder: str | None, sources: Sequence[RewardSource]) -> RewardModel:
    """A critic whose trunk is the policy's own, under a head of zeros (Ziegler et al. 2019, code) or that of a folder.

    Raises:
        UserError: the folder's head has learnt to read another trunk.
    """
    if folder is None:
        head = ScalarHead(policy.config.n_embd)
        nn.init.zeros_(head.linear.weight)
    else:
        stored = open_critic(folder, sources)
        theirs, own = stored.decoder.state_dict(), policy.decoder.state_dict()
        if theirs.keys() != own.keys() or not all(torch.equal(value, own[name]) for name, value in theirs.items()):
            raise UserError(
                f"critic.init_from: {folder}: found a head on another trunk than the policy's, expected the folder "
                "that was exported beside it; leave it out for a head of zeros"
            )
        head = stored.head
    return on_trunk(policy, head.to(policy.head_weight.device, policy.head_weight.dtype))


def on_trunk(policy: GPT, head: ScalarHead) -> RewardModel:
    """The model whose trunk is the policy's, not a copy of it, under this head; of one in shards `whole` makes one."""
    model = RewardModel(policy.config, policy.decoder)
    model.head = head
    if is_sharded(policy):
        let_go(policy)
        with torch.device("meta"):
            blank = ScalarHead(policy.config.n_embd)
        model.blank = lambda: on_trunk(policy.blank(), blank)  # type: ignore[assignment, operator]
    return model.to(policy.head_weight.device)


@torch.no_grad()
def change_units(critic: RewardModel, before: Moments, after: Moments) -> None:
    """Let a critic value in the units of scores that are normalised otherwise, to which nothing changes where `after`
    are those of what it values in the units of `before`.
    """
    let_go(critic)
    gain, mean = before.deviation / after.deviation, (before.mean - after.mean) / after.deviation
    critic.head.linear.weight.mul_(gain)
    critic.head.linear.bias.mul_(gain).add_(mean)


def check_fit(
    policy: DecoderConfig, others: Mapping[str, nn.Module], longest: int, max_new_tokens: int, end: int = 0
) -> None:
    """Every model that reads the policy's text has room for it and knows its tokens.

    Args:
        others: by the folder they are from.
        longest: tokens of the longest prompt.
        end: tokens that a reward model reads after a response.

    Raises:
        UserError: one has not; before the first response.
    """
    for name, model in others.items():
        config = model.config
        assert isinstance(config, DecoderConfig)
        after = end if isinstance(model, RewardModel) else 0
        if longest + max_new_tokens + after > config.n_positions:
            raise UserError(
                f"model.max_new_tokens: found {max_new_tokens} after prompts of up to {longest} tokens"
                f"{' and before the end-of-text token' if after else ''}, "
                f"expected at most n_positions = {config.n_positions} of {name} together; "
                "data.max_prompt_tokens leaves out longer prompts"
            )
        if config.vocab_size < policy.vocab_size:
            raise UserError(
                f"{name}: found a vocabulary of {config.vocab_size}, expected at least the policy's "
                f"{policy.vocab_size}: it reads what the policy says"
            )
