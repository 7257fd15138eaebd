from __future__ import annotations

from pathlib import Path

import pytest

import keras_deeplab
from training import model_table

README = Path(__file__).parents[2] / "README.md"


def test_a_row_holds_the_published_figures():
    (row,) = (row for row in model_table.ROWS if row.model == "DeepLabV1")
    assert model_table.cells(row)[3:] == ["20,505,429", "128.6 G", "8", "419"]
    image = model_table.Row(
        "V3", "-", "-", lambda: keras_deeplab.DeepLabV3(21, "mobilenet_v2", aspp_filters=8)
    )
    assert model_table.cells(image)[-1].endswith(" + image")


@pytest.mark.slow
def test_the_readme_holds_the_table():
    text = README.read_text()
    between = text.split(model_table.BEGIN)[1].split(model_table.END)[0]
    assert between.strip() == model_table.table()


def test_a_file_is_renewed_between_its_marks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(model_table, "table", lambda: "| new |")
    file = tmp_path / "README.md"
    file.write_text(f"before\n{model_table.BEGIN}\nold\n{model_table.END}\nafter\n")
    assert model_table.main(["--write", str(file)]) == 0
    expected = f"before\n{model_table.BEGIN}\n| new |\n{model_table.END}\nafter\n"
    assert file.read_text() == expected
    assert model_table.main([]) == 0
    assert capsys.readouterr().out == "| new |\n"
    file.write_text("no marks")
    assert model_table.main(["--write", str(file)]) == 2
    assert "must hold the lines" in capsys.readouterr().err
