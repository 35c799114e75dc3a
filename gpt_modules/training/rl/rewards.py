"""Where a reward comes from: a reward-model folder, any Python callable, or a weighted sum of both."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gpt_modules.backbone import RewardModel, load_pretrained
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError
from gpt_modules.training.hyperparameters import typed

TextReward = Callable[[list[str], list[str]], Sequence[float]]


class Sequences(NamedTuple):
    """Prompts and their responses, right-padded.

    tokens: (B, T) ids, prompt then response, 0 where there is nothing.
    prompt_lengths: (B,) tokens of the prompt.
    lengths: (B,) tokens of prompt and response, the end-of-text token included.
    """

    tokens: Int[Tensor, "B T"]
    prompt_lengths: Int[Tensor, "B"]
    lengths: Int[Tensor, "B"]


@dataclass(frozen=True)
class RewardSource:
    """One term of the reward: exactly one of `folder` and `function`.

    Args:
        folder: an exported reward model; it reads the policy's token ids as they are, so both must share a tokenizer.
        function: `package.module:name` of a callable (prompts, responses) -> scores, on texts.
        weight: factor in the sum.
    """

    folder: str | None = None
    function: str | None = None
    weight: float = 1.0


def reward_sources(rewards: str | Sequence[RewardSource | Mapping[str, Any]]) -> list[RewardSource]:
    """A recipe's `rewards` as terms; a single string is a folder, or a function when it has the form
    `package.module:name`.
    """
    if isinstance(rewards, str):
        is_function = ":" in rewards and not Path(rewards).exists()
        return [RewardSource(function=rewards) if is_function else RewardSource(folder=rewards)]
    return [typed(RewardSource, source) for source in rewards]


class Reward:
    """The weighted sum of its sources; never trained, never stored in a checkpoint."""

    def __init__(self, sources: Sequence[RewardSource], tokenizer: Tokenizer, device: torch.device) -> None:
        self.tokenizer = tokenizer
        self.terms = [(source.weight, self._open(source, device)) for source in sources]

    def _open(self, source: RewardSource, device: torch.device) -> Callable[[Sequences], Tensor]:
        if (source.folder is None) == (source.function is None):
            raise UserError("rewards: each source needs exactly one of folder and function")
        if source.folder is not None:
            return self._model_scores(open_reward_model(source.folder, self.tokenizer).to(device))
        assert source.function is not None
        return self._text_scores(import_reward(source.function), source.function)

    def __call__(self, sequences: Sequences) -> Float[Tensor, "B"]:
        """Score each response, float32, without gradients."""
        with torch.no_grad():
            total = sequences.tokens.new_zeros(len(sequences.tokens), dtype=torch.float32)
            for weight, term in self.terms:
                total += weight * term(sequences).float()
        return total

    @staticmethod
    def _model_scores(model: RewardModel) -> Callable[[Sequences], Tensor]:
        return lambda sequences: model(sequences.tokens, sequences.lengths)

    def _text_scores(self, function: TextReward, name: str) -> Callable[[Sequences], Tensor]:
        def scores(sequences: Sequences) -> Tensor:
            prompts, responses = texts(sequences, self.tokenizer)
            values = torch.as_tensor(function(prompts, responses), dtype=torch.float32)
            if values.shape != (len(prompts),):
                raise UserError(f"rewards: {name} gave shape {tuple(values.shape)}, expected ({len(prompts)},)")
            return values.to(sequences.tokens.device)

        return scores


def texts(sequences: Sequences, tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    """Prompts and responses as text, without the end-of-text token."""
    rows = zip(sequences.tokens.tolist(), sequences.prompt_lengths.tolist(), sequences.lengths.tolist(), strict=True)
    pairs = [(tokenizer.decode(ids[:start]), tokenizer.decode(ids[start:end])) for ids, start, end in rows]
    return [prompt for prompt, _ in pairs], [response for _, response in pairs]


def open_reward_model(folder: str, tokenizer: Tokenizer) -> RewardModel:
    """A frozen reward model whose tokenizer is the policy's.

    Raises:
        UserError: when the folder holds no reward model, or another tokenizer.
    """
    model = load_pretrained(folder, kind="reward", **{f"{part}_pdrop": 0.0 for part in ("embd", "attn", "resid")})
    assert isinstance(model, RewardModel)
    if Tokenizer.load(folder).fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"{folder}/tokenizer.json: differs from the policy's tokenizer, expected the same: "
            "token ids are scored as they are"
        )
    return model.requires_grad_(False).eval()


def import_reward(name: str) -> TextReward:
    """The callable that a recipe names.

    Raises:
        UserError: when it cannot be found.
    """
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"rewards.function: found {name!r}, expected 'package.module:name' of a callable: {error}"
        ) from error
    if not callable(function):
        raise UserError(f"rewards.function: {name!r} is no callable")
    return function  # type: ignore[no-any-return]
