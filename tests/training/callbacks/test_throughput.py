"""Speed in the log."""

import pytest
import torch

from gpt_modules.errors import UserError
from gpt_modules.training.callbacks import throughput
from gpt_modules.training.callbacks.throughput import Throughput


def test_throughput_counts_tokens(fit, parts):
    trainer = fit(*parts(), max_epochs=2, callbacks=[Throughput(peak_flops=1e12)], log_every_n_steps=2)
    rates, utilisation = (trainer.logger.values(f"perf/{name}") for name in ("tokens_per_s", "mfu"))
    assert rates
    assert all(rate > 0 for rate in rates)
    per_token = trainer.lightning_module.flops_per_token()
    assert utilisation == pytest.approx([rate * per_token / 1e12 for rate in rates], rel=1e-3)


def test_without_a_peak_it_is_that_of_the_device_and_memory_is_told(fit, parts, monkeypatch):
    asked = []
    monkeypatch.setattr(throughput, "peak_flops", lambda *of: asked.append(of) or 2e12)
    trainer = fit(*parts(), callbacks=[Throughput()])
    assert {asking[:2] for asking in asked} == {(torch.device("cpu"), torch.float32)}
    rates, utilisation = (trainer.logger.values(f"perf/{name}") for name in ("tokens_per_s", "mfu"))
    assert utilisation == pytest.approx([rate * trainer.lightning_module.flops_per_token() / 2e12 for rate in rates])
    assert all(0.01 < held < 1000 for held in trainer.logger.values("perf/memory_gb"))


def test_a_measured_peak_is_the_most_of_several_moments(fit, parts, monkeypatch):
    """Before the first validation, at the first step and before the next validation, of which one is quiet."""
    found = iter([1e12, 4e12, 2e12])
    monkeypatch.setattr(throughput, "peak_flops", lambda *_: next(found))
    callback = Throughput()
    fit(*parts(), callbacks=[callback], num_sanity_val_steps=-1, max_epochs=1)
    assert callback._peak == 4e12
    assert next(found, None) is None


def test_a_measured_peak_is_no_less_than_what_the_run_reaches(fit, parts, monkeypatch):
    """As where another process was at work when it was measured; a peak that is given stands."""
    monkeypatch.setattr(throughput, "peak_flops", lambda *_: 1.0)
    assert max(fit(*parts(), callbacks=[Throughput()]).logger.values("perf/mfu")) == 1.0
    given = fit(*parts(), callbacks=[Throughput(peak_flops=1.0)]).logger.values("perf/mfu")
    assert min(given) > 1.0


def test_episodes_are_counted_by_whole_iterations(fit, procedure):
    """Two of four steps each, of which the first holds the rollout: nothing is told before it is over."""
    trainer = fit(*procedure("ppo"), max_epochs=2, callbacks=[Throughput()], limit_val_batches=0)
    assert trainer.global_step == 8
    told = [(step, value) for name, step, value in trainer.logger.points if name == "perf/episodes_per_s"]
    assert [step for step, _ in told] == [3, 4, 5, 6, 7]
    assert len({value for _, value in told[:4]}) == 1
    assert told[4][1] != told[3][1]


@pytest.mark.parametrize("word", ["reward", "ppo", "maml", "dpo"])
def test_a_peak_beside_work_that_is_no_tokens_is_refused(fit, procedure, word):
    line = r"^throughput\.peak_flops: found 1000000000000\.0, expected it left at None: \w+ does not count tokens"
    with pytest.raises(UserError, match=line):
        fit(*procedure(word), callbacks=[Throughput(peak_flops=1e12)])
