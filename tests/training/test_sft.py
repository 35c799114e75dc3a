"""SFT: the loss sees answers only, packing changes nothing, and answers come out."""

import pytest
import torch
import torch.nn.functional as F

from gpt_modules.backbone import load_pretrained
from gpt_modules.data import SFTDataModule
from gpt_modules.data.rows.sources import load_splits
from gpt_modules.training import SFTModule
from gpt_modules.training.language import next_token_loss
from gpt_modules.training.optimizers import OptimizerConfig

FAST = OptimizerConfig(lr=1e-2, weight_decay=0.0)


@pytest.fixture
def data(micro, tmp_path):
    def build(**settings):
        given = {"context": 32, "batch_size": 8, "cache_dir": str(tmp_path / "cache"), "validation_fraction": 0.3}
        return SFTDataModule(str(micro.sft), tokenizer=str(micro.gpt), **{**given, **settings})

    return build


def held_out(micro):
    return load_splits(str(micro.sft), None, "sft", fraction=0.3)[1]


def ready(data):
    data.prepare_data()
    data.setup("fit")
    return data


@pytest.fixture
def model(micro):
    return load_pretrained(micro.gpt, kind="gpt", embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0).eval()


@torch.no_grad()
def naive_losses(model, rows, tokenizer):
    """-log p of each answer token and of the end token, one row at a time."""
    losses = []
    for row in rows:
        prompt, answer = tokenizer.encode(row["prompt"]), [*tokenizer.encode(row["response"]), tokenizer.eos_id]
        logits = model(torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1]
        losses += F.cross_entropy(logits, torch.tensor(answer), reduction="none").tolist()
    return losses


@pytest.mark.parametrize("packing", [True, False])
def test_the_loss_is_over_answers_and_their_end_only(model, micro, data, packing):
    source = ready(data(packing=packing))
    expected = naive_losses(model, held_out(micro), micro.tokenizer)
    sums, counts = zip(*(next_token_loss(model, batch) for batch in source.val_dataloader()), strict=True)
    assert sum(counts).item() == len(expected)
    assert sum(sums).item() == pytest.approx(sum(expected), rel=1e-4)


def test_packed_rows_hold_several_answers(micro, data):
    batch = next(iter(ready(data()).train_dataloader()))
    assert int(batch.segments.max()) > 1, "the test above means nothing otherwise"


def test_validation_is_the_mean_over_answer_tokens(fit, micro, data):
    source = data(val_batch_size=3)
    module = SFTModule(str(micro.gpt), dropout=0.0, optimizer=FAST)
    trainer = fit(module, source)
    expected = naive_losses(module.model.eval(), held_out(micro), micro.tokenizer)
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(sum(expected) / len(expected), abs=1e-4)


def test_it_learns_to_answer_and_to_end(fit, micro, data):
    module = SFTModule(str(micro.gpt), dropout=0.0, optimizer=FAST, sample_prompts=["the film 3"], sample_tokens=12)
    trainer = fit(module, data(), max_epochs=40, check_val_every_n_epoch=40)
    losses = trainer.logger.values("val/loss")
    assert losses[-1] < 0.8, "about log(4) nats in the first of some three tokens are left: which of four words it is"
    (row,) = module.sample_rows()
    assert row["temperature 0.7"].startswith(" is")
    assert row["temperature 0.7"].endswith("."), "it ended by itself, within 12 tokens"


def test_dropout_is_what_is_asked_for_or_as_stored(micro):
    """On the residual path; embedding and attention keep the stored 0.3 (Ouyang et al. 2022, appendix C.1)."""
    for asked, found in ((None, 0.3), (0.1, 0.1), (0.0, 0.0)):
        module = SFTModule(str(micro.gpt), dropout=asked)
        module.configure_model()
        assert {m.p for m in module.modules() if isinstance(m, torch.nn.Dropout)} == {found, 0.3}
        assert module.model.config.resid_pdrop == found


def test_a_checkpoint_built_in_python_is_plain_data(fit, micro, data, tmp_path):
    fit(SFTModule(str(micro.gpt)), data()).save_checkpoint(tmp_path / "x.ckpt")
    assert torch.load(tmp_path / "x.ckpt", weights_only=True)["hyper_parameters"]["init_from"] == str(micro.gpt)
