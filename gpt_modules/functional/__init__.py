"""The mathematics: tensors in, tensors out; one function an equation. No module, no state, no argument written to."""

from gpt_modules.functional.adaptation import (
    Algorithm,
    MetaGradient,
    Parameters,
    adapt,
    exact_kernels,
    inner_gradient,
    meta_gradient,
    over_tasks,
    sgd_step,
)
from gpt_modules.functional.advantages import (
    generalized_advantage_estimation,
    group_relative_advantages,
    leave_one_out_advantages,
)
from gpt_modules.functional.best_of_n import best_of_n_kl, best_of_n_mean
from gpt_modules.functional.diversity import distinct_ngrams, repeated_ngrams
from gpt_modules.functional.ensembles import Combination, combine_ensemble, ensemble_spread
from gpt_modules.functional.kl import adaptive_kl_coef, kl_estimate, kl_shaped_rewards
from gpt_modules.functional.logprobs import entropy, linear_cross_entropy, linear_logprobs, token_logprobs
from gpt_modules.functional.losses import (
    PolicyLoss,
    PreferenceLosses,
    ValueLoss,
    clipped_value_loss,
    dpo_losses,
    explained_variance,
    kl_loss,
    pair_margins,
    ppo_clip_loss,
    preferred_nlls,
    ranking_loss,
    ranking_losses,
    supervised_scores,
)
from gpt_modules.functional.masking import masked_mean, masked_whiten, sequence_mean, token_mean
from gpt_modules.functional.preferences import deviation_correlation, group_means, row_deviations, untied_pairs
from gpt_modules.functional.responses import Counted, response_positions
from gpt_modules.functional.sampling import filter_logits
from gpt_modules.functional.soft_labels import expected_score, row_mean_weights, soft_targets

__all__ = [
    "Algorithm",
    "Combination",
    "Counted",
    "MetaGradient",
    "Parameters",
    "PolicyLoss",
    "PreferenceLosses",
    "ValueLoss",
    "adapt",
    "adaptive_kl_coef",
    "best_of_n_kl",
    "best_of_n_mean",
    "clipped_value_loss",
    "combine_ensemble",
    "deviation_correlation",
    "distinct_ngrams",
    "dpo_losses",
    "ensemble_spread",
    "entropy",
    "exact_kernels",
    "expected_score",
    "explained_variance",
    "filter_logits",
    "generalized_advantage_estimation",
    "group_means",
    "group_relative_advantages",
    "inner_gradient",
    "kl_estimate",
    "kl_loss",
    "kl_shaped_rewards",
    "leave_one_out_advantages",
    "linear_cross_entropy",
    "linear_logprobs",
    "masked_mean",
    "masked_whiten",
    "meta_gradient",
    "over_tasks",
    "pair_margins",
    "ppo_clip_loss",
    "preferred_nlls",
    "ranking_loss",
    "ranking_losses",
    "repeated_ngrams",
    "response_positions",
    "row_deviations",
    "row_mean_weights",
    "sequence_mean",
    "sgd_step",
    "soft_targets",
    "supervised_scores",
    "token_logprobs",
    "token_mean",
    "untied_pairs",
]
