"""K-shot prompts, byte for byte and token for token."""

import random

import pytest

from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError
from gpt_modules.evaluation.tasks.definitions import task_from
from gpt_modules.evaluation.tasks.prompts import build_prompts, draw_demonstrations, encode_pairs
from gpt_modules.evaluation.tasks.questions import Question, Questions, read_questions

GPT2 = Tokenizer.gpt2()


def task(**keys):
    return task_from({"name": "quiz", "kind": "cloze", "source": "rows.jsonl", **keys})


def world(count=8, words=1):
    """Questions whose text is a number and so many words."""
    items = [Question(((f"{n}" + " so" * words, " it is"),), 0) for n in range(count)]
    return Questions(items, [item.demonstration for item in items])


def test_two_demonstrations_of_addition_byte_for_byte():
    """GPT-3's files: what a K-shot prompt is made of stands one after the other."""
    items = [Question((("\n\nQ: What is 98 plus 45?\n\nA:", " 143"),), 0)]
    pool = ["\n\nQ: What is 1 plus 2?\n\nA: 3", "\n\nQ: What is 30 plus 4?\n\nA: 34"]
    (prompt,) = build_prompts(task(kind="generate", separator=""), Questions(items, pool), GPT2, 1024, 2)
    orders = [f"{first}{second}\n\nQ: What is 98 plus 45?\n\nA:" for first, second in (pool, pool[::-1])]
    assert prompt.text in orders
    assert prompt.rows == (([GPT2.eos_id, *GPT2.encode(prompt.text)], []),)


def test_instruction_demonstrations_and_question():
    items = [Question((("c ->", " d"),), 0)]
    both = Questions(items, ["a -> b"])
    instructed = task(instruction="Go on:", separator="\n")
    assert build_prompts(instructed, both, GPT2, 64, 0)[0].text == "Go on:\nc ->"
    assert build_prompts(instructed, both, GPT2, 64, 1)[0].text == "Go on:\na -> b\nc ->"
    assert build_prompts(task(), both, GPT2, 64, 1)[0].text == "a -> b\n\nc ->"
    assert build_prompts(task(), both, GPT2, 64, 0)[0].text == "c ->"


def test_a_seed_draws_the_same_demonstrations_and_never_the_item_itself():
    questions = world(6)
    first, again, other = (draw_demonstrations(task(), questions, 5, seed) for seed in (0, 0, 1))
    assert first == again != other
    for item, texts in zip(questions.items, first, strict=True):
        assert sorted([item.demonstration, *texts]) == sorted(questions.pool), "all others, each once"
    assert len({tuple(texts) for texts in first}) == 6, "anew for each item"


def test_demonstrations_of_a_task_are_shared():
    questions = world(50)
    drawn = draw_demonstrations(task(draw="task"), questions, 3, 0)
    others = [texts for item, texts in zip(questions.items, drawn, strict=True) if item.demonstration not in drawn[0]]
    assert all(texts == drawn[-1] or texts == drawn[0] for texts in others)
    assert all(item.demonstration not in texts for item, texts in zip(questions.items, drawn, strict=True))


def test_too_few_demonstrations():
    with pytest.raises(UserError, match="quiz: demonstrations: found 2 besides item 1, expected at least 3"):
        build_prompts(task(), world(3), GPT2, 64, 3)


def test_pairs_are_parted_where_their_texts_are():
    """For GPT-2's tokens, that is lm-evaluation-harness's rule: encode both, take off the context's tokens."""
    eos = GPT2.eos_id
    assert encode_pairs(GPT2, [("The sky is", " blue")]) == [([eos, *GPT2.encode("The sky is")], GPT2.encode(" blue"))]
    assert encode_pairs(GPT2, [("The sky is ", "blue")]) == encode_pairs(GPT2, [("The sky is", " blue")])
    assert encode_pairs(GPT2, [("A:\n", "b")], end_token=False) == [(GPT2.encode("A:"), GPT2.encode("\nb"))]
    assert encode_pairs(GPT2, [("", "blue")], end_token=False) == [([eos], GPT2.encode("blue"))]


def test_pairs_as_lm_evaluation_harness_parts_them():
    from lm_eval.api.model import TemplateLM

    class Peer(TemplateLM):
        backend, eot_token_id = "causal", GPT2.eos_id
        tok_encode = staticmethod(lambda text, **_: GPT2.encode(text))
        _loglikelihood_tokens = loglikelihood_rolling = generate_until = None

    rng, words = random.Random(0), ["the", "Sky.", "is", "42", "don't", "(so)", "\n", "", "  ", "naïve"]
    draw = lambda: " ".join(rng.choice(words) for _ in range(rng.randint(1, 6)))  # noqa: E731
    pairs = [(f"x {draw()}", f" {draw()}y") for _ in range(200)]
    assert encode_pairs(GPT2, pairs, end_token=False) == [Peer()._encode_pair(*pair) for pair in pairs]


def test_what_reaches_across_the_border_belongs_to_the_continuation():
    ((context, continuation),) = encode_pairs(GPT2, [("the fil", "m is")])
    assert GPT2.decode(context) == "the"
    assert context[1:] + continuation == GPT2.encode("the film is")


def test_demonstrations_leave_from_the_left_until_the_prompt_fits():
    """By bisection, as one by one."""
    questions, n_positions = world(12, words=9), 64
    full = build_prompts(task(), questions, GPT2, 4096, 8)
    for whole, prompt in zip(full, build_prompts(task(), questions, GPT2, n_positions, 8), strict=True):
        parts = whole.text.split("\n\n")
        kept = next(parts[start:] for start in range(9)
                    if len(GPT2.encode("\n\n".join(parts[start:]) + " it is")) <= n_positions)  # fmt: skip
        assert prompt.text == "\n\n".join(kept)
        assert (prompt.shots, prompt.cut) == (len(kept) - 1, False)
        ((context, continuation),) = prompt.rows
        assert context[1:] + continuation == GPT2.encode(prompt.text + " it is")
    assert all(prompt.shots == 8 and not prompt.cut for prompt in full)


def test_a_question_that_is_too_long_loses_its_beginning():
    (scored,) = build_prompts(task(), Questions(world(1, words=90).items, ["a"]), GPT2, 64, 1)
    assert (scored.shots, scored.cut) == (0, True)
    generating = task(kind="generate", max_new_tokens=14)
    (asked,) = build_prompts(generating, Questions(world(1, words=90).items, ["a"]), GPT2, 64, 1)
    assert (asked.shots, asked.cut) == (0, True)
    assert asked.rows[0][0] == GPT2.encode(asked.text)[-50:]


def test_an_answer_that_is_too_long():
    items = [Question((("a", " so" * 20),), 0)]
    with pytest.raises(UserError, match="quiz: item 1: found an answer of 20 tokens, expected 1 to n_positions = 16"):
        build_prompts(task(), Questions(items, []), GPT2, 16)
    with pytest.raises(UserError, match="quiz: max_new_tokens: found 16, expected fewer than n_positions = 16"):
        build_prompts(task(kind="generate", max_new_tokens=16), Questions(items, []), GPT2, 16)


def test_generated_questions_and_their_demonstrations_fit_together():
    addition = task(kind="generate", source="synthetic:2D+", demonstrations="synthetic:2D+", separator="")
    questions = read_questions(addition, 3)
    for prompt, item in zip(build_prompts(addition, questions, GPT2, 1024, 2), questions.items, strict=True):
        first, second = (text for text in prompt.text.removesuffix(item.answers[0][0]).split("\n\nQ: ")[1:])
        assert {f"\n\nQ: {first}", f"\n\nQ: {second}"} <= set(questions.pool)
