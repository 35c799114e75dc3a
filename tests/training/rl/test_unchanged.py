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
    assert record.getMessage() == "function c:d: its source is not the one that the checkpoint was trained with"


def test_a_folder_is_compared_after_a_function_that_has_changed():
    found = {f"{FUNCTION}a:b": "1", "folder": "2"}
    with pytest.raises(UserError, match=r"^folder: found another model"):
        check_unchanged(found, dict.fromkeys(found, "3"))
