"""Training, and the calls that Keras would misuse in silence."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from networks import calibrated, small, tiny

from keras_deeplab import DeepLabV3, MultiScale, SPPNet
from keras_deeplab import labels as labels_module
from keras_deeplab.losses import CrossEntropy, Dice, Sum
from keras_deeplab.models.training import LabelMapTraining


def photographs(height: int = 32, width: int = 48, batch: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Bright and dark halves, which are the two classes."""
    random = np.random.default_rng(0)
    labels = np.zeros((batch, height, width), "int32")
    for index in range(batch):
        labels[index, :, random.integers(width // 4, width // 2) :] = 1
    pixels = 80 + 100 * labels[..., None] + random.normal(0, 15, (batch, height, width, 3))
    return pixels.astype("float32"), labels


def compiled(model: keras.Model, eager: bool = True) -> keras.Model:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(5e-3), loss, run_eagerly=eager)
    return model


@pytest.mark.slow
def test_a_few_steps_halve_the_loss_on_images_of_two_sizes():
    model = DeepLabV3(2, tiny(), aspp_filters=16, aspp_rates=(1,), dropout=0.0)
    first, second = (tf.data.Dataset.from_tensors(photographs(*s)) for s in ((32, 48), (49, 33)))
    data = first.concatenate(second)
    history = compiled(model, eager=False).fit(
        data.repeat(6), epochs=3, steps_per_epoch=4, verbose=0
    )
    assert history.history["loss"][-1] < 0.5 * history.history["loss"][0]


@pytest.mark.slow
def test_saved_with_its_optimizer_it_resumes(tmp_path: Path):
    x, y = photographs()
    model = compiled(small("v3", aspp_rates=(), head_filters=None, dropout=0.0))
    model.get_layer("aspp").project.trainable = False  # the optimizer holds fewer slots
    model.fit(x, y, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded.run_eagerly = True
    assert type(loaded) is DeepLabV3
    assert loaded.optimizer.iterations == 2
    for mine, its in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(mine, its)
    for each in (model, loaded):
        each.fit(x, y, epochs=1, shuffle=False, verbose=0)
    for mine, its in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_float16_scales_the_loss():
    # Small gradients would underflow unseen; Keras asks the model itself for its policy.
    model = compiled(DeepLabV3(2, tiny(), aspp_filters=8, aspp_rates=(), dtype="mixed_float16"))
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    model.fit(*photographs(batch=2), verbose=0)
    assert int(model.optimizer.inner_optimizer.iterations) == 1
    several = compiled(MultiScale(model))
    assert isinstance(several.optimizer, keras.optimizers.LossScaleOptimizer)
    assert several(IMAGES[:1]).dtype == tf.float32


def test_the_global_policy_is_followed_and_kept():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = DeepLabV3(2, tiny(), aspp_filters=4)
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.get_config()["dtype"] == "mixed_bfloat16"
    assert model.with_output_stride(8).get_layer("aspp").compute_dtype == "bfloat16"
    with pytest.raises(ValueError, match="`dropout`"):
        DeepLabV3(2, tiny(), dropout=2, dtype="mixed_float16")
    assert keras.config.dtype_policy().name == "float32"


IMAGES = np.random.default_rng(0).integers(0, 256, (8, 33, 40, 3)).astype(np.uint8)
MASKS = np.zeros((8, 33, 40), np.uint8)
MASKS[:, :4] = 255


@pytest.fixture(params=["v3_auxiliary", "multi_scale"])
def model(request) -> keras.Model:
    model = calibrated("v3_auxiliary")
    return model if request.param == "v3_auxiliary" else MultiScale(model, (0.5, 1.0))


def test_a_clone_that_would_lose_the_class_is_refused(model):
    same, size = (lambda layer: layer), keras.Input((33, 40, 3), name="images")
    for options in ({}, {"clone_function": same}, {"input_tensors": size}):
        with pytest.raises(ValueError, match=f"A {type(model).__name__} must not be cloned .* Use"):
            keras.models.clone_model(model, **options)
    with pytest.raises(ValueError, match=f"A {type(model).__name__} must not be quantized"):
        model.quantize("int8")
    around = keras.Sequential([keras.Input((33, 40, 3)), calibrated("v3_auxiliary")])
    assert type(keras.models.clone_model(around).layers[-1]) is DeepLabV3


@pytest.mark.slow
def test_copies_keep_class_weights_and_auxiliary_head():
    model = MultiScale(calibrated("v3_auxiliary"), (0.5, 1.0))
    again, logits = copy.deepcopy(model), model(IMAGES[:1])
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
    for x, y in ((IMAGES, MASKS), (data, None)):
        with pytest.raises(ValueError, match=message):
            model.fit(x, y, **weights)
    with pytest.raises(ValueError, match=message):
        model.train_on_batch(IMAGES, MASKS, **weights)


@pytest.mark.parametrize(
    "loss, shown",
    [
        ("sparse_categorical_crossentropy", "sparse_categorical_crossentropy"),
        (keras.losses.categorical_crossentropy, "categorical_crossentropy"),
        (keras.losses.CategoricalFocalCrossentropy(), "CategoricalFocalCrossentropy"),
        ([keras.losses.SparseCategoricalCrossentropy()], "SparseCategoricalCrossentropy"),
        (keras.losses.SparseCategoricalCrossentropy, "SparseCategoricalCrossentropy"),
    ],
)
def test_losses_of_probabilities_are_refused(model, loss, shown):
    model.compile("sgd", loss)
    message = f"`loss` must be a loss of logits.* loss={shown}, a loss of.*from_logits=True"
    with pytest.raises(ValueError, match=message):
        model.fit(IMAGES, MASKS)
    with pytest.raises(ValueError, match=message):
        model.train_on_batch(IMAGES, MASKS)


@pytest.mark.parametrize(
    "loss",
    [
        Sum([CrossEntropy(), Dice()]),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        lambda y_true, y_pred: keras.ops.mean(y_pred**2),
        "mean_squared_error",
    ],
)
def test_other_losses_are_taken(model, loss):
    model.compile("sgd", loss, run_eagerly=True)
    labels = np.clip(MASKS, 0, 2)
    labels = keras.ops.one_hot(labels, 3) if loss == "mean_squared_error" else labels
    assert np.isfinite(np.ravel(model.train_on_batch(IMAGES[:2], labels[:2]))[0])


def test_class_weight_of_labels_of_whole_images_is_keras_own():
    model = SPPNet(2, tiny(), levels=(1,), dense=(4,), dropout=0.0, input_shape=(32, 32, 3))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.0), loss, run_eagerly=True)
    images, labels = IMAGES[:2, :32, :32], np.array([0, 1])
    plain = model.train_on_batch(images, labels)
    model.reset_metrics()
    twice = model.train_on_batch(images, labels, class_weight={0: 2.0, 1: 2.0})
    assert np.ravel(twice)[0] == pytest.approx(2 * np.ravel(plain)[0], rel=1e-5)


class OneKernel(LabelMapTraining, keras.Model):
    """The least model that is trained on label maps."""

    def __init__(self):
        inputs = keras.Input((33, 40, 3))
        super().__init__(inputs, keras.layers.Conv2D(2, 1)(inputs))


def test_masks_of_0_and_255_are_a_warning_before_the_first_step(monkeypatch):
    monkeypatch.setattr(labels_module, "_warned", False)
    model = OneKernel()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.compile("sgd", CrossEntropy(ignore_label=None), run_eagerly=True)
        model.fit(IMAGES, MASKS // 255, verbose=0)
    model.compile("sgd", Sum([Dice(), CrossEntropy()]), run_eagerly=True)
    with pytest.warns(UserWarning, match="8 label maps contain no class but 0; 12.1 %"):
        model.fit(IMAGES, tf.constant(MASKS), verbose=0)
