"""Two processes are one: what they hold together, and what a run of both learns and logs at the same global batch."""

import json
import multiprocessing
import os
import socket
import traceback

import lightning.pytorch as L
import pytest
import torch
import torch.distributed as dist

from gpt_modules.backbone import LoRAConfig, load_pretrained, save_pretrained
from gpt_modules.data import RewardDataModule, SFTDataModule
from gpt_modules.errors import UserError
from gpt_modules.training import RewardModule, SFTModule
from gpt_modules.training.callbacks.predictions import PredictionFile
from gpt_modules.training.optimizers import OptimizerConfig, ScheduleConfig
from gpt_modules.training.processes import HeldOut, as_one, gathered, in_order
from gpt_modules.training.rl.settings import CriticConfig, KLConfig

FLAT = ScheduleConfig(shape="constant")
# Adam makes whole steps of the rounding in gradients that are 0, such as those of the keys' biases.
SGD = OptimizerConfig(lr=0.1, weight_decay=0.0, sgd=True)


@pytest.fixture
def processes(tmp_path):
    """processes(function, world=2): what `function(rank)` returned in each of so many processes, forked from this."""

    def start(function, rank, world, port):
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
        os.environ |= {"NODE_RANK": "0", "WORLD_SIZE": str(world), "RANK": str(rank)}
        try:
            torch.save(function(rank), tmp_path / f"rank{rank}")
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    def run(function, world=2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        fork = multiprocessing.get_context("fork")
        children = [fork.Process(target=start, args=(function, rank, world, port)) for rank in range(world)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        assert [child.exitcode for child in children] == [0] * world
        return [torch.load(tmp_path / f"rank{rank}", weights_only=True) for rank in range(world)]

    return run


def test_one_process_has_what_it_has():
    columns = [torch.tensor([2, 0, 1]), torch.tensor([[2.0], [0.0], [1.0]])]
    assert all(torch.equal(own, given) for own, given in zip(gathered(columns), columns, strict=True))
    assert in_order(columns[0], columns[1:])[0].tolist() == [[0.0], [1.0], [2.0]]


@pytest.mark.parametrize("word", ["pretraining", "finetuning", "sft", "reward", "maml", "ppo", "dpo"])
def test_a_validation_of_a_run_in_bf16_is_read_in_float32(fit, procedure, word):
    """A mean over rows is no number of 8 bits but by chance."""
    module, data = procedure(word)
    trainer = fit(module, data, max_steps=1, val_check_interval=1, precision="bf16-true")
    loss = trainer.callback_metrics["val/score" if word == "ppo" else "val/loss"]
    assert loss.dtype == torch.float32
    assert loss != loss.bfloat16()


def test_held_out_rows_are_read_once_and_in_float64():
    rows = HeldOut("x", "y")
    rows.add(x=torch.tensor([1.0, 2.0], dtype=torch.bfloat16), y=torch.tensor([1, 0]))
    rows.add(x=torch.tensor([3.0]), y=torch.tensor([True]))
    found = rows.take()
    assert found["x"].tolist() == [1.0, 2.0, 3.0]
    assert found["x"].dtype == found["y"].dtype == torch.float64
    assert found["y"].tolist() == [1.0, 0.0, 1.0]
    assert rows.take()["x"].tolist() == []


def together(rank):
    dist.init_process_group("gloo", rank=rank, world_size=3)
    numbers = [[0, 3, 4], [], [2, 1]][rank]
    narrow = torch.tensor(numbers, dtype=torch.float32).view(-1, 1).repeat(1, 1 + rank)
    ordered, mask = in_order(torch.tensor(numbers, dtype=torch.long), [narrow, narrow > 0])
    held_out = HeldOut("number")
    if numbers:
        held_out.add(number=torch.tensor(numbers))
    found = held_out.take()["number"]
    agreed = [of_all(rank, mistaken) for mistaken in ([], [1, 2], [0, 2])]
    dist.destroy_process_group()
    return [ordered, mask, found, *agreed]


def of_all(rank, mistaken):
    """What `as_one` gives, or the mistake that it raises."""

    def act():
        if rank in mistaken:
            raise UserError(f"by {rank}")
        return rank

    try:
        return as_one(act)
    except UserError as error:
        return str(error)


def test_a_process_alone_keeps_its_mistake():
    assert as_one(lambda: 7) == [7]
    assert of_all(0, [0]) == "by 0"


@pytest.mark.slow
def test_rows_of_three_processes_one_of_which_has_none_and_mistakes_of_some(processes):
    for ordered, mask, found, *agreed in processes(together, 3):
        assert agreed == [[0, 1, 2], "by 1", "by 0"]
        assert ordered.tolist() == [[0, 0, 0], [1, 1, 1], [2, 2, 2], [3, 0, 0], [4, 0, 0]]
        assert mask.dtype == torch.bool
        assert found.tolist() == [0, 3, 4, 2, 1]


def outcome(module, trainer):
    """Weights, and every logged value of the first process."""
    points = [list(point) for point in trainer.logger.points if not point[0].startswith("perf/")]
    return {"weights": dict(module.state_dict()), "points": points, "metrics": dict(trainer.callback_metrics)}


def assert_same(one, other):
    for name, value in one["weights"].items():
        torch.testing.assert_close(other["weights"][name], value, rtol=1e-4, atol=1e-5, msg=name)
    assert [point[:2] for point in other["points"]] == [point[:2] for point in one["points"]]
    for (name, step, value), (_, _, found) in zip(one["points"], other["points"], strict=True):
        assert found == pytest.approx(value, rel=1e-3, abs=1e-4), (name, step)


PPO = {
    "optimizer": SGD,
    "schedule": FLAT,
    "kl": KLConfig(coef=0.1, target=1.0, horizon=100),
    "whiten_rewards": True,
    "ppo_epochs": 2,
    "minibatches": 2,
}


@pytest.mark.slow
@pytest.mark.parametrize(("accumulate", "lora"), [(1, None), (2, None), (2, LoRAConfig(2))])
def test_ppo_of_two_processes_is_ppo_of_one(fit, ppo, processes, accumulate, lora):
    """Whitened over all episodes, the same answers, minibatches, coefficient, statistics and weights."""

    def run(devices=1):
        module, data = ppo(episodes=18, lora=lora, critic=CriticConfig(lora=lora), **PPO)
        data.val_batch_size = 4 // devices
        settings = {"devices": devices, "strategy": "ddp" if devices > 1 else "auto"}
        trainer = fit(module, data, max_epochs=2, accumulate_grad_batches=accumulate, **settings)
        return outcome(module, trainer) | {"rollout": list(module.rollout), "coefficient": module.kl_coef}

    (one,) = processes(lambda rank: run(), 1)
    two = processes(lambda rank: run(2))
    for rank in two:
        for field, whole in zip(rank["rollout"], one["rollout"], strict=True):
            torch.testing.assert_close(field, whole, rtol=1e-3, atol=2e-4)
        assert rank["coefficient"] == pytest.approx(one["coefficient"], abs=1e-6)
        assert rank["coefficient"] != 0.1
        assert all(torch.equal(rank["weights"][name], value) for name, value in two[0]["weights"].items())
    assert_same(one, two[0])
    names = {point[0] for point in one["points"]}
    assert {"objective/score", "objective/kl", "response/ended", "policy/entropy", "loss/value", "val/reward"} <= names


@pytest.mark.slow
@pytest.mark.parametrize("word", ["sft", "ppo"])
def test_predictions_of_two_processes_are_those_of_one_in_their_order(procedure, micro, processes, tmp_path, word):
    def run(devices=1):
        module, data = procedure(word)
        data.validation_source, data.val_batch_size = micro.again(micro.sft if word == "sft" else micro.prompts), 6
        usual = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        settings = {"devices": devices, "strategy": "ddp" if devices > 1 else "auto", "callbacks": [PredictionFile()]}
        data.val_batch_size //= devices
        trainer = L.Trainer(**usual, **settings, default_root_dir=tmp_path / f"{devices}", enable_checkpointing=False)
        trainer.predict(module, data, return_predictions=False)

    processes(lambda rank: run(), 1)
    processes(lambda rank: run(2))
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "predictions.jsonl").read_text().splitlines()]
        for name in ("1", "2")
    )
    assert len(one) > 12
    for alone, together in zip(one, two, strict=True):
        texts, score = {"prompt", "response"}, "score" if word == "ppo" else "nats"
        assert {name: together.get(name) for name in texts} == {name: alone.get(name) for name in texts}
        assert together[score] == pytest.approx(alone[score], rel=1e-4, abs=1e-4)


@pytest.mark.slow
def test_unpacked_demonstrations_of_two_processes_are_those_of_one(fit, micro, processes, tmp_path):
    """Rows of the two are of different widths, which weighs nothing."""
    answers = ["good. " * (1 + 3 * (i % 2)) for i in range(24)]
    rows = "".join(json.dumps({"prompt": f"film {i}:", "response": answer}) + "\n" for i, answer in enumerate(answers))
    (tmp_path / "rows.jsonl").write_text(rows)
    still = load_pretrained(micro.gpt, "gpt", embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    save_pretrained(tmp_path / "still", still, tokenizer_json=micro.tokenizer.to_json())
    widths = []

    class Watched(SFTModule):
        def training_step(self, batch, batch_idx):
            widths.append(batch.inputs.shape[1])
            return super().training_step(batch, batch_idx)

    def run(devices=1):
        kept = {"cache_dir": str(tmp_path / "cache"), "validation": micro.again(micro.sft), "packing": False}
        data = SFTDataModule(str(tmp_path / "rows.jsonl"), tokenizer=str(micro.gpt), batch_size=2 // devices, **kept)
        module = Watched(str(tmp_path / "still"), optimizer=SGD, schedule=FLAT)
        settings = {"devices": devices, "strategy": "ddp" if devices > 1 else "auto"}
        return outcome(module, fit(module, data, max_steps=6, accumulate_grad_batches=2, **settings)) | {"seen": widths}

    (one,) = processes(lambda rank: run(), 1)
    two = processes(lambda rank: run(2))
    assert two[0]["seen"] != two[1]["seen"]
    assert all(torch.equal(two[1]["weights"][name], value) for name, value in two[0]["weights"].items())
    assert_same(one, two[0])


@pytest.mark.slow
@pytest.mark.parametrize(("accumulate", "rows", "lora"), [(1, 0.3, None), (4, 0.01, None), (4, 0.3, LoRAConfig(2))])
def test_a_reward_model_of_two_processes_is_that_of_one(fit, micro, processes, tmp_path, accumulate, rows, lora):
    """The last window of an epoch is not whole, and with 0.01 a process has no row to validate on."""

    def run(devices=1):
        data = RewardDataModule(
            str(micro.comparisons),
            tokenizer=str(micro.gpt),
            context=32,
            batch_size=6 // devices,
            cache_dir=str(tmp_path / "cache"),
            validation_fraction=rows,
        )
        module = RewardModule(str(micro.gpt), dropout=0.0, lora=lora, optimizer=SGD, schedule=FLAT)
        settings = {"devices": devices, "strategy": "ddp" if devices > 1 else "auto"}
        return outcome(module, fit(module, data, accumulate_grad_batches=accumulate, max_epochs=1, **settings))

    (one,) = processes(lambda rank: run(), 1)
    two = processes(lambda rank: run(2))
    assert {"train/loss", "train/accuracy", "val/loss"} <= {point[0] for point in one["points"]}
    assert_same(one, two[0])
