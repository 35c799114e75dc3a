"""What the model says, in TensorBoard."""

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

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
