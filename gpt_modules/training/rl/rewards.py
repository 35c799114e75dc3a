"""Where a reward comes from: a reward-model folder, an ensemble of them, any Python callable, or a weighted sum."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gpt_modules.backbone import RewardModel
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError, expect
from gpt_modules.functional import Combination, combine_ensemble, ensemble_spread
from gpt_modules.training.hyperparameters import expect_idle, expect_number, typed
from gpt_modules.training.preference_metrics import tag_of
from gpt_modules.training.rl.sequences import Sequences
from gpt_modules.training.rl.terms import Columns, FunctionScores, ModelScores
from gpt_modules.training.rl.unchanged import FUNCTION

COMBINATIONS: tuple[Combination, ...] = get_args(Combination)


@dataclass(frozen=True)
class RewardSource:
    """One term of the reward: exactly one of `folder`, `function` and `ensemble`.

    Args:
        folder: an exported reward model; one with another tokenizer than the policy's reads texts.
        function: `package.module:name` of a callable (prompts, responses) -> scores, on texts. It also gets, if it asks
            for them by name: `ended`, `token_ids`, `prompt_token_ids`, and any further column of the prompts' rows.
        ensemble: folders of reward models that say the same in the same units, such as those of several seeds.
        combine: an ensemble's scores by their mean, by the worst, or by their mean less `spread_coef` standard
            deviations; see `combine_ensemble`.
        spread_coef: standard deviations that `mean_minus_spread` takes off.
        weight: factor in the sum. Members are weighted before they are combined, so that the worst of a term that
            counts against the sum is the one that takes most.
    """

    folder: str | None = None
    function: str | None = None
    ensemble: list[str] | None = None
    combine: Combination | None = None
    spread_coef: float | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        kinds = ("folder", "function", "ensemble")
        found = [kind for kind in kinds if getattr(self, kind)]
        if len(found) != 1:
            which = " and ".join(found) or "none"
            raise UserError(f"rewards: found {which} of {', '.join(kinds)}, expected exactly one of them")
        expect_number("rewards.weight", self.weight, "(-inf, inf)")
        if self.ensemble is None:
            expect_idle("rewards.combine", self.combine, [None], f"a {found[0]} is alone")
        else:
            expect(len(self.ensemble) > 1, "rewards.ensemble", self.ensemble, "at least two folders")
            expect(self.combine in COMBINATIONS, "rewards.combine", self.combine, f"one of {', '.join(COMBINATIONS)}")
        if self.combine == "mean_minus_spread":
            expect_number("rewards.spread_coef", self.spread_coef, "(0, inf)")
        else:
            expect_idle("rewards.spread_coef", self.spread_coef, [None], "combine is not mean_minus_spread")

    @property
    def folders(self) -> list[str]:
        """Those of its reward models; none for a function."""
        return self.ensemble or ([self.folder] if self.folder else [])

    @property
    def names(self) -> list[str]:
        """The folders or the function."""
        return self.folders or [self.function or ""]

    def label(self) -> str:
        """What a metric of this term is named by: the function, or the last word of a folder that is not `export`."""
        if self.function:
            return self.function.rpartition(":")[2]
        words = [word for word in Path(self.names[0]).parts if word not in ("export", "/")]
        return f"{words[-1] if words else 'export'}{'-ensemble' if self.ensemble else ''}"

    def combined(self, scores: Float[Tensor, "K B"]) -> Float[Tensor, "B"]:
        """One score from those of its members."""
        return scores[0] if self.combine is None else combine_ensemble(scores, self.combine, self.spread_coef)


def reward_sources(
    rewards: str | RewardSource | Mapping[str, Any] | Sequence[RewardSource | Mapping[str, Any]],
) -> list[RewardSource]:
    """A recipe's `rewards` as terms: one, or a list of them; a string is a folder, or a function when it has the form
    `package.module:name`.

    Raises:
        UserError: there is none.
    """
    if isinstance(rewards, str):
        is_function = ":" in rewards and not Path(rewards).exists()
        return [RewardSource(function=rewards) if is_function else RewardSource(folder=rewards)]
    if isinstance(rewards, RewardSource | Mapping):
        return [typed(RewardSource, rewards)]
    expect(isinstance(rewards, Sequence), "rewards", rewards, "a folder, a function's name, a term or a list of terms")
    expect(len(rewards) > 0, "rewards", [], "at least one folder, function or ensemble")
    return [typed(RewardSource, source) for source in rewards]


def term_names(sources: Sequence[RewardSource]) -> list[str]:
    """Of the terms of a sum, each by its `label`, with its place where two have the same; none for one term, which is
    the whole reward.
    """
    if len(sources) == 1:
        return []
    labels = [tag_of(source.label()) for source in sources]
    return [f"{label}-{i}" if labels.count(label) > 1 else label for i, label in enumerate(labels, start=1)]


def expect_weight(field: str, sources: Sequence[RewardSource]) -> None:
    """Raises:
    UserError: their sum is 0 whatever they say.
    """
    weights = [source.weight for source in sources]
    expect(any(weights), f"{field}.weight", weights, "one that is not 0")


class Scores(NamedTuple):
    """What a reward says of each response.

    totals: (B,) the weighted sum of the terms.
    spreads: (B, E) of each of the E ensembles among them: the standard deviation of its weighted members.
    terms: (B, S) the weighted terms, in their order.
    """

    totals: Float[Tensor, "B"]
    spreads: Float[Tensor, "B E"]
    terms: Float[Tensor, "B S"]


class Reward:
    """The weighted sum of its sources; never trained, never stored in a checkpoint.

    Args:
        opened: models by folder that are there already, whoever they were opened for; those of these sources join them.
        data: what functions find columns in.
    """

    def __init__(
        self,
        sources: Sequence[RewardSource],
        tokenizer: Tokenizer,
        place: Callable[[nn.Module], nn.Module],
        opened: dict[str, ModelScores] | None = None,
        data: Columns | None = None,
    ) -> None:
        models = {} if opened is None else opened
        for folder in (folder for source in sources for folder in source.folders):
            if folder not in models:
                models[folder] = ModelScores(folder, tokenizer, place, data)
        self.sources = sources
        self.terms: list[list[ModelScores] | list[FunctionScores]] = [
            [FunctionScores(source.function, tokenizer, data)]
            if source.function
            else [models[folder] for folder in source.folders]
            for source in sources
        ]
        for source, term in zip(self.sources, self.terms, strict=True):
            _check_members(source, [member.digest for member in term])

    @torch.no_grad()
    def __call__(self, sequences: Sequences) -> Scores:
        """Score each response, float32, without gradients; every member reads them once.

        Raises:
            UserError: a score is no finite number.
        """
        spreads, terms = [], []
        for source, term in zip(self.sources, self.terms, strict=True):
            scores = source.weight * torch.stack([member(sequences).float() for member in term])
            for name, own in zip(source.names, scores, strict=True):
                if not bool(own.isfinite().all()):
                    raise UserError(f"rewards: found a score that is not finite, expected numbers of {name}")
            terms.append(source.combined(scores))
            spreads += [ensemble_spread(scores)] if source.ensemble else []
        totals, stacked = torch.stack(terms).sum(0), torch.stack(terms, 1)
        return Scores(totals, torch.stack(spreads, 1) if spreads else stacked[:, :0], stacked)

    def models(self) -> dict[str, RewardModel]:
        """The reward models by folder."""
        return {name: member.model for name, member in self.readers().items()}

    def readers(self) -> dict[str, ModelScores]:
        """The terms that are reward models, by folder."""
        return {name: member for name, member in self._members() if isinstance(member, ModelScores)}

    def digests(self) -> dict[str, str | None]:
        """SHA-256 of each model and function as it was read."""
        kinds = {FunctionScores: FUNCTION, ModelScores: ""}
        return {kinds[type(member)] + name: member.digest for name, member in self._members()}

    def _members(self) -> Iterator[tuple[str, ModelScores | FunctionScores]]:
        for source, term in zip(self.sources, self.terms, strict=True):
            yield from zip(source.names, term, strict=True)


def _check_members(source: RewardSource, digests: Sequence[str | None]) -> None:
    """A model that is there twice counts double, and lies nowhere apart from itself."""
    first: dict[str | None, str] = {}
    for name, digest in zip(source.names, digests, strict=True):
        if digest in first:
            raise UserError(f"rewards.ensemble: found the model of {first[digest]} in {name} again, expected another")
        first[digest] = name
