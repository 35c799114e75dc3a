import json
import random

import numpy as np
import pytest

from gpt_modules.data.corpus.cleaning import survey as surveys
from gpt_modules.data.corpus.cleaning.contamination import distinct_grams
from gpt_modules.data.corpus.cleaning.survey import Filter, open_or_make_survey
from gpt_modules.errors import UserError

pytest.importorskip("datasketch")

TEST = "a question that stands in a test set and has more than thirteen words of its own"
SAYING = "a saying that everybody quotes so that more than ten documents have these very words"


def text(seed):
    rng = random.Random(seed)
    return " ".join(f"w{rng.randrange(10**6)}" for _ in range(200))


@pytest.fixture
def documents():
    """30 different ones, one of them twice; one has a test question, eleven a saying that a test set quotes, too."""
    made = [text(i) for i in range(30)]
    made[4] = f"{made[4]} {TEST} {text(99)}"
    made[7] = made[2] + " and an end"
    for i in range(10, 21):
        made[i] = f"{made[i]} {SAYING}"
    return [[document[:50], document[50:]] for document in made]


@pytest.mark.parametrize("workers", [1, 2])
def test_twins_and_test_questions_go_and_sayings_stay(tmp_path, documents, monkeypatch, workers):
    monkeypatch.setattr(surveys, "CHUNK", 3000)
    grams, short = distinct_grams([TEST, SAYING, "short"])
    survey = open_or_make_survey(tmp_path, documents, {"source": "x"}, 0.8, grams, short, workers)
    assert [(twin.document, twin.of) for twin in survey.duplicates] == [(7, 2)]
    assert (survey.documents, survey.test_grams, survey.short_tests) == (30, len(grams), 1)
    assert sorted(survey.common_grams) == distinct_grams([SAYING])[0].tolist()
    left_out = Filter(survey, grams)
    kept = ["".join(document) for document in left_out(documents)]
    assert len(kept) == 30
    assert not any(TEST in document for document in kept)
    assert sum(SAYING in document for document in kept) == 11
    assert (left_out.cut, left_out.dropped) == (1, 0)
    assert [document for document in kept if document in map("".join, documents)] == [
        "".join(document) for i, document in enumerate(documents) if i not in (4, 7)
    ]


def test_a_survey_is_made_once(tmp_path, documents):
    grams = np.empty(0, dtype=np.uint64)
    first = open_or_make_survey(tmp_path, documents, {"source": "x"}, 0.8, grams, 0)
    assert open_or_make_survey(tmp_path, (1 / 0 for _ in range(1)), {"source": "x"}, 0.8, grams, 0) == first
    assert json.loads((tmp_path / "survey.json").read_text())["duplicates"][0]["document"] == 7
    with pytest.raises(UserError, match=r"survey.json: found a survey of another source"):
        open_or_make_survey(tmp_path, documents, {"source": "y"}, 0.8, grams, 0)
    (tmp_path / "survey.json").write_text("{}")
    with pytest.raises(UserError, match=r"survey.json: made_from: missing, expected a mapping"):
        open_or_make_survey(tmp_path, documents, {"source": "x"}, 0.8, grams, 0)
