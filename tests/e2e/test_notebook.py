"""The notebooks run from top to bottom, on smoke runs."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from sllm_tune import load_recipe, pipeline
from sllm_tune.smoke import smoke

FOLDER = Path(__file__).parents[2] / "notebooks"
DOMAINS = ("finance", "legal", "medical")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]


def executed(name: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The code cells of a notebook after it ran, its plots drawn."""
    monkeypatch.setenv("SMOKE", "1")
    monkeypatch.setenv("RUN_DIR", str(run_dir))
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    client = NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}})
    client.execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cells: list[Any]) -> list[str]:
    return [kind for cell in cells for output in cell.outputs for kind in output.get("data", {})]


def test_the_tour_goes_from_data_to_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cells = executed("tour", tmp_path / "run", monkeypatch)
    assert (tmp_path / "run" / "report.html").exists()
    assert "the recipe is good" in str(cells[1].outputs)
    assert "Answer(row=1" in str(cells[8].outputs)
    assert kinds(cells).count("image/png") == 2
    assert kinds(cells).count("text/html") >= 5  # recipe, run, and tables


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_domain_notebook_reads_a_finished_run(domain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pipeline.run(smoke(load_recipe(f"{domain}/quickstart")), tmp_path / "run")
    cells = executed(domain, tmp_path / "run", monkeypatch)
    assert "image/png" in kinds(cells)
    assert "text/html" in kinds(cells)


@pytest.mark.parametrize("name", ["tour", *DOMAINS])
def test_a_notebook_is_kept_without_what_a_run_left_in_it(name: str):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")
