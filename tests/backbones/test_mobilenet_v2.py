from __future__ import annotations

import keras
import numpy as np
import pytest
from atrous_property import TOLERANCE, compare
from calibration import calibrate, image

from keras_deeplab.backbones import mobilenet_v2
from keras_deeplab.graph import geometry, with_output_stride

# As the ImageNet classifiers have it.
CLASSIFIER = {"divisible_by": 8, "classifier_conv": True, "padding": "end"}


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
        assert isinstance(mine, type(its))
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


def channels(model: keras.Model) -> list[int]:
    return [layer.filters for layer in model.layers if type(layer) is keras.layers.Conv2D]


@pytest.mark.parametrize(
    "alpha, parameters, last", [(0.35, 410_208, 1280), (0.5, 706_224, 1280), (1.4, 4_363_712, 1792)]
)
def test_the_classifiers_of_other_multipliers(alpha, parameters, last):
    network = mobilenet_v2(depth_multiplier=alpha, **CLASSIFIER)
    reference = keras.applications.MobileNetV2((96, 96, 3), alpha, include_top=False, weights=None)
    assert network.count_params() == reference.count_params() == parameters
    assert channels(network) == channels(reference)
    assert network.output_shape[-1] == last
    # DeepLab's rule gives other widths.
    deeplab = mobilenet_v2(depth_multiplier=alpha, classifier_conv=True)
    assert channels(deeplab)[:-1] != channels(network)[:-1]


def test_the_classifiers_features_at_any_size():
    """keras.applications' network without a size pads at the end, whether it is even or odd."""
    reference = keras.applications.MobileNetV2(
        (None, None, 3), 0.5, include_top=False, weights=None
    )
    calibrate(reference, (image(128, 128, 2) - 128) / 64)
    network = mobilenet_v2(depth_multiplier=0.5, **CLASSIFIER)
    network.set_weights(reference.get_weights())
    others = [
        mobilenet_v2(depth_multiplier=0.5, **{**CLASSIFIER, "padding": padding})
        for padding in ("symmetric", "same")
    ]
    for other in others:
        other.set_weights(reference.get_weights())
    for size in ((128, 96), (97, 131)):
        x = (image(*size) - 128) / 64
        expected = reference(x).numpy()
        assert expected.std() > 1e-2
        assert network(x).shape == expected.shape == (1, size[0] // 32, size[1] // 32, 1280)
        # What two ways of rounding give is a few 1e-4 at most; another padding is above 1e-1.
        np.testing.assert_allclose(network(x), expected, atol=1e-3 * expected.std())
        # "same" is another padding on odd maps alone.
        different = [m(x).shape != expected.shape or np.abs(m(x) - expected).max() for m in others]
        assert different[0] > 0.1 * expected.std()
        assert (different[1] < 1e-3 * expected.std()) == (size == (128, 96))


@pytest.mark.parametrize("padding", ["end", "same", "symmetric"])
def test_the_fine_map_holds_the_coarse_one(padding):
    pixels = (image(128, 128, 2) - 128) / 64
    coarse = calibrate(mobilenet_v2(depth_multiplier=0.35, padding=padding), pixels)
    for output_stride in (16, 8):
        fine = with_output_stride(coarse, output_stride)
        assert compare(coarse, fine, (image(128, 192) - 128) / 64) <= TOLERANCE


@pytest.mark.parametrize("divisible_by", [0, -8, 8.0, "8"])
def test_wrong_divisors_are_named(divisible_by):
    with pytest.raises(ValueError, match=f"Received: divisible_by={divisible_by!r}"):
        mobilenet_v2(divisible_by=divisible_by)
