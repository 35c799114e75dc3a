"""What the data must be for a model, said before the first step of every stage."""

import json
import re

import pytest
import tokenizers
from conftest import GOOD, shaken
from lightning.pytorch import Trainer

from gpt_modules.backbone import GPT, LabellingModel, load_pretrained, save_pretrained
from gpt_modules.data.episodes.label_words import LabelWords
from gpt_modules.data.maml import EpisodicDataModule
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError
from gpt_modules.labelling import Labelling
from gpt_modules.training import MAMLModule, artefacts

WORDS = ["pretraining", "finetuning", "sft", "reward", "maml", "dpo"]


@pytest.fixture
def stage(tmp_path):
    """stage(name, module, data): a stage of a run."""

    def run(name, module, data):
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        settings = {"accelerator": "cpu", "devices": 1, "logger": False, "default_root_dir": tmp_path, **quiet}
        trainer = Trainer(max_steps=1, num_sanity_val_steps=0, limit_val_batches=1, **settings)
        getattr(trainer, name)(module, datamodule=data)

    return run


@pytest.fixture
def short(micro, tmp_path):
    """A model with 8 positions."""
    model = shaken(GPT(micro.config(n_positions=8)), 1)
    save_pretrained(tmp_path / "short", model, tokenizer_json=micro.tokenizer.to_json())
    return str(tmp_path / "short")


@pytest.mark.parametrize("word", [*WORDS, "ppo"])
def test_data_of_another_procedure_are_named_with_those_that_fit(procedure, stage, word):
    other = "sft" if word in ("reward", "dpo") else "reward"
    (module, fits), (_, data) = procedure(word), procedure(other)
    with pytest.raises(UserError) as told:
        stage("fit", module, data)
    assert str(told.value).startswith(f"data.class_path: found {type(data).__name__!r}, expected ")
    assert type(fits).__name__ in str(told.value)


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("name", ["fit", "validate", "test", "predict"])
def test_a_row_that_the_model_cannot_read_is_named_before_the_first_step(procedure, stage, short, word, name):
    given = {"init_from": short} | ({"config": None} if word == "pretraining" else {})
    if word in ("finetuning", "reward") and name != "fit":
        pytest.skip("a folder without a head only trains")
    with pytest.raises(UserError) as caught:
        stage(name, *procedure(word, **given))
    found = {
        "pretraining": "16",
        "finetuning": r"32 and in .* a row of \d+ tokens \('.*'\.\.\.\)",
        "reward": r"128 and in .* a row of \d+ tokens \('.*'\.\.\.\)",
        "dpo": r"128 and in .* a row of \d+ tokens \('.*'\.\.\.\)",
    }.get(word, "32")
    line = rf"data\.context: found {found}, expected at most the model's n_positions = 8"
    assert re.fullmatch(line, str(caught.value))


@pytest.mark.parametrize(
    ("name", "more", "told"), [("fit", 1.3, True), ("fit", 1.2, False), ("validate", 1.3, False), ("fit", 1.0, False)]
)
def test_a_new_embedding_that_is_too_large_for_its_tokens_is_told(procedure, stage, micro, caplog, name, more, told):
    size = int(micro.vocab_size * more)
    stage(name, *procedure("pretraining", config=micro.config(vocab_size=size)))
    rows = (
        f"{size}, of which the tokenizer has {micro.vocab_size}: no token uses the other {size - micro.vocab_size} rows"
    )
    lines = [record.getMessage() for record in caplog.records if "no token uses" in record.getMessage()]
    assert lines == ([f"model.config.vocab_size: {rows}"] if told else [])


@pytest.mark.parametrize("word", ["sft", "reward"])
def test_rows_may_be_shorter_than_their_context(procedure, stage, word):
    module, data = procedure(word)
    data.context = 500
    data.packing = False
    stage("fit", module, data)


def other_tokenizer(micro, folder):
    """Of the same size, with two merges the other way round."""
    form = json.loads(micro.tokenizer.to_json())
    merges = form["model"]["merges"]
    merges[-1], merges[-2] = merges[-2], merges[-1]
    vocabulary = form["model"]["vocab"]
    last, before = ("".join(merge) for merge in merges[-2:])
    vocabulary[last], vocabulary[before] = vocabulary[before], vocabulary[last]
    (folder / "other.json").write_text(json.dumps(form))
    return str(folder / "other.json")


@pytest.mark.parametrize("word", [*WORDS, "ppo"])
def test_another_tokenizer_of_equal_size_is_refused(procedure, stage, micro, tmp_path, word):
    given = {"init_from": str(micro.gpt)} | ({"config": None} if word == "pretraining" else {})
    module, data = procedure(word, **given)
    data.tokenizer_name = other_tokenizer(micro, tmp_path)
    assert data.tokenizer.vocab_size in (micro.vocab_size, micro.vocab_size + 3)
    with pytest.raises(UserError) as caught:
        stage("fit", module, data)
    expected = f"expected the tokenizer of the model, {micro.gpt}"
    assert str(caught.value) == f"data.tokenizer: found {data.tokenizer_name}, {expected}"


def test_a_tokenizer_of_more_tokens_is_refused(procedure, stage, micro):
    module, data = procedure("pretraining", config=micro.config(vocab_size=micro.vocab_size - 1))
    with pytest.raises(UserError, match=rf"vocab_size: found {micro.vocab_size - 1}, expected at least the tokenizer"):
        stage("fit", module, data)


def test_a_folder_without_a_tokenizer_is_known_by_its_size_only(procedure, stage, micro, tmp_path):
    save_pretrained(tmp_path / "bare", GPT(micro.config()))
    assert artefacts.tokenizer_of(str(tmp_path / "bare")) is None
    module, data = procedure("sft", init_from=str(tmp_path / "bare"))
    data.tokenizer_name = other_tokenizer(micro, tmp_path)
    stage("fit", module, data)


def test_a_module_without_a_trainer_has_no_data(procedure, micro):
    module, _ = procedure("sft")
    module.configure_model()
    assert module.model.config.vocab_size == micro.vocab_size


@pytest.mark.parametrize("word", ["finetuning", "reward"])
@pytest.mark.parametrize("name", ["validate", "test", "predict"])
def test_a_head_that_nobody_has_learnt_is_refused(procedure, stage, micro, word, name):
    with pytest.raises(UserError) as caught:
        stage(name, *procedure(word))
    found = f"found {micro.gpt}, which has no head for this task"
    expected = f"expected a folder that this procedure exported, or --ckpt_path: {name} learns nothing"
    assert str(caught.value) == f"model.init_from: {found}, {expected}"


def test_a_classifier_of_tasks_needs_its_head_too(micro, stage):
    families = [LabelWords()]
    data = EpisodicDataModule(families, objective="classification", tokenizer=str(micro.gpt), context=32, query=4)
    with pytest.raises(UserError, match=r"which has no head for this task, expected .*: validate learns nothing$"):
        stage("validate", MAMLModule(str(micro.gpt)), data)


def test_tokenizers_read_alike_whoever_wrote_them(micro):
    ours = Tokenizer.gpt2()
    form = json.loads(ours.to_json())
    form["model"]["vocab"]["<|endoftext|>"] = 50256
    form["model"] |= {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    form["post_processor"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}
    form["pre_tokenizer"]["trim_offsets"] = not form["pre_tokenizer"]["trim_offsets"]
    theirs = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(form)))
    assert theirs.fingerprint != ours.fingerprint
    assert ours.reads_like(theirs)
    assert ours.reads_like(theirs.with_task_tokens())
    assert ours.with_task_tokens().reads_like(theirs)
    assert not ours.reads_like(micro.tokenizer)


@pytest.fixture
def praise_first(micro, tmp_path):
    """A task model whose classes are not in the order of the alphabet."""
    tokenizer, task = micro.tokenizer.with_task_tokens(), Labelling("classification", ("praise", "blame"))
    model = LabellingModel.from_gpt(load_pretrained(micro.gpt, "gpt"), task, tokenizer.task_ids)
    save_pretrained(tmp_path / "task", model, tokenizer_json=tokenizer.to_json())
    return str(tmp_path / "task")


@pytest.mark.parametrize("name", ["fit", "validate", "test", "predict"])
def test_the_classes_of_the_model_count_wherever_it_is_opened(procedure, stage, praise_first, name):
    module, data = procedure("finetuning", init_from=praise_first)
    stage(name, module, data)
    assert data.task_spec.labels == module.task.labels == ("praise", "blame")
    (batch, *_) = data.predict_dataloader()
    (row, length), number = (batch.tokens[0], int(batch.lengths[0])), int(batch.labels[0])
    praised = any(word in data.tokenizer.decode(row[:length].tolist()) for word in GOOD)
    assert number == (0 if praised else 1)


@pytest.mark.parametrize("name", ["validate", "test", "predict"])
def test_a_class_that_the_model_does_not_know_is_named_with_its_row(procedure, stage, praise_first, tmp_path, name):
    module, data = procedure("finetuning", init_from=praise_first)
    data.validation_source = str(tmp_path / "rows.jsonl")
    (tmp_path / "rows.jsonl").write_text('{"text": "a film", "label": "praise"}\n{"text": "it", "label": "shrug"}\n')
    with pytest.raises(UserError) as caught:
        stage(name, module, data)
    found = f"{tmp_path}/rows.jsonl:2: label: found the unknown class 'shrug'"
    assert str(caught.value) == f"{found}, expected one of praise, blame"


def test_a_checkpoint_of_other_classes_is_refused(procedure, praise_first):
    module, _ = procedure("finetuning")
    module.model = load_pretrained(praise_first, "task")
    checkpoint = {}
    module.on_save_checkpoint(checkpoint)
    module.on_load_checkpoint(checkpoint)
    checkpoint["task"]["labels"] = ["blame", "praise"]
    with pytest.raises(UserError, match=r"^--ckpt_path: found a model of the task .*'blame', 'praise'.*, expected one"):
        module.on_load_checkpoint(checkpoint)


def test_a_model_beyond_memory_is_told_before_it_is_made(micro, monkeypatch):
    config = micro.config(vocab_size=2**31 - 1, n_embd=4096, n_head=4)
    found = rf"^model\.config: found a model of {config.n_params():,} parameters, 35,\S+ GB, expected "
    with pytest.raises(UserError, match=found + r"less than this machine's \S+ GB$"):
        artefacts.open_gpt(config, None)

    def full(_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")

    monkeypatch.setattr(artefacts, "GPT", full)
    with pytest.raises(
        UserError, match=r"config: found a model of \S+ parameters, \S+ GB, expected one that memory has"
    ):
        artefacts.open_gpt(micro.config(), None)
