from __future__ import annotations

import keras
import numpy as np
import pytest
from calibration import calibrate, image

from keras_deeplab.backbones import mobilenet_v2
from keras_deeplab.graph import geometry


@pytest.fixture(scope="module")
def network() -> keras.Model:
    return mobilenet_v2()


def test_parameters(network):
    # keras.applications' without top, less the 320 -> 1280 convolution and its batch norm.
    assert network.count_params() == 2_257_984 - 320 * 1280 - 4 * 1280
    trainable = sum(int(np.prod(weight.shape)) for weight in network.trainable_weights)
    assert trainable == 2_223_872 - 320 * 1280 - 2 * 1280
    assert not [w for w in network.weights if w.name == "bias"]


@pytest.mark.parametrize("size", [(None, None), (224, 224), (225, 97), (1, 1)])
def test_every_size_shares_one_grid(network, size):
    found = geometry(network, *size)
    assert found.output.stride == (32, 32)
    assert found.output.offset == (0, 0)
    assert found["block2_add"].stride == (4, 4)
    assert found["block2_add"].offset == (0, 0)
    if size[0] is not None:
        assert found.output.size == tuple(-(-n // 32) for n in size)


def test_computes_what_keras_applications_computes(network):
    """At 97 = 3 x 32 + 1, whose halves are all odd, both pad alike."""
    reference = keras.applications.MobileNetV2((97, 97, 3), include_top=False, weights=None)
    reference = keras.Model(reference.input, reference.get_layer("block_16_project_BN").output)
    x = (image(97, 97) - 128) / 64
    calibrate(reference, x)
    theirs = [layer for layer in reference.layers if layer.weights]
    ours = [layer for layer in network.layers if layer.weights]
    for mine, its in zip(ours, theirs, strict=True):
        assert type(mine) is type(its)
        mine.set_weights(its.get_weights())
    expected = reference(x).numpy()
    np.testing.assert_allclose(network(x), expected, atol=1e-3 * expected.std())


def test_widths_of_other_multipliers_are_rounded_as_the_authors_do():
    """0.5: whole numbers for what a block gives, multiples of 8 inside; 1 keeps multiples of 8."""
    half = mobilenet_v2(depth_multiplier=0.5)
    names = ["stem", "block0_project", "block1_project", "block3_project", "block6_project"]
    names += ["block10_project", "block13_project", "block16_project"]
    widths = [half.get_layer(f"{name}_conv").filters for name in names]
    assert widths == [16, 8, 12, 16, 32, 48, 80, 160]
    assert half.get_layer("block2_expand_conv").filters == 72
    # 0.35 x 24 = 8.4 becomes 8, and 6 x 8 = 48; 0.35 x 320 = 112.
    odd = mobilenet_v2(depth_multiplier=0.35)
    assert odd.output_shape[-1] == 112
    assert odd.get_layer("block3_expand_conv").filters == 48
    assert odd.get_layer("block4_expand_conv").filters == 64  # 6 x 11 = 66, to the multiple of 8


def test_padding_same_samples_as_keras_does():
    found = geometry(mobilenet_v2(padding="same"), 224, 225).output
    assert found.offset == (31, 0)
    with pytest.raises(ValueError, match="`depth_multiplier` must be a positive number"):
        mobilenet_v2(depth_multiplier=0)
