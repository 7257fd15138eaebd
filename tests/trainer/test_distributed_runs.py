"""`fit` on several replicas of one machine against one."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from models.networks import tiny

import keras_deeplab
from keras_deeplab import data, recipes
from keras_deeplab.trainer import workers

# Batches with different numbers of ignored pixels, and a validation that two do not divide.
SOURCE = data.Shapes(train=8, val=3)
RECIPE = recipes.get("v3").replace(
    epochs=2, batch_size=4, crop_size=(48, 64), learning_rate=0.05, clipnorm=0.5, stage2_share=0.0
)


def trained(strategy: tf.distribute.Strategy):
    keras.utils.set_random_seed(0)
    small = {"aspp_rates": (), "aspp_filters": 8, "head_filters": None, "dropout": 0.0}
    with strategy.scope():
        model = keras_deeplab.DeepLabV3(6, tiny(), **small)
    before = model.get_weights()
    result = keras_deeplab.fit(model, SOURCE, RECIPE, strategy=strategy, verbose=0)
    return before, result


@pytest.mark.slow
def test_two_devices_train_as_one(mirrored):
    before, one = trained(tf.distribute.get_strategy())
    _, two = trained(mirrored)
    assert len(one.history["loss"]) == 2
    for key, values in one.history.items():
        np.testing.assert_allclose(two.history[key], values, rtol=1e-3, atol=1e-3, err_msg=key)
    moved = []
    for ours, theirs, start in zip(one.model.weights, two.model.weights, before, strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-5, err_msg=ours.path)
        moved.append(np.abs(np.array(ours) - start).max() > 1e-3)
    assert np.mean(moved) > 0.3
    assert two.scores["mean_iou"] == pytest.approx(one.scores["mean_iou"], abs=1e-3)


def test_the_chiefs_work_in_one_process():
    strategy = tf.distribute.get_strategy()
    assert workers.on_chief(strategy, lambda: 3) == 3
    assert workers.on_chief(strategy, lambda: None) == 0
