"""With the same weights the backbones compute what their references do."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from calibration import calibrate, scaled
from keras.src.applications.resnet import ResNet, stack_residual_blocks_v1

from keras_deeplab.backbones import alexnet, mobilenet_v2, mobilenet_v3, resnet, vgg16
from keras_deeplab.backbones.resnet import UNITS
from keras_deeplab.graph import geometry

APPLICATIONS = {"include_top": False, "weights": None}


def weighted(model: keras.Model) -> list[keras.layers.Layer]:
    return [layer for layer in model.layers if layer.weights]


def assert_same(network: keras.Model, reference: keras.Model, x: np.ndarray, tolerance: float):
    expected = reference(x).numpy()
    assert expected.std() > 1e-2
    assert network(x).shape == expected.shape
    np.testing.assert_allclose(network(x), expected, atol=tolerance * expected.std())


@pytest.mark.slow
def test_vgg16():
    """At a multiple of 32 both ways of rounding are keras.applications'; else the lower one is."""
    reference = keras.applications.VGG16(input_shape=(None, None, 3), **APPLICATIONS)
    calibrate(reference, scaled(64, 96))
    floor, ceil = vgg16(pool_ceil=False), vgg16()
    for network in (floor, ceil):
        network.set_weights(reference.get_weights())
    for size in ((64, 96), (97, 63)):
        x = scaled(*size)
        assert_same(floor, reference, x, 1e-4)
        assert geometry(floor, *size).output.size == floor(x).shape[1:3]
        assert ceil(x).shape == (1, -(-size[0] // 32), -(-size[1] // 32), 512)
    assert_same(ceil, reference, scaled(64, 96), 1e-4)


@pytest.mark.slow
def test_resnet(monkeypatch):
    """With fewer units of each stage; the reference's convolution biases are zero."""
    units = (2, 1, 1, 3)
    monkeypatch.setitem(UNITS, 50, units)

    def stacks(x):
        for stage, blocks in enumerate(units, 2):
            options = {"stride1": 1 if stage == 2 else 2, "name": f"conv{stage}"}
            x = stack_residual_blocks_v1(x, 2 ** (stage + 4), blocks, **options)
        return x

    reference = ResNet(stacks, False, True, input_shape=(None, None, 3), **APPLICATIONS)
    x = scaled(97, 65)
    calibrate(reference, x)
    for weight in reference.weights:
        if weight.name == "bias":
            weight.assign(np.zeros(weight.shape))
    network = resnet(50, stride_on="1x1")
    for layer in weighted(network):
        # `stage2_unit1_0_conv` is `conv3_block1_0_conv` there, `norm` is `bn`.
        name = layer.name.replace("stem", "conv1").replace("norm", "bn")
        if name.startswith("stage"):
            stage, unit, rest = name.split("_", 2)
            name = f"conv{int(stage[-1]) + 1}_block{unit[4:]}_{rest}"
        layer.set_weights(reference.get_layer(name).get_weights()[: len(layer.weights)])
    assert_same(network, reference, x, 1e-3)


@pytest.mark.slow
def test_the_classifier_mobilenet_v2():
    """keras.applications' network without a size pads at the end, whether it is even or odd.

    With a size it pads as that needs: at 97 = 3 x 32 + 1, whose halves are all odd, on both sides.
    """
    sizes = ((None, None, 3), (97, 97, 3))
    reference, fixed = (
        keras.applications.MobileNetV2(size, 0.35, **APPLICATIONS) for size in sizes
    )
    calibrate(reference, scaled(128, 128, 2))
    options = {"depth_multiplier": 0.35, "divisible_by": 8, "classifier_conv": True}
    end, symmetric, same = (
        mobilenet_v2(padding=padding, **options) for padding in ("end", "symmetric", "same")
    )
    for network in (fixed, end, symmetric, same):
        network.set_weights(reference.get_weights())
    even, odd = scaled(64, 96), scaled(97, 97)
    # What two ways of rounding give is a few 1e-4 at most; another padding is above 1e-1.
    assert_same(end, reference, even, 1e-3)
    assert_same(end, reference, odd, 1e-3)
    assert_same(same, fixed, odd, 1e-3)
    assert_same(symmetric, fixed, odd, 1e-3)
    shifted = end(even).numpy()
    assert_same(same, end, even, 1e-3)
    assert np.abs(symmetric(even) - shifted).max() > 0.1 * shifted.std()
    assert end(odd).shape[1:3] == (3, 3)
    assert symmetric(odd).shape[1:3] == (4, 4)


@pytest.mark.slow
def test_mobilenet_v3_small():
    """At 97 = 3 x 32 + 1 both pad alike; widths are the same."""
    whole = keras.applications.MobileNetV3Small(
        (97, 97, 3), include_preprocessing=False, **APPLICATIONS
    )
    last = [layer for layer in whole.layers if isinstance(layer, keras.layers.Activation)][-1]
    reference = keras.Model(whole.input, last.output)
    calibrate(reference, scaled(97, 97))
    network = mobilenet_v3("small")
    for mine, its in zip(weighted(network), weighted(reference), strict=True):
        mine.set_weights(its.get_weights())
    assert_same(network, reference, scaled(97, 97), 1e-3)


def test_alexnet_is_the_published_one():
    """Written out once more, with explicit padding and no layers."""
    network, x = alexnet(), scaled(79, 111)
    calibrate(network, x)

    def conv(y, name, stride, padding):
        kernel, bias = network.get_layer(name).get_weights()
        y = tf.pad(y, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        return tf.nn.relu(tf.nn.conv2d(y, kernel, stride, "VALID") + bias)

    y = tf.nn.max_pool2d(conv(x, "conv1", 4, 2), 3, 2, "VALID")
    y = tf.nn.max_pool2d(conv(y, "conv2", 1, 2), 3, 2, "VALID")
    y = conv(conv(conv(y, "conv3", 1, 1), "conv4", 1, 1), "conv5", 1, 1)
    shapes = [layer.kernel.shape for layer in weighted(network)]
    assert [shape[0] for shape in shapes] == [11, 5, 3, 3, 3]
    assert [shape[3] for shape in shapes] == [64, 192, 384, 256, 256]
    np.testing.assert_allclose(network(x), y, rtol=1e-3, atol=1e-4 * np.std(y))


def ceil_pooled(x: np.ndarray) -> np.ndarray:
    """Torch's `MaxPool2d(3, 2, padding=1, ceil_mode=True)`, window by window."""
    height, width = (math.ceil((n + 2 - 3) / 2) + 1 for n in x.shape[1:3])
    pooled = np.zeros((len(x), height, width, x.shape[3]), x.dtype)
    for i in range(height):
        for j in range(width):
            rows, columns = (slice(max(0, 2 * k - 1), 2 * k + 2) for k in (i, j))
            pooled[:, i, j] = x[:, rows, columns].max(axis=(1, 2))
    return pooled


@pytest.mark.slow
def test_the_resnets_first_pooling_rounds_up_as_caffe_does(monkeypatch):
    monkeypatch.setitem(UNITS, 50, (1, 1, 1, 3))
    ceil, floor = resnet(50, pool_ceil=True), resnet(50)
    floor.set_weights(calibrate(ceil, scaled(64, 64, 2)).get_weights())
    stems = []
    for network in (ceil, floor):
        ends = [network.get_layer(name).output for name in ("stem_act", "stem_pool")]
        stems.append(keras.Model(network.input, ends))
    for size in ((64, 96), (65, 66), (67, 61)):
        (before, up), (_, down) = (map(np.asarray, stem(scaled(*size))) for stem in stems)
        np.testing.assert_array_equal(up, ceil_pooled(before))
        assert up.shape[1:3] == tuple(n // 2 + 1 for n in before.shape[1:3])
        assert down.shape[1:3] == tuple((n + 1) // 2 for n in before.shape[1:3])
        # Further windows at the end, and the same values elsewhere.
        rows, columns = down.shape[1:3]
        np.testing.assert_array_equal(up[:, :rows, :columns], down)
