"""What the model says, in TensorBoard."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gpt_modules.errors import UserError
from gpt_modules.training.callbacks.dashboard import RunLogger
from gpt_modules.training.callbacks.samples import SampleTable


def test_tensorboard_gets_samples_and_each_value_once(fit, parts, tmp_path):
    logger = RunLogger(tmp_path, name="", version="")
    module, data = parts(sample_prompts=["the film"], sample_tokens=3)
    fit(module, data, max_epochs=2, logger=logger, callbacks=[SampleTable()])
    logger.log_metrics({"x": 1.0}, 5)
    logger.log_metrics({"x": 1.0}, 5)
    logger.log_metrics({"x": 1.0}, 6)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("x")] == [5, 6]
    table = events.Tensors("samples/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "the film" in table


def test_prompts_that_nobody_would_answer_are_refused(fit, parts):
    line = r"^sample_prompts: found \['the film'\], expected it left at None: samples\.enabled is false$"
    with pytest.raises(UserError, match=line):
        fit(*parts(sample_prompts=["the film"]), callbacks=[SampleTable(enabled=False)])
    assert fit(*parts(), max_steps=1, callbacks=[SampleTable(enabled=False)]).global_step == 1


def test_a_default_number_of_samples_is_nobodys_wish(fit, ppo):
    assert fit(*ppo(), max_steps=1, callbacks=[SampleTable(enabled=False)]).global_step == 1
    with pytest.raises(UserError, match=r"^sample_prompts: found 3, expected it left at 8: samples\.enabled is false$"):
        fit(*ppo(sample_prompts=3), callbacks=[SampleTable(enabled=False)])
