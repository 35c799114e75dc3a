import pytest

from gpt_modules.data.rows.fields import FieldError, NoComparison
from gpt_modules.data.rows.schemas import check_row

TOLD = {"role": "system", "content": "Be brief."}
ASKED = {"role": "user", "content": "Why?"}
SAID = {"role": "assistant", "content": "So."}
ALSO = {"role": "assistant", "content": "Because."}
TOOL = {"role": "tool", "content": "42"}
PAIR = {"messages": [TOLD, ASKED], "responses": ["So.", "Because."], "ranking": [1, 2]}


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [TOLD, ASKED], "responses": ["So.", "Because."], "ranking": [1, 2]},
        {"messages": [TOLD, ASKED], "chosen": "So.", "rejected": "Because."},
        {"messages": [TOLD, ASKED], "chosen": [SAID], "rejected": [ALSO]},
        {"prompt": [TOLD, ASKED], "chosen": [SAID], "rejected": [ALSO]},
        {"chosen": [TOLD, ASKED, SAID], "rejected": [TOLD, ASKED, ALSO]},
        {"chosen": [TOLD, ASKED, SAID], "rejected": [TOLD, ASKED, ALSO], "prompt": "Why?"},
    ],
)
def test_pairs_of_answers_in_every_form_are_one_row(record):
    assert check_row(record, "reward") == PAIR


def test_transcripts_are_conversations():
    asked = "\n\nHuman: Why?\n\nAssistant: So.\n\nHuman: Why?\n\nAssistant:"
    row = check_row({"chosen": asked + " So.", "rejected": asked + " Because.\n\n"}, "reward")
    assert row == {"messages": [ASKED, SAID, ASKED], "responses": ["So.", "Because."], "ranking": [1, 2]}


ASKED_TWICE = (
    "\n\nHuman: Why?\n\nAssistant: So.\n\nHuman: Why?",
    "\n\nHuman: Why?\n\nAssistant: Because.\n\nHuman: Why?",
)


@pytest.mark.parametrize(
    ("chosen", "rejected", "line"),
    [
        (
            ASKED_TWICE[0] + "\n\nAssistant: So.",
            ASKED_TWICE[1] + "\n\nAssistant: No.",
            "chosen: found 3 messages, the first of the assistant, behind the messages that are shared, expected one",
        ),
        (
            ASKED_TWICE[0] + "\n\nAssistant: So.",
            ASKED_TWICE[0] + "\n\nAssistant: No.\n\nHuman: Oh.",
            "rejected: found 2 messages, the first of the assistant, behind the messages that are shared",
        ),
        (ASKED_TWICE[0], ASKED_TWICE[1], "chosen: found 2 messages"),
        (ASKED_TWICE[0] + "\n\nAssistant:", ASKED_TWICE[0] + "\n\nAssistant: No.", "chosen[3].content: found empty"),
        (
            ASKED_TWICE[0] + "\n\nAssistant: No.",
            ASKED_TWICE[0] + "\n\nAssistant: No.",
            "chosen: found nothing behind the messages",
        ),
    ],
)
def test_transcripts_that_are_no_two_answers_to_one_question_are_no_comparison(chosen, rejected, line):
    """What follows the first difference is no answer to one question, and a preference says nothing of its parts."""
    with pytest.raises(NoComparison) as told:
        check_row({"chosen": chosen, "rejected": rejected}, "reward")
    assert str(told.value).startswith(line)


@pytest.mark.parametrize("chosen", ["\n\nHuman: Why?\n\nAssistant: So.", [ASKED, SAID, ASKED, SAID]])
def test_what_a_user_wrote_otherwise_is_a_mistake(chosen):
    """No transcript, or messages that part early: not what hh-rlhf holds."""
    rejected = "No." if isinstance(chosen, str) else [ASKED, ALSO, ASKED, SAID]
    with pytest.raises(FieldError, match=r"expected a transcript, which begins with|behind the messages that") as told:
        check_row({"chosen": chosen, "rejected": rejected}, "reward")
    assert not isinstance(told.value, NoComparison)


def test_prompts_are_conversations_and_rewards_may_ask_for_them():
    row = check_row({"messages": [TOLD, ASKED], "answer": 3}, "ppo")
    assert row == {"messages": [TOLD, ASKED], "columns": {"answer": 3, "messages": [TOLD, ASKED]}}
    assert check_row({"prompt": [ASKED, SAID, ASKED]}, "ppo")["messages"] == [ASKED, SAID, ASKED]
    assert check_row({"messages": [ASKED, SAID, TOOL]}, "ppo")["messages"][-1] == TOOL


def test_a_system_may_be_silent_and_a_weight_is_kept_for_sft():
    silent, unlearned = {"role": "system", "content": ""}, {**SAID, "weight": 0}
    messages = [silent, ASKED, unlearned, ASKED, {**ALSO, "weight": 1}]
    assert check_row({"messages": messages}, "sft") == {"messages": messages}
    assert check_row({"messages": [ASKED, unlearned, ASKED]}, "ppo")["messages"] == [ASKED, SAID, ASKED]


def test_keys_that_say_nothing_are_not_given():
    """A table has every key in every row, null where it is not given; and some tell only where a message is from."""
    nothing = {"tool_calls": None, "weight": None, "name": "", "audio": [], "timestamp": 3, "language": "English"}
    assert check_row({"messages": [ASKED | nothing, SAID | nothing]}, "sft") == {"messages": [ASKED, SAID]}
    greeted = {"messages": [{**SAID, "weight": 0}, ASKED, ALSO]}
    assert check_row(greeted, "sft") == greeted


@pytest.mark.parametrize(
    ("schema", "record", "line"),
    [
        ("sft", {"messages": [TOLD, TOLD, ASKED, SAID]}, "messages[1].role: found a second message of the system, "
         "expected one at most, as the first message"),
        ("sft", {"messages": [ASKED, TOLD, SAID]}, "messages[1].role: found the system behind others, expected one at"),
        ("sft", {"messages": [{"role": "user", "content": ""}, SAID]}, "messages[0].content: found empty text, exp"),
        ("sft", {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, SAID]},
         "messages[0].content: found a list of 1, expected non-empty text"),
        ("sft", {"messages": [{"role": "developer", "content": "a"}, SAID]}, "messages[0].role: found the text "
         "'developer', expected system or user or assistant or tool"),
        ("sft", {"messages": [ASKED, {**SAID, "weight": 2}]}, "messages[1].weight: found the number 2 of the "
         "assistant, expected 0 or 1, of the assistant"),
        ("sft", {"messages": [{**ASKED, "weight": 0}, SAID]}, "messages[0].weight: found the number 0 of the user"),
        ("sft", {"messages": [ASKED, {**SAID, "weight": 0}]}, "messages: found no turn of the assistant, expected at"),
        ("ppo", {"messages": [ASKED, SAID]}, "messages[1].role: found the assistant, which is to answer, exp"),
        ("ppo", {"messages": [TOLD]}, "messages: found nothing but a message of the system"),
        ("ppo", {"messages": [ASKED], "prompt": "How?"}, "prompt: found the text 'How?' beside messages that say "),
        ("reward", {"messages": [ASKED, SAID], "chosen": "a", "rejected": "b"}, "messages[1].role: found the"),
        ("reward", {"chosen": [ASKED, SAID], "rejected": [TOLD, ASKED, ALSO]}, "chosen: found 2 messages, the first "
         "of the user, behind the messages that are shared, expected one of the assistant"),
        ("reward", {"chosen": [ASKED, SAID], "rejected": [ASKED, SAID]}, "chosen: found nothing behind the messages"),
        ("reward", {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: b"},
         "chosen: found 2 messages, the first of the user, behind the messages that are shared, expected one of the"),
        ("sft", {"messages": [SAID, ASKED, ALSO]}, "messages[0].role: found the assistant, which nobody has asked"),
        ("sft", {"messages": []}, "messages: found an empty list, expected at least one item"),
        ("sft", {"messages": [ASKED, {**SAID, "wieght": 0}]}, "messages[1].wieght: found the number 0, expected role, "
         "content and weight: it is not read"),
        ("sft", {"messages": [ASKED, {**SAID, "train": False}]}, "messages[1].train: found the truth value False"),
        ("ppo", {"messages": [ASKED, {"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]}, TOOL]},
         "messages[1].tool_calls: found a list of 1, expected role, content and weight: it is not read"),
        ("reward", {"messages": [ASKED], "chosen": [{**SAID, "reasoning_content": "Hm."}], "rejected": "b"},
         "chosen[0].reasoning_content: found the text 'Hm.'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_gets_its_line(schema, record, line):
    with pytest.raises(FieldError) as told:
        check_row(record, schema)
    assert str(told.value).startswith(line)
