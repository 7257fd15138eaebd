from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from calibration import calibrate, image
from export.small import expected, pictures, small_model
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
