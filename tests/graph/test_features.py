from __future__ import annotations

import keras
import numpy as np
import pytest
from calibration import image
from keras import layers as kl

from keras_deeplab.graph import (
    find_feature_tap,
    geometry,
    minimum_size,
    multiply_adds,
    tensor_of,
    with_output_stride,
)


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
    assert find_feature_tap(network, stride) == expected
    assert geometry(network)[expected].stride == (stride, stride)


def test_a_tensor_that_a_branch_passes_by_is_no_tap():
    inputs = keras.Input((None, None, 3))
    x = kl.Conv2D(4, 3, 2, padding="same", name="trunk")(inputs)
    left = kl.Conv2D(4, 3, padding="same", name="branch")(x)
    model = keras.Model(inputs, kl.Conv2D(4, 3, 2, name="end")(kl.Add(name="sum")([x, left])))
    assert find_feature_tap(model, 2) == "sum"
    unmerged = keras.Model(inputs, kl.Add()([kl.Conv2D(4, 1, 2)(left), kl.MaxPooling2D(1, 2)(x)]))
    assert find_feature_tap(unmerged, 2) == "trunk"
    with pytest.raises(ValueError, match=r"`stride` must be one of \[2, 4\].*Received: stride=8"):
        find_feature_tap(model, 8)


def test_names_that_do_not_exist_suggest_others():
    network = keras.applications.VGG16(include_top=False, weights=None)
    assert tensor_of(network, "block3_conv3") is network.get_layer("block3_conv3").output
    with pytest.raises(ValueError, match="`layer_name` must be .*'block3_conv'.*'block3_conv3'"):
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


def test_no_pooling_of_a_fine_network_meets_padding_alone_from_the_minimum_size_on():
    network = keras.applications.DenseNet121(
        include_top=False, weights=None, input_shape=(None, None, 3)
    )
    fine = with_output_stride(network, 8)
    # The last pooling has 2 taps at rate 2. 13 pixels are a map of 7, 4 and, rounded down, 2.
    assert minimum_size(fine) == (13, 13)
    assert np.isfinite(fine(image(13, 13) / 255)).all()
    for size in (5, 8, 11, 12):
        with pytest.raises(ValueError, match="'pool4_pool' has taps 2 .* map of 1.* too small"):
            geometry(fine, size, 40)
    assert np.isnan(fine(image(12, 13) / 255)).any(), "the rule is not needed"


def test_fixed_sizes_at_which_a_fine_pooling_meets_padding_alone_are_refused():
    def network(*size: int | None) -> keras.Model:
        x = inputs = keras.Input((*size, 1))
        for name, pool in (("first", 4), ("second", 2), ("third", 2)):
            x = kl.MaxPooling2D(pool, padding="same", name=name)(x)
        return keras.Model(inputs, x)

    for size in ((5, 4), (4, 5), (None, 4)):
        with pytest.raises(ValueError, match="'third' has taps 2 .* map of 1.* too small"):
            with_output_stride(network(*size), 4)
    with pytest.raises(ValueError, match="'third' .* too small"):
        with_output_stride(network(None, None), 4, (4, 8))
    fine = with_output_stride(network(5, 5), 4)
    assert np.abs(fine(image(5, 5, channels=1))).max() <= 255
