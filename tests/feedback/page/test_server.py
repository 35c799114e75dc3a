"""The page's server: what it keeps, shows again and refuses; under a crowd and under kills."""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path

import pytest
from benchmarks.labelling_server import crowd, kills

from gpt_modules.feedback.page import markdown, server
from gpt_modules.storage.comparisons import Answer, Source, Wanted

STATIC = files("gpt_modules.feedback.page") / "static"
SCRIPTS = {file.name: file.read_text() for file in STATIC.iterdir() if file.name.endswith(".js")}
HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "\u202eright to left\u2066",
    "a" * 100_000,
    "</script><!--",
    "\U0001f600\u2028",
    "\x07\x1b[31m",
]
MARKUP = (
    "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "DOMParser", "setHTML",
    "createContextualFragment", "srcdoc", "href",
)  # fmt: skip


def test_a_vote_is_of_the_answers_as_they_were_shown(world):
    ann = world.labeler()
    task = ann.ask("task")["task"]
    assert task["prompt"] == "prompt 0"
    assert sorted(task["answers"]) == [" answer 0 to 0", " answer 1 to 0", " answer 2 to 0"]
    ann.vote(task, [2, 1, 2], note="a note")
    with world.store as store:
        (found,) = store.rankings()
        vote = store.vote_of(1, "ann")
    ranks = {answer.text: rank for answer, rank in zip(found.answers, found.ranks, strict=True)}
    assert ranks == dict(zip(task["answers"], [2, 1, 2], strict=True))
    assert (found.labeler, vote.seconds, vote.note) == ("ann", 2.5, "a note")


def test_ranks_with_gaps_are_kept_as_their_order(world):
    ann = world.labeler()
    for ranks in ([4, 4, 4], [2, 9, 9]):
        ann.vote(ann.ask("task")["task"], ranks, judgements=[{"rank": rank} for rank in ranks])
    assert [sorted(found.ranks) for found in world.store.rankings()] == [[1, 1, 1], [1, 2, 2]]
    draft = ann.ask("open", task=2)["task"]["draft"]
    assert [judged["rank"] for judged in draft["judgements"]] == [1, 2, 2]


def test_nothing_of_the_sources_is_sent(world):
    ann = world.labeler()
    for action in ("hello", "task", "votes", "standing"):
        assert "SECRET" not in ann.post(action, {}).text
    task = ann.ask("task")["task"]
    ann.vote(task, [1, 2, 3])
    assert not any("SECRET" in ann.post(action, {"task": 1}).text for action in ("open", "undo"))


def test_a_retry_is_no_second_vote_and_another_vote_is_not_taken_for_one(world):
    ann = world.labeler()
    task = ann.ask("task")["task"]
    body = ann.vote(task, [1, 2, 3])
    for _ in range(2):
        assert ann.ask("vote", **body) == {"kept": True}
    body["judgements"][0]["rank"] = 3
    refused = ann.post("vote", body)
    assert refused.status_code == 400
    assert "on another vote, expected a new one" in refused.json()["error"]
    with world.store as store:
        assert [found.task for found in store.rankings()] == [1]
        assert len(store.own_votes("ann")) == 1


def test_the_same_key_from_many_at_once_is_one_vote(world):
    ann = world.labeler()
    body = {"task": 1, "key": "f" * 32, "judgements": [{"rank": 1}, {"rank": 2}, {"rank": 3}], "seconds": 1.0}
    with ThreadPoolExecutor(8) as pool:
        assert {answer.status_code for answer in pool.map(lambda _: ann.post("vote", body), range(16))} == {200}
    with world.store as store:
        assert store._one("SELECT count(*) FROM votes") == (1,)


def test_a_task_is_shown_to_one_at_a_time(world):
    ann, ben = world.labeler("ann"), world.labeler("ben")
    first, second = ann.ask("task")["task"], ben.ask("task")["task"]
    assert (first["task"], second["task"]) == (1, 2)
    assert ann.ask("task")["task"] == first  # loaded again


def test_a_claim_that_ran_out_does_not_lose_the_vote(world, monkeypatch):
    monkeypatch.setattr(server, "CLAIM_SECONDS", -1.0)
    ann, ben = world.labeler("ann"), world.labeler("ben")
    task = ann.ask("task")["task"]
    other = ben.ask("task")["task"]
    assert task["task"] == other["task"] == 1
    ben.vote(other, [1, 2, 3])
    ann.vote(task, [3, 2, 1])
    assert [(found.task, found.labeler) for found in world.store.rankings()] == [(1, "ann"), (1, "ben")]


def test_a_claim_lasts_while_its_labeler_works(world, monkeypatch):
    ann, ben = world.labeler("ann"), world.labeler("ben")
    monkeypatch.setattr(server, "CLAIM_SECONDS", 0.2)
    task = ann.ask("task")["task"]["task"]
    monkeypatch.setattr(server, "CLAIM_SECONDS", 900.0)
    assert ann.ask("hold", task=task) == {"held": True}
    time.sleep(0.3)
    assert ben.ask("task")["task"]["task"] != task
    assert ben.ask("hold", task=task) == {"held": False}  # another's
    monkeypatch.setattr(server, "CLAIM_SECONDS", -1.0)
    assert ann.ask("hold", task=task) == {"held": True}
    world.labeler("cleo").ask("task")
    assert ann.ask("hold", task=task) == {"held": False}  # it has run out, and is another's


def test_markdown_is_of_the_answers_as_they_are_shown(world):
    with world.store as store:
        answers = [Answer(text, Source("SECRET")) for text in ("*a*", "<b>", "c" * 30_000)]
        store.add_task(store.round_of("second"), "# prompt", answers)
    ann = world.labeler("ann", Wanted(round=2))
    task = ann.ask("task")["task"]
    found = ann.ask("markdown", task=task["task"])
    emphasis = [{"tag": "p", "of": [{"tag": "em", "of": ["a"]}]}]
    trees = {"*a*": emphasis, "<b>": [{"tag": "p", "of": ["<b>"]}], "c" * 30_000: None}
    assert found == {
        "prompt": [[{"tag": "heading", "of": ["prompt"]}]], "answers": [trees[text] for text in task["answers"]]
    }  # fmt: skip


def test_undo_withdraws_and_shows_what_was_said(world):
    ann = world.labeler()
    task = ann.ask("task")["task"]
    sent = ann.vote(task, [2, 1, 3], note="hm")
    assert ann.ask("task")["task"]["task"] == 2
    for _ in range(2):  # a retry
        shown = ann.ask("undo", task=1)["task"]
        assert shown == {**task, "draft": {"judgements": sent["judgements"], "note": "hm"}}
    assert list(world.store.rankings()) == []
    assert ann.ask("task")["task"] == task
    ann.vote(shown, [1, 2, 3])
    assert len(list(world.store.rankings())) == 1


def test_an_earlier_vote_counts_until_another_takes_its_place(world):
    ann = world.labeler()
    for ranks in ([1, 2, 3], [3, 2, 1]):
        ann.vote(ann.ask("task")["task"], ranks)
    assert [own["task"] for own in ann.ask("votes")["votes"]] == [2, 1]
    shown = ann.ask("open", task=1)["task"]
    assert [judged["rank"] for judged in shown["draft"]["judgements"]] == [1, 2, 3]
    assert len(list(world.store.rankings())) == 2
    ann.vote(shown, [2, 2, 1])
    again = ann.ask("open", task=1)["task"]["draft"]
    assert [judged["rank"] for judged in again["judgements"]] == [2, 2, 1]
    assert len(list(world.store.rankings())) == 2


def test_a_skip_leaves_the_task_to_others(world):
    ann = world.labeler()
    task = ann.ask("task")["task"]
    ann.vote(task, [])
    assert ann.ask("votes")["votes"][0]["skipped"]
    assert ann.ask("task")["task"]["task"] == 2
    assert world.labeler("ben").ask("task")["task"]["task"] == 1


def test_flags_are_those_of_the_form(world):
    with world.store as store:
        store.set_form(["rude", "<b>"])
    ann = world.labeler()
    task = ann.ask("task")["task"]
    assert task["form"] == ["rude", "<b>"]
    judgements = [{"rank": 1, "flags": ["<b>", "rude"]}, {"rank": 2}, {"rank": 3, "flags": ["rude"]}]
    ann.vote(task, [], judgements=judgements)
    (found,) = world.store.rankings()
    assert sorted(map(sorted, found.flags)) == [[], ["<b>", "rude"], ["rude"]]


def test_progress_pace_and_agreement(world):
    wanted = Wanted(overlap=1.0)
    ann, ben = world.labeler("ann", wanted), world.labeler("ben", wanted)
    assert ann.ask("standing") == {
        "ranked": 0, "skipped": 0, "open": 5, "held": 0, "seconds": None, "agreement": None, "pairs": 0, "last": None
    }  # fmt: skip
    for seconds in (2.0, 4.0, 60.0):
        task = ann.ask("task")["task"]
        order = sorted(task["answers"])
        ann.vote(task, [order.index(text) + 1 for text in task["answers"]], seconds=seconds)
    task = ben.ask("task")["task"]
    order = sorted(task["answers"], reverse=True)
    ben.vote(task, [order.index(text) + 1 for text in task["answers"]])
    found = ann.ask("standing")
    assert (found["ranked"], found["open"], found["seconds"], found["last"]) == (3, 2, 4.0, 3)
    assert (found["agreement"], found["pairs"]) == (0.0, 3)


def test_nothing_is_left(world):
    ann = world.labeler()
    while (task := ann.ask("task")["task"]) is not None:
        ann.vote(task, [1, 2, 3])
    assert ann.ask("standing")["open"] == 0
    assert world.labeler("ben").ask("task") == {"task": None}


def test_nobody_votes_as_a_model(world):
    with world.store as store:
        store.add_labeler("rules", "scores", "by length")
    ann = world.labeler()
    ann.name = "rules"
    for action in ("hello", "task", "standing"):
        refused = ann.post(action, {})
        assert refused.status_code == 400
        assert "rules" in refused.json()["error"]


@pytest.mark.parametrize("action", ["open", "undo"])
def test_a_vote_that_is_not_there(world, action):
    ann = world.labeler()
    for task in (1, 99):
        refused = ann.post(action, {"task": task})
        assert refused.json() == {"error": f"task: found {task}, on which ann has not voted"}


def test_what_is_no_store_any_more_is_one_line(world):
    ann = world.labeler()
    world.path.rename(world.path.with_name("away.db"))
    refused = ann.post("task", {})
    assert refused.status_code == 400
    assert "found no such file, expected a store of comparisons" in refused.json()["error"]


def test_only_the_pages_own_files_are_served(world):
    client = world.client()
    for path in ("/page.html", "/../server.py", "/%2e%2e/server.py", "/static/page.js", "/c.db", "/api", "/api/task"):
        assert client.get(path).status_code in (404, 405)
    assert client.get("/").text == (STATIC / "page.html").read_text()


def test_a_conversation_is_shown_turn_by_turn(world):
    turns = [{"role": "system", "content": ""}, {"role": "user", "content": "*a*"}]
    with world.store as store:
        store.add_task(store.round_of("second"), turns, [Answer(text, Source("SECRET")) for text in "xy"])
    ann = world.labeler("ann", Wanted(round=2))
    task = ann.ask("task")["task"]
    assert task["prompt"] == turns
    trees = ann.ask("markdown", task=task["task"])["prompt"]
    assert trees == [[], [{"tag": "p", "of": [{"tag": "em", "of": ["a"]}]}]]
    ann.vote(task, [1, 2])
    assert ann.ask("votes")["votes"][0]["prompt"] == "*a*"


# --- hostile texts ---


def test_hostile_texts_are_sent_as_they_are_and_as_json_alone(world):
    with world.store as store:
        store.add_task(store.round_of("hostile"), HOSTILE[0], [Answer(text, Source("m")) for text in HOSTILE])
    found = world.labeler("ann", Wanted(round=2)).post("task", {})
    assert found.headers["content-type"] == "application/json"
    assert found.headers["x-content-type-options"] == "nosniff"
    assert sorted(found.json()["task"]["answers"]) == sorted(HOSTILE)
    assert not any(text in world.client().get("/").text for text in HOSTILE)


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_script_makes_markup_of_a_text(name):
    assert not [way for way in MARKUP if way in SCRIPTS[name]]


def test_the_page_builds_what_the_server_names():
    names = {*markdown._NAMES.values(), "pre", "code", "image", "address", "info"}
    same = re.findall(r'"(\w+)"', SCRIPTS["markdown.js"].partition("SAME = [")[2].partition("]")[0])
    other = re.findall(r"^  (\w+): \(\)", SCRIPTS["markdown.js"], re.M)
    assert {*same, *other} == names
    assert not {"script", "style", "img", "a", "iframe", "form", "input", "button"} & set(same)


def test_the_page_has_no_script_style_or_handler_of_its_own():
    page = (STATIC / "page.html").read_text()
    assert re.findall(r"<script([^>]*)>(.*?)</script>", page, re.S) == [(' type="module" src="page.js"', "")]
    assert not re.search(r"\son\w+=|\sstyle=|<style|https?:|javascript:", page)


# --- crowds and kills, in processes of their own ---


@pytest.mark.slow
def test_eight_labelers_finish_200_tasks_each_as_often_as_asked(tmp_path: Path):
    crowd(tmp_path / "c.db")


@pytest.mark.slow
def test_a_killed_server_loses_no_vote_and_doubles_none(tmp_path: Path):
    kills(tmp_path / "c.db", times=4, most=15)
