"""Pretraining on a micro text: it learns, it measures what it says, and its checkpoint is plain data."""

import itertools
import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from gpt_modules.backbone import load_pretrained
from gpt_modules.data import PretrainingDataModule
from gpt_modules.errors import UserError
from gpt_modules.training import PretrainingModule
from gpt_modules.training.optimizers import OptimizerConfig, ScheduleConfig

FAST = OptimizerConfig(lr=1e-2, weight_decay=0.0)


@pytest.fixture
def data(micro, tmp_path):
    return PretrainingDataModule(
        str(micro.pretraining),
        micro.again(micro.pretraining),
        tokenizer=str(micro.gpt),
        context=16,
        batch_size=8,
        cache_dir=str(tmp_path / "cache"),
    )


@pytest.fixture
def sizes(micro):
    return micro.config(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)


def naive_loss(model, data):
    """Mean cross-entropy in nats from whole logits, token by token."""
    losses = []
    for batch in data.val_dataloader():
        with torch.no_grad():
            logits = model.eval()(batch.inputs)
        losses += F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="none", ignore_index=-100)[
            batch.labels.flatten() != -100
        ].tolist()
    return sum(losses) / len(losses), len(losses)


def unigram_entropy(data):
    counts = Counter(data.val_dataloader().examples.tokens[1:].tolist())
    total = sum(counts.values())
    return -sum(count / total * math.log(count / total) for count in counts.values())


def test_the_loss_falls_below_the_unigram_entropy(fit, data, sizes):
    module = PretrainingModule(sizes, optimizer=FAST)
    trainer = fit(module, data, max_steps=60, max_epochs=-1)
    assert trainer.callback_metrics["val/loss"] < 0.9 * unigram_entropy(data)  # over seeds 0.65 to 0.79
    losses = trainer.logger.values("train/loss")
    assert len(losses) == 60
    assert losses[0] == pytest.approx(math.log(sizes.vocab_size), rel=0.05), "a new model knows nothing"


def test_validation_is_the_mean_over_tokens(fit, data, sizes):
    """With a short last window and a last batch of another size."""
    data.val_batch_size = 5
    module = PretrainingModule(sizes, optimizer=FAST)
    trainer = fit(module, data)
    expected, count = naive_loss(module.model, data)
    assert count == len(data.val_dataloader().examples.tokens) - 1
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(expected, abs=1e-4)
    assert trainer.callback_metrics["val/perplexity"].item() == pytest.approx(math.exp(expected), rel=1e-3)


def test_what_is_exported_is_what_was_validated(fit, data, sizes, micro, tmp_path):
    module = PretrainingModule(sizes, optimizer=FAST)
    trainer = fit(module, data, max_steps=10)
    module.export(tmp_path / "export")
    opened = load_pretrained(tmp_path / "export", kind="gpt")
    assert naive_loss(opened, data)[0] == pytest.approx(trainer.callback_metrics["val/loss"].item(), abs=1e-4)
    again = PretrainingModule(init_from=str(tmp_path / "export"))
    fit(again, data, max_steps=0)
    assert again.model.config == sizes


def test_a_schedule_in_tokens_counts_accumulation(fit, data, sizes):
    """8 rows x 16 tokens x 2 micro-batches = 256 tokens a step; a warm-up of 1024 takes 4 steps."""
    schedule = ScheduleConfig(shape="constant", warmup=1024, unit="tokens")
    rates = []
    module = PretrainingModule(sizes, optimizer=FAST, schedule=schedule)
    module.on_before_optimizer_step = lambda optimizer: rates.append(optimizer.param_groups[0]["lr"])
    fit(module, data, max_steps=5, max_epochs=-1, accumulate_grad_batches=2)
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01])


def test_a_tokenizer_larger_than_the_model_is_refused(fit, data, micro):
    module = PretrainingModule(micro.config(vocab_size=100))
    with pytest.raises(
        UserError, match=rf"vocab_size: found 100, expected at least the tokenizer's {micro.vocab_size}"
    ):
        fit(module, data)


@pytest.mark.parametrize("both", [True, False])
def test_exactly_one_of_config_and_folder(fit, data, micro, both):
    module = PretrainingModule(micro.config(), str(micro.gpt)) if both else PretrainingModule()
    with pytest.raises(UserError, match="both" if both else "neither"):
        fit(module, data)


def test_samples_continue_the_prompts_and_draw_nothing_from_the_run(fit, data, sizes):
    module = PretrainingModule(sizes, sample_prompts=["the film", "a"], sample_tokens=4)
    fit(module, data, max_steps=1)
    before = torch.get_rng_state()
    rows = module.sample_rows()
    assert torch.equal(torch.get_rng_state(), before)
    assert [row["prompt"] for row in rows] == ["the film", "a"]
    assert module.sample_rows() == rows
    assert set(rows[0]) == {"prompt", "temperature 1.0", "temperature 0.7"}


def test_a_checkpoint_built_in_python_is_plain_data(fit, data, sizes, tmp_path):
    fit(PretrainingModule(sizes), data, max_steps=2).save_checkpoint(tmp_path / "x.ckpt")
    stored = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert stored["hyper_parameters"]["config"]["n_embd"] == 16
    assert stored["global_step"] == 2


def test_the_work_of_a_batch_is_its_tokens(fit, data, sizes):
    module = PretrainingModule(sizes)
    fit(module, data, max_steps=0)
    batch = next(itertools.islice(data.train_dataloader(), 1))
    assert module.work(batch) == (8 * 16, "tokens")
    assert module.flops_per_token() > 6 * sum(
        p.numel() for p in module.model.decoder.blocks.parameters() if p.ndim == 2
    )
