from collections import Counter

from gpt_modules.data.builtin.recall import NAMES, THINGS, recall_demonstrations, recall_prompts, recalled
from gpt_modules.data.rows.schemas import check_row
from gpt_modules.data.rows.sources import load_rows


def test_each_pair_once_in_one_of_the_splits():
    train, validation = recall_prompts("train"), recall_prompts("validation")
    told = Counter(row["messages"][0]["content"] for row in (*train, *validation))
    assert set(told.values()) == {1}
    assert len(told) == len(NAMES) * len(THINGS)
    assert 0 < len(validation) < len(train) / 5
    assert load_rows("recall", "validation", "ppo") == validation


def test_half_of_the_demonstrations_are_right_and_all_are_rows():
    rows = recall_demonstrations("train")
    assert rows == load_rows("recall", "train", "sft")
    assert all(check_row(row, "sft") == row for row in rows)
    said = [row["messages"][-1]["content"] for row in rows]
    assert sum(recalled(["" for _ in rows], said, [row["messages"] for row in rows])) == len(rows) / 2


def test_the_best_answer_is_in_the_turn_before():
    told = {"role": "user", "content": "My friend Anna likes music."}
    messages = [told, {"role": "assistant", "content": "I see."}, {"role": "user", "content": "What does Anna like?"}]
    assert {row["messages"][0]["content"] for row in (*recall_prompts("train"), *recall_prompts("validation"))} >= {
        told["content"]
    }
    assert recalled([""] * 3, [" Music.", "Films.", "Music. Music."], [messages] * 3) == [1.0, 0.0, 0.0]
