from __future__ import annotations

import keras
import numpy as np
import pytest
from calibration import image
from keras import layers as kl
from models.networks import tiny

from keras_deeplab.graph import (
    find_feature_tap,
    minimum_size,
    multiply_adds,
    tensor_of,
    with_output_stride,
)


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


def test_a_tensor_that_the_next_layer_passes_by_is_no_tap():
    inputs = keras.Input((None, None, 3))
    x = kl.Conv2D(4, 3, 2, padding="same", name="trunk")(inputs)
    active = kl.ReLU()(x)
    short = kl.Conv2D(4, 1, 2)(x)  # the layer after the activation
    model = keras.Model(inputs, kl.Add()([short, kl.Conv2D(4, 1, 2)(active)]))
    assert find_feature_tap(model, 2) == "trunk"


def test_the_image_itself_may_pass_by():
    inputs = keras.Input((None, None, 3))
    x = kl.Conv2D(4, 3, 2, padding="same", name="first")(inputs)
    x = kl.Conv2D(4, 3, 2, padding="same")(x)
    x = kl.Concatenate(name="both")([x, kl.AveragePooling2D(4)(inputs)])
    model = keras.Model(inputs, x)
    assert find_feature_tap(model, 4) == "both"
    with pytest.raises(ValueError, match=r"`stride` must be one of \[4\]"):
        find_feature_tap(model, 2)


@pytest.mark.parametrize("used", [[0, 1], [1, 1]])
def test_an_extractor_with_several_outputs_is_not_a_tap(used):
    inputs = keras.Input((None, None, 3))
    fine = kl.Conv2D(4, 3, 2, padding="same")(inputs)
    extractor = keras.Model(inputs, [fine, kl.Conv2D(4, 3, padding="same")(fine)])
    outputs = extractor(inputs)
    x = kl.Add(name="sum")([kl.ReLU()(outputs[index]) for index in used])
    model = keras.Model(inputs, kl.Conv2D(4, 3, 2, name="end")(x))
    assert [find_feature_tap(model, stride) for stride in (2, 4)] == ["sum", "end"]
    model = keras.Model(inputs, outputs[1])
    with pytest.raises(ValueError, match=r"`stride` must be one of \[\], .*Received: stride=2"):
        find_feature_tap(model, 2)


def test_names_that_do_not_exist_suggest_others():
    network = tiny()
    assert tensor_of(network, "stage8_out") is network.get_layer("stage8_out").output
    with pytest.raises(ValueError, match="`layer_name` must be .*'stage8_ou'.*'stage8_out'"):
        tensor_of(network, "stage8_ou")


def test_a_size_that_the_model_fixes_is_its_minimum():
    assert minimum_size(tiny(size=(64, None))) == (64, 1)
    inputs = keras.Input((None, 9, 3))
    assert minimum_size(keras.Model(inputs, kl.Conv2D(4, (1, 5))(inputs))) == (1, 9)


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


@pytest.mark.parametrize("kernel, merges", [(3, 2), (3, 4), (5, 3), (7, 3), (7, 4)])
def test_larger_sizes_than_the_minimum_may_fail(kernel, merges):
    """Where enlarged maps are merged with skips, only some sizes fit."""
    inputs = keras.Input((None, None, 3))
    x = kl.Conv2D(2, kernel)(inputs)
    skips = []
    for _ in range(5):
        skips.append(x)
        x = kl.Conv2D(2, 3, 2, padding="same")(x)
    for skip in skips[: -merges - 1 : -1]:
        x = kl.Concatenate()([kl.UpSampling2D()(x), skip])
    assert minimum_size(keras.Model(inputs, x)) == (kernel, kernel)
