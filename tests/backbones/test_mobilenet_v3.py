from __future__ import annotations

import keras
import numpy as np
import pytest
from atrous_property import TOLERANCE, compare, rates
from calibration import calibrate, image

from keras_deeplab.backbones import mobilenet_v3
from keras_deeplab.graph import geometry, with_output_stride


def trainable(model: keras.Model) -> int:
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


# torchvision's classifiers, less their two dense layers.
PARAMETERS = {
    "large": 5_483_032 - (960 * 1280 + 1280) - (1280 * 1000 + 1000),
    "small": 2_542_856 - (576 * 1024 + 1024) - (1024 * 1000 + 1000),
}


@pytest.mark.parametrize("size", ["large", "small"])
def test_parameters_strides_and_grid(size):
    network = mobilenet_v3(size)
    assert trainable(network) == PARAMETERS[size]
    for height, width in ((224, 224), (225, 97), (1, 1)):
        found = geometry(network, height, width).output
        assert found.stride == (32, 32)
        assert found.offset == (0, 0)
        assert found.size == (-(-height // 32), -(-width // 32))


def test_computes_what_keras_applications_computes():
    """At 97 = 3 x 32 + 1, whose halves are all odd, both pad alike; widths are the same."""
    reference = keras.applications.MobileNetV3Small(
        (97, 97, 3), include_top=False, weights=None, include_preprocessing=False
    )
    last = [layer for layer in reference.layers if isinstance(layer, keras.layers.Activation)][-1]
    reference = keras.Model(reference.input, last.output)
    x = (image(97, 97) - 128) / 64
    calibrate(reference, x)
    network = mobilenet_v3("small")
    theirs = [layer for layer in reference.layers if layer.weights]
    ours = [layer for layer in network.layers if layer.weights]
    for mine, its in zip(ours, theirs, strict=True):
        mine.set_weights(its.get_weights())
    expected = reference(x).numpy()
    assert expected.std() > 1e-2
    np.testing.assert_allclose(network(x), expected, atol=1e-3 * expected.std())


def test_rates():
    late = ("block13_depthwise_conv", "block14_depthwise_conv")
    assert rates(with_output_stride(mobilenet_v3("large"), 16)) == dict.fromkeys(late, 2)
    # torchvision dilates the convolution that lost its stride as well.
    early = mobilenet_v3("large", dilated_early=True)
    assert rates(early) == dict.fromkeys(("block12_depthwise_conv", *late), 2)
    assert geometry(early).output.stride == (16, 16)


@pytest.mark.parametrize("padding", ["symmetric", "same", "end"])
def test_the_fine_map_holds_the_coarse_one(padding):
    coarse = calibrate(mobilenet_v3("small", padding=padding), (image(97, 97, 2) - 128) / 64)
    fine = with_output_stride(coarse, 16)
    # Padded at the end, odd maps are rounded down, and what they leave out is in the fine one.
    for size in ((64, 128), (128, 96) if padding == "end" else (97, 129)):
        assert compare(coarse, fine, (image(*size) - 128) / 64) <= TOLERANCE


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="`size` must be one of .* Received: size='medium'"):
        mobilenet_v3("medium")
    with pytest.raises(ValueError, match="`padding` must be one of .* Received: padding='valid'"):
        mobilenet_v3("small", padding="valid")
