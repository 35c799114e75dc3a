"""The average against its sum in float64."""

import copy

import lightning.pytorch as L
import pytest
import torch
from conftest import shaken
from ppo_variants import FLAT, adam, distance, weights

from gpt_modules.backbone import GPT, load_pretrained
from gpt_modules.errors import UserError
from gpt_modules.training.rl.average import Average
from gpt_modules.training.rl.settings import CriticConfig, EMAConfig


def weight(model):
    return model.head_weight.detach().double()


@pytest.fixture
def policy(micro):
    return GPT(micro.config())


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_it_is_the_geometric_sum(policy, kind):
    """a = Σ (1 - d) dᵏ w: in bf16 too, where neither 0.992 nor its steps are numbers; and nobody else's weight."""
    policy = policy.to(kind)
    average, expected = Average(policy, 0.992), weight(policy)
    for seed in range(1, 20):
        shaken(policy, seed)
        average.update(policy)
        expected = 0.992 * expected + 0.008 * weight(policy)
    exact = average.state()["decoder.wte.weight"].double()
    assert (exact - expected).abs().max() < 1e-6
    assert average.model(policy).head_weight.dtype == kind
    torch.testing.assert_close(weight(average.model(policy)), expected.to(kind).double(), rtol=1e-2, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in average.model(policy).parameters())


def test_of_weights_that_rest_it_is_these_to_the_bit(policy):
    average = Average(policy, 0.992)
    for _ in range(5):
        average.update(policy)
    assert all(torch.equal(value, policy.state_dict()[name]) for name, value in average.state().items())


def test_it_goes_on(policy):
    first = Average(policy, 0.9)
    first.update(shaken(copy.deepcopy(policy), 1))
    second = Average(shaken(copy.deepcopy(policy), 3), 0.9)
    second.restore({name: value.clone() for name, value in first.state().items()})
    for average in (first, second):
        average.update(shaken(copy.deepcopy(policy), 2))
    assert torch.equal(weight(first.model(policy)), weight(second.model(policy)))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            lambda state: state.pop("decoder.wte.weight"),
            r"^ppo: average: found '\d+ tensors', expected the",
        ),
        (lambda state: state.update({"decoder.wte.weight": torch.ones(2)}), r"^ppo: average\.decoder\.wte\.weight: "),
        (lambda state: state.update({"decoder.wte.weight": 3}), r"^ppo: average\.decoder\.wte\.weight: found 'int'"),
        (lambda state: state["decoder.wte.weight"].fill_(float("nan")), r"weight: found 'NaN or infinity', expected "),
    ],
)
def test_what_is_no_average_of_this_policy_is_told(policy, change, line):
    state = copy.deepcopy(Average(policy, 0.9).state())
    change(state)
    with pytest.raises(UserError, match=line):
        Average(policy, 0.9).restore(state)


def test_an_average_that_the_checkpoint_does_not_have_is_told(policy):
    with pytest.raises(UserError, match=r"^model\.ema: found ema in the recipe, expected none, as the "):
        Average(policy, 0.9).restore(None)


# --- in a run ---


def test_the_average_is_that_of_the_steps_taken(fit, ppo):
    """Against the sum over the weights that the run had, and with a step of weight 1 the policy itself."""
    seen = []

    class Steps(L.Callback):
        def on_train_start(self, trainer, module):
            seen.append(weights(module.policy))

        def on_train_batch_end(self, trainer, module, *_):
            seen.append(weights(module.policy))

    module, data = ppo(ema=EMAConfig(0.5), optimizer=adam(1e-2), minibatches=3, ppo_epochs=2, episodes=12)
    fit(module, data, callbacks=[Steps()])
    expected, *later = seen
    for step in later:
        expected = {name: 0.5 * expected[name] + 0.5 * value for name, value in step.items()}
    assert len(later) == 6
    assert distance(expected, weights(module.learners.answering()["average"])) < 1e-5
    latest, data = ppo(ema=EMAConfig(0.0), optimizer=adam(1e-2))
    fit(latest, data)
    assert distance(weights(latest.policy), weights(latest.learners.answering()["average"])) == 0.0


@pytest.mark.parametrize("shared", [False, True])
def test_the_number_that_is_logged_is_of_the_weights_that_are_exported(fit, ppo, tmp_path, shared):
    """`val/...` of `export`, be it the policy or its average, and `val/ema/...` of `export-ema`: a run that begins from
    the folder says the same before its first step. The table says whose answers it shows.
    """
    found = {}
    names = ("score", "kl", "length", "repetition", "distinct_2", "score_std")
    for way in ("beside", "instead"):
        usual = {"optimizer": adam(3e-2), "schedule": FLAT, "critic": CriticConfig(shared_trunk=shared)}
        module, data = ppo(ema=EMAConfig(0.9, way), **usual)
        trainer = fit(module, data, max_epochs=2)
        metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
        module.export(tmp_path / way)
        folders = {"": tmp_path / way, "ema/": tmp_path / f"{way}-ema"}
        assert [path.exists() for path in folders.values()] == [True, way == "beside"]
        assert module.also_exports == (["critic", "ema"] if way == "beside" else ["critic"])
        for prefix, folder in folders.items():
            if not folder.exists():
                assert not [name for name in metrics if name.startswith(f"val/{prefix or '-'}")]
                continue
            again, prompts = ppo(init_from=str(folder), reference_from=module.hparams["init_from"])
            trainer = fit(again, prompts, limit_train_batches=0)
            (fresh,) = trainer.validate(again, prompts, verbose=False)
            found[way, prefix] = [metrics[f"val/{prefix}{name}"] for name in names]
            assert found[way, prefix] == pytest.approx([fresh[f"val/{name}"] for name in names], abs=1e-5)
        if shared:
            trunk = weights(load_pretrained(tmp_path / f"{way}-critic", kind="reward").decoder)
            assert distance(trunk, weights(load_pretrained(tmp_path / way, kind="gpt").decoder)) == 0.0
        assert [name for name in module.sample_rows()[0] if "score" not in name][2:] == list(
            module.learners.answering()
        )
    assert found["beside", "ema/"] == found["instead", ""] != found["beside", ""]


def test_an_average_in_half_precision_keeps_its_digits(fit, ppo):
    """Steps that bf16 would round away move it."""
    module, data = ppo(ema=EMAConfig(0.999), optimizer=adam(1e-2), minibatches=2)
    start = {name: value.float() for name, value in weights(load_pretrained(module.hparams["init_from"])).items()}
    fit(module, data, precision="bf16-true")
    moved = module.learners.average.state()
    assert {value.dtype for value in moved.values()} == {torch.float32}
    assert distance(moved, {name: value.bfloat16().float() for name, value in start.items()}) > 0
    assert module.learners.answering()["average"].head_weight.dtype == torch.bfloat16
