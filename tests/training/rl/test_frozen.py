"""Models that a run reads and never trains."""

import shutil
import types

import lightning.pytorch as L
import pytest
import torch
from conftest import shaken
from device import CUDA, Device, device, on_paper
from ppo_variants import AtStart, adam, distance, weights
from torch import nn

from gpt_modules.backbone import (
    GPT,
    LoRAConfig,
    RewardModel,
    add_lora,
    base_of,
    load_pretrained,
    model_digest,
    save_pretrained,
)
from gpt_modules.backbone.linear import Linear
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError
from gpt_modules.training.rl import rollout
from gpt_modules.training.rl.frozen import REFERENCE, Frozen
from gpt_modules.training.rl.rewards import RewardSource
from gpt_modules.training.rl.rollout import models_of
from gpt_modules.training.rl.scores import ScoresConfig
from gpt_modules.training.rl.sequences import Sequences
from gpt_modules.training.rl.settings import CriticConfig

CPU = torch.device("cpu")

SAID = "model.reference_from or init_from"  # to the user, whatever a checkpoint calls it


def length(prompts, responses):
    return [float(len(response)) for response in responses]


LENGTH = RewardSource(function=f"{__name__}:length", weight=3.0)


class Owner(L.LightningModule):
    """What `open` asks its module for."""

    trainer = None  # Lightning's property, as a plain attribute

    def __init__(self, tokenizer, convert=lambda model: model, precision="32-true"):
        super().__init__()
        plugin = types.SimpleNamespace(convert_module=convert)
        data = types.SimpleNamespace(tokenizer=tokenizer, columns=dict, column=list)
        self.trainer = types.SimpleNamespace(precision_plugin=plugin, datamodule=data, precision=precision)


@pytest.fixture
def sources(micro):
    return [RewardSource(folder=str(micro.reward), weight=2.0), LENGTH]


def test_nothing_trains_it_and_no_module_holds_it(micro, sources):
    frozen = Frozen(str(micro.gpt), sources, {})
    frozen.open(Owner(micro.tokenizer))
    (reward,) = frozen.reward.models().values()
    for model in (frozen.reference, reward):
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert {part.p for part in model.modules() if isinstance(part, nn.Dropout)} <= {0.0}
        assert model.config.resid_pdrop == model.config.embd_pdrop == model.config.attn_pdrop == 0.0
    holder = nn.Module()
    holder.frozen = frozen
    assert not list(holder.parameters())
    assert not holder.state_dict()


def test_rewards_and_monitors_are_opened_once_the_tokenizer_is_known(micro, sources):
    frozen = Frozen(str(micro.gpt), sources, {"letters": RewardSource(function=f"{__name__}:length")})
    assert not frozen.opened
    models = frozen.open(Owner(micro.tokenizer))
    assert frozen.opened
    assert list(models) == [str(micro.gpt), str(micro.reward)]
    ids = micro.tokenizer.encode("the film is good.")
    start = len(micro.tokenizer.encode("the film"))
    cut_off, row = torch.tensor([False]), torch.tensor([0])
    sequences = Sequences(torch.tensor([ids]), torch.tensor([start]), torch.tensor([len(ids)]), cut_off, row)
    letters = len(micro.tokenizer.decode(ids[start:]))
    model = models[str(micro.reward)]
    assert frozen.monitors["letters"](sequences).totals.item() == letters
    expected = 2.0 * model(sequences.tokens, sequences.lengths).item() + 3.0 * letters
    assert frozen.reward(sequences).totals.item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("precision", "half"), [("bf16-mixed", torch.bfloat16), ("16-mixed", torch.float16), ("32-true", torch.float32)]
)
def test_what_autocast_casts_is_kept_in_half_and_says_the_same(micro, precision, half):
    """Bit for bit: else the policy would not be its own reference at the start."""
    folder, tokens = RewardSource(folder=str(micro.reward)), torch.randint(100, (3, 9))
    frozen = Frozen(str(micro.gpt), [folder], {})
    models = frozen.open(Owner(micro.tokenizer, precision=precision))
    whole = load_pretrained(micro.gpt, kind="gpt").eval(), load_pretrained(micro.reward, kind="reward").eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=half, enabled=half != torch.float32):
        for (name, model), exact in zip(models.items(), whole, strict=True):
            assert torch.equal(model.decoder(tokens), exact.decoder(tokens)), name
            kinds = {type(part): p.dtype for part in model.modules() for p in part.parameters(recurse=False)}
            assert kinds.pop(Linear) == half
            assert set(kinds.values()) == {torch.float32}, "embeddings, norms, and the head of a reward"
        lengths = torch.tensor([9, 4, 7])
        assert torch.equal(models[str(micro.reward)](tokens, lengths), whole[1](tokens, lengths))


def test_a_monitor_of_a_folder_is_among_the_models_that_must_fit(micro):
    frozen = Frozen(str(micro.gpt), [LENGTH], {"watched": RewardSource(folder=str(micro.reward))})
    assert list(frozen.open(Owner(micro.tokenizer))) == [str(micro.gpt), str(micro.reward)]
    assert list(frozen.digests) == [REFERENCE, f"function {LENGTH.function}", str(micro.reward)]


def test_a_monitor_reads_with_the_rewards_own_model(micro, sources):
    frozen = Frozen(str(micro.gpt), sources, {"alone": RewardSource(folder=str(micro.reward))})
    frozen.open(Owner(micro.tokenizer))
    (model,), (watched,) = (scorer.models().values() for scorer in (frozen.reward, frozen.monitors["alone"]))
    assert model is watched


def test_reference_and_trunks_take_the_runs_precision_and_keep_their_digests(micro, sources):
    plain, half = (Frozen(str(micro.gpt), sources, {}) for _ in range(2))
    assert plain.digests == {REFERENCE: model_digest(plain.reference)}
    plain.open(Owner(micro.tokenizer))
    half.open(Owner(micro.tokenizer, lambda model: model.to(torch.bfloat16)))
    assert half.digests == plain.digests
    assert {value.dtype for value in half.reference.parameters()} == {torch.bfloat16}
    (reward,) = half.reward.models().values()
    assert {value.dtype for value in reward.decoder.parameters()} == {torch.bfloat16}
    assert reward.bias.dtype == torch.float32


def test_a_reference_that_is_a_policys_base_is_left_as_the_policy_has_it(micro, sources):
    """The same digest as of the folder, whatever precision frozen models take."""
    policy = load_pretrained(micro.gpt, "gpt", embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    add_lora(policy.decoder, LoRAConfig(rank=2))
    frozen, plain = Frozen(str(micro.gpt), sources, {}, base_of(policy)), Frozen(str(micro.gpt), sources, {})
    assert frozen.digests == plain.digests
    frozen.open(Owner(micro.tokenizer, lambda model: model.to(torch.bfloat16)))
    assert frozen.reference.head_weight is policy.head_weight
    assert {value.dtype for value in policy.parameters()} == {torch.float32}
    assert {parameter.requires_grad for parameter in policy.parameters()} == {True, False}


@pytest.mark.parametrize("which", [0, 1])
def test_what_a_checkpoint_was_trained_with_is_compared_on_opening(micro, sources, which):
    before = Frozen(str(micro.gpt), sources, {})
    before.open(Owner(micro.tokenizer))
    name = [REFERENCE, str(micro.reward)][which]
    after = Frozen(str(micro.gpt), sources, {})
    after.recorded = before.digests | {name: "0" * 64}
    with pytest.raises(UserError) as refused:
        after.open(Owner(micro.tokenizer))
    said = [SAID, str(micro.reward)][which]
    assert str(refused.value).startswith(f"{said}: found another model (SHA-256 {before.digests[name][:12]}…)")
    assert not after.opened


@pytest.mark.parametrize("which", [0, 1])
def test_what_is_opened_before_a_checkpoint_is_read_is_compared_then(micro, sources, which):
    """As with a strategy that shards."""
    frozen = Frozen(str(micro.gpt), sources, {})
    frozen.open(Owner(micro.tokenizer))
    frozen.recall(dict(frozen.digests))
    name = [REFERENCE, str(micro.reward)][which]
    with pytest.raises(UserError, match=rf"^{[SAID, str(micro.reward)][which]}: found another model"):
        frozen.recall(frozen.digests | {name: "0" * 64})


def right(prompts, responses, truth):
    return [float(one) for one in truth]


@pytest.mark.parametrize("which", [0, 1])
def test_rewards_and_monitors_read_columns_of_the_data_where_it_has_some(micro, which):
    asking = RewardSource(function=f"{__name__}:right")
    given = ([asking], {}) if which == 0 else ([LENGTH], {"watched": asking})
    owner = Owner(micro.tokenizer)
    owner.trainer.datamodule.columns = lambda: {"truth": 0}
    owner.trainer.datamodule.column = lambda name, rows: [10 * row for row in rows]
    frozen = Frozen(str(micro.gpt), *given)
    frozen.open(owner)
    ids = torch.tensor([[5, 6], [5, 6]])
    two = torch.tensor([2, 2])
    sequences = Sequences(ids, two - 1, two, two > 2, torch.tensor([3, 4]))
    said = frozen.reward if which == 0 else frozen.monitors["watched"]
    assert said(sequences).totals.tolist() == [30.0, 40.0]
    bare = Owner(micro.tokenizer)
    bare.trainer.datamodule = types.SimpleNamespace(tokenizer=micro.tokenizer)
    with pytest.raises(UserError, match="right asks for 'truth'"):
        Frozen(str(micro.gpt), *given).open(bare)


# --- in a run ---


def nats(folder, row, start, temperature):
    """log p of each token of a row from `start` on, one row and one token at a time."""
    model = load_pretrained(folder, kind="gpt").eval()
    with torch.no_grad():
        logits = model(torch.tensor([row]))[0] / temperature
    return [torch.log_softmax(logits[t - 1], -1)[row[t]].item() for t in range(start, len(row))]


def test_the_penalty_is_to_the_reference_that_is_named(fit, ppo, micro, reference):
    """From the first iteration, at the policy that init_from holds, by a sum over each answer worked token by token."""
    module, data = ppo(reference_from=reference, temperature=0.7, optimizer=adam(0.0))
    trainer = fit(module, data, limit_val_batches=0)
    assert distance(weights(module.policy), weights(load_pretrained(micro.gpt, kind="gpt"))) == 0.0
    tokens, starts, _, mask, *_ = module.rollout
    sums = []
    for row, start, length in zip(tokens.tolist(), starts.tolist(), mask.sum(1).tolist(), strict=True):
        own, theirs = (nats(folder, row[: start + length], start, 0.7) for folder in (micro.gpt, reference))
        sums.append(sum(own) - sum(theirs))
    (kl,) = trainer.logger.values("objective/kl")
    assert kl > 0.1
    assert kl == pytest.approx(sum(sums) / len(sums), rel=1e-3)


def test_the_reference_left_out_is_the_policy_that_the_run_begins_with(fit, ppo, micro):
    def run(**given):
        module, data = ppo(**given, optimizer=adam(1e-2), minibatches=2)
        points = fit(module, data, max_epochs=2).logger.points
        return weights(module), [point for point in points if not point[0].startswith("perf/")]

    (left_out, points), (named, same) = run(), run(reference_from=str(micro.gpt))
    assert all(torch.equal(value, named[name]) for name, value in left_out.items())
    assert points == same


def test_before_training_the_policy_is_the_reference(fit, ppo):
    module, data = ppo()
    trainer = fit(module, data, num_sanity_val_steps=-1, limit_train_batches=0)
    assert trainer.global_step == 0
    assert distance(weights(module.policy), weights(module.frozen.reference)) == 0.0
    assert not any(m.p for m in module.modules() if isinstance(m, torch.nn.Dropout))
    assert not any(m.p for m in module.frozen.reference.modules() if isinstance(m, torch.nn.Dropout))


def test_the_frozen_models_neither_change_nor_reach_optimizer_or_checkpoint(fit, ppo, tmp_path):
    module, data = ppo(optimizer=adam(1e-2))
    start = AtStart()
    trainer = fit(module, data, callbacks=[start], max_epochs=2)
    assert distance(weights(module.policy), start.policy) > 0.1
    assert distance(weights(module.critic), start.critic) > 0.1
    assert distance(weights(module.frozen.reference), start.reference) == 0.0
    (reward,) = module.frozen.reward.models().values()
    assert distance(weights(reward), start.reward[0]) == 0.0
    frozen = [*module.frozen.reference.parameters(), *reward.parameters()]
    assert all(p.grad is None and not p.requires_grad for p in frozen)
    trained = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert trained == {id(p) for model in (module.policy, module.critic) for p in model.parameters()}
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    stored = torch.load(tmp_path / "x.ckpt", weights_only=True)
    count = sum(value.numel() for value in stored["state_dict"].values())
    trainable = sum(p.numel() for model in (module.policy, module.critic) for p in model.parameters())
    assert count == trainable + 2, "beyond what is trained: the critic's bias and scale"


def moved(folder, to, kind):
    """A copy of an exported folder, whose model is another."""
    model = load_pretrained(folder, kind=kind)
    with torch.no_grad():
        next(model.parameters()).add_(0.01)
    save_pretrained(to, model, tokenizer_json=(folder / "tokenizer.json").read_text())


@pytest.mark.parametrize(("which", "told"), [("gpt", SAID), ("reward", r".*/reward")])
def test_a_run_does_not_go_on_with_another_reference_or_reward(fit, ppo, micro, tmp_path, which, told):
    """Exported anew under the same name: the resumed run would be held to, or paid by, another model."""
    folders = {name: shutil.copytree(getattr(micro, name), tmp_path / name) for name in ("gpt", "reward")}
    given = {"init_from": str(folders["gpt"]), "rewards": str(folders["reward"])}
    fit(*ppo(**given)).save_checkpoint(tmp_path / "x.ckpt")
    fit(*ppo(**given), max_epochs=2, ckpt_path=tmp_path / "x.ckpt")
    shutil.rmtree(folders[which])
    moved(getattr(micro, which), folders[which], {"gpt": "gpt", "reward": "reward"}[which])
    with pytest.raises(UserError, match=rf"^{told}: found another model \(SHA-256 .*put it back") as error:
        fit(*ppo(**given), max_epochs=2, ckpt_path=tmp_path / "x.ckpt")
    assert "\n" not in str(error.value)


def test_a_reference_may_lie_elsewhere(fit, ppo, micro, tmp_path):
    fit(*ppo()).save_checkpoint(tmp_path / "x.ckpt")
    there = shutil.copytree(micro.gpt, tmp_path / "there")
    for given in ({"init_from": str(there)}, {"reference_from": str(there)}):
        assert fit(*ppo(**given), max_epochs=2, ckpt_path=tmp_path / "x.ckpt").current_epoch == 2


@pytest.mark.parametrize("first", [False, True])
def test_a_run_goes_on_with_the_reference_that_it_began_with(fit, ppo, tmp_path, reference, first):
    """However it is named: as reference_from, or by leaving that out."""
    one, other = ({"reference_from": given} for given in ((reference, None) if first else (None, reference)))
    fit(*ppo(**one)).save_checkpoint(tmp_path / "x.ckpt")
    fit(*ppo(**one), max_epochs=2, ckpt_path=tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=rf"^{SAID}: found another model \(SHA-256 .*put it back"):
        fit(*ppo(**other), max_epochs=2, ckpt_path=tmp_path / "x.ckpt")


@pytest.mark.parametrize("kind", [RewardModel, GPT])
def test_a_model_of_another_tokenizer_is_told(fit, ppo, micro, tmp_path, kind):
    other = Tokenizer.train(["entirely other words stand here, again and again"] * 5, 280)
    folder = str(tmp_path / "other")
    save_pretrained(folder, kind(micro.config()), tokenizer_json=other.to_json())
    given = {"reference_from": folder} if kind is GPT else {"critic": CriticConfig(init_from=folder)}
    with pytest.raises(UserError, match=r"other/tokenizer\.json: differs from the policy's tokenizer"):
        fit(*ppo(**given))


def test_a_reference_must_read_what_the_policy_says(fit, ppo, micro, tmp_path):
    """It knows every token, has room for the text, and is a language model."""
    wide = shaken(GPT(micro.config(vocab_size=micro.vocab_size + 4)), 1)
    save_pretrained(tmp_path / "wide", wide, tokenizer_json=micro.tokenizer.to_json())
    wider = {"init_from": str(tmp_path / "wide"), "rewards": "math:hypot"}
    with pytest.raises(UserError, match=rf"^{micro.gpt}: found a vocabulary of {micro.vocab_size}, expected at least"):
        fit(*ppo(**wider, reference_from=str(micro.gpt)))
    save_pretrained(tmp_path / "short", GPT(micro.config(n_positions=10)), tokenizer_json=micro.tokenizer.to_json())
    with pytest.raises(UserError, match=r"max_new_tokens: found 8 .* n_positions = 10 of .*/short together"):
        fit(*ppo(reference_from=str(tmp_path / "short")))
    for wrong, found in ((str(micro.reward), "found .*expected 'gpt'"), ("", "model folder: found ''")):
        with pytest.raises(UserError, match=found):
            fit(*ppo(reference_from=wrong))


# --- offloaded ---


class Whereabouts(L.Callback):
    """Where frozen models lie: at each update, while the policy samples, and when each of them is asked."""

    def __init__(self, module, monkeypatch):
        self.away, self.asked, self.waits = [], [], 0
        self.module = module
        sample = rollout.sample

        def sampling(policy, *arguments):
            self.away.append(self.places() if policy is module.policy else {CPU})
            return sample(policy, *arguments)

        monkeypatch.setattr(rollout, "sample", sampling)

    def models(self):
        frozen = self.module.frozen
        return [frozen.reference, *models_of(frozen.reward, *frozen.monitors.values())]

    def places(self):
        return {tensor.device for model in self.models() for tensor in model.state_dict().values()}

    def on_train_start(self, *_):
        for model in self.models():
            own = model.decoder.forward

            def noted(*arguments, own=own, model=model, **named):
                self.asked.append({tensor.device for tensor in model.state_dict().values()})
                return own(*arguments, **named)

            model.decoder.forward = noted
        Device.waits.clear()

    def on_before_optimizer_step(self, *_):
        self.away.append(self.places())

    def on_train_end(self, *_):
        self.waits = sum(Device.waits.values())
        self.rows = self.module.sample_rows()


@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_offloaded_models_are_on_the_device_for_the_passes_that_need_them_alone(fit, ppo, micro, tmp_path, monkeypatch):
    """And nothing else changes: not a bit of what is learnt and told, and the host waits no more often."""
    second = shaken(load_pretrained(micro.reward, "reward"), 2)
    save_pretrained(tmp_path / "second", second, tokenizer_json=micro.tokenizer.to_json())
    given = {
        "rewards": [RewardSource(folder=str(micro.reward)), RewardSource(folder=str(tmp_path / "second"))],
        "monitors": {"watched": RewardSource(folder=str(tmp_path / "second"), weight=2.0)},
        "scores": ScoresConfig("reference", samples=8),
        "optimizer": adam(1e-2),
        "max_new_tokens": 4,
        "sample_prompts": 2,
    }

    def run(offloads):
        module, data = ppo(**given, minibatches=2, ref_reward_offload=offloads)
        found = Whereabouts(module, monkeypatch)
        with device():
            trainer = fit(module, data, callbacks=[found], limit_val_batches=1, **on_paper())
            learnt = {name: value.cpu() for name, value in module.state_dict().items()}
        told = [point for point in trainer.logger.points if not point[0].startswith("perf/")]
        return found, learnt, told

    (still, *expected), (moved, learnt, *told) = run(False), run(True)
    assert all(torch.equal(value, expected[0][name]) for name, value in learnt.items())
    assert told == expected[1:]
    assert moved.rows == still.rows
    assert moved.waits == still.waits
    assert moved.away == [{CPU}] * len(moved.away)
    assert {CUDA} in still.away
    assert moved.asked == [{CUDA}] * len(moved.asked)
    assert len(moved.asked) > 10


def on_a_device(tokenizer):
    owner = Owner(tokenizer)
    owner._device = CUDA
    return owner


def test_what_the_run_has_already_stays_where_it_learns(micro, sources, tmp_path):
    """The policy's base, and a trunk under a critic's updates with the reward's head on it."""
    reward = load_pretrained(micro.reward, "reward")
    save_pretrained(tmp_path / "other", shaken(reward, 3), tokenizer_json=micro.tokenizer.to_json())
    watched = {"watched": RewardSource(folder=str(tmp_path / "other"))}
    with device():
        base, trunk = (
            load_pretrained(micro.gpt, "gpt").to(CUDA),
            load_pretrained(micro.reward, "reward").decoder.to(CUDA),
        )
        frozen = Frozen(str(micro.gpt), sources, watched, base, {str(micro.reward): trunk}, offload=True)
        models = frozen.open(on_a_device(micro.tokenizer))
        (rewards,), (moved,) = (models_of(of) for of in (frozen.reward, frozen.monitors["watched"]))
        assert rewards.decoder is trunk
        assert frozen.scorers() == [moved.decoder], "which are compiled beside what the run has"
        for model, there in ((base, CUDA), (rewards, CUDA), (moved, CPU)):
            assert model in models.values()
            assert {tensor.device for tensor in model.state_dict().values()} == {there}


def test_where_nothing_is_to_be_moved_it_is_said(micro, sources, caplog):
    """On a CPU it holds; of a policy's base and a function it does not."""
    frozen = Frozen(str(micro.gpt), sources, {}, offload=True)
    frozen.open(Owner(micro.tokenizer))
    (told,) = caplog.messages
    assert told.startswith("model.ref_reward_offload: on a CPU frozen models lie in the host's memory as it is")
    alone = Frozen(str(micro.gpt), [LENGTH], {}, load_pretrained(micro.gpt, "gpt"), offload=True)
    with pytest.raises(UserError, match=r"^ref_reward_offload: found True, expected it left at False: the reference"):
        alone.open(Owner(micro.tokenizer))
    assert not alone.opened
