"""DPO: the first loss is ln 2, it learns what people prefer, and validation is a naive computation's."""

import math

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from conftest import shaken, write_rows

from gpt_modules.backbone import load_pretrained, save_pretrained
from gpt_modules.data import RewardDataModule
from gpt_modules.data.collate import collate_rankings
from gpt_modules.data.rows.sources import load_splits
from gpt_modules.errors import UserError
from gpt_modules.training import DPOModule
from gpt_modules.training.optimizers import OptimizerConfig, ScheduleConfig

FAST = OptimizerConfig(lr=3e-3, weight_decay=0.0)
STILL = OptimizerConfig(lr=0.0, weight_decay=0.0)


def comparisons(micro, tmp_path, source=None, **settings):
    usual = {"context": 32, "batch_size": 8, "cache_dir": str(tmp_path / "cache"), "validation_fraction": 0.3}
    return RewardDataModule(str(source or micro.comparisons), tokenizer=str(micro.gpt), **{**usual, **settings})


@pytest.fixture
def data(micro, tmp_path):
    return comparisons(micro, tmp_path, val_batch_size=7)


@pytest.fixture
def trained(fit, micro, data):
    module = DPOModule(str(micro.gpt), optimizer=FAST)
    return module, fit(module, data, max_epochs=4)


@torch.no_grad()
def logprob(model, tokenizer, prompt, response):
    """Of the response and the end, from all logits of one row."""
    before = tokenizer.encode(prompt)
    ids = torch.tensor([*before, *tokenizer.encode(response), tokenizer.eos_id])
    every = model(ids[None, :-1])[0].double().log_softmax(-1)
    return sum(every[t - 1, ids[t]].item() for t in range(len(before), len(ids)))


def naive(policy, reference, rows, tokenizer, beta):
    """Per row, of each untied pair: the margin, and the log-probabilities of the better and of the worse answer."""
    found = []
    for row in rows:
        own = [logprob(policy, tokenizer, row["prompt"], text) for text in row["responses"]]
        theirs = [logprob(reference, tokenizer, row["prompt"], text) for text in row["responses"]]
        rewards = [beta * (a - b) for a, b in zip(own, theirs, strict=True)]
        ranked = list(zip(row["ranking"], rewards, own, strict=True))
        found.append([(r - s, a, b) for rank, r, a in ranked for other, s, b in ranked if rank < other])
    return found


def test_a_policy_that_begins_as_its_reference_prefers_nothing(fit, micro, data):
    """The stored dropout of 0.3 would tell policy and reference apart."""
    module = DPOModule(str(micro.gpt), optimizer=STILL)
    trainer = fit(module, data)
    assert trainer.logger.values("train/loss") == pytest.approx([math.log(2)] * trainer.global_step, abs=1e-5)
    found = {name: trainer.callback_metrics[f"val/{name}"].item() for name in ("loss", "margin")}
    assert found == pytest.approx({"loss": math.log(2), "margin": 0.0}, abs=1e-5)


def test_it_learns_what_people_prefer(trained):
    _, trainer = trained
    assert trainer.callback_metrics["val/accuracy"] > 0.8
    assert trainer.callback_metrics["val/margin"] > 0.5
    losses = trainer.logger.values("train/loss")
    assert losses[-1] < 0.5 < losses[0]


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_validation_against_a_naive_computation(fit, micro, data, tmp_path, beta):
    """Of a policy that is neither its reference nor where it began."""
    other = shaken(load_pretrained(micro.gpt, kind="gpt"), 7)
    save_pretrained(tmp_path / "other", other, tokenizer_json=micro.tokenizer.to_json())
    module = DPOModule(str(micro.gpt), reference_from=str(tmp_path / "other"), beta=beta, optimizer=FAST)
    trainer = fit(module, data, limit_train_batches=3)
    rows = load_splits(str(micro.comparisons), None, "reward", fraction=0.3)[1]
    pairs = naive(module.model.eval(), other.eval(), rows, micro.tokenizer, beta)
    losses = [np.mean([math.log1p(math.exp(-margin)) for margin, _, _ in row]) for row in pairs]
    margins, chosen, rejected = map(np.array, zip(*(pair for row in pairs for pair in row), strict=True))
    expected = {
        "loss": np.mean(losses),
        "accuracy": (margins > 0).mean(),
        "margin": margins.mean(),
        "chosen_logprob": chosen.mean(),
        "rejected_logprob": rejected.mean(),
    }
    for name, value in expected.items():
        assert trainer.callback_metrics[f"val/{name}"].item() == pytest.approx(value, abs=2e-4), name


def test_the_preferred_answers_nats_beside_the_loss_against_a_naive_computation(fit, micro, data):
    """Of all rows in one step, from the reference: ln 2, and alpha times the mean over pairs, then over prompts."""
    data.setup("fit")
    rows = load_splits(str(micro.comparisons), None, "reward", fraction=0.3)[0]
    data.batch_size = len(rows)
    module = DPOModule(str(micro.gpt), rpo_alpha=0.5, optimizer=STILL)
    trainer = fit(module, data, limit_val_batches=0)
    model, nats = load_pretrained(micro.gpt, kind="gpt").eval(), []
    for row in rows:
        ranked = list(zip(row["ranking"], row["responses"], strict=True))
        preferred = [text for rank, text in ranked for other, _ in ranked if rank < other]
        lengths = {text: len(micro.tokenizer.encode(text)) + 1 for text in preferred}
        own = {text: -logprob(model, micro.tokenizer, row["prompt"], text) / lengths[text] for text in lengths}
        nats.append(np.mean([own[text] for text in preferred]))
    (loss,), (nll,) = (trainer.logger.values(f"train/{name}") for name in ("loss", "nll"))
    assert nll == pytest.approx(np.mean(nats), abs=1e-4)
    assert loss == pytest.approx(math.log(2) + 0.5 * nll, abs=1e-5)


def test_it_keeps_preferred_answers_from_becoming_less_likely(fit, micro, data):
    """Where nothing else does: the same run without it lets them fall."""
    found = {}
    for alpha in (0.0, 5.0):
        module = DPOModule(str(micro.gpt), rpo_alpha=alpha, optimizer=FAST)
        trainer = fit(module, data, max_epochs=2)
        found[alpha] = {name: trainer.callback_metrics[f"val/{name}"].item() for name in ("accuracy", "chosen_logprob")}
        assert bool(trainer.logger.values("train/nll")) == bool(alpha)
    assert found[5.0]["chosen_logprob"] > found[0.0]["chosen_logprob"] + 1.0
    assert found[5.0]["accuracy"] > 0.6


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_in_half_precision_it_begins_where_it_should_and_learns(fit, micro, data, precision):
    module = DPOModule(str(micro.gpt), optimizer=FAST)
    trainer = fit(module, data, max_epochs=3, precision=precision)
    losses = trainer.logger.values("train/loss")
    assert losses[0] == pytest.approx(math.log(2), abs=0.02), "bf16 rounds, and batches round each in its own way"
    assert trainer.callback_metrics["val/accuracy"] > 0.7


def test_ties_empty_ends_and_a_rank_without_prompts(fit, micro, tmp_path):
    """Rows whose answers tie in part; an answer of one token; a batch in which nothing is."""
    rows = [
        {"prompt": f"the film {n}", "responses": [" so.", " no.", "."], "ranking": [1, 1 + n % 2, 1 + (n > 3)]}
        for n in range(12)
    ]
    data = comparisons(micro, tmp_path, write_rows(tmp_path / "ties.jsonl", rows), validation_fraction=0.2)
    module = DPOModule(str(micro.gpt), optimizer=FAST)
    trainer = fit(module, data)
    assert all(map(math.isfinite, trainer.logger.values("train/loss")))
    assert len(data.train_examples) + len(data.validation_examples) == sum(n % 2 or n > 3 for n in range(12))
    module.validation_step(collate_rankings([]), 0)
    assert len(module.held_out_logprobs.take()["chosen_logprob"]) == 0
    assert module.predict_step(collate_rankings([]), 0) == []


def test_predictions_are_the_margins_that_validation_measures(fit, micro, data):
    module = DPOModule(str(micro.gpt), optimizer=FAST)
    trainer = fit(module, data, limit_train_batches=4)
    expected = trainer.callback_metrics["val/margin"].item()
    rows = [row for batch in trainer.predict(module, data) for row in batch]
    margins = [
        a - b
        for row in rows
        for rank, a in zip(row["ranks"], row["rewards"], strict=True)
        for other, b in zip(row["ranks"], row["rewards"], strict=True)
        if rank < other
    ]
    assert np.mean(margins) == pytest.approx(expected, abs=1e-5)
    chosen = [row["logprobs"][row["ranks"].index(1)] for row in rows]
    assert len(chosen) == len(data.validation_examples)


def test_the_export_is_the_policy(trained, micro, tmp_path):
    module, _ = trained
    module.export(tmp_path / "export")
    exported, begun = (load_pretrained(folder, kind="gpt") for folder in (tmp_path / "export", micro.gpt))
    for name, value in module.model.state_dict().items():
        assert torch.equal(exported.state_dict()[name], value)
    assert any(not torch.equal(value, begun.state_dict()[name]) for name, value in module.model.state_dict().items())
    assert (tmp_path / "export" / "tokenizer.json").is_file()


def test_a_checkpoint_holds_the_policy_and_which_reference_it_was(trained, tmp_path):
    module, trainer = trained
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    found = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert set(found["state_dict"]) == {f"model.{name}" for name in module.model.state_dict()}
    assert found["dpo"] == {"frozen": module.reference.digests}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda found: found.pop("dpo"), r"--ckpt_path: found no state of DPO in it"),
        (lambda found: found.update(dpo={"frozen": {"reference": 3}}), r"^dpo\.frozen"),
        (lambda found: found.update(dpo={}), r"^dpo\.frozen"),
    ],
)
def test_a_state_that_is_none_is_refused(trained, fit, data, micro, tmp_path, change, line):
    trained[1].save_checkpoint(tmp_path / "x.ckpt")
    found = torch.load(tmp_path / "x.ckpt", weights_only=True)
    change(found)
    torch.save(found, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=line):
        fit(DPOModule(str(micro.gpt), optimizer=FAST), data, max_epochs=5, ckpt_path=tmp_path / "x.ckpt")


@pytest.mark.parametrize("beta", [0.0, -1.0, float("inf"), float("nan")])
def test_a_beta_is_positive(beta):
    with pytest.raises(UserError, match=rf"^beta: found {beta}, expected a number in \(0, inf\)"):
        DPOModule("folder", beta=beta)


@pytest.mark.parametrize("alpha", [-1.0, float("inf"), float("nan")])
def test_a_weight_is_not_negative(alpha):
    with pytest.raises(UserError, match=rf"^rpo_alpha: found {alpha}, expected a number in \[0, inf\)"):
        DPOModule("folder", rpo_alpha=alpha)


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"demonstrations": "again"}, "demonstrations"), ({"max_demonstrations": 7}, "max_demonstrations")],
)
def test_a_zero_point_that_nothing_follows_is_refused(fit, micro, tmp_path, settings, name):
    with pytest.raises(UserError, match=rf"^data\.{name}: found .*, expected it left at .*no zero point"):
        fit(DPOModule(str(micro.gpt)), comparisons(micro, tmp_path, **settings))


def test_other_data_is_refused(fit, micro, procedure):
    _, data = procedure("sft")
    with pytest.raises(UserError, match=r"^data\.class_path: found 'SFTDataModule', expected RewardDataModule$"):
        fit(DPOModule(str(micro.gpt)), data)


def test_a_prompt_without_tokens_is_refused(fit, micro, data):
    data.setup("fit")
    tokens, _ = data.train_examples.answers[3]
    data.train_examples.answers[3] = (tokens, 0)
    with pytest.raises(UserError, match=r"^train: prompt: found one without tokens, before '.*', expected text to ans"):
        fit(DPOModule(str(micro.gpt)), data)


def test_samples_answer_the_prompts_of_the_recipe(fit, micro, data):
    module = DPOModule(str(micro.gpt), optimizer=STILL, sample_prompts=["the film", "a story"], sample_tokens=4)
    fit(module, data, max_steps=1, limit_val_batches=1)
    assert [row["prompt"] for row in module.sample_rows()] == ["the film", "a story"]


def test_what_is_left_out_is_the_papers():
    """Rafailov et al. 2023, appendix B: beta 0.1, RMSprop at 1e-6, whose decay in torch is 0.99."""
    module = DPOModule("folder")
    config = module.optimizer_config
    assert (module.hparams["beta"], config.lr, config.betas, config.weight_decay) == (0.1, 1e-6, (0.0, 0.99), 0.0)
    assert module.schedule_config == ScheduleConfig(shape="constant")


def test_those_betas_are_rmsprop_but_for_the_bias(micro):
    """After many steps the correction is 1: AdamW's step is then RMSprop's."""
    ours, theirs = (torch.nn.Parameter(torch.ones(5)) for _ in range(2))
    adam = torch.optim.AdamW([ours], lr=1e-3, betas=(0.0, 0.99), eps=1e-8, weight_decay=0.0)
    rmsprop = torch.optim.RMSprop([theirs], lr=1e-3, alpha=0.99, eps=1e-8)
    for step in range(2000):
        gradient = torch.randn(5)
        ours.grad, theirs.grad = gradient, gradient.clone()
        if step == 1999:
            before = ours.detach().clone(), theirs.detach().clone()
        adam.step()
        rmsprop.step()
    torch.testing.assert_close(ours - before[0], theirs - before[1], rtol=1e-3, atol=1e-6)


def test_work_is_counted_in_answers(micro, data):
    data.setup("fit")
    batch = data.train_examples.batch(0, np.array([0, 1]))
    assert DPOModule("folder").work(batch) == (6, "answers")


def test_validated_from_a_folder_alone(micro, data):
    plain = L.Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    (found,) = plain.validate(DPOModule(str(micro.gpt)), data, verbose=False)
    assert found["val/loss"] == pytest.approx(math.log(2), abs=1e-5)
