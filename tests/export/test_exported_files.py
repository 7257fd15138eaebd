"""Where the file of an export is written, and what it refuses, in both formats of one file."""

from __future__ import annotations

import pytest
from export.small import pictures, small_model

from keras_deeplab import export
from keras_deeplab.export import ExportError, Limits
from keras_deeplab.runtimes import open_exported

CONVERTERS = {"litert": "ai_edge_litert", "onnx": "tf2onnx"}
SUFFIXES = {"litert": ".tflite", "onnx": ".onnx"}


@pytest.fixture(params=CONVERTERS)
def kind(request):
    pytest.importorskip(CONVERTERS[request.param])
    return request.param


@pytest.mark.slow
def test_an_existing_file_and_a_deviation(kind, tmp_path):
    write, model, path = getattr(export, kind), small_model(), tmp_path / f"model{SUFFIXES[kind]}"
    path.write_bytes(b"old")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write(model, path)
    with pytest.raises(ExportError, match="labels equal, probabilities differ .*probability=0"):
        write(model, path, overwrite=True, limits=Limits(0))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    write(model, path, overwrite=True)
    assert set(open_exported(path)(pictures((1, 20, 20, 3)))) == {"labels", "probabilities"}


@pytest.mark.parametrize(
    "suffix, settings, message",
    [
        (".zip", {}, "`path` must be a file name that ends in {}"),
        (None, {"precision": "bfloat16"}, "`precision` must be one of 'float32', 'float16'"),
        (None, {"precision": "int8"}, "`images` must be calibration images for int8"),
    ],
)
def test_arguments(kind, tmp_path, suffix, settings, message):
    path = tmp_path / f"a{suffix or SUFFIXES[kind]}"
    with pytest.raises(ValueError, match=message.format(SUFFIXES[kind])):
        getattr(export, kind)(small_model(), path, **settings)
    assert list(tmp_path.iterdir()) == []
