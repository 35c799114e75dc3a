"""What a person does to a conversation, and what becomes of its file."""

import json
from pathlib import Path

import pytest

from gpt_modules.commands.conversation import Conversation
from gpt_modules.data.demonstrations import learned_turns
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


def test_nothing_is_learned_of_an_answer_that_was_cut_off(tmp_path):
    """SFT learns the end of each answer: one that had none would teach to end in the middle of a word."""
    conversation = talked()
    conversation.ask("q2")
    conversation.answer("a cut ans", ended=False)
    conversation.save(tmp_path / "talk.jsonl")
    messages = load_rows(str(tmp_path / "talk.jsonl"), "train", "sft")[0]["messages"]
    assert [messages[i]["content"] for i in learned_turns(messages)] == ["a0", "a1"]
    conversation.replace_answer("whole")
    assert "weight" not in conversation.messages[-1]


def test_a_conversation_of_cut_answers_alone_is_gone_on_from(tmp_path):
    conversation, other = Conversation(), Conversation()
    conversation.ask("q")
    conversation.answer("a cut ans", ended=False)
    conversation.save(tmp_path / "talk.jsonl")
    other.load(tmp_path / "talk.jsonl")
    assert other.messages == conversation.messages


ASKED, ANSWERED = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
WHOLE = json.dumps({"messages": [ASKED, ANSWERED]})


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"prompt": "a", "response": "b"}', "found no messages, expected one row of messages, as /save writes it"),
        ('{\n  "a": [\n1]}', "found no messages"),
        ("[1, 2]", "found no messages"),
        (f"{WHOLE}\n{WHOLE}", "found broken JSON (more after the first value)"),
        (json.dumps({"messages": [ASKED]}), "found messages of which the last is the user's"),
        (json.dumps({"messages": [ASKED, {**ANSWERED, "content": " "}]}), "messages[1].content: found empty text"),
    ],
)
def test_files_that_are_no_conversation(tmp_path, text, line):
    path, conversation = tmp_path / "talk.jsonl", talked()
    path.write_text(text)
    with pytest.raises(UserError) as refused:
        conversation.load(path)
    assert str(refused.value).startswith(f"/load: {path}:")
    assert line in str(refused.value)
    assert conversation.turns == 2


@pytest.mark.parametrize("name", ["owner/name", "reviews", "synthetic:copy"])
def test_what_is_no_file_is_asked_of_nobody(tmp_path, monkeypatch, name):
    """Rows have such names, on the hub or here; a conversation has a file alone."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"^/load: {name}: no such file"):
        Conversation().load(Path(name))


def test_a_file_that_was_edited_by_hand(tmp_path):
    path, conversation = tmp_path / "talk.json", Conversation()
    path.write_text(json.dumps(json.loads(WHOLE), indent=2))
    conversation.load(path)
    assert conversation.messages == [ASKED, ANSWERED]


def test_nothing_to_save(tmp_path):
    with pytest.raises(UserError, match="/save: found no turn"):
        Conversation("Be brief.").save(tmp_path / "x.jsonl")
