"""Each notebook runs from top to bottom on a demo folder of tiny random models, and draws what it promises."""

from collections.abc import Iterator
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


@pytest.fixture(scope="module")
def kernel(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NotebookClient]:
    """One process for all notebooks, which imports once: a few steps, one core, a cache that nobody else has."""
    base = tmp_path_factory.getbasetemp()
    settings = {"GPT_DEMO": demo, "GPT_NOTEBOOK_STEPS": 4, "GPT_MODULES_CACHE": base / "notebook-cache"}
    settings |= {"OMP_NUM_THREADS": 1, "GPT_MULTITASK": demo / "pretraining/export"}
    settings["TMPDIR"] = base  # where mkdtemp puts the runs
    resources = {"metadata": {"path": NOTEBOOKS}}
    client = NotebookClient(nbformat.v4.new_notebook(), timeout=None, kernel_name="python3", resources=resources)
    with pytest.MonkeyPatch.context() as environment:
        for name, value in settings.items():
            environment.setenv(name, str(value))
        client.execute(cleanup_kc=False)
    yield client
    client.nb = nbformat.v4.new_notebook()
    client.execute(cleanup_kc=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_notebook_runs_and_draws(name: str, kernel: NotebookClient) -> None:
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))  # no name of the notebook before
    kernel.nb = notebook
    kernel.execute(cleanup_kc=False)  # raises at the first cell that fails
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
