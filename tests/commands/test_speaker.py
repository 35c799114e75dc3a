"""Batches of bounded size whose answers come in order, each a function of the prompt, its place and the seed."""

from itertools import count

import pytest

from gpt_modules.backbone import generate, load_pretrained, noise_of
from gpt_modules.commands import speaker
from gpt_modules.commands.speaker import Prompt, Sampling, Speaker, folder_texts
from gpt_modules.errors import UserError

TEXTS = ["the film", "a", "its cast is good and bad and", "", "this plot is", "a story is dull"] * 5


@pytest.fixture
def speak(micro):
    model = load_pretrained(str(micro.gpt), kind="gpt").double().eval()  # so that no batch rounds a draw over its edge
    return lambda **sampling: Speaker(model, micro.tokenizer, Sampling(**{"max_new_tokens": 6, **sampling}))


def prompts(tokenizer, texts=TEXTS):
    return [Prompt(tokenizer.encode(text), str(place), f"prompt {place}") for place, text in enumerate(texts)]


def test_an_answer_is_what_its_prompt_alone_gets(speak, micro):
    one = speak(seed=7)
    for prompt, answer in zip(prompts(micro.tokenizer), one.answers(prompts(micro.tokenizer)), strict=True):
        drawn = generate(one.model, [prompt.ids or [micro.tokenizer.eos_id]], max_new_tokens=6,
                         eos_id=micro.tokenizer.eos_id, generator=noise_of(f"7 {prompt.place}"))  # fmt: skip
        said = drawn.tokens[drawn.mask].tolist()
        assert answer == (micro.tokenizer.decode(said), micro.tokenizer.eos_id in said)


@pytest.mark.parametrize("cells", [1, 40, 200])
def test_batches_change_nothing_and_hold_no_more_than_they_may(speak, micro, monkeypatch, cells):
    expected = list(speak().answers(prompts(micro.tokenizer)))
    assert len(set(expected)) > 20
    sizes = []

    def spy(model, rows, **settings):
        sizes.append((len(rows), len(rows) * (max(map(len, rows)) + settings["max_new_tokens"])))
        return generate(model, rows, **settings)

    monkeypatch.setattr("gpt_modules.backbone.generate", spy)
    monkeypatch.setattr(speaker, "BATCH_TOKENS", cells)
    assert list(speak().answers(prompts(micro.tokenizer))) == expected
    assert all(held <= cells or rows == 1 for rows, held in sizes)


def test_answers_come_before_the_last_prompt_is_read(speak, micro):
    """Of an endless source: 1, 2, 4, ... prompts are read before their answers."""
    read = []
    endless = (read.append(number) or Prompt([number % 50], str(number), "") for number in count())
    answers = speak().answers(endless)
    for answered in range(1, 16):
        next(answers)
        assert len(read) == 2 ** answered.bit_length() - 1


def test_noise_is_of_the_seed_and_the_place(speak, micro):
    alike = [Prompt([5], str(place), "") for place in range(8)]
    first, again, other = (list(speak(seed=seed).answers(alike)) for seed in (0, 0, 1))
    assert first == again != other
    assert len(set(first)) > 4


def test_a_prompt_that_loses_its_beginning_says_so(speak, micro, capsys):
    whole = Prompt(list(range(40)), "0", "standard input:3")
    (answer,) = speak(temperature=0.0).answers([whole])
    assert capsys.readouterr().err == ("standard input:3: 40 tokens, the first 14 are not read: there is room for 26, "
                                       "the context of 32 less --max-new-tokens\n")  # fmt: skip
    assert [answer] == list(speak(temperature=0.0).answers([Prompt(list(range(14, 40)), "0", "")]))
    assert capsys.readouterr().err == ""


def test_an_answer_as_long_as_the_context(speak):
    with pytest.raises(UserError) as caught:
        speak(max_new_tokens=32)
    assert str(caught.value) == "--max-new-tokens: found 32, expected fewer than the model's context of 32 tokens"


def test_what_a_stage_says(micro):
    """Answers longer than the context are cut to it: a pipeline has trained for hours before it asks."""
    asked = ["the film", "a story"]
    assert folder_texts(micro.gpt, asked, 6, seed=0) == folder_texts(micro.gpt, asked, 6, seed=0)
    assert len(folder_texts(micro.gpt, asked, 1000, seed=0)) == 2
