"""LoRA in the procedures that have it: what learns, what a checkpoint holds, and which folders are written."""

import dataclasses
import logging
import shutil

import pytest
import torch
from lightning.pytorch.callbacks import WeightAveraging

from gpt_modules.backbone import GPT, LoRAConfig, load_pretrained, save_pretrained
from gpt_modules.backbone.lora import lora_layers, without_lora
from gpt_modules.errors import UserError
from gpt_modules.training.callbacks.checkpointing import ExactCheckpoint, RandomState, VerifiedCheckpointIO
from gpt_modules.training.callbacks.guards import FiniteLossGuard
from gpt_modules.training.callbacks.resuming import Resumption
from gpt_modules.training.optimizers import OptimizerConfig
from gpt_modules.training.rl.settings import CriticConfig, EMAConfig

LORA = LoRAConfig(rank=2, alpha=8.0)
HEAD = {"model.head.linear.weight", "model.head.linear.bias", "model.bias", "model.scale"}
WORDS = ["sft", "reward", "dpo"]


@pytest.fixture
def begin(procedure, fit, tmp_path):
    """begin(word, **trainer settings): module and trainer of a short fit with updates."""

    def run(word, arguments=None, **settings):
        torch.manual_seed(0)
        module, data = procedure(word, **{"lora": LORA, **(arguments or {})})
        usual = {"max_steps": 2, "limit_val_batches": 0, "callbacks": [Resumption()]}
        return module, fit(module, data, plugins=[VerifiedCheckpointIO()], **{**usual, **settings})

    return run


@pytest.mark.parametrize("word", WORDS)
def test_it_begins_as_its_folder_and_updates_alone_learn(procedure, micro, fit, word):
    module, data = procedure(word, lora=LORA)
    fit(module, data, max_steps=3, limit_val_batches=0)
    folder = load_pretrained(micro.gpt, "gpt").decoder.state_dict()
    own = module.model.decoder.state_dict()
    for name, value in folder.items():
        assert torch.equal(own[name], value), name
    tokens = torch.tensor([[1, 2, 3]])
    with without_lora(module.model):
        module.model.eval()
        expected = load_pretrained(micro.gpt, "gpt").eval().decoder(tokens)
        assert torch.equal(module.model.decoder(tokens), expected)
    assert all(layer.lora_b.abs().max() > 0 for layer in lora_layers(module).values())


@pytest.mark.parametrize("word", WORDS)
def test_checkpoint_and_optimizer_hold_what_learns_and_name_the_base(begin, tmp_path, word):
    module, trainer = begin(word)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    checkpoint = torch.load(tmp_path / "x.ckpt", weights_only=True)
    names = {f"model.{name}.lora_{factor}" for name in lora_layers(module.model) for factor in "ab"}
    assert set(checkpoint["state_dict"]) - {"model.base_sha256"} == names | (HEAD if word == "reward" else set())
    assert checkpoint["state_dict"]["model.base_sha256"].shape == (32,)
    (optimizer,) = trainer.optimizers
    learnt = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert set(learnt) == (names | HEAD if word == "reward" else names) - {"model.bias", "model.scale"}
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == set(map(id, learnt.values()))
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(parameter) for parameter in learnt.values() if parameter.ndim == 2}


def test_a_base_that_has_changed_is_refused_and_one_that_has_moved_is_not(begin, micro, tmp_path):
    """Nor is another dropout, which is the recipe's."""
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(micro.gpt, here)
    module, trainer = begin("sft", {"init_from": str(here)})
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    here.rename(there)
    moved = {"init_from": str(there), "dropout": 0.1}
    resumed, _ = begin("sft", moved, ckpt_path=tmp_path / "x.ckpt")
    for name, layer in lora_layers(resumed).items():
        assert torch.equal(layer.lora_b, lora_layers(module)[name].lora_b)
    other = load_pretrained(there, "gpt")
    with torch.no_grad():
        other.decoder.wpe.weight[-1, -1] += 1e-3
    shutil.rmtree(there)
    save_pretrained(there, other, tokenizer_json=micro.tokenizer.to_json())
    with pytest.raises(UserError) as refused:
        begin("sft", moved, ckpt_path=tmp_path / "x.ckpt", max_steps=4)
    line = str(refused.value)
    assert line.startswith(f"{tmp_path / 'x.ckpt'}: {there}: found another model (SHA-256 ")
    assert line.endswith("…: put it back, or begin a new run")


def test_an_output_matrix_of_its_own_is_part_of_the_base(begin, micro, tmp_path):
    bare = dict.fromkeys(("qkv_bias", "proj_bias", "mlp_bias", "tied"), False)
    config = micro.config(positions="rotary", norm_kind="rms", mlp="swiglu", n_kv_head=1, **bare)
    base = GPT(config)
    save_pretrained(tmp_path / "m", base, tokenizer_json=micro.tokenizer.to_json())
    module, trainer = begin("sft", {"init_from": str(tmp_path / "m")})
    assert torch.equal(module.model.lm_head.weight, base.lm_head.weight)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    stored = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    assert {name.rpartition(".")[2] for name in stored} == {"lora_a", "lora_b", "base_sha256"}
    with torch.no_grad():
        base.lm_head.weight[-1, -1] += 1e-3
    save_pretrained(tmp_path / "m", base, tokenizer_json=micro.tokenizer.to_json())
    with pytest.raises(UserError, match=r"found another model \(SHA-256 "):
        begin("sft", {"init_from": str(tmp_path / "m")}, ckpt_path=tmp_path / "x.ckpt", max_steps=4)


@pytest.mark.parametrize(
    "spoilt",
    [
        lambda state: state.pop("model.base_sha256"),
        lambda state: state.pop("model.decoder.blocks.0.mlp.fc.lora_a"),
        lambda state: state.update({"model.decoder.blocks.0.mlp.fc.weight": torch.zeros(64, 16)}),
    ],
    ids=["no base", "no update", "matrices too"],
)
def test_a_checkpoint_that_holds_less_or_more_is_refused(begin, tmp_path, spoilt):
    _, trainer = begin("sft")
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    checkpoint = torch.load(tmp_path / "x.ckpt", weights_only=True)
    spoilt(checkpoint["state_dict"])
    torch.save(checkpoint, tmp_path / "y.ckpt")
    with pytest.raises(UserError, match=r"y\.ckpt: does not fit this run: state_dict: model\.") as refused:
        begin("sft", ckpt_path=tmp_path / "y.ckpt", max_steps=4)
    assert "found no tensor" in str(refused.value) or "expected the recipe's no tensor" in str(refused.value)


def test_updates_of_another_form_are_refused(begin, tmp_path):
    _, trainer = begin("sft")
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    for other, named in (
        (dataclasses.replace(LORA, alpha=9.0), r"model\.lora\.alpha: found 9\.0"),
        (None, "model.lora"),
    ):
        with pytest.raises(UserError, match=named):
            begin("sft", {"lora": other}, ckpt_path=tmp_path / "x.ckpt", max_steps=4)


@pytest.mark.parametrize("word", WORDS)
def test_the_folder_is_the_trained_model_and_the_adapter_lies_beside_it(begin, micro, tmp_path, word):
    module, _ = begin(word)
    module.export(tmp_path / "export")
    kind = "reward" if word == "reward" else "gpt"
    opened, tokens = load_pretrained(tmp_path / "export", kind).eval(), torch.tensor([[1, 2, 3]])
    arguments = (tokens, torch.tensor([3])) if word == "reward" else (tokens,)
    torch.testing.assert_close(opened(*arguments), module.model.eval()(*arguments), atol=1e-4, rtol=1e-4)
    assert (opened.decoder.wte.weight == load_pretrained(micro.gpt).decoder.wte.weight).all()
    found = sorted(path.name for path in (tmp_path / "export-adapter").iterdir())
    assert found == ["adapter_config.json", "adapter_model.safetensors"]
    assert module.also_exports == ("adapter",)
    assert lora_layers(module.model), "the run goes on with its updates"


def test_without_lora_nothing_lies_beside(begin, tmp_path):
    module, _ = begin("sft", {"lora": None})
    module.export(tmp_path / "export")
    assert (tmp_path / "export").is_dir()
    assert not (tmp_path / "export-adapter").exists()
    assert module.also_exports == ()


def test_a_decoder_that_transformers_lacks_has_no_adapter_and_that_is_told(procedure, micro, fit, tmp_path, caplog):
    banded = GPT(micro.config(attention=("dense", "banded"), window=4))
    save_pretrained(tmp_path / "banded", banded, tokenizer_json=micro.tokenizer.to_json())
    module, data = procedure("sft", init_from=str(tmp_path / "banded"), lora=LORA)
    with caplog.at_level(logging.WARNING):
        fit(module, data, max_steps=1, limit_val_batches=0)
    assert "so no adapter is written beside the export" in caplog.text
    module.export(tmp_path / "export")
    assert not (tmp_path / "export-adapter").exists()


def test_muon_takes_the_factors_and_is_resumed(begin, tmp_path):
    muon = {"optimizer": OptimizerConfig(lr=0.03, muon_lr=0.02, weight_decay=0.1)}
    module, trainer = begin("sft", muon)
    (optimizer,) = trainer.optimizers
    assert type(optimizer) is torch.optim.Muon
    factors = [p for p in module.parameters() if p.requires_grad]
    assert [len(group["params"]) for group in optimizer.param_groups] == [len(factors)]
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    resumed, again = begin("sft", muon, ckpt_path=tmp_path / "x.ckpt")
    for one, other in zip(factors, (p for p in resumed.parameters() if p.requires_grad), strict=True):
        assert torch.equal(one, other)
        moments = (state.state[p]["momentum_buffer"] for state, p in ((optimizer, one), (again.optimizers[0], other)))
        assert torch.equal(*moments)


@pytest.mark.filterwarnings("ignore:.*WeightAveraging callback.*:UserWarning")
def test_an_average_of_lightnings_is_of_the_updates_too(begin, tmp_path):
    def averaged(callbacks=(), **settings):
        average = WeightAveraging(multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
        callbacks = [average, Resumption(), RandomState(), *callbacks]
        return begin("sft", callbacks=callbacks, **settings)

    straight, _ = averaged(max_steps=3)
    averaged(max_steps=3, callbacks=[ExactCheckpoint(1, keep=9)], enable_checkpointing=True)
    resumed, _ = averaged(max_steps=3, ckpt_path=tmp_path / "checkpoints" / "step=00000002.ckpt")
    for name, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_an_update_that_is_not_finite_stops_the_run(begin):
    def spoil(trainer, module, batch, index):
        with torch.no_grad():
            next(iter(lora_layers(module).values())).lora_b.fill_(torch.inf)

    guard = FiniteLossGuard()
    guard.on_train_batch_start = spoil
    with pytest.raises(UserError, match="the loss or its gradient is not finite"):
        begin("sft", callbacks=[guard])


def test_a_policy_is_its_own_reference(fit, ppo):
    """No second copy, a ratio of 1, a KL of 0 at the start; afterwards the reference is what it was, and the policy is
    not.
    """
    module, data = ppo(lora=LORA, minibatches=2, temperature=0.5, optimizer=OptimizerConfig(lr=1e-2, weight_decay=0.0))
    logger = fit(module, data, max_epochs=2).logger
    assert logger.values("objective/kl")[0] == 0.0
    assert abs(logger.values("objective/kl")[1]) > 1e-4
    assert logger.values("policy/ratio")[0] == pytest.approx(1.0, abs=1e-6)
    assert logger.values("policy/clip_fraction")[0] == 0.0
    reference, policy = module.frozen.reference.decoder, module.policy.decoder
    for name, parameter in reference.named_parameters():
        assert parameter is policy.get_parameter(name), name
    assert not lora_layers(reference)


@pytest.mark.parametrize("updated", ["policy", "policy and critic"])
def test_a_run_with_a_reference_of_its_own_is_the_same_run(fit, ppo, micro, tmp_path, updated):
    """The same folder under another name is opened a second time, and every number is the same."""
    shutil.copytree(micro.gpt, tmp_path / "copy")
    critic = CriticConfig(lora=LORA if "critic" in updated else None)

    def run(**given):
        torch.manual_seed(0)
        module, data = ppo(**given, lora=LORA, critic=critic, minibatches=2, optimizer=OptimizerConfig(lr=1e-2))
        points = fit(module, data, max_epochs=2).logger.points
        return module, [point for point in points if not point[0].startswith("perf/")]

    (shared, points), (apart, same) = run(), run(reference_from=str(tmp_path / "copy"))
    assert points == same
    assert apart.frozen.reference.decoder.wte.weight is not apart.policy.decoder.wte.weight
    assert all(torch.equal(value, apart.state_dict()[name]) for name, value in shared.state_dict().items())


def test_a_reward_model_shares_the_trunk_under_a_critics_updates(fit, ppo, micro, tmp_path):
    """And scores as one of its own does, to the last bit of a run."""
    shutil.copytree(micro.reward, tmp_path / "copy")

    def run(folder):
        torch.manual_seed(0)
        module, data = ppo(critic=CriticConfig(init_from=folder, lora=LORA), optimizer=OptimizerConfig(lr=1e-2))
        points = fit(module, data, max_epochs=2).logger.points
        (reward,) = module.frozen.reward.models().values()
        return module, reward, [point for point in points if not point[0].startswith("perf/")]

    (shared, reward, points), (apart, own, same) = run(None), run(str(tmp_path / "copy"))
    assert points == same
    for name, parameter in reward.decoder.named_parameters():
        assert parameter is shared.critic.decoder.get_parameter(name), name
    assert reward.head.linear.weight is not shared.critic.head.linear.weight
    assert own.decoder.wte.weight is not apart.critic.decoder.wte.weight


def test_what_learns_in_ppo_and_what_is_written(fit, ppo, micro, tmp_path):
    module, data = ppo(lora=LORA, critic=CriticConfig(lora=LoRAConfig(rank=1)), optimizer=OptimizerConfig(lr=1e-2))
    trainer = fit(module, data)
    learnt = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    factors = {f"{name}.lora_{factor}" for name in lora_layers(module) for factor in "ab"}
    head = {"critic.head.linear.weight", "critic.head.linear.bias"}
    assert learnt == factors | head
    kept = learnt | {"critic.bias", "critic.scale", "policy.base_sha256", "critic.base_sha256"}
    assert set(module.state_dict()) == kept
    groups = trainer.optimizers[0].param_groups
    assert [(group["name"], len(group["params"])) for group in groups] == [("policy", 16), ("value", 17), ("value", 1)]
    module.export(tmp_path / "export")
    assert sorted(path.name for path in tmp_path.glob("export*")) == [
        "export",
        *(f"export-{n}" for n in ("adapter", "critic")),
    ]
    assert module.also_exports == ["critic", "adapter"]
    tokens = torch.tensor([[1, 2, 3]])
    policy, critic = (
        load_pretrained(tmp_path / "export", "gpt").eval(),
        load_pretrained(tmp_path / "export-critic", "reward"),
    )
    torch.testing.assert_close(policy(tokens), module.policy.eval()(tokens), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        critic.token_values(tokens), module.critic.eval().token_values(tokens), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("field", ["lora", "critic.lora"])
def test_updates_with_dropout_are_refused_in_ppo(ppo, field):
    dropping = LoRAConfig(rank=2, dropout=0.1)
    with pytest.raises(UserError, match=rf"^{field}\.dropout: found 0\.1, expected 0: "):
        ppo(**({"lora": dropping} if field == "lora" else {"critic": CriticConfig(lora=dropping)}))


def test_a_shared_trunk_has_the_policys_updates(fit, ppo, tmp_path):
    """Under both names a checkpoint holds what learns, and no more."""
    module, data = ppo(lora=LORA, critic=CriticConfig(shared_trunk=True), optimizer=OptimizerConfig(lr=1e-2))
    trainer = fit(module, data)
    assert module.critic.decoder is module.policy.decoder
    assert trainer.logger.values("objective/kl")[0] == 0.0
    assert all("lora_" in name or "head" in name or name.count(".") == 1 for name in module.state_dict())
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    torch.manual_seed(1)
    again, data = ppo(lora=LORA, critic=CriticConfig(shared_trunk=True), optimizer=OptimizerConfig(lr=1e-2))
    fit(again, data, max_epochs=1, ckpt_path=tmp_path / "x.ckpt")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in module.state_dict().items())
    module.export(tmp_path / "export")
    tokens = torch.tensor([[1, 2, 3]])
    critic = load_pretrained(tmp_path / "export-critic", "reward").eval()
    torch.testing.assert_close(
        critic.token_values(tokens), module.critic.eval().token_values(tokens), atol=1e-4, rtol=1e-4
    )


def test_two_settings_of_one_thing_are_refused(ppo):
    with pytest.raises(UserError, match=r"^critic\.lora: found .*: a shared trunk has the policy's `lora`"):
        CriticConfig(shared_trunk=True, lora=LORA)
    with pytest.raises(UserError, match=r"^ema: found beside lora, expected one of them"):
        ppo(lora=LORA, ema=EMAConfig())
