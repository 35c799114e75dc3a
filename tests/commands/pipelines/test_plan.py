"""What earlier steps made is there before a step begins."""

import pytest

from gpt_modules.commands.pipelines.document import Stage
from gpt_modules.commands.pipelines.plan import check_kind, check_made, check_metrics
from gpt_modules.errors import UserError


@pytest.mark.parametrize("name", ["votes.jsonl", "export"])
def test_an_outcome_that_is_gone_is_told_with_what_makes_it_anew(tmp_path, name):
    outcome = tmp_path / "stage" / name
    file = outcome / "config.json" if name == "export" else outcome
    with pytest.raises(UserError, match=rf"^{file}: missing, though its stage is done; remove {outcome.parent} to run"):
        check_made(outcome)
    file.parent.mkdir(parents=True)
    file.touch()
    check_made(outcome)


def test_nobody_is_told_to_remove_what_all_rounds_share(tmp_path):
    with pytest.raises(
        UserError, match=r"comparisons.db: missing, expected the comparisons of all rounds; or name anoth"
    ):
        check_made(tmp_path / "comparisons.db")


def test_a_model_of_another_kind_is_told_before_the_first_step(micro):
    check_kind("model", str(micro.gpt), "gpt")
    check_kind("model", str(micro.gpt / "elsewhere"), "gpt")  # which may be on the hub, or made by a step
    with pytest.raises(UserError, match=r"^model: .*gpt: found a model of kind 'gpt', expected 'reward'$"):
        check_kind("model", str(micro.gpt), "reward")


def test_a_commands_numbers_are_known_before_it_runs():
    stage = Stage("label", None, "label", {}, {}, ["votes", "vote"])
    with pytest.raises(UserError, match=r"^metrics: found 'vote', expected some of votes, agreement$"):
        check_metrics(stage, ("votes", "agreement"))
