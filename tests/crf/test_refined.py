"""A model with a CRF after it, wherever a model is taken."""

from __future__ import annotations

import json
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from calibration import image as textured
from PIL import Image

import keras_deeplab as kd
from keras_deeplab.crf import DenseCRF, RefinedModel, dense_crf
from keras_deeplab.crf.dense_crf import bytes_per_pixel
from keras_deeplab.data import DatasetInfo
from keras_deeplab.evaluation import prediction_settings
from keras_deeplab.inference import model_functions

SMALL = DenseCRF(appearance_sigma_xy=8.0, appearance_sigma_rgb=20.0, steps=3)


@pytest.fixture(scope="module")
def model():
    """The classes of single pixels, so that their borders are rough."""
    inputs = keras.Input((None, None, 3))
    logits = keras.layers.Conv2D(3, 1)
    made = keras.Model(inputs, logits(inputs))
    weights = np.random.default_rng(0).normal(0, 0.02, (3, 3))
    logits.set_weights([weights[None, None], -128 * weights.sum(0)])
    return made


@pytest.fixture(scope="module")
def photo():
    return textured(36, 48)[0].astype(np.uint8)


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "saved_model"
    kd.export.saved_model(model, path, info=DatasetInfo(("sky", "road", "car")))
    return kd.runtimes.open_exported(path)


@pytest.fixture(params=["model", "exported"])
def taken(request):
    return request.getfixturevalue(request.param)


@pytest.mark.slow
def test_prediction(taken, photo):
    before = kd.predict(taken, photo, probabilities=True)
    expected = SMALL(photo, before)
    refined = RefinedModel(taken, SMALL)
    found = kd.predict(refined, photo, probabilities=True)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    labels = kd.predict(refined, photo)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, found.argmax(-1))
    assert np.mean(labels != before.argmax(-1)) > 0.02
    batch = np.stack([photo, photo[::-1]])
    np.testing.assert_array_equal(kd.predict(refined, batch)[0], labels)


def test_windows_are_refined_one_by_one(model, photo):
    refined = RefinedModel(model, SMALL)
    found = kd.predict(refined, photo, probabilities=True, window=(36, 32), overlap=8)
    left = SMALL(photo[:, :32], kd.predict(model, photo[:, :32], probabilities=True))
    np.testing.assert_allclose(found[:, :16], left[:, :16], atol=1e-4)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
    assert np.mean(found.argmax(-1) == kd.predict(refined, photo)) > 0.95


def test_files(taken, photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / "photo.png")
    refined = RefinedModel(taken, SMALL)
    shares = kd.predict_files(refined, [tmp_path / "photo.png"], tmp_path)
    labels = np.array(Image.open(tmp_path / "photo_labels.png"))
    np.testing.assert_array_equal(labels, kd.predict(refined, photo))
    assert tuple(shares["photo.png"]) == getattr(taken, "classes", ("0", "1", "2"))


def test_evaluation(taken, photo):
    truth = dense_crf(photo, kd.predict(taken, photo, probabilities=True)).argmax(-1)
    pairs = tf.data.Dataset.from_tensors((photo, truth.astype(np.int32)))
    refined = kd.evaluate(RefinedModel(taken, DenseCRF()), pairs, verbose=0)
    assert refined["mean_iou"] > 0.999
    assert kd.evaluate(taken, pairs, verbose=0)["mean_iou"] < 0.98


def test_settings_name_the_constants(taken):
    settings = prediction_settings(RefinedModel(taken, SMALL))
    assert settings == {**prediction_settings(taken), "crf": SMALL.to_dict()}
    assert json.loads(json.dumps(settings))["crf"]["steps"] == 3


def test_the_value_range_is_that_of_an_export(model):
    assert RefinedModel(model, SMALL).value_range is None
    export = SimpleNamespace(value_range=(0.0, 4095.0))
    assert RefinedModel(export, SMALL).value_range == (0.0, 4095.0)


def test_memory_is_that_of_the_larger(model):
    functions = model_functions(RefinedModel(model, SMALL))
    assert functions.bytes_per_pixel == bytes_per_pixel(3, 3) > functions.model.bytes_per_pixel
    assert 3500 < bytes_per_pixel(3, 21) < 4500  # 4.1 kB were measured, of an image of noise
