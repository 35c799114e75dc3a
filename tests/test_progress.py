"""How far it is, said on stderr: a line now and then, by a clock of our own."""

import pytest

from gpt_modules import progress
from gpt_modules.progress import Meter


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_half_minute(clock, capsys):
    with Meter("quiz, 2 shots", 5000) as meter:
        for seconds, part in ((0, 0.0), (29, 0.1), (30, 0.25), (45, 0.3), (7230, 0.5), (7300, 1.0)):
            clock[0] = 1000.0 + seconds
            meter.update(part)
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err == (
        "quiz, 2 shots: 1,250 of 5,000 items, about 0:01:30 left\n"
        "quiz, 2 shots: 2,500 of 5,000 items, about 2:00:30 left\n"
    )


def test_what_is_quick_says_nothing(clock, capsys):
    with Meter("quiz", 3) as meter:
        meter.update(1.0)
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal_goes_when_it_is_done(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with Meter("quiz, 0 shots", 8) as meter:
        assert meter.bar is not None
        meter.update(0.5)
        meter.bar.refresh()
        assert (meter.bar.tasks[0].completed, meter.bar.tasks[0].total) == (4, 8)
    assert meter.bar.finished is False
    assert "quiz, 0 shots" in capsys.readouterr().err
