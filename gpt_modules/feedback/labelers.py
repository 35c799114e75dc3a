"""Labelers without hands: scores of models and functions, made into rankings, with people's noise where it is wanted.

A ranking is a function of the scores, the seed, the prompt and the answers, so that an experiment can be repeated.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gpt_modules.errors import TooLong, UserError
from gpt_modules.scoring import further_arguments, import_reward, source_digest, text_scores, unknown_argument
from gpt_modules.storage.comparisons import Judgement, Prompt, Task, Vote, spelled

if TYPE_CHECKING:
    from gpt_modules.backbone import RewardModel
    from gpt_modules.data.text.tokenizers import Tokenizer

MESSAGES = "messages"  # what a function may ask for by name
BATCH_TOKENS = 8192  # of prompts and answers that are scored at a time, padding among them

Scores = Callable[[Sequence[Prompt], Sequence[str]], Sequence[float]]
"""(prompts, answers) -> one score each."""


class Scorer(NamedTuple):
    """A term of a labeler's scores. digest: of the model's weights or of the function's source, where it is known."""

    name: str
    digest: str | None
    scores: Scores
    weight: float = 1.0


class Manner(NamedTuple):
    """How scores become a ranking.

    temperature: answers a and b are ranked as people would whom Bradley and Terry (1952) describe: a before b with
        probability sigmoid((score a - score b) / temperature); 0: by the scores alone.
    margin: answers whose scores, with their noise, are less apart than this are tied.
    seed: of the noise.
    """

    temperature: float = 0.0
    margin: float = 0.0
    seed: int = 0


def function_scorer(name: str, weight: float = 1.0) -> Scorer:
    """A function `package.module:name` of (prompts, answers), and of `messages` where it asks for them by name, as a
    reward of PPO may, and with the same texts (`as_text`).

    Raises:
        UserError: it cannot be imported, or asks for more: a store has no further columns.
    """
    from gpt_modules.data.rows.chat import as_text

    function, of = import_reward(name, "--by"), f"--by: {name}"
    asked = further_arguments(of, function, [MESSAGES])
    for argument, required in asked.items():
        if required and argument != MESSAGES:
            raise unknown_argument(of, argument, [MESSAGES])

    def scores(prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float]:
        texts = list(map(as_text, prompts))
        told = [prompt for prompt in prompts if not isinstance(prompt, str)]
        if asked.get(MESSAGES) and len(told) < len(prompts):
            raise UserError(f"{of} asks for messages: found a prompt that is a text, {texts[0][:40]!r}, expected "
                            "conversations")  # fmt: skip
        further = {MESSAGES: told} if MESSAGES in asked and len(told) == len(prompts) else {}
        return text_scores(of, function, texts, list(answers), further)

    return Scorer(name, source_digest(name, function), scores, weight)


def model_scorer(
    name: str, model: "RewardModel", tokenizer: "Tokenizer", weight: float = 1.0, field: str | None = None
) -> Scorer:
    """A reward model, which reads prompt, answer and end token as it was trained to (`data.reward.Comparisons`).

    Args:
        field: the list that answers come from, for the line of one that is too long; by default `--by: NAME`.

    Its scores raise `TooLong` for an answer that is, with its prompt.
    """
    from gpt_modules.backbone import model_digest
    from gpt_modules.data.rows.chat import encode_answers

    def scores(prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float]:
        asked = encode_answers([*zip(prompts, answers, strict=True)], tokenizer)
        rows = [[*prompt, *answer] for prompt, answer in asked]
        for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
            if len(row) > model.config.n_positions:
                to = repr(prompt[:40]) if isinstance(prompt, str) else f"a conversation of {len(prompt)} messages"
                where = f"--by: {name}" if field is None else f"{field}[{i}]"
                raise TooLong(f"{where}: found {len(row)} tokens of an answer to {to}, its prompt among "
                              f"them, expected at most its context of {model.config.n_positions}")  # fmt: skip
        return _model_scores(model, rows)

    return Scorer(name, model_digest(model), scores, weight)


def _model_scores(model: "RewardModel", rows: Sequence[list[int]]) -> list[float]:
    import torch

    found = [math.nan] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    while order:
        size = max(1, BATCH_TOKENS // len(rows[order[0]]))
        batch, order = order[:size], order[size:]
        lengths = torch.tensor([len(rows[i]) for i in batch])
        tokens = torch.zeros(len(batch), int(lengths.max()), dtype=torch.long)
        for line, i in zip(tokens, batch, strict=True):
            line[: len(rows[i])] = torch.tensor(rows[i])
        device = model.bias.device
        with torch.no_grad():
            scores = model(tokens.to(device), lengths.to(device)).tolist()
        for i, score in zip(batch, scores, strict=True):
            found[i] = score
    return found


def settings_of(scorers: Sequence[Scorer], manner: Manner) -> str:
    """What a labeler ranks by, as text: the same text is the same labeler."""
    return json.dumps([[[of.digest or of.name, of.weight] for of in scorers], manner])


def votes(tasks: Sequence[Task], labeler: str, scorers: Sequence[Scorer], manner: Manner) -> list[Vote]:
    """The labeler's vote on each task, by the weighted sum of its scores.

    Raises:
        UserError: a scorer cannot score, or gives what is no finite number.
    """
    prompts = [task.prompt for task in tasks for _ in task.answers]
    answers = [answer.text for task in tasks for answer in task.answers]
    total = np.zeros(len(answers))
    for scorer in scorers:
        total += scorer.weight * np.asarray(scorer.scores(prompts, answers), dtype=np.float64)
    if not np.isfinite(total).all():
        names = ", ".join(scorer.name for scorer in scorers)
        raise UserError(f"--by: {names}: found a score that is not finite, expected numbers")
    found, start = [], 0
    for task in tasks:
        end = start + len(task.answers)
        ranks = ranking(total[start:end].tolist(), task, manner)
        judgements = {answer.id: Judgement(rank) for answer, rank in zip(task.answers, ranks, strict=True)}
        found.append(Vote(task.id, labeler, judgements, f"{labeler} {task.id}"))
        start = end
    return found


def ranking(scores: Sequence[float], task: Task, manner: Manner) -> list[int]:
    """Ranks, 1 is best. Gumbel noise makes of scores the order of Plackett and Luce, whose pairs are Bradley's and
    Terry's; an answer's noise is its own, wherever it stands among the others.
    """
    asked = spelled(task.prompt).letters
    noise = [manner.temperature * _gumbel(f"{manner.seed}\0{asked}\0{answer.text}") for answer in task.answers]
    noisy = [score + of for score, of in zip(scores, noise, strict=True)]
    order = sorted(range(len(noisy)), key=lambda i: -noisy[i])
    ranks, rank, best = [0] * len(order), 0, math.inf
    for before, i in enumerate(order):
        if best - noisy[i] >= manner.margin and noisy[i] != best:
            rank, best = before + 1, noisy[i]
        ranks[i] = rank
    return ranks


def _gumbel(key: str) -> float:
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8])
    return -math.log(-math.log((number + 0.5) / 2**64))
