"""The notebooks in examples/ run, with the short values that their cells name."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
# Two training steps of a large network are much faster than their trace.
EAGERLY = "import tensorflow as tf\ntf.config.run_functions_eagerly(True)"


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    shutil.copytree(EXAMPLES / "camvid", tmp_path / "camvid")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if "download" not in cell.metadata]
    for cell in notebook.cells:
        cell.source = cell.metadata.get("short", cell.source)
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    notebook.cells.insert(0, nbformat.v4.new_code_cell(EAGERLY))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    assert len(codes) > 4
    assert all(cell.execution_count for cell in codes)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_small_and_names_no_place(path):
    assert path.stat().st_size < 500_000
    for cell in nbformat.read(path, as_version=4).cells:
        assert not re.search(r"""["']/\w""", cell.source)  # no absolute path
