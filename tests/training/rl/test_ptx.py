"""Pretraining text in PPO's update: its gradient, exactly, and nothing else."""

import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F

from gpt_modules.backbone import load_pretrained
from gpt_modules.data import PPODataModule, PretrainingText
from gpt_modules.data.batches import TokenBatch
from gpt_modules.data.mixed import TextBeside
from gpt_modules.errors import UserError
from gpt_modules.training.callbacks.checkpointing import ExactCheckpoint, RandomState, VerifiedCheckpointIO
from gpt_modules.training.optimizers import OptimizerConfig, ScheduleConfig
from gpt_modules.training.rl.ptx import PtxBatch, PtxSteps, ptx_loss
from gpt_modules.training.rl.settings import CriticConfig, EarlyStop, PtxConfig

FAST = OptimizerConfig(lr=1e-2, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.0)


class Numbered(TextBeside):
    """A text whose window n says n."""

    context, batch_size = 4, 0

    def __init__(self, batch_size):
        self.batch_size = batch_size

    def windows(self, first, last, rank=0, world=1):
        places = [n for n in range(first, last) if n % world == rank]
        rows = torch.tensor(places)[:, None].repeat(1, self.context)
        return TokenBatch(rows, rows) if places else None


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("windows", [3, 5, 16])
def test_a_step_has_the_windows_that_follow_however_they_are_shared_out(batch_size, world, windows):
    ranks = [PtxSteps(Numbered(batch_size), windows, rank, world) for rank in range(world)]
    for step in (0, 1, 7):
        parts = [rank.batch(step, part).inputs[:, 0].tolist() for rank in ranks for part in range(rank.micro_batches)]
        assert all(parts), "a process without a window would not take part"
        assert sorted(n for part in parts for n in part) == list(range(step * windows, (step + 1) * windows))
        assert max(map(len, parts)) <= max(1, -(-batch_size // world)) + (windows % world > 0)
    assert {rank.tokens for rank in ranks} == {4 * windows}
    assert len({rank.micro_batches for rank in ranks}) == 1


def test_the_loss_is_worked_by_hand(micro):
    model = load_pretrained(micro.gpt, kind="gpt").eval()
    tokens = torch.arange(3, 12)[None]
    windows = TokenBatch(tokens[:, :-1], tokens[:, 1:])
    loss, shares = ptx_loss(model, PtxBatch(windows, 4.0), 0.5)
    nats = F.cross_entropy(model(windows.inputs)[0], windows.labels[0], reduction="sum").item()
    found = {name: share.item() for name, share in shares.items()}
    assert found == pytest.approx({"train/loss": 0.5 * nats / 4.0, "loss/ptx": nats / 4.0}, rel=1e-4)
    assert loss is shares["train/loss"]


@pytest.fixture
def mixed(micro, ppo, tmp_path):
    """mixed(coef, **settings): PPO with text beside it, not yet run."""

    def build(coef, batch_size=4, windows=2, text=True, **arguments):
        ptx = PtxConfig(coef, windows) if coef else PtxConfig()
        module, _ = ppo(ptx=ptx, **{"minibatches": 2, "optimizer": FAST, **arguments})
        beside = PretrainingText(train=str(micro.pretraining), context=16, batch_size=batch_size) if text else None
        settings = {"tokenizer": str(micro.gpt), "episodes": 8, "cache_dir": str(tmp_path / "cache")}
        return module, PPODataModule(str(micro.prompts), pretraining=beside, **settings)

    return build


class Gradients(L.Callback):
    """The policy's and the critic's gradients of every optimizer step."""

    def __init__(self):
        self.steps = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.steps.append([[p.grad.clone() for p in model.parameters()] for model in (module.policy, module.critic)])


def first_step(fit, module, data, **trainer):
    seen = Gradients()
    logger = fit(module, data, callbacks=[seen], limit_val_batches=0, **trainer).logger
    return seen.steps[0], logger


@pytest.mark.parametrize(("accumulate", "batch_size"), [(1, 100), (1, 3), (2, 8), (2, 1)])
def test_the_gradient_is_ppos_and_the_coefficient_times_the_texts(fit, mixed, micro, accumulate, batch_size):
    """Of the mean over a step's pretraining tokens, in however many micro-batches either is read."""
    (alone, critic), plain = first_step(fit, *mixed(0.0))
    module, data = mixed(0.7, batch_size)
    (both, same), logger = first_step(fit, module, data, accumulate_grad_batches=accumulate)
    windows = data.pretraining.windows(0, 8)
    model = load_pretrained(micro.gpt, kind="gpt").eval()
    loss = F.cross_entropy(model(windows.inputs).flatten(0, 1), windows.labels.flatten())
    loss.backward()
    for own, mine, parameter in zip(alone, both, model.parameters(), strict=True):
        assert torch.allclose(mine, own + 0.7 * parameter.grad, atol=2e-5)
    assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(critic, same, strict=True))
    assert logger.values("loss/ptx")[0] == pytest.approx(loss.item(), rel=1e-4)
    assert logger.values("train/loss")[0] == pytest.approx(plain.values("train/loss")[0] + 0.7 * loss.item(), rel=1e-4)
    for name in ("loss/policy", "loss/value", "policy/entropy", "policy/ratio", "policy/approx_kl"):
        assert logger.values(name)[0] == pytest.approx(plain.values(name)[0], abs=1e-5), name
    assert logger.values("policy/ratio")[0] == pytest.approx(1.0, abs=1e-4)


def test_every_step_reads_on(fit, mixed, monkeypatch):
    module, data = mixed(0.5, ppo_epochs=2)
    asked = []
    monkeypatch.setattr(L.LightningDataModule, "on_before_batch_transfer", lambda self, batch, _: batch)
    read = data.pretraining.windows
    monkeypatch.setattr(data.pretraining, "windows", lambda *place: asked.append(place[:2]) or read(*place))
    trainer = fit(module, data, max_epochs=2, limit_val_batches=0)
    assert asked == [(n, n + 4) for n in range(0, 8 * trainer.global_step, 4)]


@pytest.mark.parametrize("rest", ["warm-up", "early stop"])
def test_what_would_teach_nobody_is_not_read(fit, mixed, monkeypatch, rest):
    """Not while the critic warms up alone, nor after an iteration's early stop; where it is read again, the place in
    the stream is that of the step.
    """
    settings = {"critic": CriticConfig(warmup=1)} if rest == "warm-up" else {"early_stop": EarlyStop(kl=1e-9)}
    module, data = mixed(0.5, ppo_epochs=2, **settings)
    asked, losses = [], []
    monkeypatch.setattr(L.LightningDataModule, "on_before_batch_transfer", lambda self, batch, _: batch)
    read, step = data.pretraining.windows, module.training_step
    monkeypatch.setattr(data.pretraining, "windows", lambda *place: asked.append(place[0]) or read(*place))
    monkeypatch.setattr(module, "training_step", lambda *given: losses.append(step(*given)) or losses[-1])
    trainer = fit(module, data, max_epochs=2, limit_val_batches=0)
    assert trainer.global_step == 8, "of 8 windows each"
    if rest == "warm-up":
        assert asked == list(range(32, 64, 4))
        assert len(trainer.logger.values("loss/ptx")) == 4
    else:
        taken = [int(steps) for steps in trainer.logger.values("update/steps")]
        assert max(taken) < 3
        first, second = (
            [*range(begin, begin + 8 * (steps + 1), 4)] for begin, steps in zip((0, 32), taken, strict=True)
        )
        assert asked == first + second
    assert len(losses) == len(module._experience) * 2


@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_takes_the_steps_that_it_takes_without(fit, mixed, accumulate):
    module, data = mixed(0.5, ppo_epochs=2)
    trainer = fit(module, data, max_epochs=2, accumulate_grad_batches=accumulate)
    assert trainer.global_step == 2 * 2 * 2
    assert trainer.accumulate_grad_batches == accumulate, "afterwards it is what the recipe says"
    trainer.fit_loop.epoch_progress.reset()
    trainer.fit(module, datamodule=data)
    assert module._experience.parts == (2, 2, accumulate, 2)


def test_text_that_is_only_watched_changes_nothing_and_is_measured(fit, mixed):
    def run(text):
        module, data = mixed(0.0, text=text)
        return module, data, fit(module, data, max_epochs=2).logger

    plain, _, logger = run(False)
    watched, data, watching = run(True)
    for name, value in plain.state_dict().items():
        assert torch.equal(watched.state_dict()[name], value), name
    known = [point for point in watching.points if "pretraining" not in point[0]]
    assert [p for p in known if "perf/" not in p[0]] == [p for p in logger.points if "perf/" not in p[0]]
    model = watched.policy.eval()
    sums = [ptx_loss(model, PtxBatch(batch, 1.0), 1.0)[0].item() for batch in data.val_dataloader()[1]]
    tokens = sum(int((batch.labels >= 0).sum()) for batch in data.val_dataloader()[1])
    assert watching.values("val/pretraining_loss")[-1] == pytest.approx(sum(sums) / tokens, rel=1e-4)
    assert len(watching.values("val/pretraining_perplexity")) == 2


def test_what_is_mixed_in_is_not_forgotten(fit, mixed):
    def left(coef):
        module, data = mixed(coef, windows=8, batch_size=100)
        return fit(module, data, max_epochs=8, check_val_every_n_epoch=8).callback_metrics["val/pretraining_loss"]

    assert left(1.0) < left(0.0) - 0.5, "nats a token, of some five"


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_that_was_cut_off_is_the_one_that_was_not(fit, mixed, tmp_path, accumulate):
    """After any step, most of them inside an iteration."""

    def run(name, checkpoint=None, **settings):
        torch.manual_seed(0)
        return fit(
            *mixed(0.5, ppo_epochs=2, **settings),
            callbacks=[RandomState(), ExactCheckpoint(1, keep=100)],
            plugins=[VerifiedCheckpointIO()],
            default_root_dir=tmp_path / name,
            enable_checkpointing=True,
            accumulate_grad_batches=accumulate,
            ckpt_path=checkpoint,
            max_epochs=2,
        )

    straight = run("straight")
    saved = sorted((tmp_path / "straight" / "checkpoints").glob("*.ckpt"))
    assert len(saved) == 8
    for step in (1, 3, 4, 6):
        resumed = run(f"from-{step}", saved[step - 1])
        for name in ("train/loss", "loss/ptx"):
            assert resumed.logger.values(name) == straight.logger.values(name)[step:], f"{name} from step {step}"
        for name, value in straight.lightning_module.state_dict().items():
            assert torch.equal(resumed.lightning_module.state_dict()[name], value), f"{name} from step {step}"
    with pytest.raises(UserError, match=r"found ppo_epochs x .* = 2 x 2 x \d \+ 1, expected 2 x 2 x \d \+ 2 as"):
        run("other", saved[0], batch_size=100)


def test_a_coefficient_of_no_text_is_refused(fit, mixed):
    line = r"^model\.ptx\.coef: found 0\.5, expected 0 or data with `pretraining` text$"
    with pytest.raises(UserError, match=line):
        fit(*mixed(0.5, text=False))


def test_windows_longer_than_the_model_are_refused_before_the_first_answer(fit, mixed, micro):
    module, data = mixed(0.5)
    data.pretraining = PretrainingText(str(micro.pretraining)).open(str(micro.gpt), 0, data.cache_dir, 33, 4)
    with pytest.raises(UserError, match=r"^data\.pretraining\.context: found 33, .* n_positions = 32$"):
        fit(module, data)
    assert module.rollout is None


def test_the_rate_is_that_of_steps_and_not_of_micro_batches(fit, mixed):
    module, data = mixed(0.5, schedule=ScheduleConfig(shape="linear", final=0.0))
    rates = []
    module.on_before_zero_grad = lambda optimizer: rates.append(optimizer.param_groups[0]["lr"])
    fit(module, data, max_epochs=2, limit_val_batches=0)
    assert rates == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3])
