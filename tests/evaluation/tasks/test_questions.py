"""Rows as they are shipped become questions; what does not fit is told with file, row and field."""

import json

import pytest

from gpt_modules.data.rows.labelled import class_number
from gpt_modules.errors import UserError
from gpt_modules.evaluation.tasks.definitions import task_from
from gpt_modules.evaluation.tasks.questions import read_questions, read_texts


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GPT_MODULES_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def read(tmp_path):
    """The questions of rows under a task of these keys."""

    def read(rows, limit=None, **keys):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read_questions(task_from({"name": "quiz", "source": str(path), **keys}), limit)

    return read


def only(questions):
    (item,) = questions.items
    return item


def test_rows_as_commonly_shipped_need_no_template(read):
    row = {"query": "The sky is", "choices": ["red", "blue"], "gold": 1}
    assert only(read([row], kind="choice")) == ((("The sky is", " red"), ("The sky is", " blue")), 1)
    row = {"context": "He saw his", "continuation": "friend"}
    assert only(read([row], kind="cloze")) == ((("He saw his", " friend"),), 0)
    row = {"context_options": ["the cup", "the ball"], "continuation": "was big.", "gold": 0}
    assert only(read([row], kind="partial")) == ((("the cup", " was big."), ("the ball", " was big.")), 0)
    row = {"context": "\n\nQ: What is 98 plus 45?\n\nA:", "completion": " 143"}
    item = only(read([row], kind="generate"))
    assert item.answers == ((row["context"], " 143"),)
    assert item.demonstration == "\n\nQ: What is 98 plus 45?\n\nA: 143"


@pytest.mark.parametrize(
    ("gold", "number"), [(1, 1), ("1", 1), ("B", 1), ("blue", 1), (True, 1), (0, 0), ("A", 0), ("red", 0), (False, 0)]
)
def test_a_label_is_a_number_a_letter_or_a_text(read, gold, number):
    assert only(read([{"query": "a", "choices": ["red", "blue"], "gold": gold}], kind="choice")).gold == number


def test_a_text_among_the_choices_is_that_one_before_it_is_a_number(read):
    assert only(read([{"query": "2 - 1 =", "choices": ["0", "2", "1"], "gold": "2"}], kind="choice")).gold == 1


def test_numbers_of_a_row_stand_in_a_prompt_as_they_were_written(read, tmp_path):
    """Whatever stands in the other rows: a library's columns would make 5 beside 2.5 a 5.0, and 007 a 7."""
    lines = ['{"a": 5, "b": "007"}', '{"a": 2.5, "b": "1e3"}', '{"a": 1.50, "b": "-0"}', '{"a": 1e3, "b": "1_000"}']
    lines.append('{"a": 123456789012345678901, "b": "NaN"}')
    (tmp_path / "numbers.jsonl").write_text("\n".join(lines))
    task = task_from({"name": "n", "kind": "generate", "source": str(tmp_path / "numbers.jsonl"), "context": "{a} and",
                      "target": "{b}"})  # fmt: skip
    found = [question.demonstration for question in read_questions(task).items]
    assert found == ["5 and 007", "2.5 and 1e3", "1.50 and -0", "1e3 and 1_000", "123456789012345678901 and NaN"]


@pytest.mark.parametrize("gold", ["", "AB", "a", "-1", "2", "C", 2, -1, 0.5, None, [0], "1.0"])
def test_what_names_no_choice_is_refused(read, gold):
    with pytest.raises(
        UserError, match=r"rows\.jsonl:1: gold: found .*, expected 0 to 1, A to B, or one of the choices"
    ):
        read([{"query": "a", "choices": ["red", "blue"], "gold": gold}], kind="choice")


def test_a_number_of_json_is_a_number_whatever_the_choices_say(read):
    assert only(read([{"query": "2 - 1 =", "choices": ["0", "2", "1"], "gold": 2}], kind="choice")).gold == 2
    assert only(read([{"query": "2 - 1 =", "choices": ["0", "2", "1"], "gold": "C"}], kind="choice")).gold == 2


@pytest.mark.parametrize(("key", "number"), [("x", 0), ("y", 1), (1, 1), ("0", 0)])
def test_a_label_of_ones_own_or_its_number(read, key, number):
    """As the rows of fine-tuning have it: one rule for which answer is right (`labelled.class_number`)."""
    assert only(read([{**GOOD, "gold": key}], kind="choice", labels=["x", "y"])).gold == number
    assert class_number(key, ["x", "y"], 2) == number


def test_labels_of_ones_own(read):
    row = {"query": "a", "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}, "key": "2"}
    keys = {"kind": "choice", "choices": "{choices.text}", "gold": "{key}"}
    assert only(read([row], **keys, labels="{choices.label}")).gold == 1
    assert only(read([row], **keys, labels=["2", "1", "3"])).gold == 0


def test_objects_in_lists_are_columns(read):
    row = {"question": {"stem": "a", "choices": [{"text": "x", "label": "A"}, {"text": "y", "label": "B"}]}, "k": "B"}
    keys = {"context": "{question.stem}", "choices": "{question.choices.text}", "labels": "{question.choices.label}"}
    assert only(read([row], kind="choice", gold="{k}", **keys)) == ((("a", " x"), ("a", " y")), 1)


def test_templates_replace_fields_and_nothing_else(read):
    """Neither attributes nor formats, and braces in a row are text."""
    row = {"a": "{b} {0.__class__}", "b": 7, "c": 0.5, "completion": "x"}
    question = only(read([row], kind="generate", context="{a}|{b}|{c}\nA:"))
    assert question.answers[0][0] == "{b} {0.__class__}|7|0.5\nA:"
    with pytest.raises(UserError, match=r"rows\.jsonl:1: a\.upper: found no such field among \['a', 'b', 'c', "):
        read([row], kind="generate", context="{a.upper}")
    with pytest.raises(UserError, match=r"rows\.jsonl:1: c:\.2f: found no such field"):
        read([row], kind="generate", context="{c:.2f}")


def test_a_space_stands_at_a_border_that_has_none(read):
    for context, target, after in (("a", "b", " b"), ("a ", "b", "b"), ("a", "\nb", "\nb"), ("", "b", "b")):
        row = {"context": context, "completion": target}
        assert only(read([row], kind="generate")).answers == ((context, after),)
    assert only(read([{"context": "a", "completion": "b"}], kind="generate", delimiter="")).answers == (("a", "b"),)


def test_the_last_word_of_a_text(read):
    row = {"text": "Alice went to visit her friend Bob\n"}
    assert only(read([row], kind="cloze", text="{text}")) == ((("Alice went to visit her friend", " Bob"),), 0)
    item = only(read([row], kind="cloze", text="{text}", context="{context} ______. ->"))
    assert item.demonstration == "Alice went to visit her friend ______. -> Bob"


def test_a_text_of_corpora_is_mended_before_its_last_word_is_taken(read):
    row = {"text": "`` he did n't , '' said bob"}
    question = only(read([row], kind="cloze", text="{text}", detokenizer="lambada"))
    assert question.answers == (('"he didn\'t," said', " bob"),)


def test_choices_in_the_place_of_a_blank(read):
    row = {"sentence": "the cup is not in the bag since _'s big.", "one": "the cup", "two": "the bag", "answer": "2"}
    keys = {"text": "{sentence}", "choices": ["{one}", "{two}"], "gold": "{answer}", "labels": ["1", "2"]}
    before = "the cup is not in the bag since "
    expected = ((before + "the cup", "'s big."), (before + "the bag", "'s big."))
    assert only(read([row], kind="partial", **keys)) == (expected, 1)


def test_several_references(read):
    row = {"question": "who", "answers": {"text": ["Ada", "Ada L."], "start": [3, 3]}}
    keys = {"context": "Q: {question}\nA:", "target": "{answers.text}"}
    assert only(read([row], kind="generate", **keys)).answers == (("Q: who\nA:", " Ada"), ("Q: who\nA:", " Ada L."))


def test_demonstrations_come_from_all_rows_whatever_the_limit(read):
    rows = [{"context": str(n % 4), "continuation": "x"} for n in range(8)]
    questions = read(rows, limit=2, kind="cloze")
    assert [item.answers[0][0] for item in questions.items] == ["0", "1"]
    assert questions.pool == ["0 x", "1 x", "2 x", "3 x"], "equal ones count once"


def test_generated_tasks_keep_their_splits_apart():
    task = task_from({"name": "2D+", "kind": "generate", "source": "synthetic:2D+", "demonstrations": "synthetic:2D+"})
    questions = read_questions(task, 50)
    assert len(questions.items) == 50
    assert not {item.demonstration for item in questions.items} & set(questions.pool)
    assert all(text.startswith("\n\nQ: What is ") for text in questions.pool)


GOOD = {"query": "a", "choices": ["b", "c"], "gold": 0}
FAULTS = {
    "missing query": ({"choices": ["b", "c"], "gold": 0}, r"query or context: found no such field among \['choices"),
    "missing choices": ({"query": "a", "gold": 0}, "choices: found no such field .*, expected a list of"),
    "missing gold": ({"query": "a", "choices": ["b", "c"]}, "gold: found no such field .*, expected the right"),
    "no list": ({**GOOD, "choices": "b c"}, "choices: found the text 'b c', expected a list of at least 2 texts"),
    "one choice": ({**GOOD, "choices": ["b"]}, "choices: found a list of 1, expected a list of at least 2 texts"),
    "empty choice": ({**GOOD, "choices": ["b", " "]}, r"choices\[1\]: found empty text, expected non-empty text"),
    "null choice": ({**GOOD, "choices": ["b", None]}, r"choices\[1\]: found null, expected text or a number"),
    "beyond": ({**GOOD, "gold": 2}, "gold: found the number 2, expected 0 to 1, A to B, or one of the choices"),
    "negative": ({**GOOD, "gold": -1}, "gold: found the number -1, expected 0 to 1"),
    "no letter": ({**GOOD, "gold": "C"}, "gold: found the text 'C', expected 0 to 1"),
    "null query": ({**GOOD, "query": None}, "query: found null, expected text or a number"),
    "list query": ({**GOOD, "query": ["a"]}, "query: found a list of 1, expected text or a number"),
    "surrogate": ({**GOOD, "query": "\ud800"}, r"row: found broken JSON \(half of a surrogate pair\)"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_row_that_does_not_fit_is_told_with_file_row_and_field(read, fault):
    row, message = FAULTS[fault]
    with pytest.raises(UserError, match=rf"rows\.jsonl:2: {message}") as caught:
        read([GOOD, row], kind="choice")
    assert "\n" not in str(caught.value)


def test_other_rows_that_do_not_fit(read, tmp_path):
    with pytest.raises(UserError, match=r"rows\.jsonl:1: t: found the text 'word', expected at least two words"):
        read([{"t": "word"}], kind="cloze", text="{t}")
    with pytest.raises(UserError, match=r"rows\.jsonl:1: t: found '_' 2 times in .*, expected it once, and text after"):
        read([{"t": "_ a _ b", **GOOD}], kind="partial", text="{t}")
    with pytest.raises(UserError, match=r"rows\.jsonl:1: gold: found .*, expected one of x, y"):
        read([{**GOOD, "gold": "z"}], kind="choice", labels=["x", "y"])
    with pytest.raises(UserError, match=r"rows\.jsonl:1: choices: found 'a{choices}', expected a template that is one"):
        read([GOOD], kind="choice", choices="a{choices}")
    with pytest.raises(UserError, match=r"rows\.jsonl: found an empty file, expected rows"):
        read([], kind="choice")
    with pytest.raises(UserError, match=r"synthetic:9D.*found no task '9D', expected one of 2D"):
        read_questions(task_from({"name": "a", "kind": "generate", "source": "synthetic:9D"}))


def test_texts_of_files(tmp_path):
    (tmp_path / "corpus.txt").write_text("one text\nof two lines\n")
    (tmp_path / "corpus.jsonl").write_text('{"page": "a b"}\n{"page": "c"}\n')
    task = {"name": "corpus", "kind": "perplexity"}
    assert read_texts(task_from({**task, "source": str(tmp_path / "corpus.txt")})) == ["one text\nof two lines\n"]
    pages = task_from({**task, "source": str(tmp_path / "corpus.jsonl"), "text": "{page}"})
    assert read_texts(pages) == ["a b", "c"]
    assert read_texts(pages, 1) == ["a b"]
    with pytest.raises(UserError, match=r"corpus: text: found 'page', expected one field, \{text\}"):
        read_texts(task_from({**task, "source": "a.jsonl", "text": "page"}))


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (
            {"query": "a", "choices": ["red", "red"], "gold": 0},
            "choices: found the text 'red' twice, as numbers 0 and 1",
        ),
        ({"query": "a", "q.b": "x", "q": {"b": "y"}, "choices": ["red", "blue"], "gold": 0}, "q.b: found it twice"),
    ],
)
def test_a_row_that_says_two_things_is_refused(read, row, found):
    with pytest.raises(UserError, match=rf"rows\.jsonl:1: {found}"):
        read([row], kind="choice")


def test_two_equal_wrong_answers_are_just_wrong(read):
    assert only(read([{"query": "a", "choices": ["red", "red", "blue"], "gold": 2}], kind="choice")).gold == 2
