from __future__ import annotations

from pathlib import Path

import pytest

import keras_deeplab
from training import model_table

ROOT = Path(__file__).parents[2]


def test_a_row_holds_the_published_figures():
    (row,) = (row for row in model_table.ROWS if row.model == "DeepLabV1")
    assert model_table.cells(row)[3:] == ["20,505,429", "128.6 G", "8", "419"]
    image = model_table.Row(
        "V3", "-", "-", lambda: keras_deeplab.DeepLabV3(21, "mobilenet_v2", aspp_filters=8)
    )
    assert model_table.cells(image)[-1].endswith(" + image")


@pytest.mark.parametrize(
    "name, page",
    [
        pytest.param("models", "README.md", marks=pytest.mark.slow),
        ("weights", "docs/weights.md"),
    ],
)
def test_the_documentation_contains_the_table(name, page):
    begin, end = model_table.marks(name)
    between = (ROOT / page).read_text().split(begin)[1].split(end)[0]
    assert between.lstrip("\n") == model_table.TABLES[name]()


def test_a_file_is_renewed_between_its_marks(tmp_path, monkeypatch, capsys):
    tables = {"models": lambda: "| new |\n", "weights": lambda: "| other |\n"}
    monkeypatch.setattr(model_table, "TABLES", tables)
    file = tmp_path / "README.md"
    (begin, end), (begin2, end2) = (model_table.marks(name) for name in tables)
    file.write_text(f"before\n{begin}\nold\n{end}\nbetween\n{begin2}\n{end2}\nafter\n")
    assert model_table.main(["--write", str(file)]) == 0
    expected = f"before\n{begin}\n| new |\n{end}\nbetween\n{begin2}\n| other |\n{end2}\nafter\n"
    assert file.read_text() == expected
    assert model_table.main([]) == 0
    assert capsys.readouterr().out == "| new |\n\n| other |\n"
    file.write_text("no marks")
    assert model_table.main(["--write", str(file)]) == 2
    assert "must contain the two lines" in capsys.readouterr().err
