"""GPT-3's synthetic tasks, made anew in the published formats: ten of arithmetic, five of scrambled words.

Source: Brown et al. 2020, sections 3.9.1 and 3.9.2, and the data files released with the paper. Where the two differ
the files are followed: one-digit composite (1DC) has its parentheses around the first two digits, which are 1 to 9.

2D+ 2D- 3D+ 3D- 4D+ 4D- 5D+ 5D-   What is 98 plus 45? Operands are uniform below 10^digits; differences may be negative.
2Dx 1DC                           What is 98 times 45? What is (9 + 8) * 2?
CL cycled letters    A1 all letters but the first and last shuffled    A2 all but the first two and last two
RI one of . / ! ' or a space between every two letters                 RW the word reversed
"""

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal, NamedTuple, get_args

from gpt_modules.data.builtin.shakespeare import frequent_words
from gpt_modules.data.splits import Row, Split, split_of
from gpt_modules.errors import UserError

SyntheticTask = Literal[
    "2D+", "2D-", "3D+", "3D-", "4D+", "4D-", "5D+", "5D-", "2Dx", "1DC", "CL", "A1", "A2", "RI", "RW"
]
TASKS: tuple[str, ...] = get_args(SyntheticTask)
PREFIX = "synthetic:"
INSTRUCTION = "Please unscramble the letters into a word, and write that word:"
FORMAT_VERSION = 1  # of what `synthetic_documents` draws: caches are built from it
DOCUMENTS = 20_000  # of a pretraining source
MAX_EXAMPLES = 8  # in a document
MISSES = 2_000  # draws without a new question, after which there is none left


class Question(NamedTuple):
    """A prompt and its answer. key: what makes it the same question; 45 plus 98 is 98 plus 45."""

    context: str
    completion: str
    key: str


def synthetic_items(
    task: str,
    count: int = 2000,
    seed: int = 0,
    split: Split | Literal["all"] = "all",
    words: Sequence[str] | None = None,
) -> list[Row]:
    """`{"context", "completion"}` of different questions, the same for the same seed.

    Args:
        task: One of `TASKS`.
        count: How many; fewer where the task does not have as many.
        split: `train` and `validation` share no question: a tenth validates, by hash.
        words: For the scrambles: lower-case words of one's own; by default `shakespeare.frequent_words`.

    Raises:
        UserError: There is no such task.
    """
    rng, seen, misses = random.Random(f"{task} {seed}"), set(), 0
    draw, rows = _drawing(task, words), list[Row]()
    while len(rows) < count and misses < MISSES:
        question = draw(rng)
        misses += 1
        if question.context in seen or split not in ("all", split_of(question.key)):
            continue
        seen.add(question.context)
        rows.append({"context": question.context, "completion": question.completion})
        misses = 0
    return rows


def synthetic_documents(task: str, split: Split, seed: int = 0) -> Iterator[Row]:
    """`{"text"}` to pretrain on: documents of 1 to 8 questions with their answers, one after the other as in a prompt
    with demonstrations (p(output | input, task), Radford et al. 2019, section 2). Scrambles begin with the paper's
    instruction, which does not say how the letters were scrambled.
    """
    rng, draw = random.Random(f"{task} {seed} documents"), _drawing(task, None)
    for _ in range(DOCUMENTS if split == "train" else DOCUMENTS // 20):
        text, wanted = "" if task[0].isdigit() else INSTRUCTION, rng.randint(1, MAX_EXAMPLES)
        while wanted:
            question = draw(rng)
            if split_of(question.key) == split:
                text += question.context + question.completion
                wanted -= 1
        yield {"text": text}


def task_of(source: str) -> str:
    """The task of a source's name, `synthetic:2D+`.

    Raises:
        UserError: There is no such task.
    """
    task = source.removeprefix(PREFIX)
    if task not in TASKS:
        raise UserError(f"{source}: found no task {task!r}, expected one of {', '.join(TASKS)}")
    return task


def _drawing(task: str, words: Sequence[str] | None) -> Callable[[random.Random], Question]:
    task_of(task)
    if task == "1DC":
        return _composite
    if task[0].isdigit():
        return partial(_arithmetic, digits=int(task[0]), sign=task[2])
    shortest = 5 if task == "A1" else 6
    usable = [word for word in words or frequent_words() if shortest <= len(word) <= 15 and len(set(word[1:-1])) > 1]
    if not usable:
        raise UserError(f"{PREFIX}{task}: words: found none of {shortest} to 15 letters, expected some")
    return partial(_scrambled, scramble=_SCRAMBLES[task], words=usable)


def _arithmetic(rng: random.Random, digits: int, sign: str) -> Question:
    a, b = rng.randrange(10**digits), rng.randrange(10**digits)
    word, answer = {"+": ("plus", a + b), "-": ("minus", a - b), "x": ("times", a * b)}[sign]
    first, second = (a, b) if sign == "-" else sorted((a, b))
    return _question(f"{a} {word} {b}", answer, f"{first} {word} {second}")


def _composite(rng: random.Random) -> Question:
    a, b, c = (rng.randint(1, 9) for _ in range(3))
    first, second = rng.choice("+-*"), rng.choice("+-*")
    result = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    text = f"({a} {first} {b}) {second} {c}"
    return _question(text, result[second](result[first](a, b), c), text)


def _question(asked: str, answer: int, key: str) -> Question:
    return Question(f"\n\nQ: What is {asked}?\n\nA:", f" {answer}", key)


def _scrambled(rng: random.Random, scramble: Callable[[str, random.Random], str], words: Sequence[str]) -> Question:
    word = rng.choice(words)
    return Question(f"\n{scramble(word, rng)} =", f" {word}", word)


def _cycled(word: str, rng: random.Random) -> str:
    turned = word
    while turned == word:  # "murmur" from its middle on is itself
        cut = rng.randrange(1, len(word))
        turned = word[cut:] + word[:cut]
    return turned


def _shuffled(word: str, rng: random.Random, kept: int) -> str:
    """All but `kept` letters at either end, another order wherever there is one."""
    middle = list(word[kept:-kept])
    while len(set(middle)) > 1:
        rng.shuffle(middle)
        if (found := word[:kept] + "".join(middle) + word[-kept:]) != word:
            return found
    return word


def _inserted(word: str, rng: random.Random) -> str:
    return word[0] + "".join(rng.choice(" './!") + letter for letter in word[1:])


_SCRAMBLES: dict[str, Callable[[str, random.Random], str]] = {
    "CL": _cycled,
    "A1": partial(_shuffled, kept=1),
    "A2": partial(_shuffled, kept=2),
    "RI": _inserted,
    "RW": lambda word, _: word[::-1],
}
