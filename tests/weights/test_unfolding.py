"""Folded batch norms that take statistics: the same answers, in training too."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from calibration import image
from models.networks import tiny

import keras_deeplab
from keras_deeplab.graph.network import all_layers
from keras_deeplab.weights import unfold_batch_norms

PIXELS = image(64, 96, batch=4)


@pytest.fixture(scope="module")
def network() -> keras.Model:
    arguments = {"aspp_filters": 8, "head_filters": 8, "separable": True, "dropout": 0.0}
    return keras_deeplab.DeepLabV3(3, tiny(), **arguments)


def norms_of(model: keras.Model) -> dict[str, keras.layers.BatchNormalization]:
    return {
        path: layer
        for path, layer in all_layers(model).items()
        if isinstance(layer, keras.layers.BatchNormalization)
    }


@pytest.fixture
def model(network) -> keras.Model:
    """Norms as a LiteRT file leaves them, in a network whose activations live."""
    random = np.random.default_rng(0)
    for norm in norms_of(network).values():
        norm.gamma.assign(np.ones(norm.gamma.shape))
        norm.moving_mean.assign(np.zeros(norm.gamma.shape))
        norm.moving_variance.assign(np.ones(norm.gamma.shape) - norm.epsilon)
        norm.beta.assign(random.normal(0.2, 0.5, norm.beta.shape))
    return network


def features(model: keras.Model, training: bool) -> np.ndarray:
    return np.asarray(keras.tree.flatten(model.backbone(PIXELS, training=training))[0])


def test_outputs_stay_and_training_starts_from_them(model):
    norms = norms_of(model)
    right, before = np.asarray(model(PIXELS, training=False)), features(model, training=False)
    statistics = {path: np.asarray(norm.moving_mean) for path, norm in norms.items()}
    folded = features(model, training=True)
    for path, norm in norms.items():  # which the training step has moved
        norm.moving_mean.assign(statistics[path])
        norm.moving_variance.assign(np.ones(norm.gamma.shape) - norm.epsilon)
    assert right.std() > 1e-2
    assert unfold_batch_norms(model, [PIXELS]) == len(norms)
    found = np.asarray(model(PIXELS, training=False))
    assert np.abs(found - right).max() < 1e-4 * right.std()
    # Also of the norms inside composite layers.
    assert np.std(norms["aspp/atrous_0/depthwise_norm"].moving_variance) > 0
    # The statistics are those of this very batch.
    unfolded = features(model, training=True)
    assert np.corrcoef(before.ravel(), folded.ravel())[0, 1] < 0.9
    assert np.corrcoef(before.ravel(), unfolded.ravel())[0, 1] > 0.999


@pytest.mark.parametrize("name", ["gamma", "moving_mean", "moving_variance"])
def test_other_norms_are_left_alone(model, name):
    norm = norms_of(model)["backbone/stage4_norm"]
    weight = getattr(norm, name)
    weight.assign(2 * np.ones(weight.shape))
    assert unfold_batch_norms(model, [PIXELS]) == len(norms_of(model)) - 1
    np.testing.assert_array_equal(weight, 2)
    assert unfold_batch_norms(model, []) == 0


@pytest.mark.parametrize("left_out", ["scale", "center"])
def test_norms_that_cannot_undo_their_statistics_are_left_alone(left_out):
    norm = keras.layers.BatchNormalization(**{left_out: False})
    model = keras.Sequential([keras.Input((None, None, 3)), norm])
    norm.moving_variance.assign(np.ones(3) - norm.epsilon)
    assert unfold_batch_norms(model, [PIXELS]) == 0


def test_a_data_set_of_pairs_in_several_batches(model):
    labels = np.zeros((4, 64, 96), np.int32)
    unfold_batch_norms(model, tf.data.Dataset.from_tensor_slices((PIXELS, labels)).batch(3))
    norm = norms_of(model)["backbone/stage4_norm"]
    first = keras.Model(model.backbone.inputs[0], model.backbone.get_layer("stage4_norm").input)
    values = np.asarray(first(PIXELS))
    np.testing.assert_allclose(norm.moving_mean, values.mean((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(norm.moving_variance, values.var((0, 1, 2)), rtol=1e-3)


def test_no_batch_and_errors_leave_the_layers_as_they_were(model):
    with pytest.raises(ValueError, match="`images` must hold at least one batch"):
        unfold_batch_norms(model, [])
    with pytest.raises(Exception, match=r".+"):
        unfold_batch_norms(model, [np.zeros((1, 8, 8, 5), np.float32)])
    assert all("call" not in vars(norm) for norm in norms_of(model).values())
    assert unfold_batch_norms(model, [PIXELS]) == len(norms_of(model))
