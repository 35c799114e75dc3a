"""A task at K demonstrations, from its rows to its metrics with their standard errors.

All continuations of a task are scored by one call, which sees what they share.
"""

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpt_modules.backbone import GPT
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError, expect
from gpt_modules.evaluation.tasks.answers import write_answers
from gpt_modules.evaluation.tasks.definitions import EvaluationTask
from gpt_modules.evaluation.tasks.detokenizers import DETOKENIZERS
from gpt_modules.evaluation.tasks.metrics import Estimate, Numbers, bleu, bootstrap, mean, ratio_of, text_scores
from gpt_modules.evaluation.tasks.perplexity import corpus_scores
from gpt_modules.evaluation.tasks.prompts import Prompt, build_prompts, encode_pairs
from gpt_modules.evaluation.tasks.questions import Question, Questions, read_questions, read_texts
from gpt_modules.evaluation.tasks.scoring import Progress, Score, continuation_logprobs

_LARGEST_EXPONENT = 700.0  # of a float64


@dataclass(frozen=True)
class Settings:
    """What a run has in common for all tasks. Raises `UserError` for values that no run can have."""

    limit: int | None = None
    """Items of a task, the first so many; all by default."""
    seed: int = 0
    """Of the demonstrations drawn, of sampled answers and of the bootstrap."""
    end_token: bool = True
    """Whether a prompt follows an end token."""
    max_tokens_a_batch: int = 8192

    def __post_init__(self) -> None:
        for key in ("limit", "max_tokens_a_batch"):
            if (value := getattr(self, key)) is not None and value < 1:
                raise UserError(f"{key}: found {value}, expected at least 1")
        expect(self.seed >= 0, "seed", self.seed, "at least 0")


class Workload(NamedTuple):
    """A task at K demonstrations, ready for the model: questions and their prompts, or texts."""

    task: EvaluationTask
    shots: int
    questions: list[Question]
    prompts: list[Prompt]
    texts: list[str]


class Result(NamedTuple):
    """What was measured on n items; the first metric is the task's headline.

    shortened: items that had room for fewer than K demonstrations. cut: items whose context lost its beginning.
    unfinished: answers that `max_new_tokens` cut off. records: an item each, plain values.
    """

    metrics: dict[str, Estimate]
    n: int
    shortened: int
    cut: int
    unfinished: int
    seconds: float
    records: list[dict[str, Any]]


def read_data(
    task: EvaluationTask, settings: Settings, shots: Sequence[int], cache_dir: str | Path | None = None
) -> Questions | list[str]:
    """A task's rows, all of them checked: questions with the demonstrations that `shots` need, or the texts of a
    perplexity task.

    Raises:
        UserError: No row, or one that does not fit, with file, row and field.
    """
    if task.kind == "perplexity":
        return read_texts(task, settings.limit, cache_dir)
    return read_questions(task, settings.limit, cache_dir, with_pool=any(shots))


def shots_of(task: EvaluationTask, shots: Sequence[int]) -> list[int]:
    """The counts of demonstrations that a task is measured at; a text has none."""
    return [0] if task.kind == "perplexity" else list(shots)


def check_shots(field: str, tasks: Sequence[EvaluationTask], shots: Sequence[int]) -> None:
    """Raises `UserError`, naming `field`, for demonstrations that no task has."""
    if any(shots) and all(task.kind == "perplexity" for task in tasks):
        found = f"found {','.join(map(str, shots))} for tasks of perplexity alone, which have no demonstrations"
        raise UserError(f"{field}: {found}, expected 0")


def check_fits(task: EvaluationTask, data: Questions | list[str], n_positions: int, shots: Sequence[int]) -> None:
    """What can be told of a task and a model before any prompt is written.

    Raises:
        UserError: An answer or a stride as long as the model's context, or fewer demonstrations than K.
    """
    if task.kind == "generate":
        fits, expected = task.max_new_tokens < n_positions, f"fewer than n_positions = {n_positions}"
        expect(fits, f"{task.name}: max_new_tokens", task.max_new_tokens, expected)
    if task.kind == "perplexity":
        expected = f"at most n_positions = {n_positions}"
        expect(task.stride is None or task.stride <= n_positions, f"{task.name}: stride", task.stride, expected)
    if isinstance(data, Questions):
        found, most = len(data.pool), max(shots)
        expect(found >= most, f"{task.name}: demonstrations", found, f"at least {most}")


def prepare(
    task: EvaluationTask,
    data: Questions | list[str],
    tokenizer: Tokenizer,
    n_positions: int,
    shots: int,
    settings: Settings,
) -> Workload:
    """The prompts of a task at K demonstrations.

    Raises:
        UserError: Too few demonstrations, or an answer too long for the model.
    """
    if isinstance(data, list):
        return Workload(task, shots, [], [], data)
    prompts = build_prompts(task, data, tokenizer, n_positions, shots, settings.seed, settings.end_token)
    return Workload(task, shots, data.items, prompts, [])


def measure(
    work: Workload, model: GPT, tokenizer: Tokenizer, settings: Settings, progress: Progress | None = None
) -> Result:
    """Run the model on a workload; its mode is as before afterwards. `progress` is told how much of it is done."""
    run = {"choice": _choices, "partial": _choices, "cloze": _clozes, "generate": _answers, "perplexity": _texts}
    started = time.perf_counter()
    metrics, records = run[work.task.kind](work, model, tokenizer, settings, progress)
    shortened = sum(prompt.shots < work.shots for prompt in work.prompts)
    cut = sum(prompt.cut for prompt in work.prompts)
    unfinished = sum(not record.get("finished", True) for record in records)
    return Result(metrics, len(records), shortened, cut, unfinished, time.perf_counter() - started, records)


Outcome = tuple[dict[str, Estimate], list[dict[str, Any]]]


def _choices(
    work: Workload, model: GPT, tokenizer: Tokenizer, settings: Settings, progress: Progress | None
) -> Outcome:
    scored = _scores(work, model, settings, progress)
    records: list[dict[str, Any]] = []
    prior = _priors(work, model, tokenizer, settings) if _scoring(work.task) == "ratio" else {}
    for question, prompt, scores in zip(work.questions, work.prompts, scored, strict=True):
        texts = [after for _, after in question.answers]
        values = [_value(work.task, *one, prior) for one in zip(scores, texts, strict=True)]
        best = int(np.argmax(values))
        shown = texts if work.task.kind == "choice" else [before for before, _ in question.answers]
        records.append({"prompt": prompt.text, "choices": shown, "scores": values, "prediction": best,
                        "gold": question.gold, "right": best == question.gold})  # fmt: skip
    return {"accuracy": mean([record["right"] for record in records])}, records


def _clozes(work: Workload, model: GPT, tokenizer: Tokenizer, settings: Settings, progress: Progress | None) -> Outcome:
    scored = _scores(work, model, settings, progress)
    records: list[dict[str, Any]] = [
        {"prompt": prompt.text, "choices": [question.answers[0][1]], "scores": [score.logprob], "right": score.greedy}
        for question, prompt, (score,) in zip(work.questions, work.prompts, scored, strict=True)
    ]
    nats = np.array([[-record["scores"][0], 1.0] for record in records])
    perplexity = bootstrap(nats, ratio_of(_exp), settings.seed)
    return {"accuracy": mean([record["right"] for record in records]), "perplexity": perplexity}, records


def _answers(
    work: Workload, model: GPT, tokenizer: Tokenizer, settings: Settings, progress: Progress | None
) -> Outcome:
    task = work.task
    asked = [prompt.rows[0][0] for prompt in work.prompts]
    written = write_answers(task, asked, model, tokenizer, settings.seed, settings.max_tokens_a_batch, progress)
    said = [text for text, _ in written]
    known = [[after.strip() for _, after in question.answers] for question in work.questions]
    scores = text_scores(task.metrics, said, known)
    metrics = {name: mean(values) for name, values in scores.items()}
    if "bleu" in task.metrics:
        metrics["bleu"] = bleu(said, known, settings.seed)
    metrics = {name: metrics[name] for metric in task.metrics for name in metrics if name.startswith(metric)}
    records = [
        {"prompt": prompt.text, "prediction": text, "finished": finished, "references": references}
        | {name: values[number] for name, values in scores.items()}
        for number, (prompt, (text, finished), references) in enumerate(zip(work.prompts, written, known, strict=True))
    ]
    return metrics, records


def _texts(work: Workload, model: GPT, tokenizer: Tokenizer, settings: Settings, progress: Progress | None) -> Outcome:
    task = work.task
    detokenize = None if task.detokenizer is None else DETOKENIZERS[task.detokenizer]
    scores = corpus_scores(model, tokenizer, work.texts, task.stride, detokenize, settings.max_tokens_a_batch, progress)
    records = [dataclasses.asdict(score) for score in scores]
    units = {
        "word_perplexity": ("words", _exp),
        "bits_per_character": ("characters", _bits),
        "bits_per_byte": ("bytes", _bits),
        "token_perplexity": ("tokens", _exp),
    }
    metrics = {}
    for name, (unit, transform) in units.items():
        sums = np.array([[record["nats"], record[unit]] for record in records])
        metrics[name] = bootstrap(sums, ratio_of(transform), settings.seed)
    return metrics, records


def _scores(work: Workload, model: GPT, settings: Settings, progress: Progress | None) -> list[list[Score]]:
    """The score of each answer of each item."""
    rows = [row for prompt in work.prompts for row in prompt.rows]
    scores = iter(continuation_logprobs(model, rows, settings.max_tokens_a_batch, progress))
    return [list(islice(scores, len(prompt.rows))) for prompt in work.prompts]


def _priors(work: Workload, model: GPT, tokenizer: Tokenizer, settings: Settings) -> dict[str, float]:
    """The log-probability of each choice after the answer context alone (Brown et al. 2020, section 2.4)."""
    texts = list(dict.fromkeys(after for question in work.questions for _, after in question.answers))
    rows = encode_pairs(tokenizer, [(work.task.answer_context, text) for text in texts], settings.end_token)
    scores = continuation_logprobs(model, rows, settings.max_tokens_a_batch)
    return {text: score.logprob for text, score in zip(texts, scores, strict=True)}


def _scoring(task: EvaluationTask) -> str:
    # The continuations of a partial item are one and the same, so there is no length to make good for.
    return task.scoring if task.kind == "choice" else "sum"


def _value(task: EvaluationTask, score: Score, text: str, prior: dict[str, float]) -> float:
    """What choices are compared by. Lengths are those of the choice, without the space before it."""
    scoring, text_alone = _scoring(task), text.strip()
    if scoring == "ratio":
        return score.logprob - prior[text]
    length = {"sum": 1, "token": score.tokens, "character": len(text_alone), "byte": len(text_alone.encode())}
    return score.logprob / length[scoring]


def _exp(nats: Numbers) -> Numbers:
    return np.asarray(np.exp(np.minimum(nats, _LARGEST_EXPONENT)))


def _bits(nats: Numbers) -> Numbers:
    return nats / math.log(2)
