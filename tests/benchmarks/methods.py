"""PPO, PPO-ptx, RLOO, GRPO, DPO and the best of n from the same SFT and reward models: what each gains at the same
distance from the SFT model, at the same processor time, and what it forgets of the pretraining text.

    python tests/benchmarks/methods.py measure --demo runs/demo --work runs/methods --seeds 0 1 2
    python tests/benchmarks/methods.py rates --demo runs/demo --work runs/methods
    python tests/benchmarks/methods.py collect --work runs/methods
    python tests/benchmarks/methods.py draw

Every policy answers the held-out prompts of `ppo/tiny` with the same noise. `score` is the reward model's, `finished`
the same with -2 for an answer without an end (what the methods with a rollout optimise), `vader` the rules that none
optimises.

measure: what is done stays done; seeds may be measured at the same time. rates: processor seconds of an iteration of
each method, in turn, on a machine that does nothing else; without them, seconds are those that the runs took. collect:
what is measured so far, into `notebooks/figures/methods.json`, and as a table. draw: its figure, beside it.
"""

import argparse
import json
import math
import re
import resource
import shutil
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import yaml
from methods_results import FILE, figure, table
from overoptimisation import gpt

COMMAND = "python tests/benchmarks/methods.py measure --seeds 0 1 2"
CURVES = {
    "kl": "val/kl", "score": "val/score", "finished": "val/optimised_score", "vader": "val/vader", "ended": "val/ended",
    "perplexity": "val/pretraining_perplexity",
}  # fmt: skip
TEXT = ("--data.pretraining.train", "reviews", "--data.pretraining.isolate_documents", "true")  # as pretraining/tiny
ROLLOUTS = {
    "PPO": ("ppo/tiny", TEXT),
    "PPO-ptx": ("ppo/tiny-ptx", ()),
    "RLOO": ("ppo/rloo-tiny", TEXT),
    "GRPO": ("ppo/grpo-tiny", (*TEXT, "--model.kl.coef", 0.12, "--model.kl.loss", "null")),
}
"""Recipe of each method and what is said beside; the penalty is the same, in the reward, or no KL would be equal."""
BETAS = (0.3, 0.1, 0.05)
PLAIN = ("--model.rpo_alpha", 0.0, "--model.optimizer.lr", 2.0e-4)  # as Rafailov et al. have it
UNFINISHED = -2.0


class World(NamedTuple):
    """One seed's files.

    demo: what `make demo` leaves.
    iterations: of each method with a rollout, where they are not the recipe's.
    draws: answers that the best of n is one of.
    betas: of DPO, a run each.
    """

    demo: Path
    work: Path
    seed: int
    iterations: int | None = None
    draws: int = 64
    betas: tuple[float, ...] = BETAS

    def common(self) -> list[Any]:
        sft, reward = (self.demo / f"{word}/export" for word in ("sft", "reward"))
        size = (
            ()
            if self.iterations is None
            else ("--data.episodes", 16, "--trainer.check_val_every_n_epoch", 1, "--trainer.limit_val_batches", 1)
        )
        return ["--model.init_from", sft, "--model.rewards", reward, "--model.seed", self.seed, *size]


def fit(world: World, folder: Path, *words: Any) -> dict[str, float]:
    """The seconds that a run took, of the processor and by the clock."""
    shutil.rmtree(folder, ignore_errors=True)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    root = ("--trainer.default_root_dir", folder, "--seed_everything", world.seed, "--data.seed", world.seed)
    gpt(folder.with_suffix(".log"), "fit", *words, *root, "--checkpoint.every_n_steps", 10**6)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu": spent, "wall": time.perf_counter() - started}


def timed(world: World, folder: Path, *words: Any) -> None:
    """A fit, unless it is done."""
    if not (folder / "seconds.json").exists():
        (folder / "seconds.json").write_text(json.dumps(fit(world, folder, *words)))


def rates(world: World, rounds: int = 3, iterations: int = 4) -> None:
    """Seconds of an iteration: what so many more of them cost, which neither a start nor an export is part of."""
    found: dict[str, list[float]] = {name: [] for name in ROLLOUTS}
    for _ in range(rounds):
        for name, (recipe, words) in ROLLOUTS.items():
            line = ("--config", f"recipes/{recipe}.yaml", *world.common(), *words, "--trainer.limit_val_batches", 0)
            few, many = (
                fit(world, world.work / f"rate-{name}", *line, "--trainer.max_epochs", epochs)["cpu"]
                for epochs in (1, 1 + iterations)
            )
            found[name].append(round((many - few) / iterations, 3))
    (world.work / "rates.json").write_text(json.dumps(found))


def judged(world: World, policy: Path) -> None:
    """The measures of `CURVES` of a finished policy: a validation of it as PPO's, against the SFT model."""
    found = policy.parent / "judged.json"
    if found.exists():
        return
    log = found.with_suffix(".log")
    words = [*world.common(), *TEXT, "--model.init_from", policy, "--model.reference_from", world.demo / "sft/export"]
    gpt(log, "validate", "--config", "recipes/ppo/tiny.yaml", *words)
    told: dict[str, Any] = dict(re.findall(r"(val/\w+)[^\w-]+(-?[\d.]+(?:e-?\d+)?)", log.read_text()))
    told["val/pretraining_perplexity"] = math.exp(float(told["val/pretraining_loss"]))  # its name is cut in the table
    found.write_text(json.dumps({name: float(told[tag]) for name, tag in CURVES.items()}))


def best_of_n(world: World) -> None:
    """Scores of `draws` answers of the SFT model to each held-out prompt."""
    path = world.work / "draws.pt"
    if path.exists():
        return
    import torch

    from gpt_modules import PPODataModule, load_pretrained
    from gpt_modules.training.rl.rewards import Reward, RewardSource
    from gpt_modules.training.rl.rollout import sample
    from gpt_modules.training.rl.settings import Sampling

    before = time.process_time()
    data = PPODataModule("reviews", tokenizer=str(world.demo / "sft/export"), episodes=64, val_batch_size=64)
    data.setup("fit")
    end = data.tokenizer.eos_id
    model = load_pretrained(world.demo / "sft/export", kind="gpt").eval()
    sources = {
        "score": RewardSource(folder=str(world.demo / "reward/export")),
        "vader": RewardSource(function="gpt_modules.evaluation.sentiment:vader"),
    }
    scorers = {name: Reward([source], data.tokenizer, lambda model: model) for name, source in sources.items()}
    found: dict[str, list[Any]] = {name: [] for name in (*scorers, "ended")}
    with torch.no_grad():
        for draw in range(world.draws):
            columns: dict[str, list[Any]] = {name: [] for name in found}
            for batch in data.val_dataloader():
                sequences, *_ = sample(model, batch, Sampling(32, 1.0, (end,)), (world.seed, draw))
                columns["ended"].append(sequences.ended)
                for name, scorer in scorers.items():
                    columns[name].append(scorer(sequences).totals)
            for name, parts in columns.items():
                found[name].append(torch.cat(parts))
    stacked = {name: torch.stack(columns, 1) for name, columns in found.items()}
    torch.save(stacked | {"seconds": torch.tensor(time.process_time() - before)}, path)


def measure(world: World) -> None:
    """All of a seed."""
    world.work.mkdir(parents=True, exist_ok=True)
    epochs = () if world.iterations is None else ("--trainer.max_epochs", world.iterations)
    for name, (recipe, words) in ROLLOUTS.items():
        timed(world, world.work / name, "--config", f"recipes/{recipe}.yaml", *world.common(), *words, *epochs)
    few = () if world.iterations is None else ("--trainer.limit_train_batches", 2, "--trainer.limit_val_batches", 1)
    for beta in world.betas:
        folder, sft = world.work / f"DPO-{beta}", world.demo / "sft/export"
        words = ["--model.init_from", sft, "--model.beta", beta, "--model.sample_prompts", "null", *PLAIN, *few]
        timed(world, folder, "--config", "recipes/dpo/tiny.yaml", *words)
        judged(world, folder / "export")
    best_of_n(world)


# --- results ---


def seconds_of(folder: Path, rate: list[float] | None) -> float:
    """Of the processor, for a whole run."""
    if rate is None:
        return float(json.loads((folder / "seconds.json").read_text())["cpu"])
    return median(rate) * yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["max_epochs"]


def curve(folder: Path, seconds: float) -> dict[str, list[float]]:
    """What was held out, by processor seconds: as far as each validation's step is of the whole run."""
    from gpt_modules.commands.pipelines.report import read_curve

    columns = {name: dict(read_curve(folder, tag)) for name, tag in CURVES.items()}
    steps = sorted(columns["kl"])
    found = {name: [round(column[step], 4) for step in steps] for name, column in columns.items()}
    last = max(steps[-1], 1)
    return found | {"seconds": [round(seconds * step / last, 1) for step in steps]}


def of_dpo(work: Path, sft: dict[str, float]) -> dict[str, list[float]]:
    """A point for each beta, from the SFT model on."""
    points = [{**sft, "seconds": 0.0}]
    for beta in BETAS:
        folder = work / f"DPO-{beta}"
        if (folder / "judged.json").exists():
            point = json.loads((folder / "judged.json").read_text())
            points.append(point | {"seconds": round(json.loads((folder / "seconds.json").read_text())["cpu"], 1)})
    return {name: [point[name] for point in points] for name in points[0]}


def of_best(path: Path, perplexity: float) -> dict[str, list[float]]:
    """The best of 1, 2, 4, ... by what PPO optimises."""
    import torch

    from gpt_modules.functional import best_of_n_kl, best_of_n_mean

    draws = torch.load(path, weights_only=True)
    optimised, count = torch.where(draws["ended"], draws["score"], UNFINISHED), draws["score"].shape[1]
    counts = [2**power for power in range(count.bit_length()) if 2**power <= count]
    found = {"score": draws["score"], "finished": optimised, "vader": draws["vader"], "ended": draws["ended"].float()}
    columns = {
        name: [round(float(best_of_n_mean(optimised, values, n).mean()), 4) for n in counts]
        for name, values in found.items()
    }
    kl = [round(best_of_n_kl(n), 4) for n in counts]
    return {"kl": kl, **columns, "perplexity": [perplexity] * len(kl), "seconds": [0.0] * len(kl)}


def collect(work: Path) -> dict[str, Any]:
    """Everything that is measured so far."""
    found = []
    path = work / "rates.json"
    rate: dict[str, list[float]] = json.loads(path.read_text()) if path.exists() else {}
    for seed in sorted(work.glob("seed-*")):
        number = int(seed.name.removeprefix("seed-"))
        done = {name: seed / name for name in ROLLOUTS if (seed / name / "seconds.json").exists()}
        for name, folder in done.items():
            found.append({"seed": number, "method": name, **curve(folder, seconds_of(folder, rate.get(name)))})
        if "PPO" in done:
            sft = {name: found[-len(done)][name][0] for name in CURVES}
            found.append({"seed": number, "method": "DPO", **of_dpo(seed, sft)})
            if (seed / "draws.pt").exists():
                best = of_best(seed / "draws.pt", sft["perplexity"])
                found.append({"seed": number, "method": "best of n", **best})
    return {"command": COMMAND, "seconds_an_iteration": rate, "curves": found}


def main() -> None:
    """One of the four."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("measure", "rates", "collect", "draw"))
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="what `make demo` leaves")
    parser.add_argument("--work", type=Path, default=Path("runs/methods"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=FILE)
    parser.add_argument("--tiny", action="store_true", help="next to nothing, to see that it runs")
    options = parser.parse_args()
    if options.step in ("measure", "rates"):
        import gpt_modules.commands.fit  # noqa: F401 -- every command is a fork of this
    if options.step == "measure":
        size = (2, 4, BETAS[:1]) if options.tiny else (None, 64)
        for seed in options.seeds:
            measure(World(options.demo.resolve(), options.work.resolve() / f"seed-{seed}", seed, *size))
    if options.step == "rates":
        rates(World(options.demo.resolve(), options.work.resolve(), 0))
    if options.step == "draw":
        figure(json.loads(options.output.read_text())).savefig(options.output.with_suffix(".png"), dpi=110)
        return
    results = collect(options.work)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
