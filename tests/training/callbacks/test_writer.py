"""Tables for TensorBoard's text tab."""

import threading

import pytest

from gpt_modules.errors import UserError
from gpt_modules.training.callbacks.dashboard import RunLogger
from gpt_modules.training.callbacks.writer import markdown_table, tell_full_disk_once


def test_a_table_in_markdown():
    rows = [{"prompt": "a|b", "answer": "one\ntwo"}]
    assert markdown_table(rows).splitlines() == ["| prompt | answer |", "| --- | --- |", "| a\\|b | one ⏎ two |"]
    assert markdown_table([]) == ""


def test_a_disk_that_is_full_before_the_first_curve_is_one_line(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", full)
    logger = RunLogger(tmp_path, name="", version="")
    with pytest.raises(UserError, match=r"could not be written \(No space left on device, .* MB free\), expected room"):
        _ = logger.experiment
    assert capsys.readouterr().err == ""


def test_a_thread_of_somebody_else_is_heard(monkeypatch):
    heard = []
    monkeypatch.setattr(threading, "excepthook", heard.append)
    tell_full_disk_once()
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    assert [found.exc_type for found in heard] == [ZeroDivisionError]


def test_a_full_disk_ends_the_curves_and_not_the_run(fit, parts, tmp_path, monkeypatch):
    logger = RunLogger(tmp_path, name="", version="")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(logger.experiment.file_writer.event_writer.add_event, "method", full)
    with pytest.warns(UserWarning, match=r"the curves end here, the run goes on: .*No space left") as told:
        trainer = fit(*parts(), max_steps=3, logger=logger)
    assert trainer.global_step == 3
    assert sum("curves end here" in str(warning.message) for warning in told) == 1
