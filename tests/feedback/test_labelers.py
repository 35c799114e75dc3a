"""Scores as rankings: repeatable, with the noise of Bradley and Terry, ties where scores are near."""

import math

import pytest
import torch

from gpt_modules.backbone import load_pretrained
from gpt_modules.errors import UserError
from gpt_modules.feedback import labelers
from gpt_modules.feedback.labelers import Manner, Scorer, function_scorer, model_scorer, ranking, settings_of, votes
from gpt_modules.storage.comparisons import Answer, Source, Task, competition_ranks

MODEL = Source("m")


def task(number: int = 1, texts: tuple[str, ...] = ("a", "bb", "ccc")) -> Task:
    return Task(number, 1, f"prompt {number}", tuple(Answer(text, MODEL, True, i) for i, text in enumerate(texts, 10)))


def length(prompts, answers):
    return [float(len(answer)) for answer in answers]


@pytest.mark.parametrize(
    ("scores", "margin", "ranks"),
    [
        ([3.0, 1.0, 2.0], 0.0, [1, 3, 2]),
        ([1.0, 1.0, 2.0], 0.0, [2, 2, 1]),
        ([3.0, 1.0, 2.5], 0.6, [1, 3, 1]),
        ([3.0, 2.0, 1.0], 1.0, [1, 2, 3]),  # one apart is not less than one
        ([3.0, 2.5, 2.0], 0.8, [1, 1, 3]),  # a chain of near ones is no tie of its ends
        ([1.0, 1.0, 1.0], 0.0, [1, 1, 1]),
    ],
)
def test_ranks_and_ties(scores, margin, ranks):
    assert ranking(scores, task(), Manner(margin=margin)) == ranks
    assert [*competition_ranks(dict(enumerate(ranks))).values()] == ranks  # as the store keeps them


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_noise_is_bradleys_and_terrys(temperature):
    scores, n = [1.0, 0.0, -0.5], 4000
    found = [ranking(scores, task(number), Manner(temperature)) for number in range(n)]
    for i, j in ((0, 1), (1, 2), (0, 2)):
        part = sum(ranks[i] < ranks[j] for ranks in found) / n
        expected = 1 / (1 + math.exp(-(scores[i] - scores[j]) / temperature))
        assert abs(part - expected) < 4 * math.sqrt(expected * (1 - expected) / n)


def test_a_ranking_is_of_its_answers_and_the_seed_alone():
    manner = Manner(3.0, seed=1)
    tasks = [task(number) for number in range(30)]
    first = [ranking([1.0, 2.0, 3.0], of, manner) for of in tasks]
    turned = [Task(of.id, of.round, of.prompt, of.answers[::-1]) for of in tasks]
    assert [ranking([3.0, 2.0, 1.0], of, manner)[::-1] for of in turned] == first
    assert [ranking([1.0, 2.0, 3.0], of, Manner(3.0, seed=2)) for of in tasks] != first


def test_votes_are_by_the_weighted_sum():
    first = Scorer("length", None, length, 2.0)
    second = Scorer("other", None, lambda prompts, answers: [5.0 if answer == "a" else 0.0 for answer in answers])
    found = votes([task(1), task(2, ("x", "yyyy"))], "judge", [first, second], Manner())
    assert [[j.rank for j in vote.judgements.values()] for vote in found] == [[1, 3, 2], [2, 1]]
    assert [(vote.task, vote.labeler) for vote in found] == [(1, "judge"), (2, "judge")]


def test_a_model_scores_prompt_answer_and_end(micro, monkeypatch):
    model = load_pretrained(str(micro.reward), kind="reward").eval()
    scorer = model_scorer("folder", model, micro.tokenizer)
    prompts, answers = ["the film", "a story", "its cast"], [" is good.", " so.", " is awful and dull."]
    found = scorer.scores(prompts, answers)
    for prompt, answer, score in zip(prompts, answers, found, strict=True):
        ids = [*micro.tokenizer.encode(prompt), *micro.tokenizer.encode(answer), micro.tokenizer.eos_id]
        with torch.no_grad():
            alone = float(model(torch.tensor([ids]), torch.tensor([len(ids)])))
        assert score == pytest.approx(alone, abs=1e-5)
    monkeypatch.setattr(labelers, "BATCH_TOKENS", 1)
    assert scorer.scores(prompts, answers) == pytest.approx(found, abs=1e-5)


def test_an_answer_longer_than_the_models_context(micro):
    scorer = model_scorer("runs/reward", load_pretrained(str(micro.reward), kind="reward"), micro.tokenizer)
    line = r"--by: runs/reward: found \d+ tokens of an answer to 'the film', its prompt among them, expected at most"
    with pytest.raises(UserError, match=line):
        scorer.scores(["the film"], [" good" * 200])


def known(prompts, responses, answer, ended=None):
    return [0.0] * len(prompts)


def test_who_ranks_by_something_else_has_other_settings():
    one = function_scorer(f"{__name__}:length")
    known = settings_of([one], Manner())
    assert one.digest is not None
    others = [
        settings_of([one._replace(digest="other")], Manner()),
        settings_of([one._replace(weight=2.0)], Manner()),
        settings_of([one], Manner(temperature=1.0)),
        settings_of([one], Manner(margin=1.0)),
        settings_of([one], Manner(seed=1)),
    ]
    assert len({known, *others}) == 6
    assert settings_of([one._replace(name="moved:elsewhere")], Manner()) == known


def test_what_a_function_does_wrong_is_one_line():
    with pytest.raises(UserError, match=r"--by: found 'nowhere:f', expected 'package\.module:name'"):
        function_scorer("nowhere:f")
    with pytest.raises(UserError, match=r"--by: tests\S*broken gave 1 scores, expected one for each of 3 responses"):
        votes([task()], "judge", [function_scorer(f"{__name__}:broken")], Manner())
    with pytest.raises(
        UserError, match=r"^--by: \S*known asks for 'answer', expected arguments of prompts, responses, messages$"
    ):
        function_scorer(f"{__name__}:known")


TOLD = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Oh"}, {"role": "user", "content": "?"}]


def seen(prompts, answers, messages=None):
    """Whether it was told what it is told in PPO."""
    text = "User: Hi\nAssistant: Oh\nUser: ?\nAssistant:"
    return [float(prompt == text and one == TOLD) for prompt, one in zip(prompts, messages or prompts, strict=True)]


def told(prompts, answers, messages):
    return seen(prompts, answers, messages)


def test_a_function_reads_conversations_as_text_and_may_ask_for_them():
    for function in ("seen", "told"):
        assert function_scorer(f"{__name__}:{function}").scores([TOLD, TOLD], ["a", "b"]) == [1.0, 1.0]
    assert function_scorer(f"{__name__}:length").scores([TOLD, "a"], ["a", "bb"]) == [1.0, 2.0]
    assert function_scorer(f"{__name__}:seen").scores(["a"], ["b"]) == [0.0]
    with pytest.raises(UserError, match=r"^--by: \S*told asks for messages: found a prompt that is a text, 'a', exp"):
        function_scorer(f"{__name__}:told").scores(["a"], ["b"])


def broken(prompts, answers):
    return [1.0]
