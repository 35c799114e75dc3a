"""What a person does to a conversation, and what becomes of its file."""

import json

import pytest

from gpt_modules.commands.conversation import Conversation
from gpt_modules.data.rows.sources import load_rows
from gpt_modules.errors import UserError


def talked(system=None, turns=2):
    conversation = Conversation(system)
    for number in range(turns):
        conversation.ask(f"q{number}")
        conversation.answer(f"a{number}")
    return conversation


def said(conversation):
    return [message["content"] for message in conversation.messages]


def test_turns_are_taken_back_one_by_one():
    conversation = talked("Be brief.")
    assert [conversation.undo(), conversation.undo(), conversation.undo()] == ["q1", "q0", None]
    assert said(conversation) == ["Be brief."]


def test_an_empty_answer_is_none():
    conversation = talked(turns=1)
    conversation.ask("q1")
    conversation.answer("")
    assert said(conversation) == ["q0", "a0"]


def test_what_the_system_says_comes_first_and_stays():
    conversation = talked()
    conversation.set_system("Be brief.")
    conversation.set_system("Be long.")
    assert said(conversation) == ["Be long.", "q0", "a0", "q1", "a1"]
    conversation.reset()
    assert said(conversation) == ["Be long."]
    conversation.set_system("")
    assert said(conversation) == []


def test_another_answer():
    conversation = talked()
    conversation.replace_answer("better")
    assert said(conversation)[-2:] == ["q1", "better"]


def test_a_file_is_a_row_that_sft_reads_and_is_gone_on_from(tmp_path):
    path, conversation = tmp_path / "talk.jsonl", talked("<|endoftext|>")
    conversation.save(path)
    assert load_rows(str(path), "train", "sft")[0]["messages"] == conversation.messages
    other = Conversation()
    other.load(path)
    assert other.messages == conversation.messages
    with pytest.raises(UserError, match=r"/save: found .*talk.jsonl, which is there already"):
        conversation.save(path)


@pytest.mark.parametrize(
    "rows",
    [
        [{"prompt": "a", "response": "b"}],
        [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}] * 2,
    ],
)
def test_files_that_are_no_conversation(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"/load: .*: found no single row of messages"):
        Conversation().load(path)


def test_nothing_to_save(tmp_path):
    with pytest.raises(UserError, match="/save: found no turn"):
        Conversation("Be brief.").save(tmp_path / "x.jsonl")
