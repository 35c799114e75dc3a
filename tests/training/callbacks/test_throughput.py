"""Speed in the log."""

import pytest

from gpt_modules.errors import UserError
from gpt_modules.training.callbacks.throughput import Throughput


def test_throughput_counts_tokens(fit, parts):
    trainer = fit(*parts(), max_epochs=2, callbacks=[Throughput(peak_flops=1e12)], log_every_n_steps=2)
    rates, utilisation = (trainer.logger.values(f"perf/{name}") for name in ("tokens_per_s", "mfu"))
    assert rates
    assert all(rate > 0 for rate in rates)
    per_token = trainer.lightning_module.flops_per_token()
    assert utilisation == pytest.approx([rate * per_token / 1e12 for rate in rates], rel=1e-3)


@pytest.mark.parametrize("word", ["reward", "ppo", "maml", "dpo"])
def test_a_peak_beside_work_that_is_no_tokens_is_refused(fit, procedure, word):
    line = r"^throughput\.peak_flops: found 1000000000000\.0, expected it left at None: \w+ does not count tokens"
    with pytest.raises(UserError, match=line):
        fit(*procedure(word), callbacks=[Throughput(peak_flops=1e12)])
