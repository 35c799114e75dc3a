"""What earlier steps made is there before a step begins."""

import pytest

from gpt_modules.commands.pipelines.plan import check_made
from gpt_modules.errors import UserError


@pytest.mark.parametrize("name", ["votes.jsonl", "comparisons.db", "export"])
def test_an_outcome_that_is_gone_is_told_with_what_makes_it_anew(tmp_path, name):
    outcome = tmp_path / "stage" / name
    file = outcome / "config.json" if name == "export" else outcome
    with pytest.raises(UserError, match=rf"^{file}: missing, though its stage is done; remove {outcome.parent} to run"):
        check_made(outcome)
    file.parent.mkdir(parents=True)
    file.touch()
    check_made(outcome)
