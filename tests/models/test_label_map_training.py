from __future__ import annotations

import copy
import pickle
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from networks import tiny

from keras_deeplab import DeepLabV3, DeepLabV3Plus, MultiScale, SPPNet
from keras_deeplab import labels as labels_module
from keras_deeplab.losses import CrossEntropy, Dice, Sum
from keras_deeplab.models.label_map_training import LabelMapTraining

SMALL = {"aspp_filters": 4}
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 33, 40, 3)).astype(np.uint8)
MASKS = np.zeros((8, 33, 40), np.uint8)
MASKS[:, :4] = 255


@pytest.fixture(scope="module")
def auxiliary() -> keras.Model:
    return DeepLabV3(2, tiny(), head_filters=4, auxiliary_layer="stage8_out", **SMALL)


@pytest.fixture(scope="module")
def plus() -> keras.Model:
    return DeepLabV3Plus(2, tiny(), decoder_filters=4, **SMALL)


@pytest.fixture(scope="module", params=["auxiliary", "plus", "multi_scale"])
def model(request, auxiliary, plus) -> keras.Model:
    made = {"auxiliary": auxiliary, "plus": plus}
    return made.get(request.param) or MultiScale(auxiliary, (0.5, 1.0))


CLONERS = (
    {},
    {"clone_function": lambda layer: layer.from_config(layer.get_config())},
    {"clone_function": lambda layer: layer},
    {"input_tensors": keras.Input((33, 40, 3), name="images")},
)


def test_a_clone_that_would_lose_the_class_is_refused(model):
    for options in CLONERS:
        with pytest.raises(ValueError, match=f"A {type(model).__name__} must not be cloned .* Use"):
            keras.models.clone_model(model, **options)


def test_a_network_around_a_model_can_be_cloned(plus):
    around = keras.Sequential([keras.Input((33, 40, 3)), plus])
    assert type(keras.models.clone_model(around).layers[-1]) is type(plus)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]
)
def test_copies_keep_class_weights_and_auxiliary_head(auxiliary, duplicate):
    model = MultiScale(auxiliary, (0.5, 1.0))
    again, logits = duplicate(model), model(IMAGES[:1])
    assert type(again) is type(model)
    np.testing.assert_array_equal(again(IMAGES[:1]), logits)
    for weight in again.weights:
        weight.assign(weight * 0)
    np.testing.assert_array_equal(model(IMAGES[:1]), logits)
    assert len(again(IMAGES[:1], training=True)) == len(model(IMAGES[:1], training=True)) == 5


def test_class_weight_of_label_maps_is_refused(model):
    model.compile("sgd", CrossEntropy())
    data = tf.data.Dataset.from_tensor_slices((IMAGES, MASKS)).batch(4)
    message = r"`class_weight` must be None .*\{0: 1\.0, 1: 3\.0\}.*CrossEntropy\(class_weights="
    weights = {"class_weight": {0: 1.0, 1: 3.0}}
    for x, y in ((IMAGES, MASKS), (IMAGES, MASKS[..., None]), (data, None)):
        with pytest.raises(ValueError, match=message):
            model.fit(x, y, **weights)
    with pytest.raises(ValueError, match=message):
        model.train_on_batch(IMAGES, MASKS, **weights)


def test_hdf5_which_would_not_load_is_refused(plus, tmp_path):
    for name in ("model.h5", "model.HDF5"):
        with pytest.raises(ValueError, match="`filepath` must end in .keras"):
            plus.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_class_weight_of_labels_of_whole_images_is_keras_own():
    model = SPPNet(2, tiny(), levels=(1,), dense=(4,), dropout=0.0, input_shape=(32, 32, 3))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.0), loss, run_eagerly=True)
    images, labels = IMAGES[:2, :32, :32], np.array([0, 1])
    plain = model.train_on_batch(images, labels)
    twice = model.train_on_batch(images, labels, class_weight={0: 2.0, 1: 2.0})
    assert np.ravel(twice)[0] == pytest.approx(2 * np.ravel(plain)[0], rel=1e-5)


class OneKernel(LabelMapTraining, keras.Model):
    """The least model that is trained on label maps."""

    def __init__(self):
        inputs = keras.Input((33, 40, 3))
        super().__init__(inputs, keras.layers.Conv2D(2, 1)(inputs))


@pytest.mark.parametrize("loss", [CrossEntropy(), Sum([Dice(), CrossEntropy()])])
def test_masks_of_0_and_255_are_a_warning_before_the_first_step(loss, monkeypatch):
    monkeypatch.setattr(labels_module, "_warned", False)
    model = OneKernel()
    model.compile("sgd", loss, run_eagerly=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.fit(IMAGES, np.where(MASKS == 255, 1, MASKS), verbose=0)
        model.compile("sgd", CrossEntropy(ignore_label=None), run_eagerly=True)
        model.fit(IMAGES, MASKS // 255, verbose=0)
    model.compile("sgd", loss, run_eagerly=True)
    with pytest.warns(UserWarning, match="8 label maps contain no class but 0; 12.1 %"):
        model.fit(IMAGES, tf.constant(MASKS), verbose=0)
    with warnings.catch_warnings():  # once in a process
        warnings.simplefilter("error", UserWarning)
        model.fit(IMAGES, MASKS, verbose=0)
