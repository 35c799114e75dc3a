"""A task as a labeler sees it: an order of its own, and nothing of where the answers come from."""

import json

from gpt_modules.feedback.page.messages import Judged, Voting
from gpt_modules.feedback.page.shown import in_order, shown, vote_of
from gpt_modules.storage.comparisons import Answer, Judgement, Source, Task, Vote

TASK = Task(
    3, 1, "prompt", tuple(Answer(text, Source("SECRET", "d" * 64), True, i) for i, text in enumerate("wxyz", 71))
)


def test_the_order_is_of_labeler_and_task_alone():
    turned = Task(9, 2, TASK.prompt, TASK.answers[::-1])
    assert [a.text for a in in_order(turned, "ann")] == [a.text for a in in_order(TASK, "ann")]
    orders = {name: tuple(a.text for a in in_order(TASK, name)) for name in map(str, range(600))}
    counts = [sum(order[0] == text for order in orders.values()) for text in "wxyz"]
    assert len(set(orders.values())) == 24
    assert all(100 < count < 200 for count in counts)  # 150 +- 11


def test_nothing_tells_who_answered():
    sent = shown(TASK, "ann", ("harmful",))
    assert set(sent) == {"task", "prompt", "answers", "form", "draft"}
    words = json.dumps(sent)
    assert not any(word in words for word in ("SECRET", "dddd", "71", "72", "73", "74"))


def test_what_is_said_by_place_is_kept_by_answer_and_shown_by_place_again():
    judged = [Judged(2, 5, ["harmful"]), Judged(1, 7), Judged(4, 1), Judged(2, None)]
    voting = Voting(task=3, key="0" * 32, judgements=judged, seconds=2.0, note="n")
    vote = vote_of(voting, TASK, "ann")
    places = [answer.id for answer in in_order(TASK, "ann")]
    assert vote == Vote(
        3, "ann",
        {places[0]: Judgement(2, 5, frozenset({"harmful"})), places[1]: Judgement(1, 7), places[2]: Judgement(4, 1),
         places[3]: Judgement(2)},
        "0" * 32, 2.0, "n",
    )  # fmt: skip
    assert shown(TASK, "ann", ("harmful",), vote)["draft"] == {
        "judgements": [
            {"rank": 2, "score": 5, "flags": ["harmful"]},
            {"rank": 1, "score": 7, "flags": []},
            {"rank": 4, "score": 1, "flags": []},
            {"rank": 2, "score": None, "flags": []},
        ],
        "note": "n",
    }
    assert shown(TASK, "ann", ("other",), vote)["draft"]["judgements"][0]["flags"] == []  # a form of now


def test_a_skip_has_no_judgements():
    vote = vote_of(Voting(task=3, key="0" * 32, judgements=[], seconds=0.0), TASK, "ann")
    assert vote.judgements == {}
    assert shown(TASK, "ann", (), vote)["draft"] == {"judgements": [], "note": ""}
