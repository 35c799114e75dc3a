"""Learning rates as a run logs them."""

from gpt_modules.training.callbacks.rates import rates


def groups(*rows):
    return [{"lr": lr, "initial_lr": peak, **({} if name is None else {"name": name})} for lr, peak, name in rows]


def test_one_peak_is_one_curve():
    assert rates(groups((0.5, 1.0, "policy"), (0.5, 1.0, "value"))) == {"train/lr": 0.5}
    assert rates([{"lr": 0.25}]) == {"train/lr": 0.25}


def test_each_peak_has_its_own():
    named = groups((0.2, 2.0, "muon"), (0.1, 1.0, "adamw"), (0.1, 1.0, "adamw"))
    assert rates(named) == {"train/lr/muon": 0.2, "train/lr/adamw": 0.1}
    by_depth = groups((0.4, 4.0, None), (0.4, 4.0, None), (0.2, 2.0, None))
    assert rates(by_depth) == {"train/lr/0": 0.4, "train/lr/2": 0.2}
