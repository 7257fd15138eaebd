from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from atrous_property import TOLERANCE, compare
from calibration import calibrate, image

from keras_deeplab import graph
from keras_deeplab.backbones import alexnet


@pytest.fixture(scope="module")
def network() -> keras.Model:
    return alexnet()


def test_published_figures(network):
    assert network.count_params() == 2_469_696  # torchvision's features
    assert sum(graph.multiply_adds(network, 224, 224).values()) == 655_566_528
    output = graph.geometry(network, 224, 224).output
    assert output.stride == (16, 16)
    assert output.receptive_field == (163, 163)
    assert output.size == (13, 13)


def test_the_least_size_and_the_sizes_of_the_map(network):
    assert graph.minimum_size(network) == (31, 31)
    for side in range(31, 131):
        found = graph.geometry(network, side, 2 * side).output.size
        assert found == ((side - 15) // 16, (2 * side - 15) // 16)
    assert network(image(65, 97)).shape == (1, 3, 5, 256)


def test_every_layer_is_the_published_one(network):
    """Written out once more, with explicit padding and no layers."""
    x = image(79, 111) / 64 - 2
    calibrate(network, x)

    def conv(y, name, stride, padding):
        kernel, bias = network.get_layer(name).get_weights()
        y = tf.pad(y, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        return tf.nn.relu(tf.nn.conv2d(y, kernel, stride, "VALID") + bias)

    y = tf.nn.max_pool2d(conv(x, "conv1", 4, 2), 3, 2, "VALID")
    y = tf.nn.max_pool2d(conv(y, "conv2", 1, 2), 3, 2, "VALID")
    y = conv(conv(conv(y, "conv3", 1, 1), "conv4", 1, 1), "conv5", 1, 1)
    shapes = [layer.kernel.shape for layer in network.layers if layer.weights]
    assert [shape[0] for shape in shapes] == [11, 5, 3, 3, 3]
    assert [shape[3] for shape in shapes] == [64, 192, 384, 256, 256]
    assert y.shape == (1, 4, 6, 256)
    np.testing.assert_allclose(network(x), y, rtol=1e-3, atol=1e-4 * np.std(y))


def test_other_channels():
    assert alexnet((None, 64, 1)).input_shape == (None, None, 64, 1)


@pytest.mark.parametrize("stride", [4, 8])
def test_it_can_be_dilated_exactly(network, stride):
    calibrate(network, image(111, 111, batch=2) / 64 - 2)
    fine = graph.with_output_stride(network, stride)
    assert compare(network, fine, image(175, 111) / 64 - 2) <= TOLERANCE
