from __future__ import annotations

from pathlib import Path

import pytest
from models.networks import zero_kernels

import keras_deeplab
from training import model_table

ROOT = Path(__file__).parents[2]


@pytest.fixture
def zeros():
    """The table has nothing of the values of the weights."""
    with zero_kernels():
        yield


@pytest.mark.slow
def test_a_row_holds_the_published_figures(zeros):
    assert model_table.cells(model_table.ROWS[0])[3:] == ["20,505,429", "128.6 G", "8", "419"]
    image = model_table.ROWS[7]._replace(arguments={"aspp_filters": 8})
    assert model_table.cells(image)[-1].endswith(" + image")


def table_in(page):
    """The table between the marks in a page."""
    between = (ROOT / page).read_text().split(": begin -->")[1].split("<!--")[0]
    return between.lstrip("\n")


def test_the_documentation_contains_the_weights():
    assert table_in("docs/weights.md") == keras_deeplab.weights.markdown()


@pytest.mark.slow
def test_the_readme_contains_the_models(zeros):
    assert table_in("README.md") == model_table.table()


def test_the_command_prints_both_tables(monkeypatch, capsys):
    monkeypatch.setattr(model_table, "table", lambda: "| new |\n")
    assert model_table.main([]) == 0
    assert capsys.readouterr().out == f"| new |\n\n{keras_deeplab.weights.markdown()}"
