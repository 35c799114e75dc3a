"""The computing thread: what is told and when, who is turned away, who leaves, what a failure costs."""

import threading
import time

import pytest
import torch

from gpt_modules.backbone.decoding.batching import Batch, Row
from gpt_modules.backbone.decoding.generation import noise_of
from gpt_modules.backbone.decoding.step import SamplingRule
from gpt_modules.data.text.streaming import AnswerText
from gpt_modules.errors import UserError
from gpt_modules.serving.engine import Busy, Choice, Engine, Failed, Job, Late


class Listener:
    """What a job is told."""

    def __init__(self):
        self.told, self.done = [], threading.Event()

    def __call__(self, told):
        self.told.append(told)
        if isinstance(told, Exception) or any(piece.end for piece in told):
            self.done.set()

    @property
    def error(self):
        assert self.done.wait(10)
        return self.told[-1]


def choice(server, most=5, stops=(), ends=frozenset(), seed="x"):
    return Choice(Row([1, 2, 3], most, noise=noise_of(seed), ends=ends), AnswerText(server.tokenizer, stops))


def job(server, listener, streams=False, seconds=60.0, **more):
    return Job([choice(server, **more)], streams, time.monotonic() + seconds, listener)


def said(server, **more):
    listener = Listener()
    server.engine.submit(job(server, listener, **more))
    assert listener.done.wait(10)
    return listener.told


def test_pieces_come_one_by_one_or_together(server):
    streamed, whole = said(server, streams=True), said(server)
    assert len(streamed) == 5
    assert len(whole) == 1
    assert [piece for told in streamed for piece in told] == whole[0]
    assert [piece.end for piece in whole[0]] == [None] * 4 + ["length"]


def test_a_stop_ends_an_answer_before_its_length(server):
    text = "".join(piece.text for piece in said(server, most=40)[0])
    stop = text[len(text) // 2 :][:3]
    (pieces,) = said(server, most=40, stops=[stop])
    assert "".join(piece.text for piece in pieces) == text[: text.index(stop)]
    assert pieces[-1].end == "stop"
    assert len(pieces) < 40


def test_an_end_that_is_text_is_a_part_of_the_answer(server):
    """As where such an answer is learned or scored; the end token itself has none (`AnswerText`)."""
    first = server.model(torch.tensor([[1, 2, 3]]))[0, -1].argmax().item()
    listener = Listener()
    row = Row([1, 2, 3], 5, SamplingRule(0.0), ends=frozenset({first}))
    server.engine.submit(Job([Choice(row, AnswerText(server.tokenizer))], False, time.monotonic() + 9, listener))
    assert listener.done.wait(10)
    assert [(piece.text, piece.end) for piece in listener.told[0]] == [(server.tokenizer.decode([first]), "stop")]


class Held(Batch):
    """A batch whose turns wait to be let go."""

    def __init__(self, *args):
        super().__init__(*args)
        self.go, self.fails = threading.Event(), False

    def turn(self):
        assert self.go.wait(10)
        if self.fails:
            self.fails = False
            raise MemoryError("none left")
        return super().turn()


@pytest.fixture
def held(server):
    batch = Held(server.model, 1)
    engine = Engine(batch, queue=2)
    yield batch, engine
    batch.go.set()
    engine.close()


def until(fits):
    end = time.monotonic() + 10
    while not fits():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_a_full_queue_turns_away_and_forgets_nobody(server, held):
    batch, engine = held
    listeners = [Listener() for _ in range(3)]
    engine.submit(job(server, listeners[0]))
    until(lambda: engine.counts.rows == 1)
    for listener in listeners[1:]:
        engine.submit(job(server, listener))
    with pytest.raises(Busy):
        engine.submit(job(server, Listener()))
    batch.go.set()
    assert all(listener.done.wait(10) for listener in listeners)
    assert listeners[0].told == listeners[1].told == listeners[2].told


def test_who_leaves_frees_its_row(server, held):
    batch, engine = held
    gone, stays = Listener(), Listener()
    leaving = job(server, gone, most=90)
    engine.submit(leaving)
    engine.submit(job(server, stays))
    engine.cancel(leaving)
    engine.cancel(leaving)
    batch.go.set()
    assert stays.done.wait(10)
    until(lambda: engine.counts.rows == 0)
    assert gone.told == []
    assert (len(batch), batch.held_bytes, engine.counts.waiting) == (0, 0, 0)
    engine.cancel(leaving)  # when all is done
    assert engine.is_alive


def test_time_that_is_up(server, held):
    batch, engine = held
    slow, waits = Listener(), Listener()
    engine.submit(job(server, slow, most=90, seconds=0.05))
    engine.submit(job(server, waits, seconds=0.05))
    time.sleep(0.1)
    batch.go.set()
    assert isinstance(slow.error, Late)
    assert isinstance(waits.error, Late)
    until(lambda: engine.counts.rows == engine.counts.waiting == 0)


def test_a_turn_that_fails_is_told_and_the_next_goes_on(server, held):
    batch, engine = held
    batch.fails = True
    hit, spared = Listener(), Listener()
    engine.submit(job(server, hit))
    engine.submit(job(server, spared))
    batch.go.set()
    assert isinstance(hit.error, Failed)
    assert str(hit.error) == "MemoryError: none left"
    assert spared.error[-1].end == "length"


def test_at_the_end_those_at_work_are_told(server):
    engine, listener = Engine(Batch(server.model, 1), 2), Listener()
    engine.submit(job(server, listener, most=90))
    engine.submit(job(server, waits := Listener(), most=90))
    engine.close()
    assert isinstance(waits.error, Failed)
    assert not engine.is_alive
    with pytest.raises(Failed):
        engine.submit(job(server, Listener()))


def test_what_cannot_be_continued_waits_for_nothing(server):
    with pytest.raises(UserError, match="prompt: found 3 tokens and 94 to say, expected at most 96"):
        server.engine.submit(job(server, Listener(), most=94))
