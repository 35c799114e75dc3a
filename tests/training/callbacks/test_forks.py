"""A process that code of the user's forks in the middle of a run, and that raises, leaves the run alone."""

import json
import os

import lightning.pytorch as L

from gpt_modules.training.callbacks.forks import ForksEnd

REWARD = """
import os
def forking(prompts, responses):
    if (process := os.fork()) == 0:
        raise RuntimeError("child")
    os.waitpid(process, 0)
    return [float(len(response)) for response in responses]
"""


def test_a_fork_that_raises_in_the_first_validation_leaves_the_run_alone(micro, gpt, tmp_path):
    (tmp_path / "forking_rewards.py").write_text(REWARD)
    recipe = tmp_path / "run.yaml"
    recipe.write_text(json.dumps(micro.recipe("ppo", tmp_path / "run", trainer__max_steps=2)))
    ended = gpt.run("fit", "--config", recipe, "--model.rewards", "forking_rewards:forking", cwd=tmp_path)
    assert ended.status == 0, ended.stderr
    assert ended.stderr.count("RuntimeError: child") >= 3, "of two validations and a rollout"
    assert "error:" not in ended.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 2


def test_a_fork_that_fails_a_trainer_ends_before_anything_is_tidied_up(capfd):
    guard, run = ForksEnd(), (L.Trainer(accelerator="cpu", logger=False, barebones=True), L.LightningModule())
    guard.on_exception(*run, KeyError("before there is a run"))
    guard.setup(*run, "fit")
    guard.on_exception(*run, KeyError("of the run itself"))
    if (process := os.fork()) == 0:
        try:
            guard.on_exception(*run, KeyError("of a fork"))
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 1
    assert capfd.readouterr().err == "KeyError: 'of a fork'\n"
