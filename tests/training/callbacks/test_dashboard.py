"""The order of a PPO run's charts, as TensorBoard's own plugin fills them."""

import warnings

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext

from gpt_modules.training.callbacks.dashboard import PPO_LAYOUT, RunLogger

CHARTS = {title: patterns for room in PPO_LAYOUT.values() for title, (_, patterns) in room.items()}


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """A run that has logged what PPO logs, and whatever begins or ends like it."""
    with warnings.catch_warnings():  # of what it imports
        warnings.simplefilter("ignore", DeprecationWarning)
        from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
        from tensorboard.plugins.scalar.scalars_plugin import ScalarsPlugin
    folder = tmp_path_factory.mktemp("run")
    logger = RunLogger(folder, name="", version="")
    tags = {pattern.strip("^$").replace("\\", "") for patterns in CHARTS.values() for pattern in patterns}
    tags |= {f"{tag}_std" for tag in tags} | {f"x{tag}" for tag in tags}
    logger.log_metrics(dict.fromkeys(sorted(tags), 1.0), 1)
    logger.finalize("success")
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(folder))
    place = {"logdir": str(folder), "multiplexer": multiplexer, "data_provider": provider}
    scalars = {"scalars": ScalarsPlugin(TBContext(**place))}
    return CustomScalarsPlugin(TBContext(**place, plugin_name_to_instance=scalars))


@pytest.mark.parametrize("title", CHARTS)
def test_a_chart_shows_its_values_and_no_others(plugin, title):
    for pattern in CHARTS[title]:
        found = plugin.scalars_impl(RequestContext(), ".", pattern, "")
        assert found["regex_valid"]
        assert list(found["tag_to_events"]) == [pattern.strip("^$").replace("\\", "")]


def test_the_same_values_are_written_once(tmp_path):
    logger = RunLogger(tmp_path, name="", version="")
    written = []
    logger.experiment.add_scalar = lambda name, value, step: written.append((name, value, step))
    for step in (5, 5, 6):
        logger.log_metrics({"x": 1.0}, step)
    logger.finalize("success")
    assert written == [("x", 1.0, 5), ("x", 1.0, 6)]


def test_the_epoch_is_told_beside_what_is_trained_alone(tmp_path):
    logger = RunLogger(tmp_path, name="", version="")
    written = []
    logger.experiment.add_scalar = lambda name, value, step: written.append((name, value, step))
    logger.log_metrics({"train/loss": 2.0, "epoch": 0}, 5)
    logger.log_metrics({"val/loss": 1.0, "epoch": 1}, 5)
    logger.finalize("success")
    assert written == [("train/loss", 2.0, 5), ("epoch", 0, 5), ("val/loss", 1.0, 5)]
