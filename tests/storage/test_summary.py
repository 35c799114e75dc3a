"""A summary is read as it was written; what no number says is none."""

import pytest

from gpt_modules.errors import UserError
from gpt_modules.storage.summary import Baseline, Summary, read_summary, write_summary


def test_a_summary_comes_back(tmp_path):
    summary = Summary({"val/loss": 2.5}, {"val/loss": 1.25}, 90.0, 7, {"val/loss": Baseline("(3-gram)", 2.0)})
    write_summary(tmp_path, summary)
    assert read_summary(tmp_path) == summary


def test_what_is_not_finite_is_none(tmp_path):
    write_summary(
        tmp_path, Summary({"a": float("nan")}, {"a": float("inf")}, 1.0, 0, {"a": Baseline("b", float("nan"))})
    )
    found = read_summary(tmp_path)
    assert (found.before, found.after, found.baselines["a"].value) == ({"a": None}, {"a": None}, None)


def test_what_a_later_version_adds_is_left_alone(tmp_path):
    (tmp_path / "summary.json").write_text('{"before": {}, "after": {}, "seconds": 1, "new": [1]}')
    assert read_summary(tmp_path) == Summary({}, {}, 1.0)
    (tmp_path / "summary.json").write_text('{"before": {"a": "x"}, "after": {}, "seconds": 1}')
    with pytest.raises(UserError, match=r"summary.json: before.a: found 'x', expected a number or nothing"):
        read_summary(tmp_path)
