import pytest

from gpt_modules.data.rows.fields import FieldError
from gpt_modules.data.rows.schemas import check_row

RANKED = {"prompt": "q", "responses": ["a", "b"], "ranking": [1, 2]}
THRICE = {"prompt": "q", "responses": ["a", "b", "a"], "ranking": [1, 2, 1]}
USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("schema", "row", "expected"),
    [
        ("pretraining", {"text": "a", "meta": 1}, {"text": "a"}),
        ("sft", {"prompt": "q", "response": "a"}, {"prompt": "q", "response": "a"}),
        ("sft", {"messages": [USER, ASSISTANT], "prompt": None}, {"messages": [USER, ASSISTANT]}),
        ("sft", {"messages": [USER, ASSISTANT], "prompt": "q", "response": "a"}, {"messages": [USER, ASSISTANT]}),
        (
            "reward",
            {"prompt": "q", "chosen": "a", "rejected": "b", "responses": None, "ranking": None},
            {"prompt": "q", "responses": ["a", "b"], "ranking": [1, 2]},
        ),
        (
            "reward",
            {"prompt": "q", "chosen": None, "rejected": None, "responses": ["a", "b"], "ranking": [1, 2]},
            {"prompt": "q", "responses": ["a", "b"], "ranking": [1, 2]},
        ),
        (
            "reward",
            {"prompt": "q", "chosen": "a", "rejected": "b"},
            {"prompt": "q", "responses": ["a", "b"], "ranking": [1, 2]},
        ),
        ("reward", {"prompt": "q", "responses": ["a", "b", "c"], "ranking": [2, 1, 1]}, None),
        ("reward", {**RANKED, "labeler": "ann", "round": 1, "scores": [None, 7]}, None),
        ("reward", {**RANKED, "labeler": None, "round": None, "scores": None, "best": None}, RANKED),
        ("reward", {**RANKED, "scores": [None, None], "best": 0, "models": ["m", "m"]}, RANKED),
        (
            "reward",
            {"prompt": "q", "chosen": "a", "rejected": "b", "labeler": "ann", "round": "12", "scores": ""},
            {**RANKED, "labeler": "ann", "round": 12},
        ),
        (
            "reward",
            {"prompt": "q", "chosen": "a", "rejected": "b", "labeler": "", "round": "", "scores": [7, 1]},
            {**RANKED, "scores": [7, 1]},
        ),
        ("ppo", {"prompt": "q"}, {"prompt": "q"}),
        ("ppo", {"prompt": "q", "answer": None}, {"prompt": "q"}),
        ("ppo", {"prompt": "q", "answer": "a", "n": [1]}, {"prompt": "q", "columns": {"answer": "a", "n": [1]}}),
    ],
)
def test_good_rows_come_back_bare(schema, row, expected):
    assert check_row(row, schema) == (expected or row)


@pytest.mark.parametrize(
    ("schema", "row", "message"),
    [
        ("pretraining", {"tex": "a"}, "text: found no such field among ['tex'], expected text"),
        (
            "pretraining",
            {f"{'x' * 24}{i}{'x' * 99}": "a" for i in range(9)},
            f"text: found no such field among {['x' * 24 + '...'] * 8}, expected text",
        ),
        ("pretraining", {"text": None}, "text: found null, expected non-empty text"),
        ("pretraining", {"text": " \n"}, "text: found empty text, expected non-empty text"),
        ("pretraining", {"text": 3}, "text: found the number 3, expected non-empty text"),
        ("pretraining", {"text": "\ud800"}, "text: found half of a surrogate pair, expected text that UTF-8 can hold"),
        ("pretraining", ["a"], "row: found a list of 1, expected an object with named fields"),
        ("sft", {"prompt": "q"}, "response: found no such field among ['prompt'], expected text"),
        (
            "sft",
            {"messages": [USER, ASSISTANT], "prompt": "other"},
            "prompt: found the text 'other' beside messages that say something else, expected either form",
        ),
        (
            "sft",
            {"messages": [USER, ASSISTANT], "prompt": "q", "response": "b"},
            "response: found the text 'b' beside messages that say something else, expected either form",
        ),
        (
            "reward",
            {"prompt": "q", "chosen": "a", "rejected": "b", "responses": ["a", "b"], "ranking": [2, 1]},
            "responses: found it beside chosen, expected responses and ranking, or chosen and rejected",
        ),
        (
            "reward",
            {"prompt": "q", "chosen": "a", "rejected": "b", "ranking": [2, 1]},
            "ranking: found it beside chosen, expected responses and ranking, or chosen and rejected",
        ),
        ("sft", {"messages": []}, "messages: found an empty list, expected at least one item"),
        ("sft", {"messages": [USER]}, "messages: found no turn of the assistant, expected at least one to learn from"),
        ("sft", {"messages": ["hi"]}, "messages[0]: found the text 'hi', expected an object with role and content"),
        (
            "sft",
            {"messages": [USER, {"role": "bot", "content": "a"}]},
            "messages[1].role: found the text 'bot', expected system or user or assistant or tool",
        ),
        (
            "reward",
            {"prompt": "q", "chosen": "a"},
            "rejected: found no such field among ['chosen', 'prompt'], expected text",
        ),
        (
            "reward",
            {"prompt": "q", "responses": ["a", "b"], "ranking": [1]},
            "ranking: found a list of 1, expected 2, one for each response",
        ),
        (
            "reward",
            {"prompt": "q", "responses": ["a", "b"], "ranking": [1, 1.5]},
            "ranking[1]: found the number 1.5, expected a whole number from 1 (best)",
        ),
        (
            "reward",
            {"prompt": "q", "responses": ["a", "b"], "ranking": [1, True]},
            "ranking[1]: found the truth value True, expected a whole number from 1 (best)",
        ),
        (
            "reward",
            {"prompt": "q", "responses": ["a"], "ranking": [1]},
            "responses: found a list of 1, expected at least 2 to compare",
        ),
        (
            "reward",
            {"prompt": "q", "responses": ["a", ""], "ranking": [1, 2]},
            "responses[1]: found empty text, expected non-empty text",
        ),
        (
            "reward",
            {"prompt": "q", "chosen": "same", "rejected": "same"},
            "rejected: found the text 'same', which is chosen too, expected another answer",
        ),
        ("reward", {"prompt": "q", "chosen": None, "rejected": "b"}, "chosen: found null, expected non-empty text"),
        (
            "reward",
            {"prompt": "q", "rejected": "b"},
            "chosen: found no such field among ['prompt', 'rejected'], expected text",
        ),
        (
            "reward",
            {"prompt": "q", "responses": ["a", "b", "a"], "ranking": [1, 2, 3]},
            "ranking[2]: found 1 and 3 for the same answer, the text 'a', expected the same",
        ),
        (
            "reward",
            {"prompt": "q", "responses": ["a", "b"], "ranking": [1, 2.0]},
            "ranking[1]: found the number 2.0, expected a whole number from 1 (best)",
        ),
        ("reward", {**RANKED, "labeler": 3}, "labeler: found the number 3, expected non-empty text"),
        ("reward", {**RANKED, "labeler": ["ann"]}, "labeler: found a list of 1, expected non-empty text"),
        *(
            (
                "reward",
                {**RANKED, "round": value},
                f"round: found {found}, expected a whole number from 1 to 1000000000",
            )
            for value, found in [
                (1.0, "the number 1.0"),
                (0, "the number 0"),
                (True, "the truth value True"),
                (10**9 + 1, "the number 1000000001"),
                ("first", "the text 'first'"),
                ("-1", "the text '-1'"),
                ("99999999999", "the text '99999999999'"),
            ]
        ),
        ("reward", {**RANKED, "scores": 5}, "scores: found the number 5, expected a list"),
        ("reward", {**RANKED, "scores": [5]}, "scores: found a list of 1, expected 2, one for each response"),
        ("reward", {**RANKED, "scores": [5, 8]}, "scores[1]: found the number 8, expected a whole number, 1 to 7"),
        ("reward", {**RANKED, "scores": [5.0, 2]}, "scores[0]: found the number 5.0, expected a whole number, 1 to 7"),
        (
            "reward",
            {**RANKED, "scores": [True, 2]},
            "scores[0]: found the truth value True, expected a whole number, 1 to 7",
        ),
        (
            "reward",
            {**THRICE, "scores": [5, 2, 4]},
            "scores[2]: found 5 and 4 for the same answer, the text 'a', expected the same",
        ),
        (
            "reward",
            {**THRICE, "scores": [5, 2, None]},
            "scores[2]: found 5 and None for the same answer, the text 'a', expected the same",
        ),
        (
            "reward",
            {**RANKED, "best": 1},
            "best: found 1, whose rank is 2, beside a ranking that begins with 0, expected one that is ranked best",
        ),
        ("reward", {**RANKED, "best": 2}, "best: found the number 2, expected the number of a response, 0 to 1"),
        ("reward", {**RANKED, "best": "a"}, "best: found the text 'a', expected the number of a response, 0 to 1"),
        ("ppo", {"prompt": {}}, "prompt: found an object, expected non-empty text"),
    ],
)
def test_bad_rows_name_field_found_expected(schema, row, message):
    with pytest.raises(FieldError) as caught:
        check_row(row, schema)
    assert str(caught.value) == message


def test_the_same_answer_may_stand_twice_in_one_rank():
    row = {"prompt": "q", "responses": ["a", "b", "a"], "ranking": [1, 2, 1]}
    assert check_row(row, "reward") == row


def test_the_text_may_have_another_name():
    assert check_row({"content": "a"}, "pretraining", text_field="content") == {"text": "a"}
