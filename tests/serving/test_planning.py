"""What a request becomes: ids, rules, and noise that is a function of the seed and the choice's place."""

import pytest

from gpt_modules.data.rows.chat import encode_conversation
from gpt_modules.errors import TooLong
from gpt_modules.serving.requests import Chat, Completion
from gpt_modules.storage.documents import typed


def completion(**more):
    return typed(Completion, {"model": "tiny", **more})


def test_prompts_are_ids_texts_or_nothing(server):
    rows = [choice.row for choice in server.speaker.completion(completion(prompt=["the film", ""]))]
    assert [row.prompt for row in rows] == [server.tokenizer.encode("the film"), [server.tokenizer.eos_id]]
    assert [choice.row.prompt for choice in server.speaker.completion(completion(prompt=[5, 6]))] == [[5, 6]]


def test_a_conversation_is_as_it_was_trained_on(server):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<|endoftext|>?"}]
    (choice,) = server.speaker.chat(typed(Chat, {"model": "tiny", "messages": turns}))
    assert choice.row.prompt == encode_conversation(turns, server.tokenizer)
    assert server.tokenizer.eos_id not in choice.row.prompt
    assert len(choice.row.prompt) + choice.row.most == 96  # as long as there is room
    assert choice.row.ends == {server.tokenizer.eos_id}


def test_log_probabilities_where_they_are_asked_for(server):
    (plain,) = server.speaker.completion(completion(prompt="a", echo=True))
    (told,) = server.speaker.completion(completion(prompt="a", echo=True, logprobs=2))
    assert (plain.row.top, plain.row.echo) == (None, False)
    assert (told.row.top, told.row.echo) == (2, True)


def test_no_room(server):
    with pytest.raises(TooLong, match="found 90 tokens and 7 to say, expected at most 96 together"):
        server.speaker.completion(completion(prompt=[1] * 90, max_tokens=7))


@pytest.mark.parametrize(("said", "most"), [(10, 16), (80, 16), (90, 6), (95, 1)])
def test_a_completion_of_usual_length_ends_where_the_context_does(server, said, most):
    found = server.speaker.completion(completion(prompt=[[1] * said, [1]]))
    assert [choice.row.most for choice in found] == [most, most]


def test_more_messages_than_tokens_are_refused_before_the_template(server, monkeypatch):
    monkeypatch.setattr("gpt_modules.serving.planning.encode_conversation", None)
    turns = [{"role": "user", "content": "a"}] * 97
    with pytest.raises(TooLong, match="messages: found 97 messages, expected fewer than 96 tokens"):
        server.speaker.chat(typed(Chat, {"model": "tiny", "messages": turns}))


def test_noise_is_of_the_seed_and_the_place(server):
    def texts(**more):
        found = server.ask("completions", prompt=["the film", "the film"], n=2, max_tokens=12, **more)
        return [choice["text"] for choice in found["choices"]]

    first = texts(seed=5)
    assert first == texts(seed=5)
    assert len(set(first)) == 4
    assert texts(seed=6) != first
    assert texts() != texts()
