"""Votes on two answers, as a reward model reads them."""

import pytest

from gpt_modules.backbone import load_pretrained
from gpt_modules.commands.speaker import Sampling, Speaker
from gpt_modules.commands.telling import Voice
from gpt_modules.commands.votes import Ballot, Said
from gpt_modules.errors import UserError
from gpt_modules.storage.comparisons import ComparisonStore

SAID = [Said("good", True), Said("bad", False)]


@pytest.fixture
def ballot(micro, tmp_path):
    model = load_pretrained(str(micro.gpt), kind="gpt")
    speaker = Speaker(model, micro.tokenizer, Sampling(4))
    found = Ballot(tmp_path / "votes.db", "ann", [Voice("one", speaker), Voice("two", speaker)])
    yield found
    found.close()


@pytest.mark.parametrize(("choice", "ranks"), [("a", (1, 2)), ("b", (2, 1)), ("tie", (1, 1))])
def test_a_vote_is_kept_with_who_said_what(ballot, tmp_path, choice, ranks):
    ballot.vote("User: hi\nAssistant:", SAID, Sampling(4), choice)
    with ComparisonStore.open(tmp_path / "votes.db") as store:
        (found,) = store.rankings()
    assert (found.prompt, found.labeler, found.ranks) == ("User: hi\nAssistant:", "ann", ranks)
    assert [(answer.text, answer.source.name, answer.ended) for answer in found.answers] == [
        ("good", "one", True), ("bad", "two", False)
    ]  # fmt: skip


def test_the_same_answers_are_voted_on_once(ballot):
    ballot.vote("p", SAID, Sampling(4), "a")
    with pytest.raises(UserError, match="the store has a vote on these answers already"):
        ballot.vote("p", SAID, Sampling(4), "b")
    with pytest.raises(UserError, match="found answers that are the same"):
        ballot.vote("q", [SAID[0], SAID[0]], Sampling(4), "a")
