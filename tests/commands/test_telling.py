"""An answer piece by piece: the one that a batch of commands gives, cut by Ctrl-C where a person says so."""

import pytest

from gpt_modules.backbone import load_pretrained
from gpt_modules.commands.speaker import Prompt, Sampling, Speaker
from gpt_modules.commands.telling import Telling, Voice, write
from gpt_modules.data.rows.chat import encode_conversation

TURNS = [{"role": "user", "content": "the film"}]


@pytest.fixture
def speaker(micro):
    model = load_pretrained(str(micro.gpt), kind="gpt").double().eval()
    return Speaker(model, micro.tokenizer, Sampling(12))


@pytest.mark.parametrize("seed", range(5))
def test_pieces_joined_are_the_answer_of_other_commands(speaker, seed):
    sampling = Sampling(12, temperature=0.8, seed=seed)
    ids = speaker.tokenizer.encode("the film")
    telling = Telling(speaker, sampling, ids, "1")
    text = "".join(telling)
    (answer,) = Speaker(speaker.model, speaker.tokenizer, sampling).answers([Prompt(ids, "1", "")])
    assert (text, telling.ended) == (answer.text.lstrip(), answer.ended)


def test_a_voice_says_it_as_it_comes(speaker, capsys):
    text, _ = Voice("m", speaker, "A").answer(TURNS, Sampling(6), "1")
    assert capsys.readouterr().out.strip() == f"A: {text}"
    ids = encode_conversation(TURNS, speaker.tokenizer)
    assert text == "".join(Telling(speaker, Sampling(6), ids, "1")).strip()


def test_what_is_stopped_is_kept_as_far_as_it_came(speaker, capsys, monkeypatch):
    def stopped(self):
        yield "so "
        yield "far"
        raise KeyboardInterrupt

    monkeypatch.setattr(Telling, "__iter__", stopped)
    assert Voice("m", speaker).answer(TURNS, Sampling(6), "1") == ("so far", False)
    said = capsys.readouterr()
    assert said.out == "so far ...\n"
    assert said.err.startswith(
        "cut off (/set max_new_tokens, /retry): what is said next is answered as if it had ended"
    )


def test_turns_that_are_not_read_are_told(speaker, capsys):
    turns = [*TURNS, {"role": "assistant", "content": "good"}] * 6 + TURNS
    Voice("m", speaker).answer(turns, Sampling(6), "1")
    assert " turns are not read: there is room for 26 tokens" in capsys.readouterr().err


def test_what_a_stream_cannot_say_is_escaped(capsys, monkeypatch):
    import io
    import sys

    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    write("né")
    out.seek(0)
    assert out.read() == "n\\xe9"
