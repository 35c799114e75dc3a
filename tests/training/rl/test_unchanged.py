"""Another model under the same name is refused."""

import pytest

from gpt_modules.errors import UserError
from gpt_modules.training.rl.unchanged import FUNCTION, check_unchanged


def test_what_is_the_same_new_or_gone_is_no_other_model():
    check_unchanged({"a": "1", "new": "2", "no source": None}, {"a": "1", "gone": "3", "no source": None})


@pytest.mark.parametrize("found", ["b" * 64, None])
def test_another_model_is_one_line_with_both_digests(found):
    with pytest.raises(UserError) as refused:
        check_unchanged({"same": "1", "runs/reward": found}, {"same": "1", "runs/reward": "a" * 64})
    assert str(refused.value) == (
        f"runs/reward: found another model (SHA-256 {str(found)[:12]}…) than this run began with, "
        "expected aaaaaaaaaaaa…: put it back, or begin a new run"
    )


def test_another_source_of_a_function_is_said_and_not_refused(caplog):
    check_unchanged({f"{FUNCTION}a:b": "1", f"{FUNCTION}c:d": "2"}, {f"{FUNCTION}a:b": "1", f"{FUNCTION}c:d": "3"})
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        "function c:d: its source, or its file's around it, is not what the checkpoint was trained with"
    )


@pytest.mark.parametrize(("now", "before"), [(None, None), (None, "1"), ("1", None)])
def test_a_function_without_a_source_is_said_not_to_be_known(caplog, now, before):
    check_unchanged({f"{FUNCTION}a:b": now}, {})
    assert not caplog.records, "where nothing was recorded, nothing is compared"
    check_unchanged({f"{FUNCTION}a:b": now}, {f"{FUNCTION}a:b": before})
    (record,) = caplog.records
    assert record.getMessage() == (
        "function a:b: whether it is what the checkpoint was trained with is not known, as its source is not"
    )


def test_a_folder_is_compared_after_a_function_that_has_changed():
    found = {f"{FUNCTION}a:b": "1", "folder": "2"}
    with pytest.raises(UserError, match=r"^folder: found another model"):
        check_unchanged(found, dict.fromkeys(found, "3"))
