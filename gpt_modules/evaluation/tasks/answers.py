"""What a model writes on to a prompt, greedily, by beams or by chance, and where its answer ends."""

import re
from collections.abc import Callable, Iterator

from gpt_modules.backbone import GPT, Generation, beam_search, generate, noise_of
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.evaluation.tasks.definitions import EvaluationTask
from gpt_modules.evaluation.tasks.scoring import Progress

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def write_answers(
    task: EvaluationTask,
    prompts: list[list[int]],
    model: GPT,
    tokenizer: Tokenizer,
    seed: int,
    max_tokens_a_batch: int,
    progress: Progress | None = None,
) -> list[tuple[str, bool]]:
    """What the model says to each prompt, and whether it came to an end, in batches of alike lengths."""
    ends = _end_ids(task, tokenizer)
    speak = _speaker(task, model, ends, seed)
    texts: dict[int, tuple[str, bool]] = {}
    for batch in _batches([len(prompt) + task.max_new_tokens for prompt in prompts],
                          max_tokens_a_batch // task.beams):  # fmt: skip
        said = speak([prompts[i] for i in batch], batch)
        for i, row, kept in zip(batch, said.tokens.tolist(), said.mask.tolist(), strict=True):
            ids = [token for token, is_kept in zip(row, kept, strict=True) if is_kept]
            texts[i] = _answer(task, tokenizer, ids, ends)
        if progress is not None:
            progress(len(texts) / len(prompts))
    return [texts[i] for i in range(len(prompts))]


def _speaker(
    task: EvaluationTask, model: GPT, ends: list[int], seed: int
) -> Callable[[list[list[int]], list[int]], Generation]:
    """(prompts, their numbers) -> what is said; the noise of an answer is a function of its number."""
    new = task.max_new_tokens
    if task.beams > 1:
        return lambda prompts, numbers: beam_search(
            model, prompts, max_new_tokens=new, eos_id=ends, width=task.beams, length_penalty=task.length_penalty
        )
    return lambda prompts, numbers: generate(
        model, prompts, max_new_tokens=new, eos_id=ends, temperature=task.temperature, top_k=task.top_k,
        generator=[noise_of(f"{seed} {task.name} {number}") for number in numbers],
    )  # fmt: skip


def _end_ids(task: EvaluationTask, tokenizer: Tokenizer) -> list[int]:
    """The tokens that end an answer: the end token, and stop texts that are one token, since few-shot answers end so;
    what the model would go on to say is neither waited for nor, of several beams, part of what they are compared by.
    """
    stops = map(tokenizer.within.encode, task.stop)
    return list(dict.fromkeys([tokenizer.eos_id, *(ids[0] for ids in stops if len(ids) == 1)]))


def _answer(task: EvaluationTask, tokenizer: Tokenizer, ids: list[int], ends: list[int]) -> tuple[str, bool]:
    text = tokenizer.within.decode(ids[:-1] if ids[-1] == tokenizer.eos_id else ids)
    stops = [found for stop in task.stop if (found := text.find(stop)) >= 0]
    finished = bool(stops) or ids[-1] in ends
    text = text[: min(stops, default=len(text))].strip()
    return text if task.sentences is None else " ".join(_SENTENCE_END.split(text)[: task.sentences]), finished


def _batches(widths: list[int], max_tokens: int) -> Iterator[list[int]]:
    """Numbers of prompts, longest first, alike lengths together."""
    order = sorted(range(len(widths)), key=lambda i: -widths[i])
    while order:
        count = max(1, max_tokens // widths[order[0]])
        yield order[:count]
        order = order[count:]
