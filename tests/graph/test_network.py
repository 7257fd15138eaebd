from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_deeplab
from keras_deeplab.graph.network import all_layers, all_norms, intercepted_calls, leaf_layers


@pytest.fixture(scope="module")
def model() -> keras.Model:
    """A nested model that shares a norm with the outer one, and a composite layer."""
    inputs = keras.Input((None, None, 4))
    norm = kl.BatchNormalization(name="norm")
    inner = keras.Sequential([keras.Input((None, None, 4)), norm], name="inner")
    conv = keras_deeplab.layers.AtrousConv2D(4, 3, name="conv")
    return keras.Model(inputs, norm(conv(inner(inputs))))


def test_layers_and_norms_by_path(model):
    paths = {"inner", "inner/norm", "conv", "conv/conv", "conv/norm", "norm"}
    assert paths <= set(all_layers(model))
    assert set(leaf_layers(model)) >= {"inner/norm", "conv", "norm"}
    assert not any(path.startswith("conv/") for path in leaf_layers(model))
    # The shared norm under its first path alone.
    assert set(all_norms(model)) == {"inner/norm", "conv/norm"}


def test_calls_are_intercepted_once_and_restored_after_an_error(model):
    x = np.ones((1, 5, 5, 4), "float32")
    expected = model(x)
    layers, paths = all_layers(model), []

    def recorded(path, call, *args, **kwargs):
        paths.append(path)
        return call(*args, **kwargs)

    with intercepted_calls(layers, recorded):
        np.testing.assert_array_equal(model(x), expected)
    assert paths.count("inner/norm") == 2, "both uses of the shared norm"
    assert "norm" not in paths
    with pytest.raises(RuntimeError), intercepted_calls(layers, recorded):
        raise RuntimeError
    assert not any("call" in vars(layer) for layer in layers.values())
