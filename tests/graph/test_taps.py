from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers as kl

from keras_deeplab.graph import find_tap, geometry, minimum_size, multiply_adds, tensor_of


@pytest.mark.parametrize(
    "family, stride, expected",
    [
        ("VGG16", 4, "block3_conv3"),
        ("VGG16", 8, "block4_conv3"),
        ("ResNet50", 4, "conv2_block3_out"),
        ("ResNet50V2", 4, "conv2_block2_out"),
        ("MobileNetV2", 4, "block_3_expand_relu"),
        ("EfficientNetB0", 4, "block3a_expand_activation"),
        ("DenseNet121", 4, "pool2_conv"),
    ],
)
def test_stage_ends_are_found(family, stride, expected):
    network = getattr(keras.applications, family)(include_top=False, weights=None)
    assert find_tap(network, stride) == expected
    assert geometry(network)[expected].stride == (stride, stride)


def test_a_tensor_that_a_branch_passes_by_is_no_tap():
    inputs = keras.Input((None, None, 3))
    x = kl.Conv2D(4, 3, 2, padding="same", name="trunk")(inputs)
    left = kl.Conv2D(4, 3, padding="same", name="branch")(x)
    model = keras.Model(inputs, kl.Conv2D(4, 3, 2, name="end")(kl.Add(name="sum")([x, left])))
    assert find_tap(model, 2) == "sum"
    unmerged = keras.Model(inputs, kl.Add()([kl.Conv2D(4, 1, 2)(left), kl.MaxPooling2D(1, 2)(x)]))
    assert find_tap(unmerged, 2) == "trunk"
    with pytest.raises(ValueError, match=r"no tensor at stride 8.*\(2, 2\)"):
        find_tap(model, 8)


def test_names_that_do_not_exist_suggest_others():
    network = keras.applications.VGG16(include_top=False, weights=None)
    assert tensor_of(network, "block3_conv3") is network.get_layer("block3_conv3").output
    with pytest.raises(ValueError, match="no layer 'block3_conv'.*block3_conv"):
        tensor_of(network, "block3_conv")


@pytest.mark.parametrize("family", ["VGG16", "Xception", "MobileNetV2", "DenseNet121"])
def test_the_minimum_size_works_and_one_pixel_less_does_not(family):
    network = getattr(keras.applications, family)(
        include_top=False, weights=None, input_shape=(None, None, 3)
    )
    height, width = minimum_size(network)
    smallest = network(np.zeros((1, height, width, 3), "float32"))
    assert min(smallest.shape) >= 1
    assert geometry(network, height, width).output.size == smallest.shape[1:3]
    with pytest.raises(ValueError, match="too small"):
        geometry(network, height - 1, width)


def test_multiply_adds_are_counted_by_hand():
    inputs = keras.Input((None, None, 3))
    x = kl.Conv2D(8, 3, 2, padding="same", name="conv")(inputs)
    x = kl.DepthwiseConv2D(5, padding="same", name="depthwise")(x)
    x = kl.SeparableConv2D(4, 3, name="separable")(x)
    x = kl.Conv2D(4, 1, groups=2, name="grouped")(x)
    x = kl.Conv2DTranspose(2, 4, 2, name="transposed")(x)
    model = keras.Model(inputs, kl.Dense(5, name="dense")(kl.GlobalAveragePooling2D()(x)))
    assert multiply_adds(model, 20, 30) == {
        "conv": 10 * 15 * 27 * 8,
        "depthwise": 10 * 15 * 25 * 8,
        "separable": 8 * 13 * (9 * 8 + 8 * 4),
        "grouped": 8 * 13 * 2 * 4,
        "transposed": 8 * 13 * 16 * 4 * 2,
        "dense": 2 * 5,
    }


def test_published_multiply_adds():
    vgg = keras.applications.VGG16(weights=None)
    assert round(sum(multiply_adds(vgg, 224, 224).values()) / 1e9, 2) == 15.47
