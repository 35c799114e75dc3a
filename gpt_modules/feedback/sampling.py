"""K different answers to each prompt, from one or several models in turn (Ouyang et al. 2022, 3.5: 4 to 9).

An answer is a function of its model, its prompt, its place among the K and the seed alone, so that a store that was cut
off goes on as if it had not been.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from gpt_modules.storage.comparisons import Answer, Prompt, Source, spelled

ATTEMPTS = 8  # draws for one of the K, until it differs from the others and says something
WINDOW = 64  # prompts that are answered together


class Draw(NamedTuple):
    """An answer that is wanted: the prompt, and what makes its noise its own."""

    prompt: Prompt
    place: str


class Said(NamedTuple):
    """A continuation; whether it came to its end or was cut off."""

    text: str
    ended: bool


class Voice(NamedTuple):
    """A model that answers: who it is, and its answers to many draws, in order."""

    source: Source
    answers: Callable[[Sequence[Draw]], Sequence[Said]]


def sample_answers(prompts: Sequence[Prompt], voices: Sequence[Voice], k: int) -> Iterator[tuple[Prompt, list[Answer]]]:
    """(prompt, up to k different answers), in order; the voices answer in turn.

    An answer that another one of the same prompt has given before, or that has no letters, is drawn anew, up to
    `ATTEMPTS` times in all; then there is one answer less.
    """
    for start in range(0, len(prompts), WINDOW):
        window = prompts[start : start + WINDOW]
        found: list[dict[int, Answer]] = [{} for _ in window]
        wanted = [(i, place) for i in range(len(window)) for place in range(k)]
        for attempt in range(ATTEMPTS):
            said = _asked(window, voices, wanted, attempt)
            again = []
            for (i, place), answer in zip(wanted, said, strict=True):
                if answer.text.strip() and all(answer.text != other.text for other in found[i].values()):
                    found[i][place] = answer
                else:
                    again.append((i, place))
            wanted = again
        yield from ((prompt, [of[place] for place in sorted(of)]) for prompt, of in zip(window, found, strict=True))


def _asked(
    prompts: Sequence[Prompt], voices: Sequence[Voice], wanted: Sequence[tuple[int, int]], attempt: int
) -> list[Answer]:
    answers: dict[tuple[int, int], Answer] = {}
    for number, voice in enumerate(voices):
        own = [(i, place) for i, place in wanted if place % len(voices) == number]
        if not own:
            continue
        said = voice.answers([Draw(prompts[i], f"{place} {attempt} {spelled(prompts[i]).letters}") for i, place in own])
        answers |= {key: Answer(text, voice.source, ended) for key, (text, ended) in zip(own, said, strict=True)}
    return [answers[key] for key in wanted]
