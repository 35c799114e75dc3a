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
    assert asked == [(torch.device("cpu"), torch.float32)]
    rates, utilisation = (trainer.logger.values(f"perf/{name}") for name in ("tokens_per_s", "mfu"))
    assert utilisation == pytest.approx([rate * trainer.lightning_module.flops_per_token() / 2e12 for rate in rates])
    assert all(0.01 < held < 1000 for held in trainer.logger.values("perf/memory_gb"))


@pytest.mark.parametrize("word", ["reward", "ppo", "maml", "dpo"])
def test_a_peak_beside_work_that_is_no_tokens_is_refused(fit, procedure, word):
    line = r"^throughput\.peak_flops: found 1000000000000\.0, expected it left at None: \w+ does not count tokens"
    with pytest.raises(UserError, match=line):
        fit(*procedure(word), callbacks=[Throughput(peak_flops=1e12)])
