import json
from types import SimpleNamespace

import pytest

from gpt_modules.data.ppo import PPODataModule, encode_prompts
from gpt_modules.data.rows.chat import encode_conversation
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError


@pytest.fixture(scope="module")
def data():
    module = PPODataModule(episodes=16)
    module.setup("fit")
    return module


def rows_of(batch):
    return [tuple(row[:n]) for row, n in zip(batch.tokens.tolist(), batch.lengths.tolist(), strict=True)]


def test_rollouts_visit_every_prompt_once_before_any_twice(data):
    iterations = len(data.train_examples) // 16
    seen = [row for i in range(iterations) for row in rows_of(data.prompts(i))]
    assert len(seen) == len(set(seen)) == iterations * 16
    assert rows_of(data.prompts(0)) != rows_of(data.prompts(iterations))


def test_prompts_are_a_function_of_the_iteration(data):
    late = rows_of(data.prompts(700))
    other = PPODataModule(episodes=16)
    other.setup("fit")
    assert rows_of(other.prompts(700)) == late
    other = PPODataModule(episodes=16, seed=1)
    other.setup("fit")
    assert rows_of(other.prompts(700)) != late


@pytest.mark.parametrize("world", [2, 4, 8])
def test_ranks_share_out_the_prompts_that_one_process_answers(data, world):
    whole = data.prompts(3)
    assert whole.numbers.tolist() == list(range(16))
    ranks = [data.prompts(3, rank, world) for rank in range(world)]
    together = {number: row for rank in ranks for number, row in zip(rank.numbers.tolist(), rows_of(rank), strict=True)}
    assert [together[number] for number in range(16)] == rows_of(whole)


@pytest.mark.parametrize("answers", [2, 4])
def test_each_prompt_stands_there_for_its_answers(data, answers):
    """The prompts are those of a rollout of as many; on several ranks the answers to one prompt may be on any."""
    several = PPODataModule(episodes=16 * answers, answers=answers)
    several.setup("fit")
    for iteration in (0, 3, 700):
        whole = several.prompts(iteration)
        assert whole.numbers.tolist() == list(range(16 * answers))
        assert rows_of(whole) == [row for row in rows_of(data.prompts(iteration)) for _ in range(answers)]
    ranks = [several.prompts(3, rank, 8) for rank in range(8)]
    together = {number: row for rank in ranks for number, row in zip(rank.numbers.tolist(), rows_of(rank), strict=True)}
    assert [together[number] for number in range(16 * answers)] == rows_of(several.prompts(3))
    assert all(int(rank.lengths.max()) == rank.tokens.shape[1] for rank in ranks)


@pytest.mark.parametrize(
    ("episodes", "answers", "line"),
    [
        (16, 3, "episodes: found 16, expected a multiple of answers: 3"),
        (2, 4, "episodes: found 2, expected a multiple of answers: 4"),
        (16, 0, "answers: found 0, expected at least 1"),
    ],
)
def test_a_group_is_whole(episodes, answers, line):
    with pytest.raises(UserError) as refused:
        PPODataModule(episodes=episodes, answers=answers)
    assert str(refused.value) == line


def test_episodes_that_the_processes_cannot_share_are_refused(data):
    line = r"^data\.episodes: found 16, expected a multiple of 3 processes$"
    with pytest.raises(UserError, match=line):
        data.prompts(0, 0, 3)
    shared = PPODataModule(episodes=16)
    shared.trainer = SimpleNamespace(distributed_sampler_kwargs={"rank": 0, "num_replicas": 3})
    with pytest.raises(UserError, match=line):  # when the loader is made, before the first answer
        shared.train_dataloader()


def test_a_prompt_that_is_answered_twice_has_two_numbers(tmp_path):
    source, other = tmp_path / "a.txt", tmp_path / "b.txt"
    source.write_text("one\ntwo\n")
    other.write_text("three\n")
    data = PPODataModule(str(source), str(other), cache_dir=str(tmp_path), episodes=6)
    data.setup("fit")
    batch = data.prompts(0)
    assert len(set(rows_of(batch))) == 2
    assert batch.numbers.tolist() == [0, 1, 2, 3, 4, 5]


def test_the_longest_prompt_is_of_both_splits(tmp_path):
    for name, text in (("train", "a b c"), ("validation", "a b c d e")):
        (tmp_path / f"{name}.txt").write_text(text + "\n")
    files = [str(tmp_path / f"{name}.txt") for name in ("train", "validation")]
    data = PPODataModule(*files, cache_dir=str(tmp_path), episodes=1)
    data.setup("fit")
    assert data.longest_prompt == len(data.tokenizer.encode("a b c d e"))


def test_padding_is_no_token(data):
    batch = data.prompts(0)
    text = data.tokenizer.decode(rows_of(batch)[0])
    assert text.startswith("Write a positive sentence about a film.\n")
    assert int(batch.lengths.max()) == batch.tokens.shape[1]


def test_validation_prompts_come_once(data):
    seen = [row for batch in data.val_dataloader() for row in rows_of(batch)]
    assert len(seen) == len(set(seen)) == len(data.validation_examples)


def test_the_module_gives_the_training_batches():
    data = PPODataModule()
    data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(experience_loader=lambda: "batches"))
    assert data.train_dataloader() == "batches"


def test_long_prompts_are_left_out(caplog):
    tokenizer = Tokenizer.gpt2()
    prompts = [{"prompt": " a" * n} for n in (1, 5, 9)]
    assert [len(tokens) for tokens in encode_prompts(prompts, tokenizer, 5, "train").tokens] == [1, 5]
    assert "train: of 3 prompts, 1 longer than 5 tokens are left out" in caplog.text
    with pytest.raises(UserError, match="max_prompt_tokens: found 5 and no prompt of train as short, expected"):
        encode_prompts(prompts[2:], tokenizer, 5, "train")


def test_a_prompt_without_tokens_is_refused_before_a_rollout():
    tokenizer = Tokenizer.train(["some words"] * 3, 270, "gpt1")
    with pytest.raises(UserError) as caught:
        encode_prompts([{"prompt": "some"}, {"prompt": "\x07"}], tokenizer, None, "train")
    assert str(caught.value) == "train: prompt: found '\\x07', which has no tokens, expected text to continue"


def test_a_file_of_prompts(tmp_path):
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps({"prompt": f"question {i}"}) + "\n" for i in range(40)))
    data = PPODataModule(str(source), cache_dir=str(tmp_path), episodes=8, validation_fraction=0.1)
    data.prepare_data()
    data.setup("fit")
    sizes = (len(data.train_examples), len(data.validation_examples))
    assert sum(sizes) == 40
    assert 1 <= sizes[1] < 12


def test_columns_stay_with_their_prompts(tmp_path):
    """Those that are left out for their length among them; in the batches of any process, and of validation."""
    rows = [
        {"prompt": "word " * (1 + i % 5) + str(i), "answer": i, **({"rare": "x"} if i % 2 else {})} for i in range(60)
    ]
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = PPODataModule(str(source), cache_dir=str(tmp_path), episodes=8, validation_fraction=0.2, max_prompt_tokens=4)
    data.setup("fit")
    kept = len(data.train_examples) + len(data.validation_examples)
    assert 0 < kept < 60
    assert data.columns() == {"answer": 0, "rare": sum("rare" not in row for row in data.train_examples.columns) +
                              sum("rare" not in row for row in data.validation_examples.columns)}  # fmt: skip
    batches = [data.prompts(i, rank, 2) for i in range(9) for rank in range(2)] + list(data.val_dataloader())
    seen = set()
    for batch in batches:
        texts = [data.tokenizer.decode(row) for row in rows_of(batch)]
        answers = data.column("answer", batch.rows.tolist())
        assert [int(text.split()[-1]) for text in texts] == answers
        seen |= set(answers)
    assert len(seen) == kept
    assert [data.tokenizer.decode(ids) for ids in data.prompt_tokens()] == [
        rows[answer]["prompt"] for answer in data.column("answer", range(kept))
    ]


def test_conversations_lose_their_oldest_turns_before_they_are_left_out(caplog):
    tokenizer = Tokenizer.gpt2()
    asked, said = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So it is."}
    short, long = [asked], [asked, said, asked]
    rows = [{"messages": messages, "columns": {"messages": messages}} for messages in (short, long)]
    most = len(encode_conversation(short, tokenizer))
    prompts = encode_prompts(rows, tokenizer, most, "x")
    assert [tokens.tolist() for tokens in prompts.tokens] == [encode_conversation(short, tokenizer)] * 2
    assert prompts.columns == [{"messages": short}] * 2  # a reward function sees what the policy has seen
    (line,) = caplog.messages
    assert line == f"x: 1 conversations lose their oldest turns to fit {most} tokens"


def test_texts_beside_conversations_are_refused():
    rows = [{"prompt": "a"}, {"messages": [{"role": "user", "content": "b"}]}]
    with pytest.raises(UserError, match="x: found 1 prompts beside 1 conversations, expected one kind"):
        encode_prompts(rows, Tokenizer.gpt2(), None, "x")
