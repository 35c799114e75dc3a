import json
from collections import Counter
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import chats
import numpy as np
import pytest

from gpt_modules.data.builtin.reviews import load_reviews
from gpt_modules.data.ppo import encode_prompts
from gpt_modules.data.reward import Comparisons, RewardDataModule
from gpt_modules.data.rows.chat import encode_conversation, encode_conversations
from gpt_modules.data.rows.sources import load_rows
from gpt_modules.data.text.chat_template import ChatTemplate
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError
from gpt_modules.feedback.exchange import exported
from gpt_modules.storage.comparisons import Answer, ComparisonStore, Judgement, Source, Vote, votes_digest


@pytest.fixture(scope="module")
def reviews():
    data = RewardDataModule(k=3, batch_size=8, context=64)
    data.setup("fit")
    return data


def answers(data, batch):
    """The answers' texts per prompt, best first."""
    rows = [batch.tokens[i, :n].tolist() for i, n in enumerate(batch.lengths.tolist())]
    assert all(row[-1] == data.tokenizer.eos_id for row in rows)
    texts = [data.tokenizer.decode(row).split("\n", 1)[1] for row in rows]
    found = []
    for index, ranks, mask in zip(batch[2].tolist(), batch.ranks.tolist(), batch.mask.tolist(), strict=True):
        triples = sorted((r, i) for r, i, m in zip(ranks, index, mask, strict=True) if m)
        found.append([texts[i] for _, i in triples])
    return found


def test_ranks_follow_peoples_ratings(reviews):
    ratings = {}
    for review in load_reviews():
        ratings.setdefault(review.text, set()).add(review.rating)
    for row in answers(reviews, next(iter(reviews.train_dataloader()))):
        for better, worse in pairwise(ratings[text] for text in row):
            assert max(better) >= min(worse) + 1


def test_groups_are_drawn_anew_every_epoch_and_again_alike(reviews):
    loader = reviews.train_dataloader()
    epochs = [
        {frozenset(row) for i in range(len(loader)) for row in answers(reviews, loader.batch_at(e, i))} for e in (0, 1)
    ]
    assert not epochs[0] & epochs[1]
    again = {frozenset(row) for i in range(len(loader)) for row in answers(reviews, loader.batch_at(0, i))}
    assert again == epochs[0]


def test_validation_is_the_same_in_every_pass_and_for_every_seed(reviews):
    other = RewardDataModule(k=3, batch_size=8, context=64, seed=5)
    other.setup("fit")
    passes = [
        [answers(reviews, batch) for batch in loader] for loader in (reviews.val_dataloader(), other.val_dataloader())
    ]
    assert passes[0] == passes[1]


def test_demonstrations_are_good_and_closed(reviews):
    batches = reviews.demonstrations()
    assert sum(len(batch.tokens) for batch in batches) > 400
    tokens = batches[0].tokens[0, : batches[0].lengths[0]].tolist()
    assert tokens[-1] == reviews.tokenizer.eos_id
    assert reviews.tokenizer.decode(tokens).startswith("Write a positive sentence about a film.\n")


def test_rows_of_unequal_width_and_the_best_as_demonstrations(tmp_path):
    rows = [
        {"prompt": "p\n", "responses": ["a", "b", "c"], "ranking": [2, 1, 2]},
        {"prompt": "q\n", "chosen": "d", "rejected": "e"},
    ]
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    again = tmp_path / "b.jsonl"
    again.write_text(source.read_text() + "\n")
    data = RewardDataModule(str(source), str(again), cache_dir=str(tmp_path), batch_size=2)
    data.setup("fit")
    (batch,) = data.val_dataloader()
    assert sorted(map(tuple, answers(data, batch))) == [("b", "a", "c"), ("d", "e")]
    assert sorted(batch.mask.sum(1).tolist()) == [2, 3]
    (good,) = data.demonstrations()
    assert sorted(data.tokenizer.decode(row[:3].tolist()) for row in good.tokens) == ["p\nb", "q\nd"]


def test_answers_that_do_not_fit_are_left_out(caplog):
    tokenizer = Tokenizer.gpt2()
    rows = [
        {"prompt": "p", "responses": [" a", " b" * 20, " c"], "ranking": [1, 2, 3]},
        {"prompt": "p", "responses": [" a", " b" * 20, " c"], "ranking": [1, 2, 1]},
    ]
    examples = Comparisons(lambda epoch: rows, tokenizer, 10, "train")
    assert len(examples) == 1
    assert examples.batch(0, np.array([0])).ranks.tolist() == [[1, 3]]
    assert "of 2 rows, 1 are left out" in caplog.text
    with pytest.raises(UserError, match="train: found no row that fits a context of 3"):
        Comparisons(lambda epoch: rows[1:], tokenizer, 3, "train")


def test_an_answer_has_one_number_in_every_epoch_and_its_prompt_ends_where_it_does(reviews):
    """The numbers of the batches, as those who look something up by them find it."""
    examples = reviews.train_examples
    prompt = len(reviews.tokenizer.encode("Write a positive sentence about a film.\n"))
    for epoch, index in ((0, 0), (3, 7), (8, 1)):
        batch = examples.batch(epoch, np.arange(index, index + 4))
        assert set(batch.prompt_lengths.tolist()) == {prompt}
        for place, number, exists in zip(
            batch[2].flatten(), batch.numbers.flatten(), batch.mask.flatten(), strict=True
        ):
            if exists:
                row = batch.tokens[place, : batch.lengths[place]]
                assert row.tolist() == examples.answers[number].tokens.tolist()
    texts = [answer.tokens.tobytes() for answer in examples.answers]
    assert len(set(texts)) == len(texts)


def test_an_answer_that_does_not_fit_has_no_number():
    rows = [{"prompt": "p", "responses": [" b" * 20, " c", " a", " c"], "ranking": [1, 3, 2, 3]}]
    examples = Comparisons(lambda epoch: rows, Tokenizer.gpt2(), 10, "train")
    batch = examples.batch(0, np.array([0]))
    assert (batch.numbers.tolist(), len(examples.answers)) == ([[0, 1, 0]], 2)


def test_a_batch_of_nothing_has_no_prompt(reviews):
    batch = reviews.validation_examples.batch(0, np.array([], dtype=np.int64))
    assert (len(batch.mask), batch.tokens.shape, batch.lengths.tolist()) == (0, (1, 1), [1])


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_same_answers_ranked_the_other_way_are_counted_as_shared(tmp_path, caplog):
    """Labels are ignored, and for comparisons the order of the answers is one."""
    answers = [{"prompt": f"p{i}", "chosen": "good", "rejected": "bad"} for i in range(3)]
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in answers[:2]]
    fresh = [{"prompt": "p0", "chosen": "good", "rejected": "other"}]
    train, validation = write(tmp_path / "a.jsonl", answers), write(tmp_path / "b.jsonl", swapped + fresh)
    data = RewardDataModule(train, validation)
    data.prepare_data()
    data.setup("fit")
    assert [record.getMessage() for record in caplog.records] == [
        f"{validation}: 2 of 3 validation rows are in the training rows too"
    ]


def test_predictions_come_in_the_order_of_the_rows(tmp_path):
    rows = [{"prompt": "p", "chosen": "a" + " a" * n, "rejected": "b"} for n in (9, 1, 5, 3, 7)]
    data = RewardDataModule("reviews", write(tmp_path / "a.jsonl", rows), batch_size=2)
    data.setup("predict")
    found = [int(batch.lengths[index[0]]) - 3 for batch in data.predict_dataloader() for index in batch[2]]
    assert found == [9, 1, 5, 3, 7]
    assert sorted(found) == [int(b.lengths[i[0]]) - 3 for b in data.val_dataloader() for i in b[2]]


def test_the_reviews_validate_in_pairs_however_they_are_named():
    named, unnamed = (RewardDataModule(validation=source, k=4).rows()[1] for source in ("reviews", None))
    assert named == unnamed
    assert {len(row["responses"]) for row in named} == {2}


# Votes: who ranked, in which round


def vote(prompt, labeler, number, ranking=(1, 2, 3), **more):
    texts = [f"{word} {prompt}" for word in ("good", "fair", "bad")]
    named = {"labeler": labeler, "round": number} if labeler else {}
    return {"prompt": f"p{prompt}", "responses": texts, "ranking": list(ranking), **named, **more}


@pytest.fixture
def votes(tmp_path):
    """60 prompts: ann ranks all of them, in two rounds; ben every third one, in the second; 5 votes name nobody."""
    rows = [vote(i, "ann", 1 + i % 2, scores=[7, 5, None]) for i in range(60)]
    rows += [vote(i, "ben", 2, (3, 1, 2)) for i in range(1, 60, 3)]
    return write(tmp_path / "votes.jsonl", rows + [vote(100 + i, None, 0) for i in range(5)])


def opened(source, **settings):
    data = RewardDataModule(source, **{"batch_size": 1000, "validation_fraction": 0.3, **settings})
    data.prepare_data()
    data.setup("fit")
    return data


def test_who_ranked_and_when_reaches_the_batch(votes):
    data = opened(votes)
    (batch,) = data.val_dataloader()
    names = {number: name for name, number in data.held_out_labelers.items()} | {-1: None}
    found = [
        (names[who], number, scores)
        for who, number, scores in zip(
            batch.labelers.tolist(), batch.rounds.tolist(), batch.scores.tolist(), strict=True
        )
    ]
    _, held_out = data.rows()
    expected = [
        (row.get("labeler"), row.get("round", -1), [s or 0 for s in row.get("scores", [0] * 3)]) for row in held_out
    ]
    assert sorted(found, key=str) == sorted(expected, key=str)
    assert {who for who, _, _ in found} == {"ann", "ben", None}


def test_a_score_goes_with_its_answer_and_ranks_are_of_whatever_size():
    rows = [vote(0, "ann", 3, (10**30, 7, 9), scores=[1, None, 7])]
    rows[0]["responses"][1] += " b" * 40
    examples = Comparisons(lambda epoch: rows, Tokenizer.gpt2(), 20, "train")
    batch = examples.batch(0, np.array([0]))
    assert (batch.ranks.tolist(), batch.scores.tolist()) == ([[3, 2]], [[1, 7]])
    assert (batch.rounds.tolist(), batch.labelers.tolist(), examples.labelers) == ([3], [0], {"ann": 0})


def counted(part):
    return {(row["labeler"], row["round"]): row["votes"] for row in part["votes"]}


def test_a_run_can_say_which_votes_it_sees(votes):
    data = opened(votes)
    seen = data.votes()
    digest = sha256(Path(votes).read_bytes()).hexdigest()
    for name, rows in zip(("train", "validation"), data.rows(), strict=True):
        assert counted(seen[name]) == Counter((row.get("labeler"), row.get("round")) for row in rows)
        assert (seen[name]["source"], seen[name]["sha256"]) == (votes, {votes: digest})
    assert sum(map(sum, (counted(part).values() for part in seen.values()))) == 85


def test_the_reviews_are_votes_of_nobody(reviews):
    (part,) = reviews.votes()["train"]["votes"]
    assert (part["round"], part["labeler"]) == (None, None)
    assert reviews.votes()["train"]["sha256"] == {}


def test_trained_on_the_votes_that_are_chosen_and_measured_on_all(votes):
    everybody = opened(votes)
    held_out = counted(everybody.votes()["validation"])
    for chosen, kept in [
        ({"labelers": ["ben"]}, [("ben", 2)]),
        ({"rounds": [1]}, [("ann", 1)]),
        ({"labelers": ["ann", "ben"], "rounds": [2]}, [("ann", 2), ("ben", 2)]),
    ]:
        data = opened(votes, **chosen)
        assert counted(data.votes()["train"]) == {key: counted(everybody.votes()["train"])[key] for key in kept}
        assert counted(data.votes()["validation"]) == held_out
        learnt = {row["prompt"] for row in data.rows()[0]}
        assert learnt < {row["prompt"] for row in everybody.rows()[0]}


@pytest.mark.parametrize(
    ("chosen", "line"),
    [
        ({"labelers": ["ann", "eve"]}, "data.labelers: found 'eve', expected 'ann', 'ben'"),
        ({"rounds": [3]}, "data.rounds: found 3, expected 1, 2"),
        (
            {"labelers": ["ben"], "rounds": [1]},
            "data.labelers: found no vote of 'ben' in the rounds 1, expected some that have voted there",
        ),
    ],
)
def test_a_choice_that_nobody_meets_is_refused(votes, chosen, line):
    with pytest.raises(UserError) as refused:
        opened(votes, **chosen)
    assert str(refused.value) == line


def test_rows_that_name_nobody_have_nothing_to_choose_from(tmp_path):
    source = write(tmp_path / "a.jsonl", [vote(i, None, 0) for i in range(30)])
    with pytest.raises(UserError, match=r"^data\.rounds: found 1, expected rows that say their round$"):
        opened(source, rounds=[1])
    rows = [vote(i, f"labeler {i:02}", 1) for i in range(30)]
    with pytest.raises(UserError, match=r"expected 'labeler \d+', .* and \d+ more$") as refused:
        opened(write(tmp_path / "b.jsonl", rows), labelers=["eve"])
    assert str(refused.value).count("labeler ") == 9


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"labelers": ["ann"]},
            "labelers: found ['ann'] beside reviews, which no labeler of a round has ranked, where",
        ),
        ({"rounds": [1]}, "rounds: found [1] beside reviews, which no labeler of a round has ranked, where"),
        ({"train": "a.jsonl", "rounds": []}, "rounds: found [], expected at least one, or null for all"),
        ({"train": "a.jsonl", "labelers": []}, "labelers: found [], expected at least one, or null for all"),
    ],
)
def test_a_choice_without_effect_is_refused(settings, line):
    with pytest.raises(UserError) as refused:
        RewardDataModule(**settings)
    assert str(refused.value).startswith(line)


def test_a_run_sees_one_state_of_a_store_that_grows(tmp_path):
    """Somebody votes on while the model is trained: the zero point at the end is that of the beginning."""
    path = tmp_path / "c.db"
    with ComparisonStore.create(path) as store:
        number = store.round_of("first")
        store.add_labeler("ann", "person")

        def judge(task, ranks):
            answers = store.task(task).answers
            judged = {answer.id: Judgement(rank) for answer, rank in zip(answers, ranks, strict=True)}
            store.vote(Vote(task, "ann", judged, f"{task} {ranks}"))

        for i in range(60):
            store.add_task(number, f"prompt {i}", [Answer(f"{text} {i}", Source("m")) for text in ("a", "b")])
            judge(i + 1, [1, 2])
        data = opened(str(path))
        before = (data.rows(), data.demonstrations(), data.votes(), dict(data.content), votes_digest(path))
        for i in range(60):
            judge(i + 1, [2, 1])
        assert before[:3] == (data.rows(), data.demonstrations(), data.votes())
        assert data.votes()["train"]["sha256"] == {str(path): before[4]}
        later = opened(str(path))
        assert (later.rows(), later.content["train"]) != (before[0], before[3]["train"])
        assert later.votes()["validation"]["sha256"] == {str(path): votes_digest(path)}


@pytest.mark.parametrize("template", ["ours", "llama3", "qwen3"])
def test_conversations_have_the_ids_that_the_assistant_is_asked_with(tmp_path, template):
    """In comparisons, demonstrations and prompts of reinforcement learning alike, over the hard corpus."""
    of = ChatTemplate(chats.TEMPLATES[template], tuple(chats.NAMES.items()))
    tokenizer = Tokenizer(chats.byte_level(), "</s>", of)
    asked = [*chats.conversations([*chats.PLAIN[:-1], *chats.HARD])]
    rows = [{"messages": messages, "responses": ["Yes", " [/INST]"], "ranking": [1, 2]} for messages in asked]
    comparisons = Comparisons(lambda epoch: rows, tokenizer, 4096, "x")
    ids = encode_conversations(asked, tokenizer)
    answers = {tuple(answer.tokens[: answer.prompt_length]) for answer in comparisons.answers}
    assert answers == {*map(tuple, ids)}
    assert {int(answer.tokens[-1]) for answer in comparisons.answers} == {tokenizer.turns.end}
    prompts = encode_prompts([{"messages": messages} for messages in asked], tokenizer, None, "x")
    assert [tokens.tolist() for tokens in prompts.tokens] == ids


def test_a_store_is_read_as_rows_of_chosen_and_rejected_are(tmp_path):
    """Ids are byte for byte those of the rows, also by way of an export."""
    asked, pair = [*chats.conversations(chats.HARD)][::5], ("Yes", " [/INST]")
    with ComparisonStore.create(tmp_path / "c.db") as store:
        store.add_labeler("ann", "person")
        for number in range(1, len(asked) + 1):
            store.add_task(store.round_of("first"), asked[number - 1], [Answer(text, Source("m")) for text in pair])
            judged = {a.id: Judgement(rank) for a, rank in zip(store.task(number).answers, (1, 2), strict=True)}
            store.vote(Vote(number, "ann", judged, str(number)))
        write(tmp_path / "votes.jsonl", exported(store.rankings()))
    rows = [{"messages": messages, "chosen": pair[0], "rejected": pair[1]} for messages in asked]
    write(tmp_path / "rows.jsonl", rows)
    tokenizer = Tokenizer(chats.byte_level(), "</s>", ChatTemplate(chats.LLAMA3, tuple(chats.NAMES.items())))
    found = []
    for name in ("rows.jsonl", "c.db", "votes.jsonl"):
        rows = load_rows(str(tmp_path / name), "train", "reward")
        found.append(Comparisons(lambda epoch, rows=rows: rows, tokenizer, 4096, name))
    ids = [[(answer.tokens.tolist(), answer.prompt_length) for answer in of.answers] for of in found]
    ranks = [[row.ranks for row in of._of(0)] for of in found]
    assert ids[0] == ids[1] == ids[2]
    assert len(ids[0]) == 2 * len(asked)
    assert ranks[0] == ranks[1] == ranks[2]


def test_demonstrations_of_conversations_score_their_last_answer(tmp_path):
    source = tmp_path / "a.jsonl"
    said = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    rows = [{"messages": said[:1], "chosen": f"{i}", "rejected": "no"} for i in range(40)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "d.jsonl").write_text(json.dumps({"messages": [*said, *said]}) + "\n")
    (tmp_path / "v.jsonl").write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    data = RewardDataModule(
        str(source), str(tmp_path / "v.jsonl"), cache_dir=str(tmp_path), demonstrations=str(tmp_path / "d.jsonl")
    )
    data.setup("fit")
    (batch,) = data.demonstrations()
    prompt = encode_conversation([*said, *said[:1]], data.tokenizer)
    assert batch.tokens[0].tolist() == [*prompt, *data.tokenizer.encode(" So."), data.tokenizer.eos_id]
