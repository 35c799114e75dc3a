"""Each notebook runs from top to bottom on a demo folder of tiny random models, and draws what it promises."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
FIGURES = {
    "pretraining": 2,
    "evaluation": 3,
    "finetuning": 3,
    "sft": 3,
    "reward": 3,
    "ppo": 5,
    "dpo": 3,
    "maml": 4,
    "feedback": 2,
    "dialogue": 2,
}


@pytest.fixture
def environment(demo: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps, one core, and a cache that the notebooks share and nobody else has."""
    cache = tmp_path_factory.getbasetemp() / "notebook-cache"
    settings = {"GPT_DEMO": demo, "GPT_NOTEBOOK_STEPS": 4, "GPT_MODULES_CACHE": cache, "OMP_NUM_THREADS": 1}
    settings["GPT_MULTITASK"] = demo / "pretraining/export"
    for name, value in settings.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("TMPDIR", str(tmp_path_factory.getbasetemp()))  # where mkdtemp puts the runs


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_notebook_runs_and_draws(name: str, environment: None) -> None:
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    client = NotebookClient(notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": NOTEBOOKS}})
    client.execute()  # raises at the first cell that fails
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == FIGURES[name]
    assert not [output for output in outputs if output.output_type == "error"]


def test_there_is_a_notebook_for_every_procedure_and_none_untested() -> None:
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(FIGURES)


@pytest.mark.parametrize("name", FIGURES)
def test_notebook_is_stored_without_output(name: str) -> None:
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert notebook.metadata.kernelspec.name == "python3"
