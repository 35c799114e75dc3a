"""Reward models that are optimised too far, and what rounds of new comparisons do about it.

    python tests/benchmarks/overoptimisation.py measure --demo runs/demo --work runs/overoptimisation --seeds 0 1 2
    python tests/benchmarks/overoptimisation.py measure --labels 400 --seeds 3
    python tests/benchmarks/overoptimisation.py collect --work runs/overoptimisation
    python tests/benchmarks/overoptimisation.py draw

A gold reward stands for people: the demo's reward model, which learned from their ratings, ranks pairs of answers as
they would whom Bradley and Terry describe. Proxies learn from some of these comparisons, policies from the proxies, and
the gold reward is watched (Gao, Schulman and Hilton 2022). Then the same number of comparisons is asked for in rounds,
each about answers of the newest policy (Ouyang et al. 2022, section 3.1).

measure: what is done stays done, what was cut off begins anew; seeds may be measured at the same time. collect: what is
measured so far, into `notebooks/figures/overoptimisation.json`, a summary as a table. draw: its figures, beside it; the
notebook `feedback` shows the same.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from overoptimisation_results import FILE, UNFINISHED, collect, draw, table

COMMAND = "python tests/benchmarks/overoptimisation.py measure --seeds 0 1 2, and --seeds 3 --labels 400"
TEMPERATURE = 1.0  # of the labeler's noise, in units of the gold reward
NEW_TOKENS = 32  # of the longest answer


class Size(NamedTuple):
    """How much is measured.

    labels: comparisons that a proxy learns from.
    in_rounds: comparisons in all that are asked for in `rounds` rounds.
    iterations: of PPO in all, `episodes` answers each; held-out prompts are answered after `every` of them.
    held_out: prompts of a validation, and comparisons of one.
    draws: answers to each held-out prompt that the best of n is one of.
    """

    labels: tuple[int, ...] = (100, 400, 1600)
    in_rounds: int = 400
    rounds: int = 4
    iterations: int = 36
    every: int = 3
    episodes: int = 64
    held_out: int = 128
    draws: int = 64


TINY = Size((8, 16), 16, 2, 2, 1, 4, 8, 8)


class World(NamedTuple):
    """One seed's files. demo: what `make demo` leaves."""

    demo: Path
    work: Path
    seed: int
    size: Size

    @property
    def pretrained(self) -> Path:
        return self.demo / "pretraining/export"

    @property
    def sft(self) -> Path:
        return self.demo / "sft/export"

    @property
    def gold(self) -> Path:
        return self.demo / "reward/export"


def gpt(log: Path, *words: Any) -> None:
    """A command of the project, in a fork of this process, which has imported everything once."""
    print(f"{log.stem}: gpt", *words[:1], flush=True)
    process = multiprocessing.get_context("fork").Process(target=_become, args=(log, [str(word) for word in words]))
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"gpt {' '.join(map(str, words))}: exit status {process.exitcode}, see {log}")


def _become(log: Path, words: list[str]) -> None:
    from gpt_modules.cli import main

    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["gpt", *words]
    main()


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_rows(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- steps ---


def prompts(world: World) -> None:
    """The prompts of the reviews, in an order of the seed; of those held out the same for all seeds."""
    from gpt_modules.data.builtin.reviews import ppo_rows

    rows = ppo_rows("train")
    random.Random(world.seed).shuffle(rows)
    write_rows(world.work / "prompts.jsonl", rows)
    write_rows(world.work / "held-out.jsonl", ppo_rows("validation")[: world.size.held_out])


def ask(world: World, store: Path, policy: Path, count: int) -> list[Any]:
    """`count` further comparisons of the policy's answers, ranked by the gold reward; all rows of the store, in
    order.
    """
    words = ("--k", 2, "--count", count, "--max-new-tokens", NEW_TOKENS, "--seed", world.seed)
    gpt(store.with_suffix(".compare.log"), "compare", "--model", policy, "--prompts", world.work / "prompts.jsonl",
        "--output", store, *words)  # fmt: skip
    noise = ("--name", "gold", "--temperature", TEMPERATURE, "--seed", world.seed)
    gpt(store.with_suffix(".label.log"), "label", store, "--by", world.gold, *noise)
    exported = store.with_suffix(".jsonl")
    exported.unlink(missing_ok=True)
    gpt(store.with_suffix(".export.log"), "label", store, "--export", exported)
    return read_rows(exported)


def fit(folder: Path, recipe: str, words: Sequence[Any]) -> None:
    """A recipe, unless it is done."""
    if (folder / "summary.json").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    common = ("--trainer.default_root_dir", folder, "--checkpoint.every_n_steps", 10**6)
    gpt(folder.with_suffix(".log"), "fit", "--config", recipe, *common, *words)


def fit_reward(world: World, folder: Path, rows: Sequence[Any]) -> None:
    """A proxy. It begins from the pretrained model, so that it is the weaker one: the gold reward began from the SFT
    model, which knows praise from blame. Answers of the SFT model score 0 on average, with a standard deviation of 1,
    so that an answer without an end costs the same whatever the proxy.
    """
    train = write_rows(folder.with_suffix(".jsonl"), rows)
    fit(folder, "recipes/reward/tiny.yaml", [
        *("--seed_everything", world.seed, "--data.seed", world.seed, "--model.init_from", world.pretrained),
        *("--data.train", train, "--data.validation", world.work / "validation.jsonl"),
        *("--data.demonstrations", world.work / "answers.jsonl", "--data.batch_size", 8, "--data.val_batch_size", 64),
        *("--model.schedule.warmup", 5, "--trainer.callbacks", "[]"),
    ])  # fmt: skip


def fit_policy(world: World, folder: Path, policy: Path, proxy: Path, iterations: int) -> None:
    """PPO from a policy against a proxy, without a penalty: only the number of iterations keeps it near."""
    size = world.size
    gold, rules = {"folder": str(world.gold)}, {"function": "gpt_modules.evaluation.sentiment:vader"}
    fit(folder, "recipes/ppo/tiny.yaml", [
        *("--seed_everything", world.seed, "--model.seed", world.seed, "--data.seed", world.seed),
        *("--model.init_from", policy, "--model.reference_from", world.sft, "--model.rewards", proxy),
        *("--model.monitors", json.dumps({"gold": gold, "vader": rules}), "--model.kl.coef", 0),
        *("--model.missing_eos_score", UNFINISHED, "--model.max_new_tokens", NEW_TOKENS),
        *("--model.optimizer.lr", 6e-4, "--model.schedule.final", 1, "--trainer.max_epochs", iterations),
        *("--trainer.check_val_every_n_epoch", size.every, "--data.episodes", size.episodes),
        *("--data.val_batch_size", size.held_out),
        *("--data.train", world.work / "prompts.jsonl", "--data.validation", world.work / "held-out.jsonl"),
    ])  # fmt: skip


def best_of_n(world: World) -> None:
    """Scores of `draws` answers of the SFT model to each held-out prompt, by the gold reward and by every proxy."""
    path = world.work / "draws.pt"
    if path.exists():
        return
    import torch

    from gpt_modules import PPODataModule, load_pretrained
    from gpt_modules.training.rl.rewards import Reward, RewardSource
    from gpt_modules.training.rl.rollout import sample
    from gpt_modules.training.rl.settings import Sampling

    held_out = str(world.work / "held-out.jsonl")
    data = PPODataModule(
        str(world.work / "prompts.jsonl"), held_out, str(world.sft), val_batch_size=world.size.held_out
    )
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    model, end = load_pretrained(world.sft, kind="gpt").eval(), data.tokenizer.eos_id
    folders = {"gold": world.gold, **{str(n): world.work / f"reward-{n}/export" for n in world.size.labels}}
    scorers = {
        k: Reward([RewardSource(folder=str(f))], data.tokenizer, lambda model: model) for k, f in folders.items()
    }
    found: dict[str, list[torch.Tensor]] = {name: [] for name in (*scorers, "ended")}
    with torch.no_grad():
        for draw in range(world.size.draws):
            sequences, *_ = sample(model, batch, Sampling(NEW_TOKENS, 1.0, (end,)), (world.seed, draw))
            found["ended"].append(sequences.ended)
            for name, scorer in scorers.items():
                found[name].append(scorer(sequences).totals)
    torch.save({name: torch.stack(columns, 1) for name, columns in found.items()}, path)


def measure(world: World) -> None:
    """All of a seed."""
    size = world.size
    world.work.mkdir(parents=True, exist_ok=True)
    prompts(world)
    rows = ask(world, world.work / "comparisons.db", world.sft, max(size.labels) + size.held_out)
    write_rows(world.work / "validation.jsonl", rows[max(size.labels) :])
    answers = [{"prompt": row["prompt"], "response": row["responses"][0]} for row in rows[:512]]
    write_rows(world.work / "answers.jsonl", answers)
    for labels in size.labels:
        reward, policy = (world.work / f"{word}-{labels}" for word in ("reward", "ppo"))
        fit_reward(world, reward, rows[:labels])
        fit_policy(world, policy, world.sft, reward / "export", size.iterations)
    in_rounds(world)
    best_of_n(world)


def in_rounds(world: World) -> None:
    """Comparisons in parts, each about answers of the newest policy; a proxy learns from all so far."""
    size, policy, store = world.size, world.sft, world.work / "rounds.db"
    part = size.in_rounds // size.rounds
    for number in range(1, size.rounds + 1):
        reward, folder = (world.work / f"round-{number}-{word}" for word in ("reward", "ppo"))
        if not (folder / "summary.json").exists():
            rows = ask(world, store, policy, part)
            # Fewer where a policy has only one answer to a prompt, of which there is nothing to ask.
            assert len(rows) <= number * part, f"{store}: {len(rows)} votes in round {number}"
            fit_reward(world, reward, rows)
            fit_policy(world, folder, policy, reward / "export", size.iterations // size.rounds)
        policy = folder / "export"


def main() -> None:
    """One of the three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("measure", "collect", "draw"))
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="what `make demo` leaves")
    parser.add_argument("--work", type=Path, default=Path("runs/overoptimisation"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--labels", type=int, nargs="+", help="only these numbers of comparisons, and the rounds")
    parser.add_argument("--output", type=Path, default=FILE)
    parser.add_argument("--tiny", action="store_true", help="next to nothing, to see that it runs")
    options = parser.parse_args()
    size = TINY if options.tiny else Size()
    if options.step == "draw":
        draw(options.output)
        return
    if options.step == "measure":
        import gpt_modules.commands.compare
        import gpt_modules.commands.fit
        import gpt_modules.commands.label  # noqa: F401 -- every command is a fork of this

        part = size._replace(labels=tuple(options.labels or size.labels))
        for seed in options.seeds:
            measure(World(options.demo.resolve(), options.work.resolve() / f"seed-{seed}", seed, part))
    results = collect(options.work, {"command": COMMAND, "temperature": TEMPERATURE, **size._asdict()})
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
