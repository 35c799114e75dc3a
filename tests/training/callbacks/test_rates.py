"""Learning rates as a run logs them."""

from gpt_modules.training.callbacks.rates import rates


def groups(*rows):
    return [{"lr": lr, "initial_lr": peak, **({} if name is None else {"name": name})} for lr, peak, name in rows]


def test_one_peak_is_one_curve():
    assert rates(groups((0.5, 1.0, "policy"), (0.5, 1.0, "value"))) == {"train/lr": 0.5}
    assert rates([{"lr": 0.25}]) == {"train/lr": 0.25}


def test_the_rate_of_the_recipe_has_one_name_and_others_stand_beside_it():
    muon = groups((0.2, 2.0, "muon"), (0.1, 1.0, "adamw"), (0.1, 1.0, "adamw"))
    assert rates(muon) == {"train/lr": 0.1, "train/lr/muon": 0.2}
    critic = groups((0.0, 1.0, "policy"), (0.0, 1.0, "policy"), (0.3, 3.0, "value"), (0.3, 3.0, "value"))
    assert rates(critic) == {"train/lr": 0.0, "train/lr/value": 0.3}
    by_depth = groups((0.4, 4.0, None), (0.4, 4.0, None), (0.2, 2.0, None), (0.2, 2.0, None), (0.4, 4.0, None))
    assert rates(by_depth) == {"train/lr": 0.4, "train/lr/2": 0.2}
    assert rates(groups((0.2, 2.0, "muon"))) == {"train/lr": 0.2}, "updates of matrices alone"
