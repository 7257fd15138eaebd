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


def norms_of(model: keras.Model) -> dict[str, keras.layers.BatchNormalization]:
    return {
        path: layer
        for path, layer in all_layers(model).items()
        if isinstance(layer, keras.layers.BatchNormalization)
    }


def folded(model: keras.Model) -> keras.Model:
    """Norms as a LiteRT file leaves them, in a network whose activations live."""
    random = np.random.default_rng(0)
    for norm in norms_of(model).values():
        norm.gamma.assign(np.ones(norm.gamma.shape))
        norm.moving_mean.assign(np.zeros(norm.gamma.shape))
        norm.moving_variance.assign(np.ones(norm.gamma.shape) - norm.epsilon)
        norm.beta.assign(random.normal(0.2, 0.5, norm.beta.shape))
    return model


def v3(**arguments) -> keras_deeplab.DeepLabV3:
    arguments = {"aspp_filters": 8, "head_filters": 8, "separable": True, **arguments}
    return keras_deeplab.DeepLabV3(3, tiny(), dropout=0.0, **arguments)


def features(model: keras.Model, training: bool) -> np.ndarray:
    found = keras.tree.flatten(model.backbone(PIXELS, training=training))
    return np.asarray(found[0])


def correlation(model: keras.Model) -> float:
    outputs = features(model, training=False), features(model, training=True)
    return float(np.corrcoef(*map(np.ravel, outputs))[0, 1])


def test_outputs_stay_and_training_starts_from_them():
    before = correlation(folded(v3()))
    model = folded(v3())
    right = np.asarray(model(PIXELS, training=False))
    assert right.std() > 1e-2
    assert unfold_batch_norms(model, [PIXELS]) == len(norms_of(model))
    found = np.asarray(model(PIXELS, training=False))
    assert np.abs(found - right).max() < 1e-4 * right.std()
    # Also of the norms inside composite layers.
    assert np.std(norms_of(model)["aspp/atrous_0/depthwise_norm"].moving_variance) > 0
    # The statistics are those of this very batch.
    assert correlation(model) > 0.999
    assert before < 0.9


def test_other_norms_are_left_alone():
    model = v3()
    assert unfold_batch_norms(model, []) == 0
    norm = norms_of(folded(model))["backbone/stage4_norm"]
    norm.gamma.assign(2 * np.ones(norm.gamma.shape))
    assert unfold_batch_norms(model, [PIXELS]) == len(norms_of(model)) - 1
    np.testing.assert_array_equal(norm.gamma, 2)


def test_a_data_set_of_pairs_in_several_batches():
    model = folded(v3())
    labels = np.zeros((4, 64, 96), np.int32)
    dataset = tf.data.Dataset.from_tensor_slices((PIXELS, labels)).batch(2)
    unfold_batch_norms(model, dataset)
    norm = norms_of(model)["backbone/stage4_norm"]
    first = keras.Model(model.backbone.inputs[0], model.backbone.get_layer("stage4_norm").input)
    values = np.asarray(first(PIXELS))
    np.testing.assert_allclose(norm.moving_mean, values.mean((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(norm.moving_variance, values.var((0, 1, 2)), rtol=1e-3)


def test_no_batch_and_errors_leave_the_layers_as_they_were():
    model = folded(v3())
    with pytest.raises(ValueError, match="`images` must hold at least one batch"):
        unfold_batch_norms(model, [])
    with pytest.raises(Exception, match=r".+"):
        unfold_batch_norms(model, [np.zeros((1, 8, 8, 5), np.float32)])
    assert all("call" not in vars(norm) for norm in norms_of(model).values())
    assert unfold_batch_norms(model, [PIXELS]) == len(norms_of(model))


def test_it_trains_and_is_saved_afterwards(tmp_path):
    model = folded(v3(dtype="mixed_bfloat16"))
    unfold_batch_norms(model, [PIXELS])
    model.compile("sgd", keras_deeplab.losses.CrossEntropy(), run_eagerly=True)
    model.fit(PIXELS, np.zeros((4, 64, 96), np.int32), verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(PIXELS), model(PIXELS))
