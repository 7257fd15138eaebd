from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from calibration import image
from export.small import expected, pictures, small_model
from models.networks import calibrated
from packaging.version import Version

import keras_deeplab
from keras_deeplab import data, export, runtimes
from keras_deeplab.export import ExportError, Limits
from keras_deeplab.inference import predict

onnx = pytest.importorskip("onnx")
pytest.importorskip("tf2onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def operations(path):
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def openvino_outputs(path, images):
    openvino = pytest.importorskip("openvino")
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return {name: compiled({"images": images})[name] for name in ("labels", "probabilities")}


@pytest.mark.slow
def test_exports_of_several_threads(tmp_path):
    """Each conversion changes functions of tf2onnx, and must give them back."""
    from tf2onnx import optimizer

    model, before = small_model(), optimizer.optimize_graph
    with ThreadPoolExecutor(2) as pool:
        paths = [tmp_path / f"{number}.onnx" for number in range(2)]
        assert list(pool.map(lambda path: export.onnx(model, path), paths)) == paths
    assert optimizer.optimize_graph is before


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_any_size_and_batch_in_two_runtimes(tmp_path, precision):
    model = calibrated("v3_plus") if precision == "float32" else small_model(3)
    path = tmp_path / "model.onnx"
    info = data.DatasetInfo(("a", "b", "c"), ((1, 2, 3), (4, 5, 6), (7, 8, 9)))
    assert export.onnx(model, path, precision=precision, info=info) == path
    assert list(tmp_path.iterdir()) == [path]
    onnx.checker.check_model(onnx.load(path), full_check=True)
    graph = onnx.load(path).graph
    (images,), axes = graph.input, ["batch", "height", "width", ""]
    assert [axis.dim_param for axis in images.type.tensor_type.shape.dim] == axes
    exported = runtimes.open_exported(path)
    assert (exported.classes, exported.colors) == (info.classes, info.colors)
    for shape in ((1, 40, 31, 3), (3, 1, 1, 3)):
        pixels = pictures(shape)
        for outputs in (exported(pixels), openvino_outputs(path, pixels)):
            tolerance = 1e-4 if precision == "float32" else 2e-2
            right = expected(model, pixels)
            np.testing.assert_allclose(outputs["probabilities"], right, atol=tolerance)
            assert outputs["labels"].dtype == np.uint8
            np.testing.assert_array_equal(outputs["labels"], outputs["probabilities"].argmax(-1))


@pytest.mark.slow
def test_graphs_are_in_the_form_that_runtimes_compute_fast(tmp_path):
    model = keras_deeplab.MultiScale(calibrated("v3_plus"), (0.3, 1), fusion="mean", flip=True)
    path = export.onnx(model, tmp_path / "model.onnx", outputs=["probabilities"])
    nodes = onnx.load(path).graph.node
    values = {
        node.name: {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        for node in nodes
    }
    assert not {"ReverseSequence", "BatchNormalization", "Pad"} & {node.op_type for node in nodes}
    for node in nodes:
        found = values[node.name]
        if node.op_type == "Conv" and max(found["strides"]) == 1:
            assert "auto_pad" not in found
        if node.op_type in ("Softmax", "LogSoftmax"):
            assert found.get("axis", -1) in (-1, 3)
    # The logits of four views, two of them back.
    assert sum("axes" in found for found in values.values()) == 6


@pytest.mark.slow
@pytest.mark.parametrize("corners", [False, True])
def test_a_resize_of_a_known_size_is_not_a_pixel_off(tmp_path, corners):
    """33 * float32(513 / 33) is less than 513."""
    inputs = keras.Input((33, 20, 3))
    x = keras.layers.Conv2D(4, 1)(inputs)
    large = keras.ops.pad(inputs, [[0, 0], [0, 480], [0, 20], [0, 0]])
    x = keras_deeplab.layers.ResizeLike(corners)(x, large)
    x = keras.layers.Conv2D(4, 3, strides=(16, 2))(x)
    model = keras.Model(inputs, keras_deeplab.layers.ResizeLike(corners)(x, inputs))
    path = export.onnx(model, tmp_path / "model.onnx", limits=Limits(1e-4))
    pixels = pictures((1, 33, 20, 3))
    for outputs in (runtimes.open_exported(path)(pixels), openvino_outputs(path, pixels)):
        np.testing.assert_allclose(outputs["probabilities"], expected(model, pixels), atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("pooled", ["relu", "tanh"])
def test_padding_is_taken_into_what_it_is_for(tmp_path, pooled):
    """Into a pooling only behind a ReLU: of negative values zeros are the largest.

    ONNX Runtime took it in by itself before 1.32; such an export is refused.
    """
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1)(inputs)
    x = keras.layers.ZeroPadding2D(((1, 2), (0, 1)))(x)
    x = keras.layers.Conv2D(8, 3, activation=pooled)(x)
    x = keras.layers.MaxPooling2D(3, 1)(keras.layers.ZeroPadding2D(2)(x))
    x = keras.layers.Conv2D(3, 1, bias_initializer="ones")(x - 0.5)
    model = keras.Model(inputs, keras_deeplab.layers.ResizeLike()(x, inputs))
    if pooled == "tanh" and Version(onnxruntime.__version__) < Version("1.32"):
        with pytest.raises(ExportError, match="The export deviates from its model"):
            export.onnx(model, tmp_path / "model.onnx")
        return
    path = export.onnx(model, tmp_path / "model.onnx")
    assert operations(path)["Pad"] == (pooled == "tanh")


@pytest.mark.slow
def test_int8_is_calibrated_and_of_one_size_right_in_openvino_too(tmp_path, logs):
    model, path = small_model(), tmp_path / "model.onnx"
    images = list(image(64, 96, batch=4).astype(np.uint8))
    export.onnx(model, path, images=images, precision="int8", image_size=(64, 96))
    assert "labels equal" in logs.text
    assert operations(path)["QuantizeLinear"] >= 2
    exported = runtimes.open_exported(path)
    labels = exported(images[0][None])["labels"]
    assert 0.9 < (labels == predict(model, images[0])).mean() < 1
    assert (labels == openvino_outputs(path, images[0][None])["labels"]).mean() > 0.98


def test_a_model_that_no_file_can_hold(tmp_path, monkeypatch):
    monkeypatch.setitem(export.onnx.__globals__, "LARGEST", 100)
    with pytest.raises(ValueError, match="`model` must be of up to 100 bytes, the limit of an ONN"):
        export.onnx(small_model(), tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match=r"needs tf2onnx and onnxruntime: .*keras_deeplab\[onnx\]"
    ):
        export.onnx(small_model(), tmp_path / "a.onnx")
