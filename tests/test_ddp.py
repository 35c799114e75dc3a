"""Two processes are one, each with a whole model or with its shards of it: with the same global batch each procedure
logs what one process logs, and has its weights.

Plain gradient descent without clipping, for it moves weights by exactly the rate times the gradient: Adam would forgive
a gradient of half the size. The data are uneven on purpose: texts and answers of unequal length, a last accumulation
window that is short, windows of pretraining text of which one process has more, and 9 validation rows, of which the
second process has none in the last batch.
"""

import functools
import json
import math
import random
import shutil
from pathlib import Path

import pytest
from conftest import BAD, GOOD, sentence, write_rows
from curves import points
from launcher import launch

from gpt_modules.backbone import load_pretrained
from gpt_modules.training.callbacks.checkpointing import VerifiedCheckpointIO

pytestmark = pytest.mark.slow

OVERLAY = Path(__file__).parents[1] / "recipes" / "hardware" / "cpu-ddp.yaml"
REFUSED = [
    (
        ["--data.train", "none.jsonl"],
        "none.jsonl: found no such file, ",
    ),  # by one, which leaves the other without a peer
    (["--data.context", "5000"], "--data.context: found 5000, expected at most the model's n_positions = "),
]
WORDS = ["pretraining", "finetuning", "sft", "reward", "ppo", "maml", "dpo"]
NO_PTX = {"model__ptx": {"coef": 0.0}, "data__pretraining": None}
VARIANTS = {
    "finetuning-freeze": {"model__freeze": 1},
    "finetuning-lora": {"model__lora": {"rank": 4}},
    "ppo-shared": {"model__early_stop": {"kl": 1e-9}},
    "ppo-average": {
        **NO_PTX, "model__critic": {"warmup": 1, "max_norm": 0.5}, "model__ema": {"decay": 0.9},
        "model__scores": {"normalise": "running"}, "model__early_stop": {"kl": 1e-9}, "trainer__gradient_clip_val": 0.5,
    },
    "ppo-rloo": {
        **NO_PTX, "model__estimator": {"name": "rloo"}, "model__whiten_rewards": False, "data__answers": 2,
        "model__lora": {"rank": 4}, "model__scores": {"normalise": "reference", "samples": 8},
    },
    "ppo-grpo": {
        "model__estimator": {"name": "grpo"}, "model__whiten_rewards": False, "data__answers": 2,
        "model__kl": {"coef": 0.1, "loss": "k3"},
    },
}  # fmt: skip
DDP = [*WORDS, "finetuning-freeze", "finetuning-lora", "ppo-shared", "ppo-average", "ppo-rloo", "ppo-grpo"]
SHARDED = ["finetuning-freeze", "finetuning-lora", "sft", "reward", "dpo", "ppo-shared", "ppo-average", "ppo-rloo"]
CASES = [*((word, "ddp") for word in DDP), *((word, "fsdp2") for word in SHARDED)]
RATES = {"ppo": 0.05, "reward": 0.1, "dpo": 0.1, "maml": 0.03}


def errors_of(gpt, ranks=2):
    """What all processes of the last command wrote."""
    return "".join((gpt.folder / (f"stderr.{rank}" if rank else "stderr")).read_text() for rank in range(ranks))


@pytest.mark.parametrize(("words", "line"), REFUSED)
def test_a_mistake_is_one_line_of_all_processes(gpt, tmp_path, words, line):
    run = ["--config", "pretraining/tiny", "--config", OVERLAY, "--trainer.default_root_dir", tmp_path / "run"]
    assert gpt.run("fit", *run, *words, cwd=tmp_path, ranks=2).status == 2
    assert errors_of(gpt).count("\n") == 1, errors_of(gpt)
    assert errors_of(gpt).startswith(f"error: {line}")


def test_what_each_process_finds_is_told_by_the_first(gpt, micro, tmp_path):
    write_rows(tmp_path / "rows.jsonl", [{"prompt": "the film", "response": " is good" * 99}] * 3)
    recipe = micro.recipe("sft", tmp_path / "run", trainer__max_steps=1, data__validation=str(tmp_path / "rows.jsonl"))
    recipe["trainer"] |= {"devices": 2, "strategy": "ddp"}
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    assert gpt.run("fit", "--config", tmp_path / "r.yaml", ranks=2).status == 0, errors_of(gpt)
    assert errors_of(gpt).startswith("validation: of 3 rows, 3 are cut to the context of ")
    assert errors_of(gpt).count("\n") == 1


@pytest.fixture(scope="module")
def uneven(micro, tmp_path_factory):
    """uneven(word): settings of the recipe: uneven rows for both sides, and models in which nothing drops out."""
    root, rng = tmp_path_factory.mktemp("uneven"), random.Random(1)

    def dry(folder):
        copy = root / folder.name
        if not copy.exists():
            shutil.copytree(folder, copy)
            config = json.loads((copy / "config.json").read_text())
            del config["gpt_modules"]["config_sha256"]  # altered on purpose
            without = {name: 0.0 if name.endswith("_pdrop") else value for name, value in config.items()}
            (copy / "config.json").write_text(json.dumps(without))
        return str(copy)

    def text(i):
        return " ".join(sentence(rng, GOOD + BAD) for _ in range(1 + i % 4))

    def row(word, i):
        if word == "sft":
            return {"prompt": f"the film {i}", "response": " " + text(i)}
        if word in ("reward", "dpo"):
            answers = [f" {rng.choice(GOOD + BAD)} {j}" + " so" * (i * j % 5) for j in range(2 + i % 3)]
            voted = {"labeler": f"labeler {i % 3}", "round": 1 + i % 2} if i % 4 else {}
            ranked = {"responses": answers, "ranking": [*range(1, len(answers)), 1][::-1], **voted}
            return {"prompt": f"a story {i}", **ranked, "scores": [rng.choice([None, 1, 4, 6]) for _ in answers]}
        return {"ppo": {"prompt": f"its cast {i}" + " and" * (i % 4)}, "pretraining": {"text": text(i)}}.get(
            word, {"text": text(i), "label": i % 3 % 2}
        )

    def settings(word):
        given = {"model__init_from": dry(micro.gpt), "model__optimizer": {"sgd": True, "lr": RATES.get(word, 0.3)}}
        if word == "pretraining":
            given |= {"model__config": None}
        if word == "ppo":
            given |= {"model__rewards": dry(micro.reward), "model__whiten_rewards": True}
        if word in ("sft", "ppo"):
            given |= {"data__pretraining": {"train": str(micro.pretraining), "context": 16, "batch_size": 3}}
            more = {"sft": {"data__pretraining_fraction": 0.3}, "ppo": {"model__ptx": {"coef": 0.5, "windows": 2}}}
            given |= more[word]
        if word == "dpo":
            given |= {"model__rpo_alpha": 0.5}
        if word == "finetuning":
            given |= {"model__classifier_dropout": 0.0}
        if word == "maml":
            return {**given, "data__validation_tasks": 9}
        files = {name: root / f"{word}-{name}.jsonl" for name in ("train", "validation")}
        for number, (name, path) in enumerate(files.items()):
            write_rows(path, [row(word, i) for i in range(1000 * number, 1000 * number + (9 if number else 61))])
            given[f"data__{name}"] = str(path)
        return given

    return functools.cache(settings)  # the same rows for every run of a word


@pytest.fixture(scope="module")
def runs(micro, gpt, uneven, tmp_path_factory):
    """runs(word, strategy): the folders of a run of one process and of one of two, made when first asked for."""
    folder, made = tmp_path_factory.mktemp("ddp"), {}

    def run(word, strategy):
        return [made.get((word, of)) or begin(word, of) for of in (None, strategy)]

    def begin(word, strategy):
        trainer = {"max_epochs": 2, "gradient_clip_val": None, "limit_val_batches": 1.0, "accumulate_grad_batches": 2}
        kind = word.partition("-")[0]
        trainer |= {} if kind == "ppo" else {"limit_train_batches": 3}
        changes = {f"trainer__{name}": value for name, value in trainer.items()} | uneven(kind)
        changes |= VARIANTS.get(word, {})
        size = "tasks" if word == "maml" else "batch_size"  # of each process; PPO says episodes, of all of them
        ranks, root = 2 if strategy else 1, folder / f"{word}-{strategy}"
        recipe = micro.recipe(word, root, **changes, **({} if kind == "ppo" else {f"data__{size}": 8 // ranks}))
        recipe["checkpoint"]["keep"] = 100
        recipe["trainer"] |= {"devices": ranks, "strategy": strategy} if strategy else {}
        root.with_suffix(".yaml").write_text(json.dumps(recipe))
        ended = gpt.run("fit", "--config", root.with_suffix(".yaml"), ranks=ranks)
        assert ended.status == 0, errors_of(gpt, ranks)
        made[word, strategy] = root
        return root

    return run


@pytest.mark.parametrize(("word", "strategy"), CASES)
def test_two_processes_log_what_one_logs(runs, word, strategy):
    one, two = map(points, runs(word, strategy))
    assert {tag: list(steps) for tag, steps in one.items()} == {tag: list(steps) for tag, steps in two.items()}
    assert {"train/loss", "val/score" if word.startswith("ppo") else "val/loss"} <= set(one)
    if word in ("reward", "dpo"):
        kinds = {tag.partition("/")[2].partition("/")[0] for tag in one if tag.count("/") == 2}
        assert {f"accuracy_{kind}" for kind in ("round", "labeler", "margin", "length")} <= kinds
    apart = [
        (tag, step, found, expected)
        for tag, steps in one.items()
        for step in steps
        for found, expected in zip(sorted(two[tag][step]), sorted(steps[step]), strict=True)
        if not math.isclose(found, expected, rel_tol=1e-5, abs_tol=1e-5)
    ]
    assert not apart


def weights(root, step):
    """Of what learns, and of its average."""
    path = root / "checkpoints" / f"step={step:08d}.ckpt"
    stored = VerifiedCheckpointIO().load_checkpoint(path)
    average = stored.get("ppo", {}).get("average") or {}
    named = {**stored["state_dict"], **{f"average.{name}": value for name, value in average.items()}}
    return {name: value for name, value in named.items() if value.is_floating_point()}


def apart(one, two):
    """The largest difference between two sets of tensors."""
    assert one.keys() == two.keys()
    return max((one[name] - two[name]).abs().max().item() for name in one)


@pytest.mark.parametrize(("word", "strategy"), CASES)
def test_two_processes_learn_and_export_what_one_does(runs, word, strategy):
    one, two = runs(word, strategy)
    assert apart(weights(one, 4), weights(two, 4)) < 2e-6
    assert apart(weights(one, 2), weights(one, 4)) > 1e-3, "it learns"
    folders = {path.name for path in one.glob("export*") if not path.name.endswith("adapter")}
    assert {path.name for path in two.glob("export*")} >= folders
    for name in folders if word != "maml" else ():
        alone, together = (load_pretrained(root / name, None).state_dict() for root in (one, two))
        assert apart(alone, together) < 2e-6, name


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_with_muon_two_processes_differ_from_one_by_the_rounding_to_bfloat16_alone(
    micro, gpt, uneven, tmp_path, strategy
):
    """torch orthogonalises in bfloat16, to which a sum in another order may round otherwise; in float32 nothing is left
    of that. Biases of keys change nothing that a model says: their gradients are rounding, and AdamW's steps as large.
    """
    optimizer = {"model__optimizer": {"lr": 1e-2, "muon_lr": 0.02}}
    trainer = {"max_epochs": 2, "limit_train_batches": 3, "accumulate_grad_batches": 2, "gradient_clip_val": None}
    changes = uneven("sft") | optimizer | {f"trainer__{name}": value for name, value in trainer.items()}
    for ranks in (1, 2):
        recipe = micro.recipe("sft", tmp_path / str(ranks), **changes, data__batch_size=8 // ranks)
        recipe["checkpoint"]["keep"] = 100
        recipe["trainer"]["callbacks"] = [{"class_path": "exact_muon.ExactMuon"}]
        recipe["trainer"] |= {"devices": 2, "strategy": strategy} if ranks == 2 else {}
        path = tmp_path / f"{ranks}.yaml"
        path.write_text(json.dumps(recipe))
        ended = gpt.run("fit", "--config", path, "--allow", "exact_muon", ranks=ranks)
        assert ended.status == 0, errors_of(gpt, ranks)
    one, two = (weights(tmp_path / ranks, 4) for ranks in "12")
    learnt = [name for name in one if not name.endswith("qkv.bias")]
    assert apart(*({name: found[name] for name in learnt} for found in (one, two))) < 2e-6


@pytest.mark.parametrize(("word", "strategy"), [("ppo", "ddp"), ("ppo-shared", "fsdp2")])
def test_ppo_goes_on_inside_an_iteration_on_two_processes_and_on_one(runs, gpt, tmp_path, word, strategy):
    """On two to the bit, DDP started by Lightning's own launcher; on one as it would have gone there."""
    _, root = runs(word, strategy)
    again, alone = tmp_path / "again", tmp_path / "alone"
    words = ["--config", root.with_suffix(".yaml"), "--ckpt_path", root / "checkpoints" / "step=00000006.ckpt"]
    if strategy == "ddp":
        launch(*words, "--trainer.default_root_dir", again)
    else:
        assert gpt.run("fit", *words, "--trainer.default_root_dir", again, ranks=2).status == 0, errors_of(gpt)
    one = ["--trainer.devices", 1, "--trainer.strategy", "auto", "--trainer.default_root_dir", alone]
    ended = gpt.run("fit", *words, *one)
    assert ended.status == 0, ended.stderr
    assert apart(weights(root, 8), weights(again, 8)) == 0.0
    assert apart(weights(root, 8), weights(alone, 8)) < 2e-6
