from __future__ import annotations

import keras
import numpy as np
import pytest
from atrous_property import TOLERANCE, compare
from calibration import calibrate, image

from keras_deeplab.backbones import vgg16
from keras_deeplab.graph import geometry, with_output_stride


def test_computes_what_keras_applications_computes():
    """At a multiple of 32 every pooling divides its map, and both pool alike."""
    reference = keras.applications.VGG16(include_top=False, weights=None)
    x = (image(64, 96) - 128) / 64
    calibrate(reference, x)
    network = vgg16()
    assert network.count_params() == 14_714_688
    network.set_weights(reference.get_weights())
    expected = reference(x).numpy()
    assert expected.std() > 1e-2
    np.testing.assert_allclose(network(x), expected, atol=1e-4 * expected.std())


@pytest.mark.parametrize("pool_size, field", [(2, 212), (3, None)])
def test_the_classifier_has_stride_32(pool_size, field):
    found = geometry(vgg16(pool_size=pool_size), 97, 225).output
    assert found.stride == (32, 32)
    assert found.size == (4, 8)
    if field:
        assert found.receptive_field == (field, field)


@pytest.mark.parametrize("pool_size, field", [(2, 204), (3, 227)])
def test_the_published_form_of_v1(pool_size, field):
    network = vgg16(atrous=True, pool_size=pool_size)
    found = geometry(network, 321, 321)
    assert found.output.stride == (8, 8)
    assert found.output.size == (41, 41)
    assert found.output.receptive_field == (field, field)
    rates = [network.get_layer(f"block{b}_conv1").dilation_rate[0] for b in range(1, 6)]
    assert rates == [1, 1, 1, 1, 2]
    for block, stride in zip(range(1, 6), (2, 2, 2, 1, 1), strict=True):
        pool = network.get_layer(f"block{block}_pool")
        assert (pool.pool_size, pool.strides) == ((pool_size,) * 2, (stride,) * 2)


def test_the_classifier_can_be_dilated_exactly():
    """Which is not what V1 did: it left the poolings undilated and lost the classifier's values."""
    network = calibrate(vgg16(), (image(96, 96, 2) - 128) / 64)
    x = (image(128, 96) - 128) / 64
    assert compare(network, with_output_stride(network, 8), x) <= TOLERANCE
    published = vgg16(atrous=True)
    published.set_weights(network.get_weights())
    assert np.abs(published(x)[:, ::4, ::4] - network(x)).max() > 0.1 * np.std(network(x))


def test_other_poolings_are_refused():
    with pytest.raises(ValueError, match="`pool_size` must be one of .* Received: pool_size=4"):
        vgg16(pool_size=4)


@pytest.mark.parametrize("size", [(97, 63), (64, 95)])
def test_poolings_round_odd_maps_down_as_keras_does_or_up(size):
    reference = keras.applications.VGG16(
        include_top=False, weights=None, input_shape=(None, None, 3)
    )
    x = (image(*size) - 128) / 64
    calibrate(reference, x)
    floor, ceil = vgg16(pool_ceil=False), vgg16()
    for network in (floor, ceil):
        network.set_weights(reference.get_weights())
    expected = reference(x).numpy()
    assert expected.std() > 1e-2
    assert floor(x).shape == expected.shape == (1, size[0] // 32, size[1] // 32, 512)
    assert ceil(x).shape == (1, -(-size[0] // 32), -(-size[1] // 32), 512)
    np.testing.assert_allclose(floor(x), expected, atol=1e-4 * expected.std())
    assert geometry(floor, *size).output.size == expected.shape[1:3]


def test_rounding_down_can_be_dilated_exactly_too():
    network = calibrate(vgg16(pool_ceil=False), (image(96, 96, 2) - 128) / 64)
    for size in ((128, 96), (131, 103)):  # of which the first three poolings leave 16x12
        x = (image(*size) - 128) / 64
        assert compare(network, with_output_stride(network, 8), x) <= TOLERANCE


def test_rounding_concerns_the_poolings_with_a_stride_alone():
    """Those of V1's last blocks keep the size of the map."""
    found = geometry(vgg16(atrous=True, pool_ceil=False), 97, 64).output
    assert found.size == (12, 8)
    assert geometry(vgg16(atrous=True), 97, 64).output.size == (13, 8)
