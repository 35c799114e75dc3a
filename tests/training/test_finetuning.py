"""Fine-tuning: it learns, its loss is the paper's, its metrics are those of a loop, and what it exports predicts."""

import json
import math

import pytest
import torch
from tokenizers import Tokenizer as Backend

from gpt_modules.backbone import GPT, LabellingModel, LoRAConfig, load_pretrained, save_pretrained
from gpt_modules.backbone.folders.card import Facts, write_card
from gpt_modules.data import FinetuningDataModule
from gpt_modules.data.rows.labelled import Columns
from gpt_modules.data.text.edges import set_begin
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError
from gpt_modules.labelling import Labelling
from gpt_modules.training import FinetuningModule
from gpt_modules.training.optimizers import OptimizerConfig, ScheduleConfig

FAST = OptimizerConfig(lr=2e-2, weight_decay=0.0)
GPT1 = ScheduleConfig(shape="linear", warmup=0.002, final=0.0, unit="run")


@pytest.fixture
def data(micro, tmp_path):
    def build(train=micro.labelled, **settings):
        cache = {"tokenizer": str(micro.gpt), "cache_dir": str(tmp_path / "cache")}
        return FinetuningDataModule(str(train), **{**cache, "context": 32, "batch_size": 8, **settings})

    return build


@pytest.fixture
def rows_file(tmp_path):
    def write(rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def texts(micro):
    return [json.loads(line)["text"] for line in micro.labelled.read_text().splitlines()]


@torch.no_grad()
def naive(model, tokenizer, text):
    """Logits of one text, and the mean nats of its tokens after the first."""
    start, _, extract = tokenizer.task_ids
    ids = torch.tensor([[start, *tokenizer.encode(text), extract]])
    hidden = model.decoder(ids)[0]
    logits = hidden @ model.decoder.wte.weight.T
    nats = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:])
    return model.head.linear.weight @ hidden[-1], nats


def test_it_learns_and_reports_what_a_loop_finds(fit, data, micro):
    module, rows = FinetuningModule(str(micro.gpt), dropout=0.0, optimizer=FAST, schedule=GPT1), data()
    trainer = fit(module, rows, max_epochs=4)
    found = trainer.callback_metrics
    assert found["val/accuracy"] > 0.9
    model, (_, held_out) = module.model.eval(), rows.rows()
    outputs, nats = zip(*(naive(model, rows.tokenizer, row["text"]) for row in held_out), strict=True)
    labels = torch.tensor([row["label"] for row in held_out])
    loss = torch.nn.functional.cross_entropy(torch.stack(outputs), labels)
    assert found["val/loss"].item() == pytest.approx(loss.item(), abs=1e-4)
    assert found["val/lm_loss"].item() == pytest.approx(sum(nats).item() / len(nats), abs=1e-4)
    right = (torch.stack(outputs).argmax(1) == labels).float().mean().item()
    assert found["val/accuracy"].item() == pytest.approx(right)


def test_the_loss_is_the_tasks_and_a_share_of_the_text(fit, data, micro):
    """What is logged is of the whole step, which has three micro-batches."""
    logged = {}
    for coefficient in (0.5, 2.0):
        torch.manual_seed(0)
        module = FinetuningModule(str(micro.gpt), lm_coef=coefficient, dropout=0.0, classifier_dropout=0.0)
        trainer = fit(module, data(), max_steps=1, accumulate_grad_batches=3)
        logged[coefficient] = {
            name: trainer.logger.values(f"train/{name}")[0] for name in ("loss", "task_loss", "lm_loss")
        }
    for coefficient, values in logged.items():
        assert values["loss"] == pytest.approx(values["task_loss"] + coefficient * values["lm_loss"], rel=1e-5)
    assert logged[0.5]["lm_loss"] == pytest.approx(logged[2.0]["lm_loss"])


def test_without_the_auxiliary_loss_only_what_the_task_reads_learns(fit, data, micro):
    module = FinetuningModule(str(micro.gpt), lm_coef=0.0, dropout=0.0, optimizer=FAST)
    trainer = fit(module, data(), max_steps=2)
    assert "val/lm_loss" not in trainer.callback_metrics
    before, after = load_pretrained(micro.gpt).decoder.wte.weight, module.model.decoder.wte.weight
    read = torch.zeros(len(after), dtype=torch.bool)
    for text in texts(micro):
        read[micro.tokenizer.encode(text)] = True
    unread = ~read[: len(before)]
    assert unread.any()
    torch.testing.assert_close(after[: len(before)][unread], before[unread])


def test_the_exported_folder_predicts_the_same_and_keeps_the_names(fit, data, micro, tmp_path):
    rows = data()
    module = FinetuningModule(str(micro.gpt), dropout=0.0, optimizer=FAST)
    trainer = fit(module, rows, max_epochs=2)
    module.export(tmp_path / "export")
    kept = load_pretrained(tmp_path / "export", kind="task")
    assert isinstance(kept, LabellingModel)
    assert kept.task.labels == ("blame", "praise")
    direct = trainer.predict(module, datamodule=rows)
    again = FinetuningModule(str(tmp_path / "export"))
    other = trainer.predict(again, datamodule=data(tokenizer=str(tmp_path / "export")))
    flat = [row for batch in direct for row in batch]
    assert [row["prediction"] for row in flat] == [row["prediction"] for batch in other for row in batch]
    for row in flat:
        assert sum(row["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)
        assert row["probabilities"][row["prediction"]] == max(row["probabilities"].values())


def test_classes_without_a_meaning_take_the_names_of_the_data(fit, data, micro, tmp_path):
    """As of a meta-learned classifier, whose head is the one that goes on learning."""
    tokenizer = micro.tokenizer.with_task_tokens()
    meant = LabellingModel.from_gpt(
        load_pretrained(micro.gpt), Labelling("classification", ("0", "1")), tokenizer.task_ids
    )
    save_pretrained(tmp_path / "meta", meant, tokenizer_json=tokenizer.to_json())
    module = FinetuningModule(str(tmp_path / "meta"), optimizer=OptimizerConfig(lr=0.0, weight_decay=0.0))
    fit(module, rows := data(tokenizer=str(tmp_path / "meta")), max_steps=1)
    assert module.task.labels == ("blame", "praise")
    torch.testing.assert_close(module.model.head.linear.weight.cpu(), meant.head.linear.weight)
    other = FinetuningModule(str(tmp_path / "meta"), classifier_dropout=0.4)
    fit(other, rows, max_steps=1)
    assert (other.model.head.drop.p, other.model.classifier_dropout) == (0.4, 0.4), "the recipe's, not the folder's"
    with pytest.raises(
        UserError, match=r"^init_layers: found 1, expected it left at None: a task model is taken whole"
    ):
        fit(FinetuningModule(str(tmp_path / "meta"), init_layers=1), rows, max_steps=1)
    scratch = FinetuningModule(config=micro.config(), init_layers=1)
    with pytest.raises(UserError, match=r"^init_layers: found 1, .*: a decoder from scratch is fresh throughout"):
        fit(scratch, data(), max_steps=1)


def test_lora_learns_little_and_is_merged_in_the_folder(fit, data, micro, tmp_path):
    rows = data()
    module = FinetuningModule(str(micro.gpt), lora=LoRAConfig(rank=4), dropout=0.0, optimizer=FAST)
    trainer = fit(module, rows, max_epochs=10)
    assert trainer.callback_metrics["val/accuracy"] > 0.9
    pretrained = load_pretrained(micro.gpt).decoder.state_dict()
    base = module.model.decoder.state_dict()
    for name, value in pretrained.items():
        torch.testing.assert_close(base[name][: len(value)], value, msg=name)
    module.export(tmp_path / "export")
    merged = load_pretrained(tmp_path / "export", kind="task").eval()
    batch = next(iter(rows.val_dataloader()))
    arguments = (batch.tokens, batch.lengths, batch.index)
    torch.testing.assert_close(merged(*arguments), module.model.eval()(*arguments), atol=1e-4, rtol=1e-4)


def test_frozen_layers_stay_and_the_rest_learns(fit, data, micro):
    module = FinetuningModule(
        str(micro.gpt), freeze=1, dropout=0.0, optimizer=OptimizerConfig(lr=1e-2, weight_decay=0.1)
    )
    fit(module, data(), max_steps=4)
    before, after = load_pretrained(micro.gpt).decoder.state_dict(), module.model.decoder.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(after[name][: len(value)], value)}
    assert moved == {name for name in before if name.startswith(("blocks.1.", "ln_f"))}
    special = list(data().tokenizer.task_ids)
    assert after["wte.weight"][special].abs().sum() > 0


def test_both_orders_of_a_pair_give_the_same_score(fit, data, micro, rows_file):
    pairs = [{"pair": f"the film is good {i}", "text": f"a story {i}", "label": i % 6 * 0.9} for i in range(40)]
    rows = data(rows_file(pairs), task="similarity", levels=[0, 5])
    module = FinetuningModule(str(micro.gpt), dropout=0.0, optimizer=FAST)
    trainer = fit(module, rows)
    assert set(trainer.callback_metrics) >= {"val/pearson", "val/spearman", "val/mse", "val/loss"}
    batch = next(iter(rows.val_dataloader()))
    model = module.model.eval()
    torch.testing.assert_close(
        model(batch.tokens, batch.lengths, batch.index), model(batch.tokens, batch.lengths, batch.index.flip(1))
    )


def test_regression_learns_in_the_labels_own_unit(fit, data, micro, rows_file):
    examples = [{"text": text, "label": 100.0 + 20.0 * (i % 2)} for i, text in enumerate(texts(micro))]
    rows = data(rows_file(examples), task="regression")
    module = FinetuningModule(str(micro.gpt), dropout=0.0, optimizer=FAST)
    trainer = fit(module, rows, max_epochs=10)
    assert trainer.callback_metrics["val/mse"] < 50.0  # the labels' own variance is about 100
    predictions = [row["prediction"] for batch in trainer.predict(module, datamodule=rows) for row in batch]
    assert 95.0 < min(predictions) < 108.0 < 112.0 < max(predictions) < 125.0


def test_answers_of_different_number_are_learned_together(fit, data, micro, rows_file):
    words = ["good", "bad", "fine", "dull"]
    questions = [
        {"text": f"the film {i} is {words[i % 4]}", "choices": words[: 2 + i % 3], "label": i % 4} for i in range(240)
    ]
    rows = data(rows_file([q for q in questions if q["label"] < len(q["choices"])]), task="multiple_choice")
    module = FinetuningModule(str(micro.gpt), dropout=0.0, optimizer=FAST)
    trainer = fit(module, rows, max_epochs=8)
    assert trainer.callback_metrics["val/accuracy"] > 0.8  # the first of them: about 0.35


def test_a_decoder_from_scratch_and_layers_of_a_pretrained_one(fit, data, micro):
    scratch = FinetuningModule(config=micro.config(), dropout=0.25, optimizer=FAST)
    fit(scratch, data(), max_steps=1)
    assert scratch.model.config.resid_pdrop == scratch.model.config.embd_pdrop == 0.25
    assert scratch.model.config.vocab_size == micro.vocab_size + 3
    lower = FinetuningModule(str(micro.gpt), init_layers=1, optimizer=OptimizerConfig(lr=1e-12))
    fit(lower, data(), max_steps=1)
    pretrained = load_pretrained(micro.gpt).decoder.state_dict()
    kept = lower.model.decoder.state_dict()
    for name in ("blocks.0.mlp.fc.weight", "wpe.weight"):
        torch.testing.assert_close(kept[name], pretrained[name], atol=1e-6, rtol=0)
    assert (kept["blocks.1.mlp.fc.weight"] - pretrained["blocks.1.mlp.fc.weight"]).abs().max() > 0.1


@pytest.mark.parametrize("freeze", [None, 1])
@pytest.mark.parametrize("lm_coef", [0.0, 0.5])
def test_an_output_matrix_of_its_own_learns_what_the_auxiliary_loss_tells_it(
    fit, data, micro, tmp_path, freeze, lm_coef
):
    """All of it; its new rows alone where layers are frozen; nothing without the loss."""
    config = micro.config(positions="rotary", tied=False)
    save_pretrained(tmp_path / "untied", GPT(config), tokenizer_json=micro.tokenizer.to_json())
    module = FinetuningModule(
        str(tmp_path / "untied"), freeze=freeze, lm_coef=lm_coef, optimizer=OptimizerConfig(lr=0.1)
    )
    fit(module, data(), max_steps=2)
    before, after = load_pretrained(tmp_path / "untied").lm_head.weight, module.model.lm_head.weight
    moved = (after[: len(before)] != before).any(1)
    assert moved.any() == (lm_coef > 0 and freeze is None)
    assert after.requires_grad == (lm_coef > 0)


def test_the_samples_show_texts_with_labels_and_predictions(fit, data, micro):
    module = FinetuningModule(str(micro.gpt), optimizer=FAST)
    fit(module, data(), max_steps=1)
    rows = module.sample_rows()
    assert len(rows) == 8
    assert set(rows[0]) == {"text", "label", "prediction"}
    assert rows[0]["text"].startswith("_start_")
    assert rows[0]["label"] in ("blame", "praise")


def test_the_papers_schedule_in_fractions_of_the_run(fit, data, micro):
    module = FinetuningModule(str(micro.gpt), optimizer=FAST, schedule=GPT1)
    seen = []
    hook = module.on_train_batch_start
    module.on_train_batch_start = lambda *a: (seen.append(module.optimizers().param_groups[0]["lr"]), hook(*a))[1]
    trainer = fit(module, data(), max_epochs=2)
    total = trainer.global_step
    expected = [2e-2 * (1 - max(0.0, step / total - 0.002) / 0.998) for step in range(total)]
    assert seen == pytest.approx(expected)


PAIRED = Columns(pair="pair")
NAMED = [("praise", 0.3), ("blame", 4.2)]  # a class, and a number


@pytest.mark.parametrize("begins", [False, True], ids=["", "begin"])
@pytest.mark.parametrize(
    "settings",
    [
        {"task": "classification"},
        {"task": "classification", "columns": PAIRED},
        {"task": "entailment"},
        {"task": "similarity"},
        {"task": "classification", "levels": [0, 5]},
        {"task": "similarity", "levels": [0, 5]},
        {"task": "regression"},
        {"task": "multiple_choice"},
    ],
    ids=str,
)
def test_the_card_of_an_export_predicts_by_transformers_what_we_predict(
    fit, micro, rows_file, tmp_path, transformers, settings, begins
):
    """From texts, by the code as it stands; longer ones than the context are cut alike."""
    backend = Backend.from_str(micro.tokenizer.to_json())
    if begins:
        set_begin(backend, micro.tokenizer.eos)
    base = tmp_path / "base"
    model = load_pretrained(micro.gpt, kind="gpt")
    save_pretrained(base, model, tokenizer_json=Tokenizer(backend).to_json())
    task, numeric = settings["task"], "levels" in settings or settings["task"] == "regression"
    choices = {"choices": ["good", "bad", "a dull plot"]} if task == "multiple_choice" else {}
    long = " ".join(["a lovely film"] * (1 if choices else 20))  # of a question it is the end that is kept
    examples = [
        {"text": f"the {i} {'film' if i % 2 else long}", "pair": f"a story {i % 3}" + " is dull" * (30 * (i % 4 == 1)),
         "label": i % 3 if choices else NAMED[i % 2][numeric], **choices}
        for i in range(12)
    ]  # fmt: skip
    rows = FinetuningDataModule(
        str(rows_file(examples)), tokenizer=str(base), cache_dir=str(tmp_path / "cache"), context=32, batch_size=8,
        validation_fraction=0.5, **settings,
    )  # fmt: skip
    module = FinetuningModule(str(base), dropout=0.0, optimizer=FAST)
    trainer = fit(module, rows, max_steps=2)
    module.export(tmp_path / "export")
    write_card(tmp_path / "export", Facts("Finetuning"))
    code = (tmp_path / "export" / "README.md").read_text().split("```python\n")[-1].split("```")[0]
    _, held_out = rows.rows()
    said = [row["prediction"] for batch in trainer.predict(module, datamodule=rows) for row in batch]
    model = module.model.eval()
    outputs = [of for batch in rows.predict_dataloader() for of in model(batch.tokens, batch.lengths, batch.index)]
    for row, ours, logits in zip(held_out, said, outputs, strict=True):
        one = (row["text"], row["pair"]) if "pair" in row else row["text"]
        values = {"texts": [one], "text": row["text"], "choices": row.get("choices")}
        own = code.replace("tokenizer(text,", "tokenizer(*text,") if "columns" in settings else code
        exec(own.replace("FOLDER", str(tmp_path / "export")), values)
        if choices:
            assert values["answer"] == row["choices"][int(ours)]
            scores = torch.tensor(values["scores"])
            torch.testing.assert_close(scores - scores[0], logits - logits[0], atol=1e-5, rtol=0)
            continue
        torch.testing.assert_close(values["outputs"][0], logits, atol=1e-5, rtol=0)
        (theirs,) = values["scores" if "levels" in settings else "numbers" if numeric else "labels"]
        assert theirs == (pytest.approx(ours, abs=1e-4) if numeric else ours)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "found neither of config and init_from"),
        ({"init_from": "REWARD"}, "found a reward model, expected a language model or a task model"),
        ({"init_from": "GPT", "init_layers": 3}, "init_layers: found 3, expected a number of layers between 0 and 2"),
        (
            {"init_from": "GPT", "layer_decay": 0.9, "optimizer": OptimizerConfig(muon_lr=0.01)},
            "layer_decay: found 0.9, expected it left at 1.0: optimizer.muon_lr has one rate for all blocks",
        ),
    ],
)
def test_mistakes_get_one_line(fit, data, micro, arguments, message):
    folders = {"GPT": str(micro.gpt), "REWARD": str(micro.reward)}
    given = {key: folders.get(value, value) if isinstance(value, str) else value for key, value in arguments.items()}
    with pytest.raises(UserError, match=message):
        fit(FinetuningModule(**given), data(), max_steps=1)


def test_math_of_chance(fit, data, micro):
    """A fresh head says nothing: the loss before the first step is ln 2."""
    module = FinetuningModule(str(micro.gpt), dropout=0.0, optimizer=OptimizerConfig(lr=1e-9))
    trainer = fit(module, data(), max_epochs=1)
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(math.log(2.0), abs=0.3)
