"""Where a reward comes from: a reward-model folder, any Python callable, or a weighted sum of both."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gpt_modules.backbone import RewardModel, load_pretrained, model_digest
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError, expect
from gpt_modules.scoring import import_reward, source_digest, text_scores
from gpt_modules.training.hyperparameters import expect_number, typed
from gpt_modules.training.rl.unchanged import FUNCTION


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

    def __post_init__(self) -> None:
        given = [name for name in (self.folder, self.function) if name]
        if len(given) != 1:
            found = "neither" if not given else "both"
            raise UserError(f"rewards: found {found} of folder and function, expected exactly one of them")
        expect_number("rewards.weight", self.weight, "(-inf, inf)")

    @property
    def name(self) -> str:
        """The folder or the function."""
        return self.folder or self.function or ""


def reward_sources(rewards: str | Sequence[RewardSource | Mapping[str, Any]]) -> list[RewardSource]:
    """A recipe's `rewards` as terms; a single string is a folder, or a function when it has the form
    `package.module:name`.

    Raises:
        UserError: there is none.
    """
    if isinstance(rewards, str):
        is_function = ":" in rewards and not Path(rewards).exists()
        return [RewardSource(function=rewards) if is_function else RewardSource(folder=rewards)]
    expect(len(rewards) > 0, "rewards", [], "at least one folder or function")
    return [typed(RewardSource, source) for source in rewards]


class ModelScores:
    """A frozen reward model as a term. Its head and its constants stay float32, whatever the trunk becomes.

    Args:
        place: brings a trunk to the device and the precision of the run.
    """

    def __init__(self, folder: str, tokenizer: Tokenizer, place: Callable[[nn.Module], nn.Module]) -> None:
        self.model = open_reward_model(folder, tokenizer)
        self.digest: str | None = model_digest(self.model)
        trunk = place(self.model.decoder)
        self.model.to(next(trunk.parameters()).device)

    def __call__(self, sequences: Sequences) -> Float[Tensor, "B"]:
        """The model's score at the last token of each row."""
        scores: Tensor = self.model(sequences.tokens, sequences.lengths)
        return scores


class FunctionScores:
    """A function on texts as a term."""

    def __init__(self, name: str, tokenizer: Tokenizer) -> None:
        self.name, self.tokenizer, self.function = name, tokenizer, import_reward(name)
        self.digest = source_digest(self.function)

    def __call__(self, sequences: Sequences) -> Float[Tensor, "B"]:
        """What the function says of each row's texts."""
        scores = text_scores(f"rewards: {self.name}", self.function, *texts(sequences, self.tokenizer))
        return torch.tensor(scores, dtype=torch.float32, device=sequences.tokens.device)


class Reward:
    """The weighted sum of its sources; never trained, never stored in a checkpoint."""

    def __init__(
        self, sources: Sequence[RewardSource], tokenizer: Tokenizer, place: Callable[[nn.Module], nn.Module]
    ) -> None:
        self.sources = sources
        self.terms: list[ModelScores | FunctionScores] = [
            FunctionScores(source.function, tokenizer)
            if source.function
            else ModelScores(source.name, tokenizer, place)
            for source in sources
        ]

    def __call__(self, sequences: Sequences) -> Float[Tensor, "B"]:
        """Score each response, float32, without gradients.

        Raises:
            UserError: a score is no finite number.
        """
        total = torch.zeros(len(sequences.tokens), dtype=torch.float32, device=sequences.tokens.device)
        with torch.no_grad():
            for source, term in zip(self.sources, self.terms, strict=True):
                total += source.weight * term(sequences).float()
        if not bool(total.isfinite().all()):
            names = ", ".join(source.name for source in self.sources)
            raise UserError(f"rewards: found a score that is not finite, expected numbers of {names}")
        return total

    def models(self) -> dict[str, RewardModel]:
        """The reward models by folder."""
        terms = zip(self.sources, self.terms, strict=True)
        return {source.name: term.model for source, term in terms if isinstance(term, ModelScores)}

    def digests(self) -> dict[str, str | None]:
        """SHA-256 of each source as it was read."""
        kinds = [FUNCTION if source.function else "" for source in self.sources]
        names = [kind + source.name for kind, source in zip(kinds, self.sources, strict=True)]
        return dict(zip(names, (term.digest for term in self.terms), strict=True))


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
    check_tokenizer(folder, tokenizer)
    return model.requires_grad_(False).eval()


def check_tokenizer(folder: str, tokenizer: Tokenizer) -> None:
    """Raises:
    UserError: the folder's tokenizer is not the policy's.
    """
    if not tokenizer.reads_like(Tokenizer.load(folder)):
        raise UserError(
            f"{folder}/tokenizer.json: differs from the policy's tokenizer, expected the same: "
            "token ids are scored as they are"
        )
