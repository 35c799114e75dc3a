"""A text or a conversation, told apart and the same again."""

import json

import pytest

from gpt_modules.storage.comparisons.prompts import plain_prompt, prompt_field, prompt_of, said_last, spelled

ASKED = [{"role": "system", "content": ""}, {"role": "user", "content": "Wörter \u2028 <|im_end|>"}]


@pytest.mark.parametrize("prompt", ["a", json.dumps(ASKED), json.dumps(ASKED, ensure_ascii=False), ASKED])
def test_what_was_spelled_is_read_again(prompt):
    assert prompt_of(*spelled(prompt)) == prompt
    assert prompt_field(prompt) == {"messages" if prompt is ASKED else "prompt": prompt}


def test_a_text_that_looks_like_a_conversation_is_none():
    text = spelled(ASKED).letters
    assert spelled(text).letters == text
    assert spelled(text) != spelled(ASKED)


def test_what_is_learned_of_an_earlier_answer_is_no_part_of_what_is_asked():
    said = {"content": "So.", "role": "assistant"}
    turns = [*ASKED, {**said, "weight": 0}, ASKED[1]]
    assert spelled(turns) == spelled([*ASKED, said, ASKED[1]])
    assert plain_prompt(turns)[2] == said


def test_a_prompt_is_known_by_what_was_said_last():
    assert (said_last("a"), said_last(ASKED)) == ("a", ASKED[1]["content"])
