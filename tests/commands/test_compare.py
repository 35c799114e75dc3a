"""K different answers to each prompt in a store, that goes on where it was cut off."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gpt_modules.backbone import GPT, load_pretrained, model_digest, save_pretrained
from gpt_modules.commands import compare
from gpt_modules.commands.speaker import Speaker
from gpt_modules.data.ppo import encode_prompts
from gpt_modules.data.rows.schemas import check_row
from gpt_modules.errors import UserError
from gpt_modules.feedback import sampling
from gpt_modules.storage.comparisons import ComparisonStore


@pytest.fixture
def run(micro, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sampling, "WINDOW", 4)

    def run(*words, prompts=None, output="c.db"):
        file = tmp_path / "prompts.jsonl"
        rows = [{"prompt": f"the film {i}"} for i in range(10)] if prompts is None else prompts
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        base = ["--model", str(micro.gpt), "--prompts", str(file), "--output", str(tmp_path / output)]
        compare.main([*base, "--max-new-tokens", "6", "--device", "cpu", *words])
        return capsys.readouterr()

    return run


def tasks(path):
    with ComparisonStore.open(path, writing=False) as store:
        return [(task.round, task.prompt, task.answers) for task in store.tasks()]


def test_each_prompt_has_k_different_answers_of_the_model(run, micro, tmp_path):
    said = run("--k", "5")
    assert "round 1: 10 prompts with 5 answers each, 0 were there before" in said.out
    found = tasks(tmp_path / "c.db")
    assert [prompt for _, prompt, _ in found] == [f"the film {i}" for i in range(10)]
    digest = model_digest(load_pretrained(str(micro.gpt), kind="gpt"))
    assert {answer.ended for _, _, answers in found for answer in answers} == {True, False}
    for _, _, answers in found:
        assert len({answer.text for answer in answers}) == 5
        assert {answer.source.digest for answer in answers} == {digest}
        assert json.loads(answers[0].source.settings)["max_new_tokens"] == 6


def test_a_round_that_was_cut_off_goes_on_as_if_it_had_not_been(run, tmp_path, monkeypatch):
    run("--k", "3", output="whole.db")
    kept, add = [], ComparisonStore.add_task

    def cut_off(self, *words):
        if len(kept) == 5:
            raise KeyboardInterrupt
        kept.append(words)
        return add(self, *words)

    monkeypatch.setattr(ComparisonStore, "add_task", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run("--k", "3")
    monkeypatch.undo()
    assert "round 1: 5 prompts with 3 answers each, 5 were there before" in run("--k", "3").out
    assert tasks(tmp_path / "c.db") == tasks(tmp_path / "whole.db")


def test_another_model_or_setting_is_the_next_round(run, micro, tmp_path):
    other = GPT(micro.config())
    save_pretrained(tmp_path / "other", other, tokenizer_json=micro.tokenizer.to_json())
    run("--count", "4")
    assert "round 2: 3 prompts" in run("--count", "3", "--seed", "1").out
    assert "round 3: 10 prompts" in run("--model", str(tmp_path / "other"), str(micro.gpt)).out
    found = tasks(tmp_path / "c.db")
    assert [prompt for number, prompt, _ in found if number < 3] == [f"the film {i}" for i in range(7)]
    for _, _, answers in found[7:]:
        assert [answer.source.name for answer in answers] == [str(tmp_path / "other"), str(micro.gpt)] * 2
    assert "10 were there before" in run("--model", str(tmp_path / "other"), str(micro.gpt)).out


def test_prompts_that_the_model_cannot_see_whole_are_left_out_and_counted(run, tmp_path):
    long = "the film " * 200
    said = run(prompts=[{"prompt": "a story"}, {"prompt": long}, {"prompt": "a story"}])
    assert "of 2 prompts, 1 are left out: longer than" in said.err
    assert [prompt for _, prompt, _ in tasks(tmp_path / "c.db")] == ["a story"]
    with pytest.raises(UserError, match="--prompts: found none of up to"):
        run(prompts=[{"prompt": long}], output="none.db")
    assert not (tmp_path / "none.db").exists()


def test_mistakes_get_a_line_before_any_work(run, micro, tmp_path):
    with pytest.raises(UserError, match="--temperature: found 0, expected more"):
        run("--temperature", "0")
    with pytest.raises(UserError, match="--k: found '1', expected a whole number from 2"):
        run("--k", "1")
    with pytest.raises(UserError, match="--k: found 2 for 3 models, expected an answer of each at least"):
        run("--model", "a", "b", "c", "--k", "2")
    with pytest.raises(UserError, match=r"--model: found .*, expected each model once"):
        run("--model", str(micro.gpt), f"{micro.gpt}/")
    (tmp_path / "c.db").write_text("no store")
    with pytest.raises(UserError, match=r"c.db: found another file, expected a store of comparisons"):
        run()


def test_where_no_length_is_said_the_models_have_room_for_it(run, micro, tmp_path):
    run("--count", "1")
    words = ["--model", str(micro.gpt), "--prompts", str(tmp_path / "prompts.jsonl"), "--device", "cpu"]
    compare.main([*words, "--output", str(tmp_path / "d.db"), "--count", "1"])
    [(_, _, answers)] = tasks(tmp_path / "d.db")
    assert {json.loads(answer.source.settings)["max_new_tokens"] for answer in answers} == {16}


def test_two_at_once_double_nothing(run, micro, tmp_path):
    run("--count", "1")
    words = [sys.executable, "-m", "gpt_modules", "compare", "--model", str(micro.gpt), "--prompts",
             str(tmp_path / "prompts.jsonl"), "--output", str(tmp_path / "c.db"), "--max-new-tokens", "6"]  # fmt: skip
    both = [subprocess.Popen(words, cwd=Path(__file__).parents[2]) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert [prompt for _, prompt, _ in tasks(tmp_path / "c.db")] == [f"the film {i}" for i in range(10)]


def test_from_prompts_to_the_best_of_n_answers_to_fine_tuning(run, micro, tmp_path, gpt):
    """What is exported trains: rejection sampling from a folder, by a reward model."""
    run("--k", "4")
    recipe = tmp_path / "sft.yaml"
    recipe.write_text(json.dumps(micro.recipe("sft", tmp_path / "sft", data__train=str(tmp_path / "best.jsonl"),
                                              data__validation=str(micro.sft), trainer__max_epochs=1)))  # fmt: skip
    commands = [
        ["label", tmp_path / "c.db", "--by", micro.reward, "--device", "cpu"],
        ["label", tmp_path / "c.db", "--best", tmp_path / "best.jsonl"],
        ["fit", "--config", recipe],
    ]
    for words in commands:
        ended = gpt.run(*words)
        assert ended.status == 0, ended.stderr
    rows = [json.loads(line) for line in (tmp_path / "best.jsonl").read_text().splitlines()]
    answers = {prompt: answers for _, prompt, answers in tasks(tmp_path / "c.db")}
    assert rows
    for row in rows:
        assert row["response"] in {answer.text for answer in answers[row["prompt"]] if answer.ended}


def test_conversations_are_asked_with_the_ids_of_reinforcement_learning(run, micro, tmp_path, monkeypatch):
    """And with as many of their turns; the store keeps those that the models have seen."""
    short = [{"role": "user", "content": "a film"}]
    long = [*short, {"role": "assistant", "content": "good " * 12}, *short]
    asked, say = [], Speaker.answers

    def answers(self, prompts):
        kept = [*prompts]
        asked.extend(prompt.ids for prompt in kept)
        return say(self, kept)

    monkeypatch.setattr(Speaker, "answers", answers)
    rows = [{"messages": messages} for messages in ([{"role": "user", "content": "why?"}], long, short)]
    said = run("--k", "2", prompts=rows)
    assert "of 3 conversations, 1 lose their oldest turns: longer than" in said.err
    assert "round 1: 2 prompts with 2 answers each" in said.out
    assert "round 1: 0 prompts with 2 answers each, 2 were there before" in run("--k", "2", prompts=rows).out
    kept = [prompt for _, prompt, _ in tasks(tmp_path / "c.db")]
    assert kept == [rows[0]["messages"], short]
    texts = [answer.text for _, _, answers in tasks(tmp_path / "c.db") for answer in answers]
    assert texts == [text.lstrip() for text in texts], "the template puts the space there"
    room = micro.config().n_positions - 6
    of_ppo = encode_prompts([check_row(row, "ppo") for row in rows], micro.tokenizer, room, "x")
    assert {tuple(ids) for ids in asked} == {tuple(ids) for ids in of_ppo.tokens}
    with pytest.raises(UserError, match="--prompts: found 1 conversations of 2 rows, expected one kind: their answers"):
        run(prompts=[{"prompt": "a"}, {"messages": short}])
