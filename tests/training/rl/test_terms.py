"""Terms of a reward: models on ids and through text, functions with what they ask for."""

import dataclasses
import json
import math
import sys
import types

import chats
import pytest
import torch
from conftest import shaken

from gpt_modules.backbone import RewardModel, load_pretrained, save_pretrained
from gpt_modules.data.rows.chat import encode_conversation, encode_exchanges
from gpt_modules.data.text.chat_template import ChatTemplate
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError
from gpt_modules.feedback.labelers import function_scorer
from gpt_modules.training.rl import terms
from gpt_modules.training.rl.rewards import RewardSource
from gpt_modules.training.rl.sequences import Sequences
from gpt_modules.training.rl.terms import FunctionScores, ModelScores, check_tokenizer

PAIRS = [("the film", " is good.", True), ("a story", " is bad", False), ("its cast 7", " so.", True)]


def as_is(model):
    """On the CPU in float32, where models are read to."""
    return model


def sequences_of(tokenizer, pairs=PAIRS, end=None):
    """Prompts and responses in a policy's tokens; after those that ended stands `end`, or the end-of-text token."""
    ids = [(tokenizer.encode(p), tokenizer.encode(r)) for p, r, _ in pairs]
    stop = [tokenizer.eos_id] if end is None else end
    rows = [[*p, *r, *(stop if ended else [])] for (p, r), (*_, ended) in zip(ids, pairs, strict=True)]
    tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for line, row in zip(tokens, rows, strict=True):
        line[: len(row)] = torch.tensor(row)
    starts, lengths = torch.tensor([len(p) for p, _ in ids]), torch.tensor(list(map(len, rows)))
    return Sequences(
        tokens, starts, lengths, torch.tensor([ended for *_, ended in pairs]), 10 + torch.arange(len(rows))
    )


def by_hand(folder, tokenizer, pairs=PAIRS):
    """A reward model's scores of texts, one at a time, each with the end token where it ended."""
    model, scores = load_pretrained(folder, kind="reward").eval(), []
    for prompt, response, ended in pairs:
        ids = [*tokenizer.encode(prompt), *tokenizer.encode(response), *[tokenizer.eos_id] * ended]
        with torch.no_grad():
            scores.append(model(torch.tensor([ids]), torch.tensor([len(ids)])).item())
    return scores


@pytest.fixture
def foreign(micro, tmp_path):
    """A reward model with a tokenizer of its own, whose end token has another id."""
    tokenizer = Tokenizer.train(["the film is good and entirely other words stand here, again and again"] * 5, 290)
    assert tokenizer.eos_id != micro.tokenizer.eos_id
    model = shaken(RewardModel(micro.config()), 3)
    save_pretrained(tmp_path / "foreign", model, tokenizer_json=tokenizer.to_json())
    return tmp_path / "foreign", tokenizer


def test_another_tokenizers_model_reads_texts_in_its_own_tokens_and_one_line_says_so(micro, foreign, caplog):
    folder, theirs = foreign
    scores = ModelScores(str(folder), micro.tokenizer, as_is)
    assert scores.through_text
    expected = by_hand(folder, theirs)
    assert scores(sequences_of(micro.tokenizer)).tolist() == pytest.approx(expected, abs=1e-4)
    assert len({round(score, 2) for score in expected}) == 3
    (line,) = caplog.messages
    assert line == f"{folder}: its tokenizer is not the policy's: it reads texts, encoded anew in its own tokens"


def test_the_policys_own_tokenizer_stays_on_ids_and_texts_would_score_the_same(micro, monkeypatch, caplog):
    on_ids = ModelScores(str(micro.reward), micro.tokenizer, as_is)
    assert not on_ids.through_text
    monkeypatch.setattr(terms, "texts", None)
    found = on_ids(sequences_of(micro.tokenizer))
    monkeypatch.undo()
    monkeypatch.setattr(ModelScores, "through_text", True)
    assert torch.allclose(on_ids(sequences_of(micro.tokenizer)), found, atol=1e-5)
    assert found.tolist() == pytest.approx(by_hand(micro.reward, micro.tokenizer), abs=1e-4)
    assert not caplog.messages


@pytest.mark.parametrize("end", [[], [40]])
def test_after_a_response_that_another_token_ended_the_end_token_is_read(micro, end):
    """As in its training, where every answer ends with it; not after one that was cut off."""
    scores = ModelScores(str(micro.reward), micro.tokenizer, as_is)
    pairs = [(p, r + micro.tokenizer.decode(end) * ended, ended) for p, r, ended in PAIRS]
    expected = by_hand(micro.reward, micro.tokenizer, pairs)
    assert scores(sequences_of(micro.tokenizer, end=end)).tolist() == pytest.approx(expected, abs=1e-4)


def test_a_text_that_is_longer_in_its_tokens_than_its_context_is_refused(micro, foreign):
    folder, _ = foreign
    scores = ModelScores(str(folder), micro.tokenizer, as_is)
    long = [("zq" * 20, " is good.", True)]
    line = rf"^rewards: {folder}: found \d\d of its tokens of an answer to 'zq.*expected at most its context of 32; "
    with pytest.raises(UserError, match=line):
        scores(sequences_of(micro.tokenizer, long))
    prompts = [micro.tokenizer.encode(text) for text in ("the film", "zq" * 16)]
    with pytest.raises(UserError, match=r"found 34 of its tokens of the prompt 'zq"):
        scores.check_prompts(prompts)
    scores.check_prompts([micro.tokenizer.encode("zq" * 15)])
    ModelScores(str(micro.reward), micro.tokenizer, as_is).check_prompts(prompts)


def test_the_tokens_of_labelled_rows_make_no_other_tokenizer(micro, tmp_path):
    """They add ids at the end; no text is read otherwise."""
    theirs = micro.tokenizer.with_task_tokens()
    model = RewardModel(micro.config(vocab_size=theirs.vocab_size))
    save_pretrained(tmp_path / "reward", model, tokenizer_json=theirs.to_json())
    assert not ModelScores(str(tmp_path / "reward"), micro.tokenizer, as_is).through_text
    check_tokenizer(str(tmp_path / "reward"), micro.tokenizer)


def test_a_model_whose_ids_are_taken_as_they_are_has_the_same_tokenizer(micro, foreign):
    with pytest.raises(
        UserError, match=r"foreign/tokenizer\.json: differs from the policy's tokenizer, expected the s"
    ):
        check_tokenizer(str(foreign[0]), micro.tokenizer)


# --- functions ---


@dataclasses.dataclass
class Table:
    """Columns of rows that are counted from 10."""

    rows: list[dict[str, object]]

    def columns(self):
        names = {name for row in self.rows for name in row}
        return {name: sum(name not in row for row in self.rows) for name in sorted(names)}

    def column(self, name, rows):
        return [self.rows[row - 10][name] for row in rows]


TABLE = Table([{"answer": f"a{i}", "level": i, **({"rare": 1} if i else {})} for i in range(3)])


@pytest.fixture
def functions(monkeypatch):
    module = types.ModuleType("users_rewards")
    monkeypatch.setitem(sys.modules, "users_rewards", module)
    return module


def score(functions, micro, function, data=TABLE, end=None):
    """What it is called with, and its scores."""
    functions.score = function
    return FunctionScores("users_rewards:score", micro.tokenizer, data)(sequences_of(micro.tokenizer, end=end)).tolist()


def test_a_function_reads_texts_without_the_end_token(functions, micro):
    found = []
    score(functions, micro, lambda prompts, responses: found.append((prompts, responses)) or [0.0] * 3)
    assert found == [([prompt for prompt, *_ in PAIRS], [response for _, response, _ in PAIRS])]


def test_what_a_function_asks_for_by_name_it_gets_for_each_response(functions, micro):
    found = []

    def everything(prompts, responses, level, token_ids, *, ended, answer, prompt_token_ids, strict=True, **others):
        found.append((level, token_ids, ended, answer, prompt_token_ids, strict, others))
        return [float(value) for value in level]

    assert score(functions, micro, everything) == [0.0, 1.0, 2.0]
    encode, eos = micro.tokenizer.encode, micro.tokenizer.eos_id
    ids = [[*encode(response), *[eos] * ended] for _, response, ended in PAIRS]
    prompts = [encode(prompt) for prompt, *_ in PAIRS]
    assert found == [([0, 1, 2], ids, [True, False, True], ["a0", "a1", "a2"], prompts, True, {})]


def test_a_function_of_any_columns_gets_all_that_every_row_has(functions, micro):
    found = []
    score(functions, micro, lambda prompts, responses, **columns: found.append(columns) or [0.0] * 3)
    assert found[0].keys() == {"ended", "token_ids", "prompt_token_ids", "answer", "level"}
    assert found[0]["answer"] == ["a0", "a1", "a2"]


def test_what_a_function_does_to_its_columns_is_seen_by_no_other_answer(functions, micro):
    data = Table([{"keys": ["x", "y"]}] * 3)  # one object, as the answers to one prompt have

    def taking(prompts, responses, keys):
        return [float(len(one)) - len(one.pop()) for one in keys]

    assert score(functions, micro, taking, data) == score(functions, micro, taking, data) == [1.0] * 3


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (lambda prompts, responses, anwser: [],
         "asks for 'anwser', expected arguments of prompts, responses, ended, token_ids, prompt_token_ids, answer, "
         "level; did you mean answer?"),
        (lambda prompts, responses, rare: [],
         "asks for 'rare', which 1 rows of training and validation lack, expected a column that every row has"),
        (lambda prompts, responses, rare=None: [],
         "asks for 'rare', which 1 rows of training and validation lack, expected a column that every row has"),
        (lambda responses, prompts: [],
         "takes (responses, prompts), expected prompts and responses as its first two arguments"),
        (lambda completions, answer: [],
         "takes (completions, answer), expected prompts and responses as its first two arguments"),
        (lambda prompts, **kw: [], "takes (prompts, kw), expected prompts and responses as its first two arguments"),
        (lambda: [], "takes (no arguments), expected prompts and responses as its first two arguments"),
    ],
)  # fmt: skip
def test_what_is_no_argument_here_is_refused_before_the_first_call(functions, micro, function, line):
    functions.score = function
    with pytest.raises(UserError) as error:
        FunctionScores("users_rewards:score", micro.tokenizer, TABLE)
    assert str(error.value) == f"rewards: users_rewards:score {line}"


def test_a_column_of_a_name_that_answers_have_is_refused_where_it_is_asked_for(functions, micro):
    data = Table([{"ended": "never"}] * 3)
    line = r"asks for 'ended', which is a column of the data too, expected one of them$"
    with pytest.raises(UserError, match=line):
        score(functions, micro, lambda prompts, responses, ended: [0.0] * 3, data)
    assert score(functions, micro, lambda prompts, responses: [1.0] * 3, data) == [1.0] * 3


def test_a_function_whose_signature_is_not_known_gets_the_two(functions, micro):
    class Odd:
        __signature__ = 3

        def __call__(self, prompts, responses):
            return [0.5] * len(prompts)

    assert score(functions, micro, Odd()) == [0.5] * 3


def test_without_data_there_are_no_columns(functions, micro):
    assert score(functions, micro, lambda prompts, responses, ended: list(map(float, ended)), None) == [1.0, 0.0, 1.0]
    with pytest.raises(
        UserError, match="asks for 'answer', expected arguments of prompts, responses, ended, token_ids"
    ):
        score(functions, micro, lambda prompts, responses, answer: [], None)


class Asked:
    """Conversations as the data has them, by row."""

    def __init__(self, *conversations):
        self.conversations = conversations

    def columns(self):
        return {"messages": 0}

    def column(self, name, rows):
        return [self.conversations[i] for i in rows]


def test_a_function_reads_the_same_text_as_a_reward_and_as_a_labeler(functions, micro):
    """Whatever the policy's template writes between turns: the rule that ranked is the one that is optimised."""
    heard = []
    functions.score = lambda prompts, responses: heard.append(prompts) or [0.0] * len(prompts)
    told = [{"role": "assistant", "content": "So."}, {"role": "user", "content": "?"}]
    asked = [[{"role": "user", "content": text}, *told] for text, *_ in PAIRS]

    class From10(Asked):
        def column(self, name, rows):
            return super().column(name, [row - 10 for row in rows])

    FunctionScores("users_rewards:score", micro.tokenizer, From10(*asked))(sequences_of(micro.tokenizer))
    function_scorer("users_rewards:score").scores(asked, ["a"] * len(asked))
    FunctionScores("users_rewards:score", micro.tokenizer, TABLE)(sequences_of(micro.tokenizer))
    function_scorer("users_rewards:score").scores([text for text, *_ in PAIRS], ["a"] * len(PAIRS))
    assert heard[0] == heard[1]
    assert heard[2] == heard[3]
    assert all(micro.tokenizer.decode([micro.tokenizer.eos_id], skip_special=False) not in text for text in heard[0])
    assert all(text.endswith("Assistant:") for text in heard[0])


def chatting(template):
    return Tokenizer(chats.byte_level(), "</s>", ChatTemplate(chats.TEMPLATES[template], tuple(chats.NAMES.items())))


@pytest.mark.parametrize(("template", "ended"), [("chatml", True), ("llama3", True), ("llama3", False)])
def test_a_conversation_is_read_as_the_reward_model_has_learnt_it(micro, tmp_path, caplog, template, ended):
    """By its own template, whatever the policy's is; an answer that the policy's template ended is ended by its own."""
    policy, theirs = chatting("chatml"), chatting(template)
    model = shaken(RewardModel(micro.config(vocab_size=theirs.vocab_size, n_positions=128)), 3)
    save_pretrained(tmp_path / "reward", model, tokenizer_json=theirs.to_json(), chat=theirs.chat_files())
    messages = [{"role": "system", "content": "<|im_end|>"}, {"role": "user", "content": "Why?"}]
    prompt, answer = encode_conversation(messages, policy), policy.encode("So </s> it is.")
    ids = torch.tensor([[*prompt, *answer, *[policy.turns.end] * ended]])
    sequences = Sequences(
        ids, torch.tensor([len(prompt)]), torch.tensor([ids.shape[1]]), torch.tensor([ended]), torch.tensor([0])
    )
    scores = ModelScores(str(tmp_path / "reward"), policy, as_is, Asked(messages))
    (of,) = encode_exchanges([(messages, "So </s> it is.")], theirs)
    row = [*of.prompt, *(of.answer if ended else of.answer[:-1])]
    expected = load_pretrained(tmp_path / "reward", kind="reward").eval()(torch.tensor([row]), torch.tensor([len(row)]))
    assert scores(sequences).tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert scores.through_text == (template != "chatml")
    assert [line.split(": ", 1)[1].split(" is not")[0] for line in caplog.messages] == (
        ["its chat template"] if scores.through_text else []
    )


# --- in a run ---


@pytest.fixture
def asked(tmp_path, micro):
    """A file of prompts, each with the answer that is wanted."""
    rows = [{"prompt": f"the film {i}", "answer": f"{i % 7}"} for i in range(60)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "asked.jsonl")


def test_a_function_gets_the_column_of_each_prompts_own_row(fit, ppo, functions, asked):
    """Through shuffling, training and validation; and prompts of fit, validation and prediction alike."""
    seen = []

    def score(prompts, responses, answer):
        seen.extend(zip(prompts, answer, strict=True))
        return [float(a) for a in answer]

    functions.known = score
    module, data = ppo(rewards="users_rewards:known", monitors={"again": RewardSource(function="users_rewards:known")})
    data.train_source, data.validation_fraction = asked, 0.3
    trainer = fit(module, data, max_epochs=3)
    found = dict(trainer.callback_metrics)
    rows = trainer.predict(module, data)
    assert len(seen) > 60
    assert len(dict(seen)) > 20
    assert all(answer == str(int(prompt.split()[-1]) % 7) for prompt, answer in seen)
    assert all(row["score"] == int(row["prompt"].split()[-1]) % 7 for batch in rows for row in batch)
    assert found["val/again"] == found["val/score"]


def test_a_column_that_is_not_there_is_refused_before_the_first_answer(fit, ppo, functions, asked):
    functions.wrong = lambda prompts, responses, anser: [0.0] * len(prompts)
    module, data = ppo(rewards="users_rewards:wrong")
    data.train_source = asked
    module._score = None
    line = (
        r"^rewards: users_rewards:wrong asks for 'anser', expected .*prompt_token_ids, answer; did you mean answer\?$"
    )
    with pytest.raises(UserError, match=line):
        fit(module, data)


def test_a_reward_model_of_another_tokenizer_rewards_through_text(fit, ppo, micro, tmp_path, caplog):
    """The critic begins as the policy, whose tokens it reads; a prompt that leaves no room is refused at the start."""
    other = Tokenizer.train(["the film is good and this plot is bad"] * 5, 290)
    save_pretrained(tmp_path / "foreign", shaken(RewardModel(micro.config()), 3), tokenizer_json=other.to_json())
    module, data = ppo(rewards=str(tmp_path / "foreign"))
    trainer = fit(module, data)
    assert math.isfinite(trainer.callback_metrics["val/score"].item())
    assert module.learners.critic_folder == str(micro.gpt)
    assert sum("its tokenizer is not the policy's" in line for line in caplog.messages) == 1
    module, data = ppo(rewards=str(tmp_path / "foreign"))
    rows = [{"prompt": f"{i}" + " its cast" * 4} for i in range(60)]
    (tmp_path / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data.train_source = str(tmp_path / "odd.jsonl")
    with pytest.raises(UserError, match=r"foreign: found \d\d of its tokens of the prompt '\d+ its cast its cast"):
        fit(module, data)
