"""LiteRT files: what they answer, and how they are read."""

from __future__ import annotations

from typing import Any

import flatbuffers
import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import keras_deeplab
from keras_deeplab import weights
from keras_deeplab.weights import WeightsError
from keras_deeplab.weights.errors import UnreadableError
from keras_deeplab.weights.readers import tflite

PHOTOS = ("bird_segmentation", "cat")
FLOAT, QUANTISED = "deeplabv3_257_mv_gpu", "deeplabv3_mnv2_pascal_quant"
IMAGENET = "mobilenet_v2_1.0_224_quant"


def pixels(path, size=None) -> np.ndarray:
    picture = Image.open(path).convert("RGB")
    if size is not None:
        picture = picture.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(picture, np.float32)[None]


@pytest.mark.slow
def test_the_float_files_logits(shared):
    model = weights.from_pretrained(shared / "pretrained" / f"{FLOAT}.tflite")
    assert (model.output_stride, model.num_classes) == (8, 21)
    assert model.get_config()["backbone_options"]["depth_multiplier"] == 0.5
    for photo in PHOTOS:
        image = pixels(shared / "reference" / f"{photo}_257.png")
        logits = model(image, training=False)[0]
        with np.load(shared / "reference" / f"{FLOAT}__{photo}_logits.npz") as case:
            right = np.squeeze(case["logits"])
        assert np.abs(logits[::4, ::4] - right).max() < 1e-3 * right.std()
        labels = np.asarray(Image.open(shared / "reference" / f"{FLOAT}__{photo}.png"))
        assert np.mean(np.argmax(logits, -1) == labels) > 0.9999


@pytest.mark.slow
def test_the_8_bit_files_labels(shared):
    model = weights.from_pretrained(shared / "pretrained" / f"{QUANTISED}.tflite")
    assert (model.output_stride, model.count_params()) == (16, 2_146_645)
    for photo in PHOTOS:
        logits = model(pixels(shared / "reference" / f"{photo}_513.png"), training=False)[0]
        labels = np.asarray(Image.open(shared / "reference" / f"{QUANTISED}__{photo}.png"))
        assert np.mean(np.argmax(logits, -1) == labels) > 0.97


@pytest.mark.slow
def test_the_imagenet_file_names_the_animals(shared):
    model = weights.from_pretrained(shared / "pretrained" / f"{IMAGENET}.tflite")
    names = (shared / "photos" / "imagenet_labels.txt").read_text().splitlines()
    for photo, animal in (("cat.bmp", "tabby"), ("parrot.jpg", "macaw")):
        logits = model(pixels(shared / "photos" / photo, 224), training=False)[0].numpy()
        first = [names[index] for index in np.argsort(-logits)[:5]]
        assert any(animal in name for name in first), first
    # Folded norms come back as identities and a shift.
    norms = [
        layer
        for layer in model.backbone.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    assert len(norms) == 52
    for norm in norms:
        np.testing.assert_array_equal(norm.gamma, 1)
        np.testing.assert_array_equal(norm.moving_mean, 0)
        np.testing.assert_allclose(norm.moving_variance + norm.epsilon, 1, atol=1e-7)
    assert np.std(model.backbone.get_layer("stem_norm").beta) > 0.1


@pytest.mark.slow
def test_a_file_without_rates_into_another_decoder(shared):
    file = shared / "pretrained" / f"{QUANTISED}.tflite"
    report = keras_deeplab.DeepLabV3Plus(11, weights=file, separable=True).transfer_report
    assert [note.partition(":")[0] for note in report.notes] == [
        "aspp/project was not loaded",
        "logits was not loaded",
    ]
    assert {"aspp/conv_1x1/conv", "backbone/stem_conv"} <= set(report.loaded)
    assert not [path for path in report.missing_keys if path.startswith("backbone/")]


@pytest.mark.parametrize("share", [0.002, 0.7])
def test_a_truncated_file_is_refused(shared, tmp_path, share):
    content = (shared / "pretrained" / f"{FLOAT}.tflite").read_bytes()
    path = tmp_path / "cut.tflite"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(WeightsError, match=r"cut\.tflite: "):
        weights.open_checkpoint(path)


def test_other_files_are_refused(tmp_path):
    inputs = keras.Input((8, 8, 3), batch_size=1)
    model = keras.Model(inputs, keras.layers.Conv2D(4, 3, name="mine")(inputs))
    path = tmp_path / "keras.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    with pytest.raises(WeightsError, match="the kernel .* is not of a TensorFlow 1"):
        weights.from_pretrained(path)


SCHEMA = tflite.file_schema()


def graph_of(stored: np.ndarray, kind: int, shape: list[int], names: int = 1, **more: Any) -> Any:
    """A graph of tensors that are all the one buffer."""
    buffer, model, graph = SCHEMA.BufferT(), SCHEMA.ModelT(), SCHEMA.SubGraphT()
    tensor = SCHEMA.TensorT()
    tensor.type, tensor.shape, tensor.buffer = kind, shape, 0
    for name, value in more.items():
        setattr(tensor, name, value)
    buffer.data = stored
    graph.tensors, model.buffers, model.subgraphs = [tensor] * names, [buffer], [graph]
    return opened(model)


def opened(model: Any) -> Any:
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder))
    return tflite._Graph(SCHEMA, bytes(builder.Output()))


def network_of(*calls: tuple[str, list[int], int, int]) -> Any:
    """A graph of operators, by name, with their maps (0 is the image) and their stride."""
    model, graph, buffer = SCHEMA.ModelT(), SCHEMA.SubGraphT(), SCHEMA.BufferT()
    buffer.data, kinds = np.zeros(4, np.uint8), sorted({kind for kind, *_ in calls})
    graph.tensors = [SCHEMA.TensorT() for _ in range(2 * len(calls) + 1)]
    graph.operators, model.operatorCodes = [], []
    for kind in kinds:
        code = SCHEMA.OperatorCodeT()
        code.builtinCode = getattr(SCHEMA.BuiltinOperator, kind)
        model.operatorCodes.append(code)
    for index, (kind, inputs, output, stride) in enumerate(calls):
        kernel, operator = len(calls) + 1 + index, SCHEMA.OperatorT()
        tensor = graph.tensors[kernel]
        tensor.name, tensor.buffer, tensor.shape = f"{index}/weights".encode(), 0, [1] * 4
        operator.opcodeIndex, operator.outputs = kinds.index(kind), [output]
        operator.inputs = [*inputs, kernel, -1] if "CONV" in kind else inputs  # without a bias
        name = {
            "CONV_2D": "Conv2DOptions",
            "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
            "MAX_POOL_2D": "Pool2DOptions",
            "AVERAGE_POOL_2D": "Pool2DOptions",
        }.get(kind)
        if name is not None:
            operator.builtinOptionsType = getattr(SCHEMA.BuiltinOptions, name)
            operator.builtinOptions = getattr(SCHEMA, f"{name}T")()
            operator.builtinOptions.strideH = operator.builtinOptions.strideW = stride
        graph.operators.append(operator)
    model.buffers, model.subgraphs = [buffer], [graph]
    return opened(model)


STEM = ("CONV_2D", [0], 1, 2)
NETWORKS = {
    "a shortcut": (
        [
            STEM,
            ("CONV_2D", [1], 2, 2),
            ("DEPTHWISE_CONV_2D", [1], 3, 2),
            ("ADD", [2, 3], 4, 1),
            ("CONV_2D", [4], 5, 2),
        ],
        8,
    ),
    "a max pooling": ([STEM, ("MAX_POOL_2D", [1], 2, 2), ("CONV_2D", [2], 3, 1)], 4),
    "an image pooling": ([STEM, ("AVERAGE_POOL_2D", [1], 2, 33), ("CONV_2D", [2], 3, 1)], 2),
    "a decoder": (
        [STEM, ("CONV_2D", [1], 2, 4), ("CONCATENATION", [2, 1], 3, 1), ("CONV_2D", [3], 4, 1)],
        8,
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_output_stride_is_that_along_a_path(name):
    calls, expected = NETWORKS[name]
    arrays, stride = network_of(*calls).convolutions()
    assert stride == expected
    assert len(arrays) == sum("CONV" in kind for kind, *_ in calls)


def test_tensors_of_one_buffer_are_not_larger_than_a_file_could_be():
    graph = graph_of(np.zeros(4000, np.uint8), SCHEMA.TensorType.FLOAT32, [1000], names=9)
    for index in range(4):
        assert graph._values(index).shape == (1000,)
    with pytest.raises(UnreadableError, match="refused: tensors of more than 20000 bytes"):
        graph._values(4)


def test_parts_that_operators_share_are_counted_each_time():
    graph = network_of(STEM)
    graph.convolutions()
    inputs, outputs = 3, 1
    assert graph.taken == 4 * (inputs + outputs) + len("0/weights") + 4
    with pytest.raises(UnreadableError, match="refused: tensors of more than"):
        [graph.convolutions() for _ in range(graph.size)]


@pytest.mark.parametrize("shape", [[2000], [1 << 30, 1 << 30], [500], []])
def test_a_shape_that_is_not_the_buffer_s_is_an_error(shape):
    graph = graph_of(np.zeros(4000, np.uint8), SCHEMA.TensorType.FLOAT32, shape)
    with pytest.raises(ValueError, match="cannot reshape"):
        graph._values(0)


@pytest.mark.parametrize("channels", [1, 2])
def test_integers_are_dequantised_per_tensor_and_per_channel(channels):
    quantization = SCHEMA.QuantizationParametersT()
    quantization.scale = np.array([0.5, 2.0], np.float32)[:channels]
    quantization.zeroPoint = np.array([1, 3])[:channels]
    quantization.quantizedDimension = 0
    stored = np.array([1, -1, 3, 4], np.int8).view(np.uint8)
    kind = SCHEMA.TensorType.INT8
    graph = graph_of(stored, kind, [2, 1, 1, 2], name=b"a/weights", quantization=quantization)
    expected = [[0.0, -1.0], [0.0, 2.0] if channels == 2 else [1.0, 1.5]]
    np.testing.assert_array_equal(graph._values(0).reshape(2, 2), expected)
