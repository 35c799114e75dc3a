"""The tables on paper stand on bytes that are counted, and on plans that can be worked by hand."""

import pytest
import scale


@pytest.mark.parametrize(("recompute", "expected"), [(False, scale.LAYER), (True, scale.AGAIN)])
def test_a_layer_keeps_what_the_tables_take(recompute, expected):
    for n_embd in (64, 128):  # sums of norms and of attention's weights are a part that does not grow with the width
        assert all(expected <= found <= expected + 32 / n_embd for found in scale.kept_of_a_layer(n_embd, recompute))


def test_a_plan_by_hand():
    plan = scale.pretraining("1.3B", 8, "fsdp2")
    config = scale.config_of("1.3B")
    assert config.n_params() == 1_315_723_264
    assert plan.states == 16 * 1_315_723_264 / 8
    assert plan.activations == plan.rows * 2048 * 24 * 36 * 2048
    # 2^20 tokens on 8 devices, 16 rows of 2,048 at a time: 4 passes, each with weights sent twice and gradients once
    assert plan.sent == pytest.approx(4 * 3 * 2 * 1_315_723_264 / 450e9)
    assert scale.pretraining("6.7B", 8, "ddp") is None, "107 GB of states"
    assert scale.ppo("175B", 1024) is None, "350 GB are whole on a device while it answers"
