"""SFT: the loss sees answers only, packing changes nothing, and answers come out."""

import json
import math

import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F

from gpt_modules.backbone import generate, load_pretrained
from gpt_modules.data import PretrainingText, RewardDataModule, SFTDataModule
from gpt_modules.data.batches import TokenBatch
from gpt_modules.data.rows.chat import encode_conversation
from gpt_modules.data.rows.sources import load_splits
from gpt_modules.errors import UserError
from gpt_modules.training import DPOModule, SFTModule, language
from gpt_modules.training.callbacks.checkpointing import ExactCheckpoint, RandomState, VerifiedCheckpointIO
from gpt_modules.training.language import next_token_loss
from gpt_modules.training.optimizers import OptimizerConfig, ScheduleConfig

FAST, FLAT = OptimizerConfig(lr=1e-2, weight_decay=0.0), ScheduleConfig(shape="constant")


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


def test_samples_are_asked_in_the_form_that_the_data_has(fit, micro, tmp_path, monkeypatch):
    """A prompt that is read as no prompt of the data was shows nothing of what has been learned."""
    asked = []

    def seen(model, ids, **given):
        asked.append(ids)
        return generate(model, ids, **given)

    monkeypatch.setattr(language, "generate", seen)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    pair = {"messages": turns[:1], "chosen": "b", "rejected": "c"}
    for row, Module in (
        ({"messages": turns}, SFTModule),
        ({"prompt": "a", "response": "b"}, SFTModule),
        (pair, DPOModule),
    ):
        paths = tmp_path / "train.jsonl", tmp_path / "validation.jsonl"
        for number, path in enumerate(paths):
            path.write_text(json.dumps(row) + "\n" * (1 + number))
        Data = SFTDataModule if Module is SFTModule else RewardDataModule
        source = Data(*map(str, paths), tokenizer=str(micro.gpt), context=32, batch_size=1)
        module = Module(str(micro.gpt), optimizer=FAST, sample_prompts=["the"], sample_tokens=1)
        fit(module, source, max_steps=1, limit_val_batches=0)
        module.sample_rows()
    user = encode_conversation([{"role": "user", "content": "the"}], micro.tokenizer)
    assert asked[::2] == [[user], micro.tokenizer.opening(["the"]), [user]]


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


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dropout": 1.5}, "dropout: found 1.5, expected a number in [0, 1)"),
        ({"sample_tokens": 0}, "sample_tokens: found 0, expected a whole number in [1, inf)"),
        ({"seed": -1}, "seed: found -1, expected a whole number in [0, 4294967295]"),
        ({"sample_tokens": 7}, "sample_tokens: found 7, expected it left at 48: there are no sample_prompts"),
        ({"seed": 7}, "seed: found 7, expected it left at 0: there are no sample_prompts to answer"),
    ],
)  # fmt: skip
def test_what_it_cannot_follow_is_refused_by_its_name(given, message):
    with pytest.raises(UserError) as error:
        SFTModule("folder", **given)
    assert str(error.value) == message
    SFTModule("folder", sample_prompts=["a"], sample_tokens=1, seed=7)


def test_rows_longer_than_the_model_are_refused_before_the_first_step(fit, micro, data):
    with pytest.raises(UserError, match=r"^data\.context: found 33, .* n_positions = 32$"):
        fit(SFTModule(str(micro.gpt)), data(context=33))


def test_the_rate_that_is_left_out_is_about_instructgpts():
    assert SFTModule("folder").optimizer_config.lr == pytest.approx(9.65e-6, rel=0.1)  # appendix C.1


class Still(L.Callback):
    """No dropout at all."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        module.eval()


def test_the_loss_of_a_step_is_logged_as_the_mean_over_answer_tokens(model, fit, micro, data):
    source, rates = data(packing=False), []
    module = SFTModule(str(micro.gpt), optimizer=FAST, schedule=ScheduleConfig(shape="linear", final=0.0))
    module.on_train_batch_start = lambda batch, index: rates.append(module.optimizers().param_groups[0]["lr"])
    trainer = fit(module, source, max_steps=4, limit_val_batches=0, callbacks=[Still()])
    batch = source.train_dataloader().batch_at(0, 0)
    expected = F.cross_entropy(model(batch.inputs).flatten(0, 1), batch.labels.flatten(), ignore_index=-100)
    assert trainer.logger.values("train/loss")[0] == pytest.approx(expected.item(), abs=1e-5)
    assert rates == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3]), "the way ends with the run"
    assert module.work(batch) == (batch.inputs.shape[0] * batch.inputs.shape[1], "tokens")
    assert module.flops_per_token() == model.config.flops_per_token(32)


def test_a_batch_of_one_token_counts_once_and_one_of_none_not_at_all(model, micro):
    module = SFTModule(str(micro.gpt))
    module.configure_model()
    module.eval()
    one, none = (TokenBatch(torch.tensor([[5, 6]]), torch.tensor([[label, -100]])) for label in (7, -100))
    for batch in (one, none):
        module.validation_step(batch, 0)
    expected = F.cross_entropy(model(one.inputs)[0, :1], torch.tensor([7])).item()
    sums = module.held_out.take()
    assert sums["nats"].sum() / sums["tokens"].sum() == pytest.approx(expected, abs=1e-5)


def test_every_stage_says_the_same_of_the_same_rows(fit, micro, data, tmp_path):
    source, module = data(), SFTModule(str(micro.gpt), dropout=0.0, optimizer=FAST)
    trainer = fit(module, source, limit_train_batches=1)
    losses = naive_losses(module.model.eval(), held_out(micro), micro.tokenizer)
    mean = sum(losses) / len(losses)
    for stage, run in (("val", trainer.validate), ("test", trainer.test)):
        (found,) = run(module, source, verbose=False)
        expected = {f"{stage}/loss": mean, f"{stage}/perplexity": math.exp(mean)}
        assert found == {name: pytest.approx(value, rel=1e-4) for name, value in expected.items()}
    rows = [row for batch in trainer.predict(module, source) for row in batch]
    assert sum(row["tokens"] for row in rows) == len(losses)
    assert sum(row["nats"] for row in rows) == pytest.approx(sum(losses), rel=1e-4)
    module.export(tmp_path / "export")
    exported = load_pretrained(tmp_path / "export", kind="gpt").eval()
    assert naive_losses(exported, held_out(micro), micro.tokenizer) == pytest.approx(losses)
    assert module.sample_rows() == []


def test_matrices_of_the_blocks_are_muons_and_samples_end_where_asked(fit, micro, data):
    config = OptimizerConfig(lr=0.03, muon_lr=0.02, weight_decay=0.2)
    module = SFTModule(str(micro.gpt), optimizer=config, sample_prompts=["the film"], sample_tokens=1)
    trainer = fit(module, data(), max_steps=1, limit_val_batches=0)
    muon = trainer.optimizers[0].parts["muon"].param_groups
    matrices = [p for p in module.model.decoder.blocks.parameters() if p.ndim == 2]
    assert [(len(group["params"]), group["weight_decay"]) for group in muon] == [(len(matrices), 0.2)]
    (row,) = module.sample_rows()
    assert max(len(micro.tokenizer.encode(row[f"temperature {heat}"])) for heat in ("1.0", "0.7")) <= 1


def test_matrices_decay_as_asked(fit, micro, data):
    module = SFTModule(str(micro.gpt), optimizer=OptimizerConfig(weight_decay=0.3))
    groups = fit(module, data(), max_steps=1, limit_val_batches=0).optimizers[0].param_groups
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]


@pytest.fixture
def text(micro):
    return PretrainingText(train=str(micro.pretraining), context=16)


def moved(fit, micro, source, **trainer):
    """The gradient of the first step: plain descent moves the weights by the rate times it."""
    module = SFTModule(str(micro.gpt), optimizer=OptimizerConfig(lr=0.1, sgd=True, weight_decay=0.0), schedule=FLAT)
    before = load_pretrained(micro.gpt, kind="gpt").state_dict()
    logger = fit(module, source, max_steps=1, limit_val_batches=0, callbacks=[Still()], **trainer).logger
    return {name: (before[name] - value) / 0.1 for name, value in module.model.state_dict().items()}, logger


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_a_mixed_step_is_the_mean_over_all_tokens_of_demonstrations_and_windows(
    model, fit, micro, data, text, accumulate
):
    """By hand, row by row; however many micro-batches it is read in."""
    source = data(pretraining=text, pretraining_fraction=0.4, packing=False, batch_size=8 // accumulate)
    found, logger = moved(fit, micro, source, accumulate_grad_batches=accumulate)
    batches = [source.train_dataloader().batch_at(0, index) for index in range(accumulate)]
    parts = [part for batch in batches for part in batch if part is not None]
    assert sum(len(part.inputs) for part in parts) == 8 + 5
    rows = [row for part in parts for row in zip(part.inputs, part.labels, strict=True)]
    losses = [F.cross_entropy(model(inputs[None])[0], labels, reduction="none") for inputs, labels in rows]
    counted = torch.cat(losses)[torch.cat([labels for _, labels in rows]) >= 0]
    counted.mean().backward()
    assert logger.values("train/loss") == [pytest.approx(counted.mean().item(), rel=1e-4)]
    for name, parameter in model.named_parameters():
        assert torch.allclose(found[name], parameter.grad, atol=2e-5), name


def test_text_that_is_only_watched_changes_nothing_and_is_measured(fit, micro, data, text):
    def run(**settings):
        module, source = SFTModule(str(micro.gpt), dropout=0.0, optimizer=FAST), data(**settings)
        torch.manual_seed(0)
        return module, source, fit(module, source, max_epochs=2).logger

    plain, _, logger = run()
    watched, source, watching = run(pretraining=text, pretraining_fraction=0.0)
    for name, value in plain.model.state_dict().items():
        assert torch.equal(watched.model.state_dict()[name], value), name
    for name in ("train/loss", "val/loss", "val/perplexity"):
        assert watching.values(name) == logger.values(name)
    assert {name for name, _, _ in watching.points} - {name for name, _, _ in logger.points} == {
        "val/pretraining_loss",
        "val/pretraining_perplexity",
    }
    nats, tokens = zip(
        *(next_token_loss(watched.model.eval(), batch) for batch in source.val_dataloader()[1]), strict=True
    )
    mean = (sum(nats) / sum(tokens)).item()
    assert watching.values("val/pretraining_loss")[-1] == pytest.approx(mean, rel=1e-4)
    assert watching.values("val/pretraining_perplexity")[-1] == pytest.approx(math.exp(mean), rel=1e-4)


def test_what_is_mixed_in_is_not_forgotten(fit, micro, data, text):
    def left(fraction):
        module = SFTModule(str(micro.gpt), dropout=0.0, optimizer=FAST)
        source = data(pretraining=text, pretraining_fraction=fraction)
        return fit(module, source, max_epochs=8, check_val_every_n_epoch=8).callback_metrics["val/pretraining_loss"]

    assert left(0.2) < left(0.0) - 0.5, "nats a token, of some five"


@pytest.mark.parametrize("step", [1, 6, 8])
def test_a_mixed_run_that_was_cut_off_is_the_one_that_was_not(fit, micro, data, text, tmp_path, step):
    def run(name, checkpoint=None):
        torch.manual_seed(0)
        module, saving = SFTModule(str(micro.gpt), optimizer=FAST), ExactCheckpoint(1, keep=100)
        return fit(
            module,
            data(pretraining=text, pretraining_fraction=0.3, batch_size=4),
            callbacks=[RandomState(), saving],
            plugins=[VerifiedCheckpointIO()],
            default_root_dir=tmp_path / name,
            enable_checkpointing=True,
            ckpt_path=checkpoint,
            max_epochs=2,
        )

    straight = run("straight")
    losses = straight.logger.values("train/loss")
    assert len(losses) == 12
    saved = sorted((tmp_path / "straight" / "checkpoints").glob("*.ckpt"))
    resumed = run("resumed", saved[step - 1])
    assert resumed.logger.values("train/loss") == losses[step:]
    assert resumed.logger.values("val/pretraining_loss") == straight.logger.values("val/pretraining_loss")[step // 6 :]
    for name, value in straight.lightning_module.state_dict().items():
        assert torch.equal(resumed.lightning_module.state_dict()[name], value), name


def test_windows_longer_than_the_model_are_refused_before_the_first_step(fit, micro, data):
    source = data(pretraining=PretrainingText(train=str(micro.pretraining), context=33))
    line = r"^data\.pretraining\.context: found 33, expected at most the model's n_positions = 32$"
    with pytest.raises(UserError, match=line):
        fit(SFTModule(str(micro.gpt)), source)


def test_work_counts_what_both_read(micro, data, text):
    source = ready(data(pretraining=text, pretraining_fraction=0.4))
    module, batch = SFTModule(str(micro.gpt)), source.train_dataloader().batch_at(0, 0)
    assert module.work(batch) == (8 * 32 + 5 * 16, "tokens")
