"""The order of a PPO run's charts, as TensorBoard's own plugin fills them."""

import re
import warnings

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext

from gpt_modules.training.callbacks.dashboard import RunLogger, ppo_layout
from gpt_modules.training.rl.held_out import MEASURED, SPREAD
from gpt_modules.training.rl.shaping import DIVERSITY

LAYOUT = ppo_layout(True, ["a.b:c", "length"], ["vader", "x (y)+"])
CHARTS = {title: patterns for room in LAYOUT.values() for title, (_, patterns) in room.items()}


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


def test_what_is_measured_of_answers_is_shown_also_of_the_average():
    """With the parts of the score and the monitors of the recipe; of quantiles the average's are left out."""
    shown = {pattern for patterns in CHARTS.values() for pattern in patterns}
    names = [*MEASURED, SPREAD, *DIVERSITY, "score_std", "pretraining_loss", "score/a.b:c", "vader", "x (y)+"]
    tags = {f"val/{name}" for name in names} | {f"val/ema/{name}" for name in names if "length_p" not in name}
    assert {f"^{re.escape(tag)}$" for tag in tags} <= shown


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


def test_what_a_killed_run_has_written_beyond_its_checkpoint_is_not_shown(tmp_path):
    """The next one goes on from step 3, and shows what it has from there, in a file of its own."""
    for resumed, steps in ((None, range(6)), (3, range(3, 5))):
        logger = RunLogger(tmp_path, name="", version="")
        if resumed is not None:
            logger.go_on_from(resumed)
        for step in steps:
            logger.log_metrics({"train/loss": 10.0 * (resumed or 0) + step}, step)
        logger.finalize("success")
        assert logger.experiment._get_file_writer().event_writer is not None
    shown = EventAccumulator(str(tmp_path))
    shown.Reload()
    found = [(event.step, event.value) for event in shown.Scalars("train/loss")]
    assert found == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0), (3, 33.0), (4, 34.0)]
