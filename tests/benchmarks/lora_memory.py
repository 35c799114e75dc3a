"""Bytes a parameter that training keeps, with and without LoRA: counted on the meta device, and as peak memory.

    python tests/benchmarks/lora_memory.py               # counted for GPT-2 124M and InstructGPT's 1.3B
    python tests/benchmarks/lora_memory.py --measure     # and the peak of a short run of each, in a process of its own

Counted: weights (4 bytes), gradients (4) and AdamW's moments (8) of what learns, in float32, of all models of the
procedure at one size. Measured: the most memory that two steps of few short rows take beyond the same process without
a model, which reads the data (two rows of 32 tokens; PPO four episodes), over the parameters of one model.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RANK = 8
SHAPES = {
    "124M": {"n_layer": 12, "n_head": 12, "n_embd": 768},
    "1.3B": {"n_layer": 24, "n_head": 16, "n_embd": 2048, "n_positions": 2048},
    "23M": {"n_layer": 6, "n_head": 8, "n_embd": 512, "n_positions": 128, "vocab_size": 8192},
}
MEASURED = "23M"
CASES = ("sft", "sft lora", "reward", "reward lora", "ppo", "ppo lora", "ppo lora critic")


def counted(case: str, shape: str) -> tuple[float, float]:
    """Bytes a parameter, of all models together, and the share of a model's parameters that its updates are."""
    import torch

    from gpt_modules.backbone import GPT, DecoderConfig, LoRAConfig, RewardModel, add_lora

    word, _, rest = case.partition(" ")
    config, lora = DecoderConfig(**SHAPES[shape]), LoRAConfig(rank=RANK)
    trained = {"sft": [GPT], "reward": [RewardModel], "ppo": [GPT, RewardModel]}[word]
    shares = len(rest.split())  # the reference with the policy, the reward model with the critic
    frozen = 2 - shares if word == "ppo" else 0
    total, size, updates = 4 * frozen * config.n_params(), config.n_params(), 0
    for kind in trained:
        with torch.device("meta"):
            model = kind(config)
            if "lora" in rest and (kind is GPT or word == "reward" or "critic" in rest):
                add_lora(model.decoder, lora)
        learnt = sum(p.numel() for p in model.parameters() if p.requires_grad)
        total += 4 * sum(p.numel() for p in model.parameters()) + 12 * learnt
        updates = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name) or updates
    return total / size, updates / size


def peak(case: str, folder: Path) -> int:
    """Kilobytes at most of this process, in which the case trains; case `none` reads data alone."""
    import lightning.pytorch as L
    import torch

    from gpt_modules.backbone import LoRAConfig
    from gpt_modules.data import PPODataModule, RewardDataModule, SFTDataModule
    from gpt_modules.training import PPOModule, RewardModule, SFTModule
    from gpt_modules.training.rl.settings import CriticConfig

    torch.set_num_threads(1)
    word, _, rest = case.partition(" ")
    lora = LoRAConfig(rank=RANK) if "lora" in rest else None
    gpt, settings = str(folder / "gpt"), {"tokenizer": str(folder / "gpt"), "cache_dir": str(folder / "cache")}
    rows: dict[str, Any] = {"context": 32, "batch_size": 2}
    critic = CriticConfig(lora=lora if "critic" in rest else None)
    short = {"max_new_tokens": 8, "ppo_epochs": 1, "score_rows": 4}
    build = {
        "sft": lambda: (SFTModule(gpt, lora=lora), SFTDataModule("reviews", **settings, **rows)),
        "reward": lambda: (RewardModule(gpt, lora=lora), RewardDataModule("reviews", k=2, batch_size=1, **settings)),
        "ppo": lambda: (
            PPOModule(gpt, str(folder / "reward"), lora=lora, critic=critic, **short),
            PPODataModule("reviews", episodes=4, **settings),
        ),
    }
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_steps=2, limit_val_batches=0, num_sanity_val_steps=0,
        enable_model_summary=False, default_root_dir=folder, **quiet,
    )  # fmt: skip
    if word == "none":
        data: Any = build["sft"]()[1]
        data.prepare_data()
        data.setup("fit")
    else:
        module, data = build[word]()
        trainer.fit(module, datamodule=data)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def write_models(folder: Path) -> int:
    """A language model and a reward model to begin with; parameters of one."""
    from gpt_modules.backbone import GPT, DecoderConfig, RewardModel, save_pretrained
    from gpt_modules.data.builtin.reviews import pretraining_rows
    from gpt_modules.data.text.tokenizers import Tokenizer

    config = DecoderConfig(**SHAPES[MEASURED]).without_dropout()
    tokenizer = Tokenizer.train([row["text"] for row in pretraining_rows("validation")], 512).to_json()
    for name, kind in (("gpt", GPT), ("reward", RewardModel)):
        save_pretrained(folder / name, kind(config), tokenizer_json=tokenizer)
    return config.n_params()


def measured(folder: Path) -> dict[str, float]:
    """Peak bytes a parameter of each case."""
    size, peaks = write_models(folder), {}
    for case in ("none", *CASES):
        command = [sys.executable, __file__, "--one", case, "--folder", str(folder)]
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[case] = int(ended.stdout.strip().splitlines()[-1])
    return {case: 1024 * (peaks[case] - peaks["none"]) / size for case in CASES}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--one")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.one is not None:
        print(peak(options.one, options.folder))
        return
    with tempfile.TemporaryDirectory() as folder:
        peaks = measured(Path(folder)) if options.measure else {}
    print(f"| rank {RANK}, bytes a parameter | 124M | 1.3B | peak, {MEASURED} |\n| --- | --- | --- | --- |")
    for case in CASES:
        cells = [f"{counted(case, shape)[0]:.1f}" for shape in ("124M", "1.3B")]
        print(f"| {case} | {' | '.join(cells)} | {f'{peaks[case]:.1f}' if peaks else '-'} |")


if __name__ == "__main__":
    main()
