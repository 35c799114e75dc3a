"""Tables for TensorBoard's text tab."""

import pytest

from gpt_modules.training.callbacks.dashboard import RunLogger
from gpt_modules.training.callbacks.writer import markdown_table


def test_a_table_in_markdown():
    rows = [{"prompt": "a|b", "answer": "one\ntwo"}]
    assert markdown_table(rows).splitlines() == ["| prompt | answer |", "| --- | --- |", "| a\\|b | one ⏎ two |"]
    assert markdown_table([]) == ""


def test_a_full_disk_ends_the_curves_and_not_the_run(fit, parts, tmp_path, monkeypatch):
    logger = RunLogger(tmp_path, name="", version="")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(logger.experiment.file_writer.event_writer.add_event, "method", full)
    with pytest.warns(UserWarning, match=r"the curves end here, the run goes on: .*No space left") as told:
        trainer = fit(*parts(), max_steps=3, logger=logger)
    assert trainer.global_step == 3
    assert sum("curves end here" in str(warning.message) for warning in told) == 1
