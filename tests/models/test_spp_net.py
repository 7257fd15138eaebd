from __future__ import annotations

import keras
import numpy as np
import pytest
from calibration import calibrate, image
from networks import small, tiny, zero_kernels

from keras_deeplab import SPPNet
from keras_deeplab.backbones import alexnet
from keras_deeplab.layers import SpatialPyramidPooling2D
from keras_deeplab.models import SegmentationModel


@pytest.mark.parametrize("pooling", ["max", "average"])
def test_logits_are_those_of_pyramid_and_matrices(pooling):
    model = calibrate(small("spp", pooling=pooling), image(96, 96, batch=2))
    for size in ((96, 160), (225, 97)):
        pixels = image(*size, batch=2)
        x = SpatialPyramidPooling2D((3, 2, 1), pooling)(model.backbone(pixels)).numpy()
        assert x.shape == (2, 12 * 14)
        for name in ("dense1", "dense2", "logits"):
            kernel, bias = model.get_layer(name).get_weights()
            x = x @ kernel + bias
            x = x if name == "logits" else np.maximum(x, 0)
        assert x.std() > 1e-2
        np.testing.assert_allclose(model(pixels), x, rtol=1e-4, atol=1e-4 * x.std())
    assert not isinstance(model, SegmentationModel)
    assert model.output_stride == 32


@pytest.mark.parametrize("last", ["max", "average"])
def test_the_pyramid_replaces_the_pooling_that_a_network_ends_in(last):
    network = tiny()
    padded = keras.layers.ZeroPadding2D(1)(network.output)
    if last == "max":
        end = keras.layers.MaxPooling2D(2, name="end")(padded)
    else:
        end = keras.layers.AveragePooling2D(2, name="end")(network.output)
    pooling = keras.Model(network.input, end, name="pooling")
    model, x = small("spp", backbone=pooling), image(64, 96)
    assert model.backbone.layers[-1].name == "add32"
    assert model.output_stride == 32
    np.testing.assert_allclose(model.backbone(x), network(x), rtol=1e-4, atol=1e-5)
    if last == "max":
        keeping = small("spp", backbone=pooling, replace_pooling=False)
        assert keeping.backbone.layers[-1].name == "end"
        np.testing.assert_allclose(keeping.backbone(x), pooling(x), rtol=1e-4, atol=1e-5)


def test_on_vgg16_too():
    model = SPPNet(3, "vgg16", levels=(2, 1), dense=())
    assert model.backbone.layers[-1].name == "block5_conv3"
    assert model.output_stride == 16
    assert model.get_config()["preprocessing"] == "mean"


def test_a_network_that_ends_finer_than_it_was_keeps_all_its_strides():
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, strides=4, padding="same", activation="tanh", name="down")(inputs)
    x = keras.layers.Conv2D(4, 3, padding="same", activation="tanh", name="deep")(x)
    network = keras.Model(inputs, keras.layers.UpSampling2D(2)(x), name="hourglass")
    model = small("spp", backbone=network)
    assert model.backbone.get_layer("deep").dilation_rate == (1, 1)
    x = image(64, 64)
    np.testing.assert_allclose(model.backbone(x), network(x), rtol=1e-4, atol=1e-5)


def test_parameters_and_defaults_on_alexnet():
    by_name = SPPNet(3, "alexnet", dense=(4,))
    assert by_name.output_stride == 16
    assert by_name.get_config()["preprocessing"] == "torch"
    assert by_name.get_layer("dense1_dropout").rate == 0.5
    head = 256 * 50 * 4 + 4 + 4 * 3 + 3
    assert by_name.count_params() == alexnet().count_params() + head


def test_dense_layers_have_the_dropout_given_and_their_variance():
    keras.utils.set_random_seed(0)
    model = small("spp", dropout=0.25, dense=(64, 32))
    for name in ("dense1", "dense2"):
        kernel = model.get_layer(name).kernel
        assert np.std(kernel) == pytest.approx(np.sqrt(2 / kernel.shape[0]), rel=0.05)
        assert model.get_layer(f"{name}_dropout").rate == 0.25


@pytest.mark.slow
def test_the_default_is_the_papers_head_on_vgg16():
    with zero_kernels():
        model = SPPNet(1000)
    assert model.count_params() == 14_714_688 + 50 * 512 * 4096 + 4096 + 16_781_312 + 4_097_000
    assert model(image(180, 224)).shape == (1, 1000)


def test_a_frozen_network_stays_frozen():
    network = tiny()
    network.trainable = False
    options = {"levels": (1,), "dense": (4,), "input_shape": (None, None, 3)}
    model = SPPNet(2, network, **options)
    assert not model.backbone.trainable
    assert len(model.trainable_weights) == 4  # of the two dense layers
