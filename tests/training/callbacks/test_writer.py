"""Tables for TensorBoard's text tab."""

import threading

import lightning.pytorch as L
import pytest

from gpt_modules.errors import UserError
from gpt_modules.training.callbacks.dashboard import RunLogger
from gpt_modules.training.callbacks.writer import at_log_step, markdown_table, tell_full_disk_once


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


def test_a_batch_that_only_accumulates_is_at_no_log_step(fit, parts):
    """Though the step before it was one: what is read there waits for the device."""

    found = []

    class Asks(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            found.append(at_log_step(trainer))

    fit(
        *parts(),
        callbacks=[Asks()],
        accumulate_grad_batches=2,
        log_every_n_steps=2,
        limit_train_batches=4,
        max_epochs=2,
    )
    assert found == [False, False, False, True] * 2
