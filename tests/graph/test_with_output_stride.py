from __future__ import annotations

import keras
import numpy as np
import pytest
from atrous_property import TOLERANCE, compare
from calibration import calibrate, image, scaled
from keras import layers as kl
from models.networks import tiny

import keras_deeplab
from keras_deeplab.graph import geometry, with_output_stride
from keras_deeplab.layers import AtrousPadding2D


def test_a_nested_model_shared_at_two_strides_is_an_error_or_exact():
    inputs = keras.Input((None, None, 3))
    inner = keras.Sequential([keras.Input((None, None, 3)), kl.Conv2D(3, 1, name="twice")])
    x = inner(kl.MaxPooling2D()(inner(inputs)))
    x = kl.Conv2D(4, 3, 2, padding="same", activation="tanh")(x)
    coarse = calibrate(keras.Model(inputs, kl.Conv2D(4, 3, padding="same")(x)), scaled(32, 32))
    dense = with_output_stride(coarse, 2)
    assert compare(coarse, dense, scaled(32, 48)) <= TOLERANCE
    with pytest.raises(ValueError, match="'sequential.*/twice' is used at two strides"):
        with_output_stride(coarse, 1)


@pytest.mark.parametrize("output_stride, groups", [(1, 1), (2, 2)])
def test_branches_of_different_phase_meet(output_stride, groups):
    """A 'same' 3x3 and a 1x1 shortcut sample even sizes at different pixels."""
    inputs = keras.Input((None, None, 4))
    x = kl.Conv2D(8, 3, padding="same", activation="tanh")(inputs)
    for _ in range(2):
        main = kl.Conv2D(8, 3, 2, padding="same", groups=groups)(x)
        pooled = kl.AveragePooling2D(3, 2, padding="same")(x)
        short = kl.Conv2D(8, 1, 2, padding="same")(x)
        x = kl.Activation("tanh")(kl.Add()([main, short, pooled]))
    x = kl.AveragePooling2D(3, 1, padding="same")(x)
    random = image(48, 48, channels=4) / 64 - 2
    coarse = calibrate(keras.Model(inputs, x), random)
    fine = with_output_stride(coarse, output_stride)
    for size in ((32, 48), (33, 47)):
        assert compare(coarse, fine, image(*size, channels=4) / 64 - 2) <= TOLERANCE


def two_steps_and_one(x: keras.KerasTensor) -> list[keras.KerasTensor]:
    half = kl.Conv2D(4, 3, 2, padding="same", activation="tanh")(x)
    return [kl.Conv2D(4, 3, 2, padding="same")(half), kl.Conv2D(4, 7, 4, padding="same")(x)]


def even_and_odd_kernels(x: keras.KerasTensor) -> list[keras.KerasTensor]:
    padded = kl.ZeroPadding2D(((0, 1), (0, 1)))(x)
    return [kl.Conv2D(4, 4, 2, padding="same")(x), kl.Conv2D(4, 3, 2)(padded)]


@pytest.mark.parametrize("branches", [two_steps_and_one, even_and_odd_kernels])
def test_branches_whose_dilated_kernels_start_alike_but_did_not_before(branches):
    inputs = keras.Input((None, None, 3))
    x = kl.Activation("tanh")(kl.Add()(branches(inputs)))
    coarse = calibrate(keras.Model(inputs, kl.Conv2D(4, 3, padding="same")(x)), scaled(48, 48))
    fine = with_output_stride(coarse, 1)
    assert compare(coarse, fine, scaled(32, 48)) <= TOLERANCE


def test_padding_computes_in_the_precision_of_its_map():
    """Not in the global one, under which a float32 network may be rewritten."""
    inputs = keras.Input((None, None, 4))
    main, short = (kl.Conv2D(8, side, 2, padding="same")(inputs) for side in (3, 1))
    x = kl.Conv2D(8, 3)(kl.ZeroPadding2D(1)(kl.Add()([main, short])))
    coarse, before = keras.Model(inputs, x), keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        fine = with_output_stride(coarse, 1)
    finally:
        keras.config.set_dtype_policy(before)
    padding = [layer for layer in fine.layers if "pad" in layer.name]
    assert {type(layer) for layer in padding} >= {AtrousPadding2D}
    assert {layer.compute_dtype for layer in fine.layers[1:]} == {"float32"}


def even_kernels(x: keras.KerasTensor) -> keras.KerasTensor:
    x = kl.Conv2D(4, 4, 2, padding="same", activation="tanh")(x)
    x = kl.ZeroPadding2D(((2, 0), (1, 3)))(x)
    x = kl.Conv2D(4, 4, padding="valid", activation="tanh")(x)
    x = kl.Conv2D(4, 2, padding="same", activation="tanh")(x)
    return kl.DepthwiseConv2D(5, padding="same")(x)


def valid_strides_and_crops(x: keras.KerasTensor) -> keras.KerasTensor:
    x = kl.Conv2D(8, 3, 2, activation="tanh")(x)
    x = kl.Cropping2D(((1, 0), (0, 1)))(x)
    x = kl.Add()([kl.Cropping2D(1)(x), kl.Conv2D(8, 3)(x)])  # the same pixels
    return kl.Conv2D(8, 3)(kl.Conv2D(8, 5, 2, activation="tanh")(x))


def uneven_strides(x: keras.KerasTensor) -> keras.KerasTensor:
    x = kl.Conv2D(8, 3, (2, 1), padding="same", activation="tanh")(x)
    return kl.Conv2D(8, 3)(kl.Conv2D(8, 3, 2, padding="same", activation="tanh")(x))


def padded_poolings(x: keras.KerasTensor) -> keras.KerasTensor:
    """The zeros take part in the maximum and in the mean."""
    x = kl.Conv2D(4, 3, padding="same", activation="tanh")(x)
    x = kl.MaxPooling2D(3, 2)(kl.ZeroPadding2D(1)(x))
    return kl.AveragePooling2D(3, 2)(kl.ZeroPadding2D(1)(x))


def much_padding_at_the_end(x: keras.KerasTensor) -> keras.KerasTensor:
    return kl.Conv2D(4, 3, 2, activation="tanh")(kl.ZeroPadding2D(((0, 4), (0, 4)))(x))


def shared(x: keras.KerasTensor) -> keras.KerasTensor:
    twice = kl.Conv2D(4, 3, padding="same", name="twice")
    return twice(twice(kl.Conv2D(4, 3, 2, padding="same", activation="tanh")(x)))


@pytest.mark.parametrize(
    "layers, output_stride, expected, size",
    [
        (even_kernels, 1, (1, 1), (32, 40)),
        (valid_strides_and_crops, 2, (2, 2), (66, 74)),
        (valid_strides_and_crops, 1, (1, 1), (66, 74)),
        (uneven_strides, 2, (2, 1), (64, 48)),  # a layer gives up its stride along both axes
        (padded_poolings, 1, (1, 1), (32, 48)),
        (much_padding_at_the_end, 1, (1, 1), (32, 48)),
        (shared, 1, (1, 1), (32, 48)),
    ],
)
def test_small_networks(layers, output_stride, expected, size):
    inputs = keras.Input((None, None, 3))
    coarse = calibrate(keras.Model(inputs, layers(inputs)), scaled(48, 48))
    fine = with_output_stride(coarse, output_stride)
    assert geometry(fine).output.stride == expected
    assert len(fine.weights) == len(coarse.weights)
    assert compare(coarse, fine, scaled(*size)) <= TOLERANCE


@pytest.mark.parametrize("pooling", [kl.MaxPooling2D, kl.AveragePooling2D])
def test_one_rewrite_after_another_is_the_same_as_one(pooling):
    inputs = keras.Input((None, None, 3))
    x = inputs
    for _ in range(3):
        x = kl.Conv2D(6, 3, padding="same", activation="tanh")(x)
        x = pooling(2)(x)
    coarse = calibrate(keras.Model(inputs, kl.Conv2D(6, 3, padding="same")(x)), scaled(64, 64))
    twice = with_output_stride(with_output_stride(coarse, 4), 2)
    assert compare(coarse, twice, scaled(64, 80)) <= TOLERANCE


def test_composite_layers_are_dilated():
    inputs = keras.Input((None, None, 3))
    conv = keras_deeplab.layers.AtrousConv2D(8, 3, strides=2, activation="tanh", name="down")
    x = keras_deeplab.layers.AtrousSeparableConv2D(8, strides=2, name="again")(conv(inputs))
    x = keras_deeplab.layers.ASPP(8, (1, 2), image_pooling=False, name="aspp")(x)
    coarse = calibrate(keras.Model(inputs, x), scaled(64, 64, 2))
    fine = with_output_stride(coarse, 1)
    assert fine.get_layer("aspp").rates == ((4, 4), (8, 8))
    assert compare(coarse, fine, scaled(64, 49)) <= TOLERANCE


def test_what_cannot_be_finer_is_refused_by_name():
    inputs = keras.Input((32, 32, 3))
    x = kl.Conv2D(4, 3, 2, padding="same")(inputs)
    for layer in (kl.Flatten(name="top"), kl.UpSampling2D(name="top"), kl.Conv2DTranspose(4, 4, 2)):
        with pytest.raises(ValueError, match=f"'{layer.name}' .* becomes denser"):
            with_output_stride(keras.Model(inputs, layer(x)), 1)


def test_reused_layers_are_those_of_the_network_and_belong_to_the_new_graph():
    network = calibrate(tiny(), image(64, 64, 2))
    same, changed = network.get_layer("stage32_norm"), network.get_layer("unit32")
    x = image(65, 97)
    copy = with_output_stride(network, 16)
    dense = with_output_stride(network, 16, reuse_layers=True)
    assert [layer.name for layer in dense.layers] == [layer.name for layer in copy.layers]
    assert dense.get_layer("stage32_norm") is same
    assert dense.get_layer("unit32") is not changed
    np.testing.assert_array_equal(dense(x), copy(x))
    inner = keras.Model(dense.inputs[0], dense.get_layer("stage32_norm").output)
    assert inner(x).shape[1:3] == (5, 7)


def test_the_copy_is_independent_and_serialises(tmp_path):
    inputs = keras.Input((None, None, 3))
    x = kl.SeparableConv2D(8, 3, 2, padding="same", activation="tanh", name="first")(inputs)
    pooled = kl.MaxPooling2D(3, 2, padding="same")(x)
    x = kl.Add()([pooled, kl.Conv2D(8, 3, 2, padding="same")(x), kl.Conv2D(8, 1, 2)(x)])
    network = calibrate(keras.Model(inputs, x), scaled(32, 32, 2))
    fine = with_output_stride(network, 1)
    first = fine.get_layer("first")
    assert isinstance(first.depthwise_initializer, keras.initializers.GlorotUniform)
    x = scaled(32, 33)
    expected = np.asarray(fine(x))
    for weight in network.weights:
        weight.assign(np.zeros(weight.shape))
    np.testing.assert_array_equal(np.asarray(fine(x)), expected)
    fine.save(tmp_path / "fine.keras")
    loaded = keras.models.load_model(tmp_path / "fine.keras")
    np.testing.assert_allclose(np.asarray(loaded(x)), expected, atol=1e-5)
    assert geometry(loaded, 32, 33).output == geometry(fine, 32, 33).output


def test_a_pooling_of_one_pixel_becomes_a_layer_that_can_be_saved(tmp_path):
    inputs = keras.Input((None, None, 3))
    x = kl.MaxPooling2D(1, 2)(kl.Conv2D(4, 3, padding="same")(inputs))
    dense = with_output_stride(keras.Model(inputs, kl.Conv2D(4, 3, padding="same")(x)), 1)
    dense.save(tmp_path / "dense.keras")
    again = keras.models.load_model(tmp_path / "dense.keras")
    np.testing.assert_array_equal(again(image(9, 9)), dense(image(9, 9)))


def test_a_pooling_with_a_call_of_its_own_is_refused_where_it_becomes_dense():
    class Named(kl.MaxPooling2D):
        pass

    class Smoothed(kl.MaxPooling2D):
        def call(self, x):
            return kl.AveragePooling2D(3, 1, padding="same")(super().call(x))

    def network(last):
        inputs = x = keras.Input((None, None, 3))
        for layer in (Smoothed(2), last(2, name="last")):
            x = layer(kl.Conv2D(4, 3, padding="same")(x))
        return keras.Model(inputs, x)

    with pytest.raises(ValueError, match="'last' is a Smoothed, whose `call` a dense pooling does"):
        with_output_stride(network(Smoothed), 2)
    model = network(Named)
    images = np.random.default_rng(0).uniform(size=(1, 16, 16, 3))
    dense = with_output_stride(model, 2)(images)
    np.testing.assert_allclose(dense[:, ::2, ::2], model(images), rtol=1e-5)
