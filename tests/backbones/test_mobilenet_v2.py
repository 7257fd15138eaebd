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
