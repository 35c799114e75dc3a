"""Votes by scores and from files, out again, and what they say of their labelers."""

import json
import sys
from pathlib import Path

import pytest

from gpt_modules.commands import label
from gpt_modules.errors import UserError
from gpt_modules.storage.comparisons import Answer, ComparisonStore, Source


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_scores.py").write_text("def length(prompts, answers):\n    return [len(a) for a in answers]\n")
    with ComparisonStore.create(tmp_path / "c.db") as store:
        for number in (store.round_of("first"), store.round_of("second")):
            for i in range(5):
                answers = [" good.", " a bad story.", " so", f" {i}"]
                store.add_task(number, f"the film {i}", [Answer(text, Source("m"), True) for text in answers])

    def run(*words, store="c.db"):
        label.main([store, *words])
        return capsys.readouterr().out

    return run


def rankings(number=None):
    with ComparisonStore.open(Path("c.db"), writing=False) as store:
        return [(found.task, found.labeler, found.ranks) for found in store.rankings(number)]


def test_a_function_ranks_each_task_once(run):
    assert "my_scores:length ranked 5 tasks, 0 before" in run("--by", "my_scores:length", "--round", "1")
    assert rankings() == [(i, "my_scores:length", (2, 1, 3, 4)) for i in range(1, 6)]
    assert "ranked 5 tasks, 5 before" in run("--by", "my_scores:length")
    assert len(rankings()) == 10


def test_a_weighted_sum_and_a_name(run):
    run("--by", "my_scores:length*-1", "my_scores:length*0.5", "--name", "short")
    assert rankings(1) == [(i, "short", (3, 4, 2, 1)) for i in range(1, 6)]


def test_a_reward_model_ranks_by_its_scores(run, micro):
    from gpt_modules.backbone import load_pretrained
    from gpt_modules.feedback.labelers import model_scorer

    run("--by", str(micro.reward), "--device", "cpu")
    scorer = model_scorer("m", load_pretrained(str(micro.reward), kind="reward").eval(), micro.tokenizer)
    for task, _, ranks in rankings():
        scores = scorer.scores(
            [f"the film {(task - 1) % 5}"] * 4, [" good.", " a bad story.", " so", f" {(task - 1) % 5}"]
        )
        assert sorted(range(4), key=lambda i: ranks[i]) == sorted(range(4), key=lambda i: -scores[i])


def test_a_folder_is_one_labeler_however_it_is_written(run, micro, tmp_path):
    (tmp_path / "judge").symlink_to(micro.reward)
    for name in ("judge", "judge/", "./judge", "judge*1.0", "./judge/*1"):
        run("--by", name, "--device", "cpu")
    assert [labeler for _, labeler, _ in rankings()] == ["judge"] * 10
    run("--by", "./judge*0.50", "my_scores:length*-2.0", "--device", "cpu", "--round", "1")
    assert {labeler for _, labeler, _ in rankings()} == {"judge", "judge*0.5 + my_scores:length*-2"}


def test_noise_is_the_seeds(run):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run("--by", "my_scores:length", "--temperature", "8", "--seed", str(seed), "--name", name)
    of = {name: [ranks for _, labeler, ranks in rankings() if labeler == name] for name in "abc"}
    assert of["a"] == of["b"] != of["c"]


def test_a_name_that_ranks_by_something_else_is_refused(run, tmp_path):
    run("--by", "my_scores:length", "--name", "judge", "--round", "1")
    with pytest.raises(UserError, match=r"labeler 'judge': found one that ranks by other scores under this name"):
        run("--by", "my_scores:length", "--name", "judge", "--margin", "2")
    assert len(rankings()) == 5


def test_out_and_into_another_store(run, tmp_path):
    run("--by", "my_scores:length")
    assert "out.jsonl: 10 votes" in run("--export", "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert rows[0]["responses"] == [" good.", " a bad story.", " so", " 0"]
    assert (rows[0]["ranking"], rows[0]["labeler"], rows[9]["round"]) == ([2, 1, 3, 4], "my_scores:length", 2)
    with pytest.raises(UserError, match=r"--export: found out.jsonl, which is there already, expected a new file"):
        run("--export", "out.jsonl")
    brought = "out.jsonl: {} votes are new, 0 take the place of the same labeler's, {} of 10 rows changed nothing"
    assert run("--import", "out.jsonl", store="new.db").splitlines() == [
        "new.db: a new store", f"new.db: {brought.format(10, 0)}"
    ]  # fmt: skip
    assert run("--import", "out.jsonl", store="new.db") == f"new.db: {brought.format(0, 10)}\n"
    assert run("--import", "out.jsonl") == f"c.db: {brought.format(0, 10)}\n"


def test_a_name_that_nearly_is_a_stores_is_said(run, tmp_path):
    (tmp_path / "comparison.jsonl").write_text(json.dumps({"prompt": "p", "chosen": "a", "rejected": "b"}))
    ComparisonStore.create(tmp_path / "comparisons.db").close()
    said = run("--import", "comparison.jsonl", store="comparison.db")
    assert said.startswith("comparison.db: a new store; beside it there is comparisons.db\n")


def test_the_form_of_a_new_store_is_what_is_said(run, tmp_path):
    row = {"prompt": "p", "responses": ["a", "b"], "ranking": [1, 2], "flags": [["rude"], []]}
    (tmp_path / "in.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match=r"flags: found 'rude', expected some of .*; --flags sets the form"):
        run("--import", "in.jsonl", store="new.db")
    assert not (tmp_path / "new.db").exists()
    run("--import", "in.jsonl", "--flags", "rude", store="new.db")
    with ComparisonStore.open(Path("new.db")) as store:
        assert store.form == ("rude",)


def test_a_bad_row_brings_nothing_in(run, tmp_path):
    good = {"prompt": "p", "chosen": "a", "rejected": "b"}
    bad = {"prompt": "p", "responses": ["a", "b"], "best": 7}
    (tmp_path / "in.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(bad)}\n")
    with pytest.raises(UserError, match=r"in.jsonl:2: best: found the number 7, expected the number of a response"):
        run("--import", "in.jsonl")
    assert rankings() == []
    with pytest.raises(UserError, match=r"in.jsonl:2: best"):
        run("--import", "in.jsonl", store="new.db")
    assert not list(tmp_path.glob("*new*"))
    (tmp_path / "good.jsonl").write_text(json.dumps(good))
    (tmp_path / "taken.jsonl").write_text(json.dumps({**good, "labeler": "judge"}))
    run("--by", "my_scores:length", "--name", "judge", "--round", "1")
    with pytest.raises(UserError, match="labeler 'judge': found one that ranks by other scores"):
        run("--import", "good.jsonl", "taken.jsonl")
    assert {labeler for _, labeler, _ in rankings()} == {"judge"}


def test_statistics_as_a_table_and_as_json(run, tmp_path):
    run("--by", "my_scores:length", "--name", "long")
    run("--by", "my_scores:length*-1", "--name", "short", "--round", "1")
    said = run("--statistics", "found.json")
    assert "Agreement 0.0% +- 0.0% of 30 pairs that both order" in said
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["agreement"] == {"part": 0.0, "error": 0.0, "pairs": 30, "tasks": 5}
    assert found["labelers"]["long"][0] == 10
    assert found["flags"]["harmful"] == [0, None]
    assert "long" in run("--statistics")
    for taken in ("found.json", "c.db"):
        before = (tmp_path / taken).read_bytes()
        with pytest.raises(UserError, match=rf"--statistics: found {taken}, which is there already, expected a new"):
            run("--statistics", taken)
        assert (tmp_path / taken).read_bytes() == before


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--by", "a:b", "--export", "x"], "gpt label: found --by and --export, expected one of"),
        (["--export", "x", "--margin", "1"], "--margin: found 1.0 with --export, which does not read it"),
        (["--by", "my_scores:length", "--port", "80"], "--port: found 80 with --by, which does not read it"),
        (["--statistics", "--labelers", "ann", "ben"], "--labelers: found ann ben with --statistics, which does not"),
        (["--margin", "1"], "--margin: found 1.0 on the page, which does not read it"),
        (["--overlap", "1.5"], "--overlap: found '1.5', expected a number from 0 to 1"),
        (["--round", "9"], "c.db: found no task in round 9, expected some (gpt compare samples them)"),
        (["--labelers", "ann", "ann"], "--labelers: found 'ann', expected different names of up to 60 characters"),
        (["--labelers", "a\nb"], "--labelers: found 'a\\nb', expected different names"),
        (["--flags", ""], "--flags: found '', expected different names of up to 60 characters"),
        (["--host", "0.0.0.0", "--port", "0"], "--host: found 0.0.0.0, which others can reach, expected --labelers"),
        (["--port", "70000"], "--port: found 70000, expected a number up to 65535"),
        (["--by", "my_scores:length", "--seed", "3"], "--seed: found 3 without noise, expected a --temperature above"),
        (["--by", "my_scores:length*x"], "--by: 'my_scores:length*x' is not in my_scores, expected"),
        (["--by", "my_scores:length*1e999"], "--by: found the weight '1e999', expected a number"),
        (["--by", "my_scores:length", "--round", "9"], "c.db: found no task in round 9, expected some"),
        (["--by", "my_scores:length", "--name", ""], "--name: found '', expected"),
        (["--by", "my_scores:length", "--name", "a\nb"], "--name: found 'a\\nb', expected"),
        (["--by", "my_scores:length", "--name", "\udcff"], "--name: found bytes that are not UTF-8"),
        (["--by", "my_scores:nothing"], "--by: 'my_scores:nothing' is not in my_scores, expected"),
        (["--statistics"], "c.db: found no vote, expected at least one"),
        (["--export", "x"], "c.db: found no vote, expected at least one"),
        (["--best", "x"], "c.db: found no vote, expected at least one"),
        (["--best", "x", "--margin", "1"], "--margin: found 1.0 with --best, which does not read it"),
    ],
)
def test_a_mistake_gets_one_line(run, words, line):
    with pytest.raises(UserError) as refused:
        run(*words)
    assert str(refused.value).startswith(line)


def test_what_is_no_store_or_no_reward_model(run, micro):
    with pytest.raises(UserError, match=r"none.db: found no such file, expected a store of comparisons"):
        run("--statistics", store="none.db")
    with pytest.raises(UserError, match="reward"):
        run("--by", str(micro.gpt))
    assert rankings() == []


# --- the page ---


@pytest.fixture
def served(run, monkeypatch):
    """What the page's server would be started with, and what is printed; it ends at once."""
    from gpt_modules.feedback.page import server

    found = {}

    def make_app(path, wanted, tokens):
        found.update(path=path, wanted=wanted, tokens=tokens)

    def serve(app, listener):
        found["address"] = "http://{}:{}/".format(*listener.getsockname())
        listener.close()

    monkeypatch.setattr(server, "make_app", make_app)
    monkeypatch.setattr(server, "serve", serve)
    return lambda *words: {"said": run("--port", "0", *words), **found}


def test_the_page_is_where_the_line_says(served):
    found = served("--overlap", "0.2", "--round", "2")
    assert found["said"] == f"c.db: rank the answers at {found['address']} (Ctrl-C ends it)\n"
    assert found["wanted"] == (1, 0.2, 2)
    assert found["tokens"] is None


def test_each_labeler_gets_a_link_that_stays(served):
    found = served("--labelers", "ann", "ben")
    tokens = found["tokens"]
    assert found["said"].splitlines() == [
        f"c.db: {name} ranks at {found['address']}{tokens[name]}/" for name in ("ann", "ben")
    ]
    assert served("--labelers", "ben", "cleo")["tokens"]["ben"] == tokens["ben"]


def test_others_may_reach_it_by_links_alone(served):
    found = served("--host", "0.0.0.0", "--labelers", "ann")
    assert list(found["tokens"]) == ["ann"]
    assert found["address"].startswith("http://0.0.0.0:")


def test_flags_of_the_form(served):
    served("--flags", "rude", "off topic")
    with ComparisonStore.open(Path("c.db")) as store:
        assert store.form == ("rude", "off topic")
    served("--flags")
    with ComparisonStore.open(Path("c.db")) as store:
        assert store.form == ()


def test_a_name_that_a_model_has_gets_no_link(served):
    served_by = ["--by", "my_scores:length", "--name", "ann"]
    label.main(["c.db", *served_by])
    with pytest.raises(UserError, match="labeler 'ann': found one that ranks by other scores under this name"):
        served("--labelers", "ann")


def test_a_package_that_is_not_installed(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "starlette", None)
    for name in [name for name in sys.modules if name.startswith(("gpt_modules.feedback.page", "starlette."))]:
        monkeypatch.delitem(sys.modules, name)
    line = r"gpt label: the package starlette\S* is not installed; pip install 'gpt-modules\[feedback\]'"
    with pytest.raises(UserError, match=line):
        run("--port", "0")


def test_a_store_without_tasks(run, tmp_path):
    ComparisonStore.create(tmp_path / "new.db").close()
    with pytest.raises(UserError, match=r"new.db: found no task, expected some \(gpt compare samples them\)"):
        run(store="new.db")


def test_files_of_two_people_are_two_labelers(run, tmp_path):
    rows = [{"prompt": "p", "responses": ["a", "b"], "ranking": ranking} for ranking in ([1, 2], [2, 1])]
    for name, row in zip(("ann", "ben"), rows, strict=True):
        (tmp_path / name).mkdir()
        (tmp_path / name / "votes.jsonl").write_text(json.dumps(row))
    run("--import", "ann/votes.jsonl", "./ben/votes.jsonl")
    assert "0 votes are new" in run("--import", "./ann//votes.jsonl")
    assert [(labeler, ranks) for _, labeler, ranks in rankings()] == [
        ("ann/votes.jsonl", (1, 2)), ("ben/votes.jsonl", (2, 1))
    ]  # fmt: skip
    assert "1 votes are new" in run("--import", "ann/votes.jsonl", "--name", "cleo")
    assert "0 votes are new, 1 take the place" in run("--import", "ben/votes.jsonl", "--name", "cleo")


def test_a_name_is_in_place_of_whom_the_rows_name(run, tmp_path):
    row = {"prompt": "p", "responses": ["a", "b"], "ranking": [1, 2], "labeler": "ann"}
    (tmp_path / "in.jsonl").write_text(json.dumps(row))
    run("--import", "in.jsonl")
    run("--import", "in.jsonl", "--name", "bob")
    assert [labeler for _, labeler, _ in rankings()] == ["ann", "bob"]


def test_what_was_not_measured_is_not_shown(run):
    run("--by", "my_scores:length", "--round", "1")
    assert "nan" not in run("--statistics")


def read(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_the_best_answers_are_demonstrations(run):
    run("--by", "my_scores:length", "--round", "1")
    assert run("--best", "sft.jsonl") == "sft.jsonl: 5 prompts with the answer that my_scores:length ranks best\n"
    assert read("sft.jsonl") == [{"prompt": f"the film {i}", "response": " a bad story."} for i in range(5)]
    with pytest.raises(UserError, match=r"^--best: found sft.jsonl, which is there already, expected a new file$"):
        run("--best", "sft.jsonl")
    run("--by", "my_scores:length*-1", "--name", "short")
    line = r"^--name: found none, expected one of the labelers my_scores:length, short: they may think another answer b"
    with pytest.raises(UserError, match=line):
        run("--best", "other.jsonl")
    assert not Path("other.jsonl").exists()
    run("--best", "other.jsonl", "--name", "short", "--round", "2")
    assert read("other.jsonl") == [{"prompt": f"the film {i}", "response": f" {i}"} for i in range(5)]


def test_what_was_cut_off_is_no_demonstration(run):
    with ComparisonStore.create(Path("cut.db")) as store:
        number = store.round_of("first")
        for i, ends in enumerate([(True, False), (False, False), (None, True)]):
            answers = [
                Answer(text, Source("m"), ended) for text, ended in zip((" so", " a longer one"), ends, strict=True)
            ]
            store.add_task(number, f"the film {i}", answers)
        cut = store.round_of("second")
        store.add_task(cut, "its cast", [Answer(text, Source("m"), False) for text in (" one", " more")])
    run("--by", "my_scores:length", store="cut.db")
    said = run("--best", "whole.jsonl", store="cut.db")
    assert "2 prompts with the answer that my_scores:length ranks best; 2 more are left out, whose answers" in said
    assert [row["response"] for row in read("whole.jsonl")] == [" so", " a longer one"]
    with pytest.raises(
        UserError, match=r"cut\.db: found 1 prompts whose answers were all cut off, expected answers that"
    ):
        run("--best", "none.jsonl", "--round", "2", store="cut.db")
