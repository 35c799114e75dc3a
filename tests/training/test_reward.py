"""The reward model: it learns preferences, says how sure it is, and is exported with its zero point."""

import copy

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from conftest import shaken, write_rows

from gpt_modules.backbone import RewardModel, load_pretrained, save_pretrained
from gpt_modules.data import RewardDataModule
from gpt_modules.data.collate import RankedAnswers, collate_rankings
from gpt_modules.data.rows.sources import load_splits
from gpt_modules.errors import UserError
from gpt_modules.training import RewardModule, preference_metrics
from gpt_modules.training.callbacks.dashboard import RunLogger
from gpt_modules.training.optimizers import OptimizerConfig, ScheduleConfig

FAST = OptimizerConfig(lr=1e-2, weight_decay=0.0)


@pytest.fixture
def data(micro, tmp_path):
    settings = {"context": 32, "batch_size": 8, "cache_dir": str(tmp_path / "cache"), "validation_fraction": 0.3}
    return RewardDataModule(str(micro.comparisons), tokenizer=str(micro.gpt), val_batch_size=7, **settings)


def held_out(micro):
    return load_splits(str(micro.comparisons), None, "reward", fraction=0.3)[1]


@pytest.fixture
def trained(fit, micro, data):
    module = RewardModule(str(micro.gpt), dropout=0.0, optimizer=FAST)
    return module, fit(module, data, max_epochs=4)


@torch.no_grad()
def naive_margins(model, rows, tokenizer):
    """One answer at a time; the margins of every pair of a row."""
    pairs = []
    for row in rows:
        scores = []
        for response in row["responses"]:
            ids = [*tokenizer.encode(row["prompt"]), *tokenizer.encode(response), tokenizer.eos_id]
            scores.append(model(torch.tensor([ids]), torch.tensor([len(ids)])).item())
        ranked = list(zip(row["ranking"], scores, strict=True))
        pairs.append([a - b for rank, a in ranked for other, b in ranked if rank < other])
    return pairs


def test_it_learns_what_people_prefer(trained):
    _, trainer = trained
    # Over seeds 0.90 to 0.96 (a coin: 0.5); another processor's rounding is another seed.
    assert trainer.callback_metrics["val/accuracy"] > 0.8
    assert trainer.callback_metrics["val/margin"] > 1.0
    losses = trainer.logger.values("train/loss")
    assert losses[-1] < 0.45 < losses[0]


def test_validation_against_a_naive_computation(trained, data, micro):
    module, trainer = trained
    pairs = naive_margins(module.model.eval(), held_out(micro), micro.tokenizer)
    margins = torch.tensor([margin for row in pairs for margin in row])
    losses = [-torch.nn.functional.logsigmoid(torch.tensor(row)).mean().item() for row in pairs]
    confidence = torch.maximum(margins.sigmoid(), (-margins).sigmoid())
    bins = (confidence * 10).long().clamp(max=9)
    gaps = [
        abs((margins[bins == b] > 0).float().mean() - confidence[bins == b].mean()) * (bins == b).float().mean()
        for b in bins.unique()
    ]
    expected = {
        "accuracy": (margins > 0).float().mean().item(),
        "margin": margins.mean().item(),
        "loss": sum(losses) / len(losses),
        "calibration_error": sum(gaps).item(),
    }
    for name, value in expected.items():
        assert trainer.callback_metrics[f"val/{name}"].item() == pytest.approx(value, abs=2e-4), name


def test_the_training_accuracy_is_of_the_logged_step(fit, micro, data):
    """Logged every 4 steps: the value must be that of the 4th batch, not of an earlier one."""
    seen = []
    module = RewardModule(str(micro.gpt), dropout=0.0, optimizer=FAST)
    original = module.prompt_scores

    def watched(batch):
        scores = original(batch)
        if module.training:
            better = (
                (batch.ranks.unsqueeze(2) < batch.ranks.unsqueeze(1))
                & batch.mask.unsqueeze(2)
                & batch.mask.unsqueeze(1)
            )
            seen.append(((scores.unsqueeze(2) > scores.unsqueeze(1)) & better).sum().item() / better.sum().item())
        return scores

    module.prompt_scores = watched
    trainer = fit(module, data, log_every_n_steps=4)
    assert trainer.logger.values("train/accuracy") == pytest.approx([seen[3], seen[7]])


@pytest.mark.parametrize("unit_scale", [False, True])
def test_demonstrations_score_zero_in_the_exported_folder(fit, micro, data, tmp_path, unit_scale):
    module = RewardModule(str(micro.gpt), dropout=0.3, unit_scale=unit_scale, optimizer=FAST)
    fit(module, data)
    module.centre()
    assert not module.model.bias.requires_grad, "no step may go through it"
    module.export(tmp_path / "export")  # centres anew, not what has been centred
    exported = load_pretrained(tmp_path / "export", kind="reward").eval()
    with torch.no_grad():
        scores = torch.cat([exported(batch.tokens, batch.lengths) for batch in data.demonstrations()])
    assert len(scores) > 50
    assert scores.mean().item() == pytest.approx(0.0, abs=1e-4)
    assert (abs(scores.std().item() - 1.0) < 1e-3) == unit_scale


def test_centring_changes_no_preference(trained, data, micro, tmp_path):
    module, _ = trained
    module.export(tmp_path / "export")
    exported = load_pretrained(tmp_path / "export", kind="reward").eval()
    before, after = (
        naive_margins(model.eval(), held_out(micro)[:5], micro.tokenizer) for model in (module.model, exported)
    )
    assert torch.allclose(torch.tensor(before), torch.tensor(after), atol=1e-4)


@pytest.mark.parametrize("unit_scale", [False, True])
def test_trained_further_at_rate_zero_it_stays_what_it_was(fit, micro, data, tmp_path, unit_scale):
    """The metrics before training, after it, after an export, and of both folders: all are of the log-odds, whatever
    scale a folder has; and what is exported differs by its zero point and its scale alone.
    """
    begun, frozen = load_pretrained(micro.reward, kind="reward").eval(), OptimizerConfig(lr=0.0, weight_decay=0.0)
    assert begun.scale != 1.0
    begun.scale.fill_(1.0)
    pairs = naive_margins(begun, held_out(micro), micro.tokenizer)
    losses = [-torch.nn.functional.logsigmoid(torch.tensor(row)).mean().item() for row in pairs]
    module = RewardModule(str(micro.reward), dropout=0.0, unit_scale=unit_scale, optimizer=frozen)
    trainer = fit(module, data, max_epochs=2, callbacks=[Exporting(tmp_path / "export")])
    expected = pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert trainer.logger.values("val/loss") == [expected, expected]
    exported = load_pretrained(tmp_path / "export", kind="reward").eval()
    for folder in (micro.reward, tmp_path / "export"):
        plain = L.Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
        (again,) = plain.validate(RewardModule(str(folder)), data, verbose=False)
        assert again["val/loss"] == expected
        assert again["val/margin"] == pytest.approx(trainer.callback_metrics["val/margin"].item(), abs=1e-5)
    margins = naive_margins(exported, held_out(micro)[:3], micro.tokenizer)
    assert (exported.scale.item() != 1.0) == unit_scale
    factor = exported.scale.item()
    assert torch.allclose(torch.tensor(margins), factor * torch.tensor(pairs[:3]), atol=1e-4)


def test_predictions_are_scores_as_ppo_sees_them(fit, micro, data):
    module, model = RewardModule(str(micro.reward), dropout=0.0), load_pretrained(micro.reward, kind="reward").eval()
    trainer = L.Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    predicted = [row for batch in trainer.predict(module, data) for row in batch]
    margins = [
        a - b
        for row in predicted
        for rank, a in zip(row["ranks"], row["scores"], strict=True)
        for other, b in zip(row["ranks"], row["scores"], strict=True)
        if rank < other
    ]
    expected = [margin for row in naive_margins(model, held_out(micro), micro.tokenizer) for margin in row]
    assert sorted(margins) == pytest.approx(sorted(expected), abs=1e-4)


class Exporting(L.Callback):
    """An export after each validation."""

    def __init__(self, folder):
        self.folder = folder

    def on_validation_end(self, trainer, module):
        module.export(self.folder)


class Earlier(L.Callback):
    """A correlation that an earlier validation had, with other weights."""

    def on_validation_start(self, trainer, module):
        trainer.callback_metrics["val/length_correlation"] = torch.tensor(0.5)


def test_one_held_out_pair_is_enough(fit, micro, tmp_path):
    """Any file of fewer than thirty pairs has no more; the figure of one point must not cost the run."""
    row = {"prompt": "the film", "chosen": " is good.", "rejected": " is bad."}
    file = write_rows(tmp_path / "one.jsonl", [row])
    data = RewardDataModule(
        str(micro.comparisons), str(file), tokenizer=str(micro.gpt), context=32, cache_dir=str(tmp_path)
    )
    logger = RunLogger(tmp_path, name="", version="")
    trainer = fit(RewardModule(str(micro.gpt)), data, logger=logger, limit_train_batches=1)
    logger.finalize("success")
    assert trainer.callback_metrics["val/accuracy"].item() in (0.0, 1.0)
    assert trainer.callback_metrics["val/calibration_error"].isfinite()


def test_a_module_that_has_validated_trains(fit, micro, data):
    module = RewardModule(str(micro.gpt), optimizer=FAST)
    trainer = fit(module, data, limit_train_batches=1)
    trainer.validate(module, data, verbose=False)
    assert fit(module, data, limit_train_batches=1).global_step == 1


def test_a_unit_scale_needs_two_demonstrations(fit, micro, tmp_path):
    """Told before the first step: the export would have nothing to divide by. Two are enough."""
    rows = [{"prompt": "the film", "response": f" is {word}."} for word in ("good", "fine")]
    settings = {"tokenizer": str(micro.gpt), "context": 32, "cache_dir": str(tmp_path)}

    def run(count):
        file = write_rows(tmp_path / f"{count}.jsonl", rows[:count])
        data = RewardDataModule(str(micro.comparisons), demonstrations=str(file), **settings)
        fit(RewardModule(str(micro.gpt), unit_scale=True), data, limit_train_batches=1, limit_val_batches=0)

    run(2)
    with pytest.raises(UserError, match=r"^unit_scale: found 1, expected two different demonstrations"):
        run(1)


def test_a_unit_scale_needs_different_scores(fit, micro, data, tmp_path):
    """Of a head of zeros an export would have the scale inf, and its every score would be NaN."""
    model = RewardModel(micro.config())
    torch.nn.init.zeros_(model.head.linear.weight)
    save_pretrained(tmp_path / "level", model, tokenizer_json=micro.tokenizer.to_json())
    module = RewardModule(str(tmp_path / "level"), unit_scale=True, optimizer=OptimizerConfig(lr=0.0))
    fit(module, data, max_steps=1)
    with pytest.raises(UserError, match=r"^unit_scale: found 0\.0, expected demonstrations that do not all score the"):
        module.export(tmp_path / "export")


def test_every_dropout_is_the_one_that_is_asked_for(micro):
    module = RewardModule(str(micro.gpt), dropout=0.25)
    module.configure_model()
    assert {part.p for part in module.modules() if isinstance(part, torch.nn.Dropout)} == {0.25}


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_a_dropout_is_a_part(micro, dropout):
    with pytest.raises(UserError, match=rf"^dropout: found {dropout}, expected a number in "):
        RewardModule(str(micro.gpt), dropout=dropout)


def test_a_checkpoint_built_in_python_is_plain_data(trained, tmp_path):
    trained[1].save_checkpoint(tmp_path / "x.ckpt")
    assert torch.load(tmp_path / "x.ckpt", weights_only=True)["hyper_parameters"]["unit_scale"] is False


def test_the_rate_that_is_left_out_is_instructgpts():
    """Ouyang et al. 2022, appendix C.2."""
    module = RewardModule("folder")
    assert (module.optimizer_config.lr, module.schedule_config.shape, module.schedule_config.final) == (
        9e-6,
        "cosine",
        0.1,
    )
    assert module.optimizer_config.weight_decay == 0.0


def test_rows_longer_than_the_model_are_refused_before_the_first_step(fit, micro, data, tmp_path):
    rows = [{"prompt": f"{number} film" + " a" * 40, "chosen": " so.", "rejected": " no."} for number in range(9)]
    data.train_source, data.context = str(write_rows(tmp_path / "long.jsonl", rows)), 64
    with pytest.raises(UserError, match=r"^data\.context: found 64.* n_positions = 32$"):
        fit(RewardModule(str(micro.gpt)), data)


def test_every_stage_says_the_same_of_the_same_rows(trained, data, micro):
    module, trainer = trained
    (validated,), (tested,) = (run(module, data, verbose=False) for run in (trainer.validate, trainer.test))
    assert {name.replace("test/", "val/"): value for name, value in tested.items()} == validated
    whole = {name for name in validated if name.count("/") == 1}
    named = ("loss", "accuracy", "margin", "calibration_error", "length_correlation")
    assert whole == {f"val/{name}" for name in (*named, "accuracy_shorter_preferred", "accuracy_longer_preferred")}
    rows = [row for batch in trainer.predict(module, data) for row in batch]
    expected = [
        margin for row in naive_margins(module.model.eval(), held_out(micro), micro.tokenizer) for margin in row
    ]
    margins = [
        better - worse
        for row in rows
        for better, first in zip(row["scores"], row["ranks"], strict=True)
        for worse, second in zip(row["scores"], row["ranks"], strict=True)
        if first < second
    ]
    assert sorted(margins) == pytest.approx(sorted(expected), abs=1e-4)
    batch = data.val_dataloader().batch_at(0, 0)
    assert module.work(batch) == (len(batch.lengths), "answers")


def test_a_rank_without_prompts_and_ties_count_nothing(micro):
    """Of two batches, one without a prompt and one in which one pair of two is tied."""
    module = RewardModule(str(micro.reward), dropout=0.0)
    module.configure_model()
    module.eval()
    answers = [[np.array([5, 6]), np.array([7, 8])], [np.array([9]), np.array([10])]]
    tied, nothing = collate_rankings([RankedAnswers(answers[0], [1, 1]), RankedAnswers(answers[1], [2, 1])]), []
    with torch.no_grad():
        for batch in (tied, collate_rankings(nothing)):
            module.validation_step(batch, 0)
        worse, better = module.model.raw_scores(torch.tensor([[9], [10]]), torch.tensor([1, 1])).tolist()
    losses, margins, _ = module.held_out.take({})
    assert margins.tolist() == pytest.approx([better - worse], abs=1e-5)
    assert losses.tolist() == pytest.approx([np.log1p(np.exp(worse - better))], abs=1e-5)


def test_its_optimizer_and_its_schedule_are_those_asked_for(fit, micro, data):
    config, rates = OptimizerConfig(lr=0.03, muon_lr=0.02, weight_decay=0.2), []
    module = RewardModule(str(micro.gpt), optimizer=config, schedule=ScheduleConfig(shape="linear", final=0.0))
    module.on_train_batch_start = lambda batch, index: rates.append(module.optimizers().param_groups[0]["lr"])
    trainer = fit(module, data, max_steps=4, limit_val_batches=0)
    assert rates == pytest.approx([0.02, 0.015, 0.01, 0.005]), "the way ends with the run"
    muon = trainer.optimizers[0].parts["muon"].param_groups
    matrices = [p for p in module.model.decoder.blocks.parameters() if p.ndim == 2]
    assert [(len(group["params"]), group["weight_decay"]) for group in muon] == [(len(matrices), 0.2)]


def test_a_model_that_prefers_nothing_guesses_and_is_half_sure(fit, micro, data, monkeypatch):
    """And the figure is of what was validated, not of the look at a batch before the first step."""
    figures = []

    class Board:
        def add_custom_scalars(self, layout):
            pass

        def add_figure(self, name, figure, step):
            figures.append((name, step))

    monkeypatch.setattr(preference_metrics, "tensorboard", lambda trainer: Board())
    module = RewardModule(str(micro.gpt), optimizer=OptimizerConfig(lr=0.0, weight_decay=0.0))
    module.configure_model()
    torch.nn.init.zeros_(module.model.head.linear.weight)
    trainer = fit(module, data, limit_train_batches=2, num_sanity_val_steps=1, callbacks=[Earlier()])
    assert "val/length_correlation" not in trainer.callback_metrics, "scores that are all the same have none"
    expected = {"loss": np.log(2), "accuracy": 0.5, "margin": 0.0, "calibration_error": 0.0}
    for name, value in expected.items():
        assert trainer.callback_metrics[f"val/{name}"].item() == pytest.approx(value)
    assert trainer.logger.values("train/loss") == pytest.approx([np.log(2)] * 2)
    assert trainer.logger.values("train/accuracy") == [0.5, 0.5]
    assert figures == [("val/reliability", 2), ("val/accuracy_of_parts", 2)]


OFFSETS = ("decoder.ln_f.bias", "head.linear.bias")  # they add the same to all scores


def gradients(model, text, ranks, prompts):
    """Of these prompts' part in the loss of all, in the model's precision."""
    tokens, lengths = text
    scores = model.token_values(tokens)[torch.arange(len(tokens)), lengths - 1].view(ranks.shape)[prompts]
    margins = scores[:, :, None] - scores[:, None, :]
    pairs = (ranks[:, :, None] < ranks[:, None, :])[prompts]
    loss = -torch.nn.functional.logsigmoid(margins)[pairs].sum() / (3 * len(ranks))
    found = torch.autograd.grad(loss, list(model.parameters()))
    return dict(zip(dict(model.named_parameters()), found, strict=True))


def stepped(model, *parts, eps=1e-8):
    """A copy after a step of AdamW by the sum of these gradients."""
    other = copy.deepcopy(model)
    for name, parameter in other.named_parameters():
        parameter.grad = torch.stack([part[name] for part in parts]).sum(0)
    torch.optim.AdamW(other.parameters(), lr=1e-2, weight_decay=0.0, eps=eps).step()
    return other


def test_what_is_added_to_all_scores_has_a_gradient_of_rounding_alone_whose_size_adamw_forgives(micro):
    """So that two processes, which sum in another order, end with other offsets under AdamW, and the same margins."""
    model = shaken(RewardModel(micro.config().without_dropout()), 3)
    text = (torch.randint(0, micro.vocab_size, (24, 12)), torch.randint(4, 13, (24,)))
    ranks = torch.stack([torch.randperm(3) for _ in range(8)])
    exact = gradients(copy.deepcopy(model).double(), text, ranks, slice(None))
    largest = max(float(gradient.abs().max()) for gradient in exact.values())
    for name, gradient in exact.items():
        assert (gradient.abs().max() < 1e-14 * largest) == (name in OFFSETS), name

    whole = gradients(model, text, ranks, slice(None))
    halves = [gradients(model, text, ranks, part) for part in (slice(0, 4), slice(4, 8))]
    one, two = stepped(model, whole), stepped(model, *halves)
    width = model.config.n_embd
    keys = slice(width, 2 * width)  # of attention's biases: what is added to all of a row's scores there, too
    apart = {
        name: (a - b).detach().abs() for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True)
    }
    assert max(float(apart[name].max()) for name in OFFSETS) > 1e-4
    for name, distance in apart.items():
        if name.endswith("qkv.bias"):
            distance[keys] = 0.0
        assert name in OFFSETS or distance.max() < 1e-5, name
    first, second = (of.raw_scores(*text).view(ranks.shape).detach() for of in (one, two))
    assert torch.allclose(first - first[:, :1], second - second[:, :1], atol=1e-4)
    for (name, a), b in zip(
        stepped(model, whole, eps=1e-5).named_parameters(), stepped(model, *halves, eps=1e-5).parameters(), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-4), name
