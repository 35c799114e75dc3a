import pytest

from gpt_modules.data.rows.fields import FieldError
from gpt_modules.data.rows.labelled import Columns, LabelledRow, built_in_rows, class_names, class_number
from gpt_modules.errors import UserError

PAIR = Columns(pair="hypothesis")
SWAG = Columns(text=["sent1", "sent2"], choices=["ending0", "ending1", "ending2", "ending3"])
STORY = Columns(
    text=[f"InputSentence{i}" for i in (1, 2, 3, 4)],
    choices=["RandomFifthSentenceQuiz1", "RandomFifthSentenceQuiz2"],
    label="AnswerRightEnding",
)
RACE = Columns(text=["article", "question"], choices="options", label="answer")


@pytest.mark.parametrize(
    ("check", "record", "row"),
    [
        (
            LabelledRow("classification", Columns(text="sentence"), ["negative", "positive"]),
            {"sentence": "a", "label": 1, "idx": 7},
            {"text": "a", "label": 1},
        ),
        (
            LabelledRow("entailment", PAIR, ["entailment", "neutral", "contradiction"]),
            {"text": "a", "hypothesis": "b", "label": "neutral"},
            {"text": "a", "pair": "b", "label": 1},
        ),
        (
            LabelledRow("similarity", Columns("s1", "s2", label="score"), levels=[0, 5]),
            {"s1": "a", "s2": "b", "score": "3.8"},
            {"text": "a", "pair": "b", "label": 3.8},
        ),
        (
            LabelledRow("regression", Columns()),
            {"text": "a", "pair": "ignored", "label": -1},
            {"text": "a", "label": -1.0},
        ),
        (
            LabelledRow("multiple_choice", RACE, ["A", "B", "C", "D"]),
            {"article": "a b.", "question": "c?", "options": ["w", "x", "y", "z"], "answer": "C"},
            {"text": "a b. c?", "choices": ["w", "x", "y", "z"], "label": 2},
        ),
        (
            LabelledRow("multiple_choice", SWAG),
            {"sent1": "a.", "sent2": "b", **{f"ending{i}": str(i) for i in range(4)}, "label": 3},
            {"text": "a. b", "choices": ["0", "1", "2", "3"], "label": 3},
        ),
        (
            LabelledRow("multiple_choice", STORY, ["1", "2"]),
            {
                **{f"InputSentence{i}": f"{i}." for i in (1, 2, 3, 4)},
                "RandomFifthSentenceQuiz1": "x",
                "RandomFifthSentenceQuiz2": "y",
                "AnswerRightEnding": 1,
            },
            {"text": "1. 2. 3. 4.", "choices": ["x", "y"], "label": 0},
        ),
    ],
    ids=["sst2", "mnli", "stsb", "regression", "race", "swag", "storycloze"],
)
def test_rows_as_the_data_sets_have_them(check, record, row):
    assert check(record) == row


def test_a_score_of_minus_one_is_one_where_scores_reach_below():
    """Where they do not, it says that a row has none, as in GLUE's test rows."""
    around, above = (LabelledRow("similarity", PAIR, levels=levels, required=False) for levels in ([-2, 2], [0, 5]))
    row = {"text": "a", "hypothesis": "b", "label": -1}
    assert (around(row)["label"], above(row)["label"]) == (-1.0, None)


TEXT, CHOICE = {"text": "a"}, {"text": "a", "choices": ["x", "y"]}
LABELS = LabelledRow("classification", Columns(), ["ham", "spam"])
UNNAMED = LabelledRow("classification", Columns())
ENTAILMENT = LabelledRow("entailment", Columns(), ["e", "n"])
RENAMED = LabelledRow("entailment", Columns(), ["e", "n"], key="data.columns")
ANSWERS = LabelledRow("multiple_choice", Columns())
LETTERS = LabelledRow("multiple_choice", Columns(), ["A", "B", "C", "D"])
SCORES = LabelledRow("similarity", PAIR, levels=[0, 5])


@pytest.mark.parametrize(
    ("check", "record", "message"),
    [
        (LABELS, ["a"], "row: found a list of 1, expected an object with named fields"),
        (LABELS, {"tex": "a", "label": 0}, "text: found no such field among ['label', 'tex'], expected text"),
        (LABELS, {"text": " ", "label": 0}, "text: found empty text, expected non-empty text"),
        (LABELS, {"text": None, "label": 0}, "text: found null, expected non-empty text"),
        (LABELS, {"text": 3, "label": 0}, "text: found the number 3, expected non-empty text"),
        (LABELS, TEXT, "label: found no such field among ['text'], expected one of ham, spam"),
        (LABELS, {**TEXT, "label": None}, "label: found null, expected one of ham, spam"),
        (LABELS, {**TEXT, "label": ""}, "label: found empty text, expected one of ham, spam"),
        (LABELS, {**TEXT, "label": -1}, "label: found the number -1, expected one of ham, spam"),
        (LABELS, {**TEXT, "label": "eggs"}, "label: found the unknown class 'eggs', expected one of ham, spam"),
        (LABELS, {**TEXT, "label": 2}, "label: found the unknown class 2, expected one of ham, spam"),
        (LABELS, {**TEXT, "label": 0.5}, "label: found the number 0.5, expected one of ham, spam"),
        (LABELS, {**TEXT, "label": ["ham"]}, "label: found a list of 1, expected one of ham, spam"),
        (UNNAMED, {**TEXT, "label": 0.5}, "label: found the number 0.5, expected text or a whole number from 0"),
        (UNNAMED, {**TEXT, "label": -2}, "label: found the number -2, expected text or a whole number from 0"),
        (UNNAMED, {**TEXT, "label": {}}, "label: found an object, expected text or a whole number from 0"),
        (ENTAILMENT, {**TEXT, "label": 0}, "pair: found no such field among ['label', 'text'], expected text"),
        (ENTAILMENT, {**TEXT, "pair": "", "label": 0}, "pair: found empty text, expected non-empty text"),
        (
            RENAMED,
            {"tex": "a", "label": 0},
            "text: found no such field among ['label', 'tex'], expected text, or the "
            "name of its column in data.columns.text",
        ),
        (
            RENAMED,
            {**TEXT, "pair": "b"},
            "label: found no such field among ['pair', 'text'], expected one of e, n, or the name of its column in "
            "data.columns.label",
        ),
        (
            RENAMED,
            {**TEXT, "label": 0},
            "pair: found no such field among ['label', 'text'], expected text, or the name "
            "of its column in data.columns.pair",
        ),
        (ANSWERS, {"text": "a", "label": 0}, "choices: found no such field among ['label', 'text'], expected a list"),
        (ANSWERS, {**CHOICE, "choices": "x", "label": 0}, "choices: found the text 'x', expected a list"),
        (
            ANSWERS,
            {**CHOICE, "choices": ["x"], "label": 0},
            "choices: found a list of 1, expected at least 2 to choose from",
        ),
        (
            ANSWERS,
            {**CHOICE, "choices": ["x", ""], "label": 0},
            "choices[1]: found empty text, expected non-empty text",
        ),
        (
            ANSWERS,
            {**CHOICE, "label": 2},
            "label: found the number 2, expected a whole number from 0 to 1, one of the 2 answers",
        ),
        (
            ANSWERS,
            {**CHOICE, "label": "A"},
            "label: found the text 'A', expected a whole number from 0 to 1, one of the 2 answers",
        ),
        (LETTERS, {**CHOICE, "label": "C"}, "label: found the unknown answer 'C', expected one of A, B"),
        (
            LabelledRow("multiple_choice", STORY, ["1", "2"]),
            {"InputSentence1": "a"},
            "InputSentence2: found no such field among ['InputSentence1'], expected text",
        ),
        (
            LabelledRow("multiple_choice", Columns(), ["1", "2"]),
            {**CHOICE, "label": 0},
            "label: found the unknown answer 0, expected one of 1, 2",
        ),
        (
            SCORES,
            {**TEXT, "hypothesis": "b", "label": 6},
            "label: found the number 6, expected a number from 0 to 5",
        ),
        (
            LabelledRow("regression", Columns()),
            {**TEXT, "label": "good"},
            "label: found the text 'good', expected a finite number",
        ),
        (
            LabelledRow("regression", Columns()),
            {**TEXT, "label": True},
            "label: found the truth value True, expected a finite number",
        ),
        (
            LabelledRow("regression", Columns()),
            {**TEXT, "label": float("inf")},
            "label: found the number inf, expected a finite number",
        ),
        (
            LabelledRow("regression", Columns()),
            {**TEXT, "label": float("nan")},
            "label: found the number nan, expected a finite number",
        ),
        (
            LabelledRow("classification", Columns(), list("abcdefghij")),
            {**TEXT, "label": "z"},
            "label: found the unknown class 'z', expected one of a, b, c, d, e, f, g, h, ...",
        ),
    ],
)
def test_what_does_not_fit_is_named(check, record, message):
    with pytest.raises(FieldError) as caught:
        check(record)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("yes", 1, "label: found the number 1, expected text, as in the rows before"),
        (1, "yes", "label: found the text 'yes', expected a number, as in the rows before"),
        (True, "true", "label: found the text 'true', expected a truth value, as in the rows before"),
    ],
)
def test_labels_are_all_of_one_type(first, second, message):
    check = LabelledRow("classification", Columns())
    check({"text": "a", "label": first})
    with pytest.raises(FieldError) as caught:
        check({"text": "a", "label": second})
    assert str(caught.value) == message


@pytest.mark.parametrize("label", [None, "", " ", -1, "-1", float("nan")])
@pytest.mark.parametrize("kind", ["classification", "multiple_choice"])
def test_rows_without_a_label_where_none_is_needed(kind, label):
    check = LabelledRow(kind, Columns(), required=False)
    assert check({**CHOICE, "label": label})["label"] is None
    assert check(CHOICE)["label"] is None
    with pytest.raises(FieldError, match="found"):
        check({**CHOICE, "label": 0.5})


def test_minus_one_may_be_a_class():
    check = LabelledRow("classification", Columns(), ["-1", "0", "1"])
    assert [check({**TEXT, "label": label})["label"] for label in (-1, "-1", 0, "1")] == [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("raw", "names", "number"),
    [
        ("b", ["a", "b"], 1),
        (1, ["a", "b"], 1),
        ("1", ["a", "b"], 1),
        (1.0, ["a", "b"], 1),
        (True, ["a", "b"], 1),
        (True, ["true", "false"], 0),
        ("1", ["1", "2"], 0),
        (2, ["1", "2"], 1),
        (0, ["1", "2"], None),
        (2, ["a", "b"], None),
        (-1, ["a", "b"], None),
        ("c", ["a", "b"], None),
        ("01", ["a", "b"], None),
        (None, ["a", "b"], None),
    ],
)
def test_a_name_comes_before_a_number(raw, names, number):
    assert class_number(raw, names, 2) == number


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["b", "a", "b"], ("a", "b")),
        ([2, 1, 0, 1], ("0", "1", "2")),
        (["1", "0"], ("0", "1")),
        (["1", "x"], ("1", "x")),
        (["true", "false"], ("false", "true")),
        ([*range(10), 10], tuple(map(str, range(11)))),
    ],
)
def test_names_of_classes_that_were_not_named(labels, names):
    assert class_names(labels, "a.csv") == names


def test_what_cannot_be_classes():
    with pytest.raises(UserError, match=r"^a\.csv: label: found 1 class in all rows, expected at least 2$"):
        class_names([1, 1], "a.csv")


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ([0, 150], "2 classes, 0, 150, expected 0 to 1, all of them, or names (labels)"),
        (["1", "2"], "2 classes, 1, 2, expected 0 to 1, all of them, or names (labels)"),
        (
            [*range(9), 70000],
            "10 classes, 0, 1, 2, 3, 4, 5, 6, 7, ..., expected 0 to 9, all of them, or names (labels)",
        ),
        ([0, 10**300], f"2 classes, 0, 1{'0' * 19}, expected 0 to 1, all of them, or names (labels)"),
        (["1", "1.0", "0"], "'1' and '1.0', expected one spelling"),
        (["01", "1", "x"], "'01' and '1', expected one spelling"),
        (["caf\u00e9", "cafe\u0301"], "'cafe\u0301' and 'caf\u00e9', expected one spelling"),
    ],
)
def test_numbers_that_are_no_classes_and_names_in_two_spellings(labels, found):
    with pytest.raises(UserError) as caught:
        class_names(labels, "a.csv")
    assert str(caught.value) == f"a.csv: label: found {found}"


def test_what_is_built_in_fits_its_own_task_only():
    with pytest.raises(
        UserError, match=r"^task: found entailment for 'reviews', expected classification or regression$"
    ):
        built_in_rows("reviews", "train", LabelledRow("entailment", Columns()))
    with pytest.raises(
        UserError, match=r"^reviews: label: found the unknown class 'positive', expected one of good, bad$"
    ):
        built_in_rows("reviews", "train", LabelledRow("classification", Columns(), ["good", "bad"]))


@pytest.mark.parametrize("label", ["1_000", "٣", "１", "1_0.5", True, "inf"])
def test_what_only_python_reads_as_a_number_is_no_label(label):
    with pytest.raises(FieldError, match=r"^label: found .*, expected a finite number"):
        LabelledRow("regression", Columns())({"text": "a", "label": label})


@pytest.mark.parametrize(("label", "number"), [("1e3", 1000.0), ("-.5", -0.5), (" 2 ", 2.0), (3, 3.0)])
def test_labels_that_are_numbers_as_files_write_them(label, number):
    assert LabelledRow("regression", Columns())({"text": "a", "label": label})["label"] == number
