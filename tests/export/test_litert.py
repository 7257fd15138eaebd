from __future__ import annotations

import zipfile
from collections import Counter

import numpy as np
import pytest
from calibration import calibrate, image
from export.small import expected, pictures, small_model
from flatbuffers.table import Table
from models.networks import small

import keras_deeplab
from keras_deeplab import data, export, runtimes
from keras_deeplab.demo import Choice
from keras_deeplab.export import Limits
from keras_deeplab.inference import predict
from keras_deeplab.weights.readers.tflite import file_schema

pytestmark = pytest.mark.slow

pytest.importorskip("ai_edge_litert")


def operations(path):
    """The kinds of operations in a file."""
    schema, found = file_schema(), Counter()
    names = {number: name for name, number in vars(schema.BuiltinOperator).items()}
    model = schema.Model.GetRootAsModel(path.read_bytes(), 0)
    for subgraph in map(model.Subgraphs, range(model.SubgraphsLength())):
        for index in range(subgraph.OperatorsLength()):
            code = model.OperatorCodes(subgraph.Operators(index).OpcodeIndex())
            found[names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]] += 1
    return found


@pytest.fixture(scope="module")
def model():
    """Atrous convolutions, also depthwise, image pooling and a resize to another map."""
    return calibrate(small("v3_plus", separable=True), image(65, 65))


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_any_size_and_batch(model, tmp_path, precision):
    path, model = tmp_path / "model.tflite", model if precision == "float32" else small_model(3)
    info = data.DatasetInfo(("a", "b", "c"), ((1, 2, 3), (4, 5, 6), (7, 8, 9)))
    assert export.litert(model, path, precision=precision, info=info) == path
    assert list(tmp_path.iterdir()) == [path]
    found = operations(path)
    assert found["CONV_2D"] > (5 if precision == "float32" else 1)
    assert not {"SPACE_TO_BATCH_ND", "CUSTOM"} & set(found)
    exported = runtimes.open_exported(path)
    assert (exported.classes, exported.colors) == (info.classes, info.colors)
    for shape in ((1, 40, 31, 3), (3, 1, 1, 3)):
        images = pictures(shape)
        outputs, right = exported(images), expected(model, images)
        tolerance = 1e-4 if precision == "float32" else 2e-2
        np.testing.assert_allclose(outputs["probabilities"], right, atol=tolerance)
        assert outputs["labels"].dtype == np.uint8


def test_mixed_precision_is_compared_in_float32(tmp_path):
    full = calibrate(small("unet", depth=1), image(64, 64))
    model = full.with_dtype("mixed_bfloat16")
    path = export.litert(model, tmp_path / "model.tflite")
    images = pictures((1, 40, 31, 3))
    found = runtimes.open_exported(path)(images)["probabilities"]
    twin = expected(full, images)
    np.testing.assert_allclose(found, twin, atol=1e-4)
    assert np.abs(twin - expected(model, images)).max() > 2e-3  # of bfloat16


def test_int8_is_calibrated_on_images_of_a_source(tmp_path, logs):
    model, path = small_model(6), tmp_path / "model.tflite"
    source = data.Shapes(train=6, val=2)
    limits = Limits(agreement=0.85, mean_iou_drop=0.1)
    export.litert(model, path, precision="int8", source=source, limits=limits)
    assert "mean IoU" in logs.text
    found = operations(path)
    assert found["QUANTIZE"] == found["DEQUANTIZE"] == 1  # the input and the probabilities
    exported = runtimes.open_exported(path)
    images = image(97, 65).astype(np.uint8)
    assert 0.9 < (exported(images)["labels"] == predict(model, images)).mean() < 1


def test_one_size_labels_alone_and_calibration_images(model, tmp_path):
    """Where the size is known no operation reads it."""
    path = tmp_path / "model.tflite"
    images = list(image(64, 96, batch=4).astype(np.uint8))
    settings = {"image_size": (64, 96), "outputs": ["labels"], "precision": "int8"}
    export.litert(model, path, images=images, **settings)
    assert not {"SHAPE", "SOFTMAX", "DEQUANTIZE"} & set(operations(path))
    exported = runtimes.open_exported(path)
    outputs = exported(images[0][None])
    assert set(outputs) == {"labels"}
    assert (outputs["labels"] == predict(model, images[0])).mean() > 0.9
    with pytest.raises(ValueError, match=r"`images` must be uint8 of the shape \(None, 64, 96, 3"):
        exported(images[0][None, 1:])


@pytest.mark.parametrize("fusion", ["mean", "max"])
def test_multi_scale(tmp_path, fusion):
    several = keras_deeplab.MultiScale(small_model(), (0.3, 1), fusion=fusion, flip=True)
    path = export.litert(several, tmp_path / "model.tflite")
    assert "CUSTOM" not in operations(path)


def test_the_scale_of_a_network_is_stored(tmp_path):
    reduced = keras_deeplab.MultiScale(small_model(), (0.5,))
    exported = runtimes.open_exported(export.litert(reduced, tmp_path / "model.tflite"))
    assert exported.metadata.image_scale == 0.5
    assert Choice("reduced", exported).to_dict()["reduces"]


def entries(path):
    """The metadata of a file by their names."""
    model = file_schema().Model.GetRootAsModel(path.read_bytes(), 0)
    found = [model.Metadata(index) for index in range(model.MetadataLength())]
    return {m.Name().decode(): model.Buffers(m.Buffer()).DataAsNumpy().tobytes() for m in found}


def tables(table, field):
    """The tables in a list, by the number of its field in the schema."""
    offset = table.Offset(4 + 2 * field)
    places = [table.Vector(offset) + 4 * index for index in range(table.VectorLen(offset))]
    return [Table(table.Bytes, table.Indirect(place)) for place in places]


@pytest.mark.parametrize("fixed", [False, True])
def test_names_for_the_segmenter_of_mediapipe(tmp_path, logs, fixed):
    """It takes the labels from an archive at the end, by the metadata of the last output."""
    model = small_model(3, (64, 96, 3) if fixed else (None, None, 3))
    info = data.DatasetInfo(("road", "Straße", "a\r\nb\nc"))
    settings = {} if fixed else {"image_size": (64, 96)}
    path = tmp_path / "model.tflite"
    export.litert(model, path, outputs=["probabilities"], info=info, **settings)
    assert "MediaPipe" not in logs.text

    content = entries(path)["TFLITE_METADATA"]
    assert content[4:8] == b"M001"
    (subgraph,) = tables(Table(content, int.from_bytes(content[:4], "little")), 3)
    (_,), (output,) = tables(subgraph, 2), tables(subgraph, 3)  # the tensors of the graph
    (file,) = tables(output, 6)
    assert file.String(file.Pos + file.Offset(4)) == b"labels.txt"
    assert file.Bytes[file.Pos + file.Offset(8)] == 2  # TENSOR_AXIS_LABELS
    with zipfile.ZipFile(path) as archive:
        (member,) = archive.infolist()
        assert (member.filename, member.compress_type) == ("labels.txt", zipfile.ZIP_STORED)
        assert archive.read(member).decode() == "road\nStraße\na b c\n"

    exported, images = runtimes.open_exported(path), pictures((2, 64, 96, 3))
    assert exported.classes == info.classes
    np.testing.assert_allclose(
        exported(images)["probabilities"], expected(model, images), atol=1e-4
    )


def test_numbers_are_the_labels_of_nameless_classes(tmp_path):
    path = tmp_path / "model.tflite"
    export.litert(small_model(3), path, outputs=["probabilities"], image_size=(32, 32))
    assert zipfile.ZipFile(path).read("labels.txt") == b"0\n1\n2\n"


@pytest.mark.parametrize(
    "outputs, size, channels",
    [
        (["probabilities"], None, 3),
        (["labels"], (32, 32), 3),
        (["logits"], (32, 32), 3),
        # MediaPipe would read labels as float32, four times as many bytes.
        (["labels", "probabilities"], (32, 32), 3),
        (["probabilities"], (32, 32), 1),
    ],
)
def test_other_files_are_not_for_mediapipe(tmp_path, logs, outputs, size, channels):
    path, model = tmp_path / "model.tflite", small_model(3, (None, None, channels))
    export.litert(model, path, outputs=outputs, image_size=size)
    assert "TFLITE_METADATA" not in entries(path)
    assert not zipfile.is_zipfile(path)
    assert "MediaPipe's ImageSegmenter requires RGB images of one" in logs.text
