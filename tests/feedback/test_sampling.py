"""K different answers, each a function of its prompt and its place."""

import hashlib
from collections.abc import Sequence

import pytest

from gpt_modules.feedback import sampling
from gpt_modules.feedback.sampling import ATTEMPTS, Draw, Said, Voice, sample_answers
from gpt_modules.storage.comparisons import Source

PROMPTS = [f"prompt {i}" for i in range(10)]


def voice(name: str, words: Sequence[str] = tuple("abcdefgh")) -> Voice:
    def answers(draws: Sequence[Draw]) -> list[Said]:
        numbers = [hashlib.sha256(f"{name} {draw.place}".encode()).digest()[0] for draw in draws]
        return [Said(words[number % len(words)], number % 2 == 0) for number in numbers]

    return Voice(Source(name), answers)


def test_all_answers_differ_though_few_words_are_said() -> None:
    for prompt, answers in sample_answers(PROMPTS, [voice("m")], 4):
        assert prompt in PROMPTS
        assert len({answer.text for answer in answers}) == len(answers) == 4


def test_models_answer_in_turn() -> None:
    for _, answers in sample_answers(PROMPTS, [voice("new"), voice("old", "uvwxyz")], 4):
        assert [answer.source.name for answer in answers] == ["new", "old", "new", "old"]


def test_what_cannot_differ_is_kept_once_and_what_is_blank_not_at_all() -> None:
    asked: list[int] = []

    def same(draws: Sequence[Draw]) -> list[Said]:
        asked.append(len(draws))
        return [Said("same" if draw.prompt != "blank" else " \n", True) for draw in draws]

    (_, one), (_, none) = sample_answers(["a", "blank"], [Voice(Source("m"), same)], 3)
    assert [answer.text for answer in one] == ["same"]
    assert none == []
    assert asked == [6] + [5] * (ATTEMPTS - 1)


@pytest.mark.parametrize("window", [1, 3, 64])
def test_an_answer_depends_on_no_other_prompt(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = dict(sample_answers(PROMPTS, [voice("m")], 5))
    monkeypatch.setattr(sampling, "WINDOW", window)
    assert dict(sample_answers(PROMPTS[3:7], [voice("m")], 5)) == {p: expected[p] for p in PROMPTS[3:7]}
