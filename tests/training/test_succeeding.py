"""Reinforcement learning that must succeed: brackets (`data.builtin.brackets`), whose best answer scores 1."""

import random
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from conftest import write_rows

from gpt_modules.backbone import GPT, DecoderConfig, save_pretrained
from gpt_modules.data import PPODataModule
from gpt_modules.data.builtin.brackets import DEPTH, PAIRS
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.training import PPOModule
from gpt_modules.training.optimizers import OptimizerConfig, ScheduleConfig
from gpt_modules.training.rl.estimators import EstimatorConfig
from gpt_modules.training.rl.settings import CriticConfig, KLConfig

HELD_OUT = 16  # prompts of the 64
TEXTS = 16_000


def half_right(rng):
    """A text that closes each bracket right or by any kind: five of eight are right."""
    opened = [rng.choice(list(PAIRS)) for _ in range(DEPTH)]
    closed = [PAIRS[kind] if rng.random() < 0.5 else rng.choice(list(PAIRS.values())) for kind in reversed(opened)]
    return "".join(opened + closed)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A policy that has read such texts twice; prompts to learn from, and others to be measured by."""
    folder, rng = tmp_path_factory.mktemp("brackets"), random.Random(0)
    texts = [half_right(rng) for _ in range(TEXTS)]
    tokenizer = Tokenizer.train(texts, 10, kind="characters")
    rows = torch.tensor([[*tokenizer.encode(text), tokenizer.eos_id] for text in texts])
    torch.manual_seed(0)
    sizes = {"n_positions": 8, "n_layer": 1, "n_head": 2, "n_embd": 32}
    model = GPT(DecoderConfig(tokenizer.vocab_size, **sizes, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0))
    adam = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.0)
    for batch in rows.repeat(2, 1).split(128):
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        adam.zero_grad()
        loss.backward()
        adam.step()
    save_pretrained(folder / "policy", model, tokenizer_json=tokenizer.to_json())
    prompts = [{"prompt": "".join(kinds)} for kinds in product(PAIRS, repeat=DEPTH)]
    rng.shuffle(prompts)
    write_rows(folder / "train.jsonl", prompts[HELD_OUT:])
    write_rows(folder / "held_out.jsonl", prompts[:HELD_OUT])
    return folder


@pytest.mark.parametrize(("name", "answers"), [("gae", 1), ("rloo", 8), ("grpo", 8)])
def test_brackets_are_closed_right(fit, world, name, answers):
    """To 95 % of the best there is, on prompts that were never learnt from."""
    module = PPOModule(
        str(world / "policy"),
        "gpt_modules.data.builtin.brackets:closed_share",
        max_new_tokens=DEPTH + 1,
        ppo_epochs=2,
        minibatches=2,
        kl=KLConfig(coef=0.0),
        critic=CriticConfig(shared_trunk=name == "gae"),
        missing_eos_score=0.0,
        estimator=EstimatorConfig(name),
        optimizer=OptimizerConfig(lr=3e-3, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.0),
        schedule=ScheduleConfig(shape="linear", final=0.1),
        sample_prompts=0,
    )
    data = PPODataModule(
        *(str(world / f"{part}.jsonl") for part in ("train", "held_out")),
        tokenizer=str(world / "policy"), episodes=64, answers=answers, val_batch_size=HELD_OUT,
        cache_dir=str(world / "cache"),
    )  # fmt: skip
    logged = fit(module, data, max_epochs=40, check_val_every_n_epoch=40, gradient_clip_val=1.0).logger
    sampled = logged.values("objective/score")
    assert sampled[0] < 0.7
    assert sum(sampled[-5:]) / 5 >= 0.95
    assert logged.values("val/score")[0] >= 0.95
