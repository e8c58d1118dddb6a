"""The notebook runs from top to bottom."""

import sys
from copy import deepcopy

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from logramed.trainer.train import RECIPE_FOLDER


NOTEBOOK = RECIPE_FOLDER / "quickstart.ipynb"


class ThisPython(AsyncKernelManager):
    """A kernel of the Python that runs the tests, whichever kernels the machine has."""

    @property
    def kernel_spec(self):
        return KernelSpec(argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], name="this")


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(NOTEBOOK, as_version=4)


def outputs(notebook):
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


def test_it_runs_from_top_to_bottom(committed, tmp_path, monkeypatch):
    monkeypatch.setenv("OUTPUT", str(tmp_path / "run"))
    monkeypatch.setenv("MAX_STEPS", "4")
    notebook = NotebookClient(deepcopy(committed), timeout=600, kernel_manager_class=ThisPython).execute()
    assert (tmp_path / "run" / "evaluation" / "report.html").is_file()
    table = next(part.data["text/markdown"] for part in outputs(notebook)[4] if "data" in part)
    assert "| closed accuracy |" in table
    assert [part.output_type for cell in outputs(notebook) for part in cell if part.output_type == "error"] == []
    # transformers' own progress would be a table with a row for each step.
    assert not any("text/html" in part.get("data", {}) for cell in outputs(notebook) for part in cell)
    assert outputs(notebook)[-1][-1].text.startswith("Is there a lesion? ")
