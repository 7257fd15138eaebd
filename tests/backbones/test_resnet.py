from __future__ import annotations

import math

import keras
import numpy as np
import pytest
from atrous_property import TOLERANCE, compare
from calibration import calibrate, image

from keras_deeplab.backbones import resnet
from keras_deeplab.graph import geometry, with_output_stride


def trainable(model: keras.Model) -> int:
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


# Of torchvision's models, without the 2048 x 1000 classifier and its bias.
PARAMETERS = {
    50: 25_557_032 - 2_049_000,
    101: 44_549_160 - 2_049_000,
    152: 60_192_808 - 2_049_000,
}


@pytest.fixture(scope="module")
def resnet50() -> keras.Model:
    return resnet(50)


@pytest.fixture(scope="module")
def resnet50_1x1() -> keras.Model:
    return resnet(50, stride_on="1x1")


def test_parameters_of_resnet50(resnet50):
    assert trainable(resnet50) == PARAMETERS[50] == 23_508_032
    # Bias-free: two statistics for every gamma and beta.
    assert resnet50.count_params() - trainable(resnet50) == 2 * 26_560
    assert not [w for w in resnet50.weights if w.name == "bias"]


@pytest.mark.slow
@pytest.mark.parametrize("depth", [101, 152])
def test_parameters_of_the_deep_ones(depth):
    assert trainable(resnet(depth)) == PARAMETERS[depth]


@pytest.mark.parametrize("size", [(None, None), (224, 224), (225, 321), (1, 2)])
def test_every_size_shares_one_grid(resnet50, size):
    found = geometry(resnet50, *size)
    assert found.output.stride == (32, 32)
    assert found.output.offset == (0, 0)
    for stage, stride in (("stem_act", 2), ("stage1_unit3_out", 4), ("stage3_unit6_out", 16)):
        assert found[stage].stride == (stride, stride)
        assert found[stage].offset == (0, 0)
    if size[0] is not None:
        assert found.output.size == tuple(-(-n // 32) for n in size)


def test_receptive_fields_of_resnet50(resnet50, resnet50_1x1):
    assert geometry(resnet50).output.receptive_field == (427, 427)
    assert geometry(resnet50_1x1).output.receptive_field == (483, 483)
    multi_grid = resnet(50, multi_grid=(1, 2, 4), stride_on="1x1")
    assert geometry(multi_grid).output.receptive_field == (739, 739)


@pytest.mark.slow
def test_receptive_fields_of_resnet101():
    assert geometry(resnet(101)).output.receptive_field == (971, 971)
    assert geometry(resnet(101, stride_on="1x1")).output.receptive_field == (1027, 1027)
    multi_grid = resnet(101, multi_grid=(1, 2, 4), stride_on="1x1")
    assert geometry(multi_grid).output.receptive_field == (1283, 1283)


def test_multi_grid_dilates_the_last_three_units_only(resnet50_1x1):
    plain, wide = resnet50_1x1, resnet(50, multi_grid=(2, 3, 4), stride_on="1x1")
    rates = {}
    for layer in wide.layers:
        if isinstance(layer, keras.layers.Conv2D):
            assert layer.get_weights()[0].shape == plain.get_layer(layer.name).kernel.shape
            if layer.dilation_rate != (1, 1):
                rates[layer.name] = layer.dilation_rate
    assert rates == {f"stage4_unit{n}_2_conv": (n + 1, n + 1) for n in (1, 2, 3)}


def test_computes_what_keras_applications_computes(resnet50_1x1):
    """Same weights, same picture: the reference's convolution biases are zero."""
    reference = keras.applications.ResNet50(include_top=False, weights=None)
    x = (image(129, 97) - 128) / 64
    for weight in reference.weights:
        if weight.name == "bias":
            weight.assign(np.zeros(weight.shape))
    calibrate(reference, x)
    for weight in reference.weights:
        if weight.name == "bias":
            weight.assign(np.zeros(weight.shape))
    for layer in resnet50_1x1.layers:
        if layer.weights:
            layer.set_weights(_theirs(reference, layer.name)[: len(layer.weights)])
    expected = reference(x).numpy()
    assert expected.std() > 1e-2
    np.testing.assert_allclose(resnet50_1x1(x), expected, atol=1e-3 * expected.std())


def _theirs(reference: keras.Model, name: str) -> list[np.ndarray]:
    """`stage2_unit1_0_conv` is `conv3_block1_0_conv` there, `norm` is `bn`."""
    if name.startswith("stem"):
        name = name.replace("stem", "conv1")
    else:
        stage, unit, *rest = name.split("_")
        name = "_".join([f"conv{int(stage[-1]) + 1}", f"block{unit[4:]}", *rest])
    layer = reference.get_layer(name.replace("norm", "bn"))
    return layer.get_weights()


@pytest.fixture(scope="module")
def resnet50_ceil() -> keras.Model:
    return calibrate(resnet(50, pool_ceil=True), (image(128, 128, 2) - 128) / 64)


def ceil_pooled(x: np.ndarray) -> np.ndarray:
    """Torch's `MaxPool2d(3, 2, padding=1, ceil_mode=True)`, window by window."""
    height, width = (math.ceil((n + 2 - 3) / 2) + 1 for n in x.shape[1:3])
    pooled = np.zeros((len(x), height, width, x.shape[3]), x.dtype)
    for i in range(height):
        for j in range(width):
            rows, columns = (slice(max(0, 2 * k - 1), 2 * k + 2) for k in (i, j))
            pooled[:, i, j] = x[:, rows, columns].max(axis=(1, 2))
    return pooled


@pytest.mark.parametrize("size", [(64, 96), (65, 66), (67, 61)])
def test_the_first_pooling_rounds_up_as_caffe_does(resnet50, resnet50_ceil, size):
    resnet50.set_weights(resnet50_ceil.get_weights())
    x = (image(*size) - 128) / 64
    found = {}
    for ceil, network in ((False, resnet50), (True, resnet50_ceil)):
        ends = [network.get_layer(name).output for name in ("stem_act", "stem_pool")]
        before, found[ceil] = (np.asarray(y) for y in keras.Model(network.input, ends)(x))
    maps = before.shape[1:3]
    assert found[True].shape[1:3] == tuple(n // 2 + 1 for n in maps)
    assert found[False].shape[1:3] == tuple((n + 1) // 2 for n in maps)
    np.testing.assert_array_equal(found[True], ceil_pooled(before))
    # Further windows at the end, and the same values elsewhere.
    rows, columns = found[False].shape[1:3]
    np.testing.assert_array_equal(found[True][:, :rows, :columns], found[False])


@pytest.mark.parametrize("size", [(128, 96), (97, 126)])
def test_the_fine_map_holds_the_coarse_one_behind_such_a_pooling_and_in_it(resnet50_ceil, size):
    stem = keras.Model(resnet50_ceil.input, resnet50_ceil.get_layer("stem_pool").output)
    for coarse, output_stride in ((resnet50_ceil, 8), (stem, 2)):
        fine = with_output_stride(coarse, output_stride)
        assert compare(coarse, fine, (image(*size) - 128) / 64) <= TOLERANCE


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"depth": 18}, "`depth` .* Received: depth=18"),
        ({"stride_on": "2x2"}, "`stride_on` .* Received: stride_on='2x2'"),
        ({"multi_grid": (1, 2)}, r"`multi_grid` .* Received: multi_grid=\(1, 2\)"),
        ({"multi_grid": (1, 2, 0)}, r"`multi_grid` .* Received: multi_grid=\(1, 2, 0\)"),
        ({"multi_grid": 2}, "`multi_grid` .* Received: multi_grid=2"),
        (
            {"multi_grid": (2, 2, 4)},
            r"`multi_grid` .* begins with 1 .* Received: multi_grid=\(2, 2, 4\)",
        ),
    ],
)
def test_errors_name_argument_and_value(arguments, words):
    with pytest.raises(ValueError, match=words):
        resnet(**{"depth": 50, **arguments})
