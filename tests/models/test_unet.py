from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from calibration import calibrate, image
from keras.src.applications.convnext import ConvNeXt
from networks import calibrated, tiny, tiny_sequential, zero_kernels

from keras_deeplab.backbones.resnet import UNITS
from keras_deeplab.backbones.xception import MIDDLE_UNITS
from keras_deeplab.graph import geometry, multiply_adds
from keras_deeplab.graph.network import leaf_layers
from keras_deeplab.layers import AtrousConv2D
from keras_deeplab.models.unet import UNet


def small(num_classes: int = 3, backbone=None, **arguments) -> keras.Model:
    return UNet(num_classes, backbone, **{"filters": 4, **arguments})


@pytest.fixture(scope="module")
def plain() -> keras.Model:
    return calibrated("unet")


@pytest.fixture(scope="module")
def network() -> keras.Model:
    return calibrate(tiny(), image(64, 64, batch=2))


@pytest.fixture(scope="module")
def over(network) -> keras.Model:
    model = calibrate(small(backbone=network), image(64, 64, batch=2))
    for mine, its in zip(model.backbone.weights, network.weights, strict=True):
        mine.assign(its)
    return model


# The network of 2015


@pytest.fixture(scope="module")
def published() -> keras.Model:
    with zero_kernels():
        return UNet()


def test_figures_of_the_paper(published):
    assert (published.num_classes, published.output_stride) == (21, 16)
    assert published.count_params() == 31_033_045
    # The paper's, of gray images and two classes.
    assert published.count_params() - 2 * 9 * 64 - 19 * 65 == 31_030_658
    multiplications = sum(multiply_adds(published, 512, 512).values()) / 1e9
    assert multiplications == pytest.approx(193.0, abs=0.05)
    found = geometry(published)
    assert found["backbone/level4_conv2"].receptive_field == (140, 140)
    assert found["backbone/level4_conv2"].stride == (16, 16)
    assert found.output.stride == (1, 1)
    for stride in (8, 4, 2, 1):
        assert found[f"decoder{stride}_concat"].stride == (stride, stride)
    skips = ("level0_conv2", "level1_conv2", "level2_conv2", "level3_dropout")
    assert published.get_config()["skip_layers"] == skips


def test_filters_depth_and_batch_norm():
    options = {"depth": 3, "input_shape": (None, None, 2)}
    model, normed = small(**options), small(**options, batch_norm=True)
    assert [model.get_layer(f"decoder{stride}_conv2").filters for stride in (4, 2, 1)] == [16, 8, 4]
    channels = 2 * sum((4, 8, 16, 32)) + 2 * sum((4, 8, 16))
    # A norm's scale, offset and two statistics come in the place of the convolution's bias.
    assert normed.count_params() == model.count_params() + 3 * channels
    logits = normed(image(2, 3, channels=2))
    assert logits.shape == (1, 2, 3, 3)
    assert np.isfinite(logits).all()


def test_kernels_begin_with_the_variance_of_the_paper():
    layers = leaf_layers(small(depth=2, filters=16))
    for path in ("backbone/level2_conv2", "decoder2_conv1"):
        kernel = layers[path].conv.kernel
        expected = np.sqrt(2 / np.prod(kernel.shape[:3]))
        assert np.std(kernel) == pytest.approx(expected, rel=0.05)
    kernel = layers["decoder2_up"].kernel
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / np.prod(kernel.shape[:3])), rel=0.05)
    biases = [layer.conv.bias for path, layer in layers.items() if "conv" in path]
    assert not np.any([np.any(bias) for bias in biases])


def test_dropout_is_on_the_last_two_levels(published):
    layers = leaf_layers(published).items()
    dropouts = {p: layer.rate for p, layer in layers if isinstance(layer, keras.layers.Dropout)}
    assert dropouts == {"backbone/level3_dropout": 0.5, "backbone/level4_dropout": 0.5}


@pytest.mark.parametrize("make", [lambda: None, tiny], ids=["2015", "over"])
def test_dropout_and_activation_are_those_given(make):
    layers = leaf_layers(small(backbone=make(), depth=1, dropout=0.25, activation="swish"))
    rates = [each.rate for each in layers.values() if isinstance(each, keras.layers.Dropout)]
    assert set(rates) == {0.25}
    own = [layer.get_config() for layer in layers.values() if isinstance(layer, AtrousConv2D)]
    assert {config["activation"] for config in own} == {"silu"}


def by_figure(model: keras.Model, pixels: np.ndarray) -> tf.Tensor:
    """The layers of a model of depth 2 as the paper's figure wires them."""
    layers, pool = leaf_layers(model), keras.layers.MaxPooling2D(2, padding="same")
    x, skips = pixels / 127.5 - 1, []
    for level in range(3):
        x = pool(x) if level else x
        for index in (1, 2):
            x = layers[f"backbone/level{level}_conv{index}"](x)
        skips.append(x)
    for skip, name in ((skips[1], "decoder2"), (skips[0], "decoder1")):
        x = layers[f"{name}_up"](x)[:, : skip.shape[1], : skip.shape[2]]
        x = tf.concat([skip, x], -1)
        for index in (1, 2):
            x = layers[f"{name}_conv{index}"](x)
    return layers["logits"](x)


@pytest.mark.parametrize("size", [(16, 12), (13, 11), (1, 3)])
def test_it_computes_what_the_figure_shows(plain, size):
    expected = by_figure(plain, image(*size))
    assert np.std(expected) > 1e-2
    np.testing.assert_allclose(plain(image(*size)), expected, atol=1e-4)


# Over a backbone


@pytest.mark.slow
def test_skips_of_a_users_network(over):
    skips = ("stem", "stage4_out", "add8", "add16")
    assert over.get_config()["skip_layers"] == skips
    assert over.output_stride == 32
    found = geometry(over)
    for stride, width in ((16, 64), (8, 32), (4, 16), (2, 8)):
        assert found[f"decoder{stride}_conv2"].stride == (stride, stride)
        assert over.get_layer(f"decoder{stride}_conv2").filters == width
        assert over.get_layer(f"decoder{stride}_conv1").norm is not None
    assert UNet(2, tiny()).get_layer("decoder16_conv1").filters == 256


def test_decoder_over_a_users_network(network, over):
    """The decoder's layers, on features taken from the user's own network by name."""
    pixels, names = image(97, 129), ("stem", "stage4_out", "add8", "add16")
    taps = [network.get_layer(name).output for name in names]
    *skips, x = keras.Model(network.inputs[0], [*taps, network.output])(pixels)
    for skip, stride in zip(skips[::-1], (16, 8, 4, 2), strict=True):
        x = tf.concat([skip, tf.image.resize(x, skip.shape[1:3])], -1)
        for index in (1, 2):
            x = over.get_layer(f"decoder{stride}_conv{index}")(x)
    expected = tf.image.resize(over.get_layer("logits")(x), (97, 129)).numpy()
    assert expected.std() > 1e-2
    np.testing.assert_allclose(over(pixels), expected, atol=1e-3 * expected.std())


@pytest.mark.slow
def test_skip_layers_can_be_named_in_any_order(over):
    names = over.get_config()["skip_layers"]
    turned = UNet.from_config({**over.get_config(), "skip_layers": names[::-1]})
    turned.set_weights(over.get_weights())
    pixels = image(33, 47)
    np.testing.assert_array_equal(turned(pixels), over(pixels))
    few = small(backbone=tiny(), skip_layers=["stage8", "stem"])
    assert few.get_config()["skip_layers"] == ("stage8", "stem")
    assert [x for x in (16, 8, 4, 2) if f"decoder{x}_up" in {y.name for y in few.layers}] == [8, 2]


@pytest.mark.parametrize("depth, skips", [(4, ("first", "second")), (2, ("first",))])
def test_missing_strides_and_those_beyond_the_depth_are_left_out(depth, skips):
    model = small(backbone=tiny_sequential(), depth=depth)
    assert model.get_config()["skip_layers"] == skips
    assert geometry(model)["logits"].stride == (4, 4)
    assert model(image(30, 41)).shape == (1, 30, 41, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "xception41", "vgg16", "ConvNeXt"])
def test_deep_backbones_and_one_without_stride_2(name, monkeypatch):
    monkeypatch.setitem(UNITS, 50, (1, 1, 1, 2))  # the other units are the same again
    monkeypatch.setitem(MIDDLE_UNITS, 41, 1)
    sizes = {"depths": [1, 1, 1, 1], "projection_dims": [8, 16, 32, 64]}
    is_own = name == "ConvNeXt"
    model = UNet(3, ConvNeXt(include_top=False, weights=None, **sizes) if is_own else name)
    strides = [32, 4, 8, 16] if is_own else [32, 2, 4, 8, 16]
    assert [x.stride[0] for x in geometry(model.backbone).outputs] == strides
    logits = model(image(97, 129))
    assert logits.shape == (1, 97, 129, 3)
    assert np.isfinite(logits).all()


def test_it_has_no_output_stride_to_change(plain, over):
    for model, own in ((plain, 4), (over, 32)):
        words = f"`output_stride` must be left as it is: a UNet .* {own}.* output_stride=8"
        with pytest.raises(ValueError, match=words):
            model.with_output_stride(8)
