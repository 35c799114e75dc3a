"""The rounds of a pipeline as one experiment in TensorBoard."""

import shutil

from gpt_modules.commands.pipelines.document import BOARD, Pipeline
from gpt_modules.commands.pipelines.report import curves_of_rounds, values_of_rounds
from gpt_modules.commands.pipelines.steps import steps_of
from gpt_modules.errors import UserError
from gpt_modules.storage.durable import room_for, temporary_for


def write_board(pipeline: Pipeline, rounds: int) -> None:
    """A run `rounds` beside those of the steps, made anew from them: the metrics of the pipeline's file as curves over
    all rounds so far (`ppo/val/score`), and what each round ended with (`rounds/ppo/val/score`, its steps are rounds).

    Raises:
        UserError: it cannot be written.
    """
    from torch.utils.tensorboard import SummaryWriter

    folder = pipeline.root / BOARD
    temporary = temporary_for(folder)
    done = [step for step in steps_of(pipeline) if step.round is not None and step.round <= rounds]
    with room_for(folder), SummaryWriter(str(temporary)) as writer:
        for stage in pipeline.round:
            steps = [step for step in done if step.stage.name == stage.name]
            for metric in stage.metrics:
                for curve in curves_of_rounds(steps, metric):
                    for at, value in curve:
                        writer.add_scalar(f"{stage.name}/{metric}", value, at)
                for number, value in values_of_rounds(steps, metric):
                    writer.add_scalar(f"rounds/{stage.name}/{metric}", value, number)
    with room_for(folder):
        if folder.exists():
            check_board(pipeline)
            shutil.rmtree(folder)
        temporary.rename(folder)


def check_board(pipeline: Pipeline) -> None:
    """Nothing, where the run of TensorBoard is ours alone to make anew.

    Raises:
        UserError: something else has its name.
    """
    folder = pipeline.root / BOARD
    if (
        folder.is_symlink()
        or (folder.exists() and not folder.is_dir())
        or any(
            not path.name.startswith("events.out.tfevents.") for path in (folder.iterdir() if folder.is_dir() else ())
        )
    ):
        raise UserError(f"{folder}: found something else than TensorBoard's files, expected a folder of them or none; "
                        "name another --root")  # fmt: skip
