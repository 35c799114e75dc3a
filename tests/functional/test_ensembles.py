import math

import pytest
import torch

from gpt_modules.functional import combine_ensemble, ensemble_spread

FORMS = [("mean", None), ("worst", None), ("mean_minus_spread", 2.0)]
# Three members on two answers: 1, 2, 6 and -4, -4, -1; their variances are 14/3 and 2.
SCORES = torch.tensor([[1.0, -4.0], [2.0, -4.0], [6.0, -1.0]])


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (FORMS[0], [3.0, -3.0]),
        (FORMS[1], [1.0, -4.0]),
        (FORMS[2], [3 - 2 * math.sqrt(14 / 3), -3 - 2 * math.sqrt(2)]),
    ],
)
def test_literals(form, expected):
    torch.testing.assert_close(combine_ensemble(SCORES, *form), torch.tensor(expected))


def test_the_spread_is_the_root_of_the_variance_over_all_members():
    torch.testing.assert_close(ensemble_spread(SCORES), torch.tensor([math.sqrt(14 / 3), math.sqrt(2)]))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("members", [1, 2, 5])
def test_equal_members_are_one_of_them_in_every_form(form, members):
    one = torch.randn(7)
    torch.testing.assert_close(combine_ensemble(one.expand(members, 7), *form), one)


@pytest.mark.parametrize("form", FORMS)
def test_units_of_the_scores_do_not_matter_nor_does_the_order_of_members(form):
    scores = torch.randn(4, 9).double()
    combined = combine_ensemble(scores, *form)
    torch.testing.assert_close(combine_ensemble(3.5 * scores - 2.0, *form), 3.5 * combined - 2.0)
    torch.testing.assert_close(combine_ensemble(scores[[2, 0, 3, 1]], *form), combined)


def test_no_form_is_above_the_mean_and_none_touches_its_argument():
    scores = torch.randn(4, 9)
    before = scores.clone()
    mean, worst, less = (combine_ensemble(scores, *form) for form in FORMS)
    assert (worst < mean).all()
    assert (less < mean).all()
    assert torch.equal(scores, before)


def test_a_coefficient_without_a_place_and_another_combination_are_refused():
    # Past the type check of the tests, which refuses the latter too.
    unchecked = getattr(combine_ensemble, "__wrapped__", combine_ensemble)
    for form in (("mean", 1.0), ("worst", 0.0), ("mean_minus_spread", None)):
        with pytest.raises(ValueError, match=r"^spread_coef: found .* expected it with mean_minus_spread alone"):
            unchecked(SCORES, *form)
    with pytest.raises(ValueError, match=r"found 'median', expected 'mean', 'worst' or 'mean_minus_spread'"):
        unchecked(SCORES, "median")
