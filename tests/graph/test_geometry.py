from __future__ import annotations

import itertools
import math
from contextlib import nullcontext
from fractions import Fraction

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl

import keras_deeplab
from keras_deeplab.graph import geometry
from keras_deeplab.graph.geometry import Axis, _slid


def network(*layers: kl.Layer, shape=(None, None, 3)) -> keras.Model:
    inputs = x = keras.Input(shape)
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x)


def measured_field(model: keras.Model, size: int, at: int) -> tuple[int, int]:
    """First and last row that the output row `at` depends on, by the gradient."""
    image = tf.Variable(np.random.default_rng(0).normal(size=(1, size, size, 3)), dtype="float32")
    with tf.GradientTape() as tape:
        output = model(image)
        target = tf.reduce_sum(output[:, at])
    rows = np.abs(tape.gradient(target, image)).sum(axis=(0, 2, 3)).nonzero()[0]
    return int(rows[0]), int(rows[-1])


def positive(*layers: kl.Layer) -> keras.Model:
    """A network whose every tap counts in the gradient."""
    model = network(*layers)
    for weight in model.weights:
        weight.assign(np.random.default_rng(1).uniform(0.5, 1, weight.shape))
    return model


@pytest.mark.parametrize("size", [32, 33])
@pytest.mark.parametrize(
    "layers",
    [
        [kl.Conv2D(4, 5)],
        [kl.Conv2D(4, 3, 2, padding="same"), kl.Conv2D(4, 3, padding="same", dilation_rate=3)],
        [kl.Conv2D(4, 4, padding="same"), kl.AveragePooling2D(2, 2, padding="same")],
        [
            kl.ZeroPadding2D(((3, 1), (0, 2))),
            kl.DepthwiseConv2D(3, 2),
            kl.Cropping2D(((1, 2), (0, 0))),
        ],
        [kl.SeparableConv2D(4, 7, 3, padding="same"), kl.Conv2D(2, 3, padding="same")],
        [kl.Conv2D(4, 3, 2, padding="same"), kl.Conv2DTranspose(4, 4, 2, padding="same")],
        [kl.Conv2D(4, 3, 4), kl.Conv2DTranspose(4, 3, 2, padding="valid")],
        [kl.Conv2D(4, 3, 2), kl.UpSampling2D(2, interpolation="bilinear")],
        [kl.AveragePooling2D(2), kl.UpSampling2D(2, interpolation="bicubic")],
        [kl.AveragePooling2D(2), kl.UpSampling2D(2, interpolation="lanczos3")],
        [keras_deeplab.layers.AtrousConv2D(4, 3, strides=2, batch_norm=False, activation=None)],
        [keras_deeplab.layers.AtrousPooling2D((3, 2), "average", (4, 1))],
        [keras_deeplab.layers.AtrousPooling2D((3, 3), "average", (2, 2), source_strides=(2, 2))],
    ],
)
def test_geometry_agrees_with_the_gradient(layers, size):
    model = positive(*layers)
    value = geometry(model, size, size).output
    assert tuple(model(np.zeros((1, size, size, 3), "float32")).shape[1:3]) == value.size
    # Rows in the middle, so that no field is cut by the border.
    rows = range(value.size[0] // 2 - 1, value.size[0] // 2 + 2)
    fields = [measured_field(model, size, row) for row in rows]
    stride, field, offset = value.stride[0], value.receptive_field[0], value.offset[0]
    assert max(last - first + 1 for first, last in fields) <= field
    # Rows behind a transposed convolution or an upsampling have their taps at one side or the
    # other, less than a coarse sample away from where they lie on average.
    slack = any(isinstance(layer, kl.Conv2DTranspose | kl.UpSampling2D) for layer in layers)
    for row, (first, last) in zip(rows, fields, strict=True):
        centre = offset + row * stride
        low, high = centre - (field - 1) / 2, centre + (field - 1) / 2
        assert (low - slack <= first, last <= high + slack) == (True, True)
        assert slack or (first, last) == (low, high)


def test_means_of_areas_are_the_nearest_samples_where_a_map_becomes_larger():
    area, nearest = (
        network(kl.AveragePooling2D(2), kl.UpSampling2D(3, interpolation=interpolation))
        for interpolation in ("area", "nearest")
    )
    images = np.random.default_rng(0).uniform(size=(1, 8, 8, 3))
    np.testing.assert_allclose(area(images), nearest(images), rtol=1e-5)
    assert geometry(area).output == geometry(nearest).output


@pytest.mark.parametrize(
    "activation", ["relu", "relu6", "gelu", "silu", "celu", "hard_shrink", "squareplus", "tanh"]
)
def test_activations_as_functions_keep_the_field(activation):
    inputs = keras.Input((None, None, 3))
    x = getattr(keras.activations, activation)(kl.Conv2D(4, 3, 2)(inputs))
    value = geometry(keras.Model(inputs, kl.Conv2D(4, 3)(x))).output
    assert (value.stride, value.receptive_field) == ((2, 2), (7, 7))


def test_an_offset_that_depends_on_the_size_is_none_without_it():
    model = network(kl.Conv2D(4, 3, 2, padding="same"))
    assert geometry(model).output.offset == (None, None)
    assert geometry(model, 8, 9).output.offset == (1, 0)
    assert geometry(network(kl.Conv2D(4, 1, 2, padding="same"))).output.offset == (0, 0)


def test_a_resized_map_keeps_its_outer_edges_where_sizes_do_not_divide():
    inputs = keras.Input((None, None, 3))
    x = kl.Conv2D(4, 3, 4, padding="same")(inputs)
    model = keras.Model(inputs, keras_deeplab.layers.ResizeLike()(x, inputs))
    # 3 samples, the first at 0 of 9 pixels and at 1 of 10, become samples 12 / 9 and 12 / 10 apart.
    assert geometry(model, 9, 10).output.offset == pytest.approx((-4 / 3, -0.4))


def test_the_surplus_of_a_transposed_convolution_is_cut_off_at_its_end():
    model = positive(kl.Conv2DTranspose(4, 3, 2, padding="same"))
    value = geometry(model, 8, 8).output
    assert (value.stride, value.offset) == ((0.5, 0.5), (-0.5, -0.5))
    for row in range(3, 7):
        assert sum(measured_field(model, 8, row)) / 2 == -0.5 + row * 0.5


def test_each_axis_has_a_minimum_of_its_own():
    model = network(keras_deeplab.layers.PadToMinimum((7, 5)))
    assert geometry(model, 3, 3).output.size == (7, 5)


def test_merging_takes_the_union_of_the_fields():
    inputs = keras.Input((None, None, 3))
    left = kl.Conv2D(4, 3)(inputs)
    right = kl.Conv2D(4, 5, padding="same")(kl.Cropping2D(1)(inputs))
    value = geometry(keras.Model(inputs, kl.Concatenate()([left, right])), 20, 20).output
    assert (value.receptive_field, value.offset) == ((5, 5), (1, 1))


def test_global_pooling_makes_the_field_unbounded_and_keeps_the_grid():
    inputs = keras.Input((None, None, 8))
    x = kl.Conv2D(8, 3, 2)(inputs)
    gate = kl.Reshape((1, 1, 8))(kl.Dense(8)(kl.GlobalAveragePooling2D()(x)))
    value = geometry(keras.Model(inputs, kl.Multiply()([x, gate])), 33, 33).output
    assert (value.stride, value.offset) == ((2, 2), (1, 1))
    assert value.receptive_field == (math.inf, math.inf)


def test_nested_models_and_composite_layers_are_entered():
    inner = keras.Sequential([keras.Input((None, None, 4)), kl.Conv2D(4, 3, 2)], name="inner")
    aspp = keras_deeplab.layers.ASPP(8, (2, 4), name="aspp")
    found = geometry(network(kl.Conv2D(4, 1), inner, aspp), 65, 65)
    assert (found["inner"].stride, found["inner"].receptive_field) == ((2, 2), (3, 3))
    assert found["aspp/atrous_0/conv"].receptive_field == (3 + 2 * 4, 3 + 2 * 4)
    assert found["aspp/atrous_1/conv"].receptive_field == (3 + 4 * 4, 3 + 4 * 4)
    assert found.output.receptive_field == (math.inf, math.inf)
    assert found.output.size == (32, 32)


def test_resizing_takes_the_stride_of_its_reference():
    inputs = keras.Input((None, None, 3))
    fine = kl.Conv2D(4, 1, 2)(inputs)
    coarse = kl.Conv2D(4, 1, 4)(inputs)
    for align_corners, side, size, offset in ((False, 32, 16, -1), (True, 33, 17, 0)):
        resized = keras_deeplab.layers.ResizeLike(align_corners=align_corners)(coarse, fine)
        value = geometry(keras.Model(inputs, resized), side, side).output
        assert (value.stride, value.receptive_field) == ((2, 2), (5, 5))
        assert (value.size, value.offset) == ((size, size), (offset, offset))


def test_unknown_layers_are_named():
    class Mystery(kl.Layer):
        def call(self, x):
            return x

    model = network(Mystery(name="riddle"))
    flipped = network(kl.RandomFlip(name="flip"), kl.Conv2D(4, 3))
    with pytest.raises(ValueError, match="'flip'.*is random augmentation. Put it in front of the"):
        geometry(flipped)
    with pytest.raises(ValueError, match="'riddle'.*register_pointwise"):
        geometry(model)
    keras_deeplab.graph.register_pointwise(Mystery)
    assert geometry(model).output.receptive_field == (1, 1)
    with pytest.raises(ValueError, match="'black_box'"):
        geometry(network(kl.Lambda(lambda x: x, name="black_box")))


def test_the_last_axis_of_a_vector_is_that_of_channels():
    inputs = keras.Input((64, 64, 3))
    x = kl.Conv2D(8, 3, 2, "same")(inputs)
    gate = kl.BatchNormalization(axis=1)(kl.Dense(8)(kl.GlobalAveragePooling2D()(x)))
    gate = kl.Concatenate(axis=1)([kl.Softmax(axis=1)(gate), gate])
    model = keras.Model(inputs, kl.Multiply()([kl.Conv2D(16, 1)(x), kl.Reshape((1, 1, 16))(gate)]))
    assert geometry(model, 64, 64).output.stride == (2, 2)
    assert geometry(keras_deeplab.graph.with_output_stride(model, 1), 64, 64).output.stride == (
        1,
        1,
    )


NORMS = [kl.BatchNormalization, kl.LayerNormalization, kl.UnitNormalization, kl.Normalization]


@pytest.mark.parametrize("layer", [*NORMS, kl.Softmax, kl.Concatenate])
def test_layers_of_an_axis_are_pointwise_along_the_channels_alone(layer):
    inputs = keras.Input((9, 9, 4))
    given = [inputs, inputs] if layer is kl.Concatenate else inputs
    assert geometry(keras.Model(inputs, layer(axis=-1)(given)), 9, 9).output.stride == (1, 1)
    with pytest.raises(ValueError, match="layer 'across' .*unknown"):
        geometry(keras.Model(inputs, layer(axis=1, name="across")(given)), 9, 9)


class Padded(kl.Conv2D):
    """Pads in its own `call`, as TensorFlow's official models do."""

    def call(self, x):
        return super().call(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]))


class PaddedPooling(kl.MaxPooling2D):
    def call(self, x):
        return super().call(tf.pad(x, [[0, 0], [0, 1], [0, 1], [0, 0]]))


class Standardized(kl.Conv2D):
    """Changes its kernel alone."""

    def call(self, x):
        kernel = self.kernel - tf.reduce_mean(self.kernel, (0, 1, 2))
        return self.convolution_op(x, kernel) + self.bias


def test_subclasses_that_pad_in_their_call_are_an_error():
    for layer in (Padded(4, 3, 2, name="own"), PaddedPooling(2, name="own")):
        model = keras.Sequential([keras.Input((None, None, 3)), layer])
        with pytest.raises(ValueError, match=r"the layer 'own' \(Padded.*changes the size in its"):
            geometry(model)
    layer = Standardized(4, 3, 2, "same")
    model = keras.Sequential([keras.Input((None, None, 3)), layer])
    assert geometry(model).output.stride == (2, 2)


def test_of_a_multi_scale_the_model_inside_is_asked_for():
    model = keras_deeplab.MultiScale(keras_deeplab.UNet(2, depth=1, filters=4), (1.0, 0.5))
    with pytest.raises(ValueError, match="'image_0_5' changes the scale.*`model.model`"):
        geometry(model, 32, 32)
    assert geometry(model.model, 32, 32).output.size == (32, 32)


def test_what_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="too small"):
        geometry(network(kl.Conv2D(2, 7)), 5, 5)
    with pytest.raises(ValueError, match="`height` must be a positive integer"):
        geometry(network(kl.Conv2D(2, 7)), 0, 5)
    with pytest.raises(ValueError, match="functional Keras model"):
        geometry(keras.Model())
    inputs = keras.Input((4, 4, 3))
    fine = kl.Cropping2D(1)(inputs)
    merged = kl.Add(name="joint")([fine, kl.Conv2D(3, 1, 2)(inputs)])
    with pytest.raises(ValueError, match="'joint' merges maps of stride 1 and 2"):
        geometry(keras.Model(inputs, merged))


def test_layer_names_and_symbolic_tensors_are_keys():
    model = network(kl.Conv2D(4, (3, 5), (2, 1)), kl.MaxPooling2D((1, 2)))
    found = geometry(model, 21, 30)
    assert found[model.layers[1].output].receptive_field == (3, 5)
    assert found[model.output] is found.output
    assert list(found) == [layer.name for layer in model.layers]
    value = found.output
    assert (value.stride, value.receptive_field) == ((2, 2), (3, 6))
    assert (value.offset, value.size) == ((1, 2.5), (10, 13))


@pytest.mark.parametrize("rate", [1, 2, 3])
def test_a_window_that_meets_padding_alone_is_an_error_and_no_other(rate):
    """Against the layer itself, whose maximum over no pixel is the lowest number."""
    refused = 0
    for pool, size in itertools.product((2, 3), range(1, 4)):
        total = rate * (pool - 1)
        pads = itertools.product(range(total + 1), repeat=2)
        cases = [("same", None), ("same", (1, 2)), ("same", (1, 3)), ("valid", None)]
        for padding, strides in [*cases, *((((0, 0), both), None) for both in pads)]:
            layer = keras_deeplab.layers.AtrousPooling2D(
                (1, pool), "max", (1, rate), padding, source_strides=strides
            )
            if size + sum(layer.pads(1, size)) <= total:
                continue  # no window fits
            empty = np.min(layer.call(tf.zeros((1, 1, size, 1)))) < 0
            refused += empty
            error = pytest.raises(ValueError, match="padding alone: the image is too small")
            one = Fraction(1)
            with error if empty else nullcontext():
                _slid(layer, 1, Axis(one, one, Fraction(0), size))
    assert refused if rate > 1 else not refused
