"""Half precision, small and on a CPU: every procedure stays finite and near float32, and what is exact stays exact."""

import math

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

STEPS = 2
HALF = ["bf16-mixed", "bf16-true", "16-mixed"]
WITHOUT_DROPOUT = {
    "finetuning": {"dropout": 0.0, "classifier_dropout": 0.0},
    "sft": {"dropout": 0.0},
    "reward": {"dropout": 0.0},
    "ppo": {"ppo_epochs": 1, "minibatches": 1},
}


def precise(precision, device="cpu"):
    """Lightning takes float16 on a CPU for bfloat16, but not from its plugin."""
    if precision != "16-mixed":
        return {"precision": precision}
    return {"plugins": [MixedPrecision(precision, device, torch.amp.GradScaler(device, init_scale=2.0**8))]}


@pytest.fixture
def run(procedure, fit, micro):
    """run(word, precision, **trainer settings): a Trainer after a short fit."""
    dropout = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0)

    def go(word, precision, **settings):
        torch.manual_seed(0)
        given = {"config": micro.config(**dropout)} if word == "pretraining" else WITHOUT_DROPOUT.get(word, {})
        module, data = procedure(word, **given)
        steps = {"max_steps": STEPS, "limit_val_batches": 0, "gradient_clip_val": 1.0}
        kind = "cuda" if settings.get("accelerator") == "gpu" else "cpu"
        return fit(module, data, **steps, **precise(precision, kind), **settings)

    return go


@pytest.mark.parametrize("word", ["pretraining", "finetuning", "sft", "reward", "dpo", "maml", "ppo"])
def test_half_precision_stays_near_float32(run, word):
    """And a loss has more digits than bfloat16, whose weights are all that `bf16-true` rounds. PPO's first minibatch
    finds the policy that sampled it and that is its reference: the ratio is 1 and the distance 0, to the bit.
    """
    exact = run(word, "32-true").logger.values("train/loss")
    for precision in HALF:
        logged = run(word, precision).logger
        losses = logged.values("train/loss")
        assert losses == pytest.approx(exact, rel=0.02 if word != "ppo" else 0.2), precision
        assert any(torch.tensor(loss).bfloat16().item() != loss for loss in losses), precision
        if word == "ppo":
            first = [logged.values(name)[0] for name in ("policy/ratio", "policy/approx_kl", "objective/kl")]
            assert first == [1.0, 0.0, 0.0], precision
            assert 0.0 <= logged.values("sampler/kl")[0] < 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_the_device_finds_the_policy_that_sampled(run, precision):
    """On a device the two passes are of other shapes and may be of other kernels: to rounding, not to the bit."""
    logged = run("ppo", precision, accelerator="gpu").logger
    digits = 1e-5 if precision == "32-true" else 2e-2
    assert logged.values("policy/ratio")[0] == pytest.approx(1.0, abs=digits)
    assert logged.values("policy/approx_kl")[0] == pytest.approx(0.0, abs=digits)
    assert logged.values("objective/kl")[0] == pytest.approx(0.0, abs=20 * digits)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("word", ["pretraining", "finetuning", "sft", "reward", "dpo", "maml", "ppo"])
@pytest.mark.parametrize("precision", HALF)
def test_half_precision_of_a_device_stays_near_float32(run, word, precision):
    exact = run(word, "32-true").logger.values("train/loss")
    losses = run(word, precision, accelerator="gpu").logger.values("train/loss")
    assert all(map(math.isfinite, losses))
    if word != "ppo":  # whose answers are others
        assert losses == pytest.approx(exact, rel=0.05, abs=0.02)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("word", ["pretraining", "finetuning", "sft", "reward", "dpo", "maml", "ppo"])
def test_a_device_that_is_to_be_deterministic_is(run, word):
    """No operation of a procedure is one that torch has only without an order; two runs are the same, to the bit."""
    losses = [
        run(word, "bf16-mixed", accelerator="gpu", deterministic=True).logger.values("train/loss") for _ in range(2)
    ]
    assert losses[0] == losses[1]
    torch.use_deterministic_algorithms(False)
