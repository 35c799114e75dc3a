"""All rounds are one run of TensorBoard: curves that go on, and a value a round."""

from pathlib import Path

import pytest
from curves import points
from torch.utils.tensorboard import SummaryWriter

from gpt_modules.commands.pipelines.board import check_board, write_board
from gpt_modules.commands.pipelines.document import Pipeline, Stage
from gpt_modules.errors import UserError
from gpt_modules.storage.summary import Summary, write_summary


def test_curves_go_on_where_the_round_before_ended(tmp_path):
    stages = [
        Stage("compare", None, "compare", {}, {}, ["prompts"]),
        Stage("ppo", "r.yaml", None, {}, {}, ["val/score", "val/typo"]),
    ]
    pipeline = Pipeline(Path(tmp_path), [], 2, stages)
    for number, scores in enumerate(([0.0, 1.0], [1.5, 2.5, 3.0]), start=1):
        folder = tmp_path / f"round-{number}"
        with SummaryWriter(str(folder / "ppo")) as writer:
            for step, score in enumerate(scores):
                writer.add_scalar("val/score", score, 10 * step)
        write_summary(folder / "ppo", Summary({}, {"val/score": scores[-1]}, 1.0, 10 * (len(scores) - 1)))
        (folder / "compare").mkdir()
        write_summary(folder / "compare", Summary({}, {"prompts": 5.0 + number}, 1.0))
        write_board(pipeline, number)  # each time anew
    assert points(tmp_path / "rounds") == {
        "rounds/compare/prompts": {1: {6.0}, 2: {7.0}},
        "ppo/val/score": {0: {0.0}, 10: {1.0, 1.5}, 20: {2.5}, 30: {3.0}},
        "rounds/ppo/val/score": {1: {1.0}, 2: {3.0}},
    }
    assert len(list((tmp_path / "rounds").iterdir())) == 1


def test_what_is_not_ours_is_never_removed(tmp_path):
    """Such as a pipeline that lies in a folder of this name."""
    pipeline = Pipeline(tmp_path, [], 1, [Stage("ppo", "r.yaml")])
    check_board(pipeline)
    board = tmp_path / "rounds"
    for make in (board.touch, board.mkdir, lambda: (board / "comparisons.db").write_text("x")):
        make()
        if board.is_dir() and not any(board.iterdir()):
            check_board(pipeline)
            continue
        for of in (lambda: check_board(pipeline), lambda: write_board(pipeline, 0)):
            with pytest.raises(UserError, match=r"rounds: found something else than TensorBoard's files, expected"):
                of()
        if board.is_file():
            board.unlink()
    assert (board / "comparisons.db").read_text() == "x"
