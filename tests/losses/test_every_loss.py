"""What holds for every loss: its numbers, its gradients, what is ignored, files."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from loss_references import CASES, CLASSES, finite_differences, make_batch

from keras_deeplab import losses
from keras_deeplab.losses import CrossEntropy, Dice, Focal, HardPixelMining, LovaszSoftmax, Sum

every_loss = pytest.mark.parametrize("name", CASES)
# What depends on the class and not on its options.
ONE_OF_EACH = list({type(c.loss()): n for n, c in CASES.items()}.values())
ALONE = [name for name in ONE_OF_EACH if name != "sum"]
one_of_each = pytest.mark.parametrize("name", ONE_OF_EACH)


def value_and_gradient(loss, labels, logits, sample_weight=None):
    x = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = loss(labels, x, sample_weight)
    return value.numpy(), tf.convert_to_tensor(tape.gradient(value, x)).numpy()


def test_the_list_is_complete():
    kinds = {case.kind.__name__ for case in CASES.values()}
    functions = {"LOSSES", "class_weights", "parse", "shares_to_weights"}
    assert kinds == set(losses.__all__) - functions


@every_loss
def test_equals_numpy_for_labels_and_weights_of_all_forms(name):
    case = CASES[name]
    labels, logits, weights = make_batch(1)
    per_image = np.array([0.5, 3.0])
    per_pixel = np.broadcast_to(per_image[:, None, None], labels.shape)
    for given, sample_weight, expected in (
        (labels, None, None),
        (labels[..., None].astype("uint8"), weights, weights),
        (labels.astype("float32"), weights[..., None], weights),
        (labels.astype("int32"), per_image, per_pixel),
        (labels, per_image[:, None], per_pixel),
    ):
        value = case.loss()(given, logits, sample_weight)
        np.testing.assert_allclose(value, case.expected(labels, logits, expected), rtol=2e-6)


@every_loss
def test_gradient_equals_finite_differences_of_numpy(name):
    case = CASES[name]
    labels, logits, weights = make_batch(2, (2, 3, 3))
    _, gradient = value_and_gradient(case.loss(), labels, logits, weights)
    expected = finite_differences(lambda x: case.expected(labels, x, weights), logits)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(gradient, expected, atol=2e-7, rtol=2e-5)


@every_loss
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_logits_of_ignored_pixels_may_be_anything(name, value):
    labels, logits, weights = make_batch(3)
    labels[0, 1], other = 255, logits.copy()
    other[0, 1, :, 0] = value
    loss = CASES[name].loss()
    expected, found = (value_and_gradient(loss, labels, x, weights) for x in (logits, other))
    for one, same in zip(expected, found, strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_array_equal(one, same)


@one_of_each
def test_logits_of_other_axes_are_an_error(name):
    labels, _, _ = make_batch()
    for shape in (labels.shape[1:], (2, *labels.shape)):
        with pytest.raises(ValueError, match=r"`y_pred` must be logits \(batch, height, width, cl"):
            CASES[name].loss()(np.zeros(shape, "uint8"), np.zeros((*shape, CLASSES), "float32"))


@pytest.mark.slow
def test_xla_computes_the_same_and_nan_for_a_label_out_of_range():
    labels, logits, weights = make_batch()
    every = [CASES[name].loss() for name in ALONE]

    def values_and_gradient(labels, logits, weights):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            values = tf.stack([loss(labels, logits, weights) for loss in every])
        return values, tape.gradient(values, logits)

    jitted = tf.function(values_and_gradient, jit_compile=True, autograph=False)
    given = tf.constant(labels), tf.constant(logits), weights
    for found, expected in zip(jitted(*given), values_and_gradient(*given), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
    for zero in jitted(np.full_like(labels, 255), *given[1:]):
        assert not np.any(zero)
    for wrong, others in ((CLASSES, labels), (-1, np.zeros_like(labels))):
        others[1, 2, 3] = wrong
        assert np.isnan(jitted(others, *given[1:])[0]).all()


@every_loss
def test_ignored_pixels_have_no_part(name):
    labels, logits, _ = make_batch(3)
    loss = CASES[name].loss()
    value, gradient = value_and_gradient(loss, labels, logits)
    assert gradient[labels != 255].any()
    assert not gradient[labels == 255].any()
    logits[labels == 255] *= 20
    np.testing.assert_allclose(loss(labels, logits), value, rtol=1e-6)
    if name != "sum":
        other = CASES[name].loss(ignore_label=-1)
        moved = np.where(labels == 255, -1, labels)
        np.testing.assert_allclose(other(moved, logits), value, rtol=1e-6)
    labels[1] = 255
    value, gradient = value_and_gradient(loss, labels, logits)
    np.testing.assert_allclose(value, CASES[name].expected(labels, logits), rtol=2e-6)
    assert np.isfinite(gradient).all()
    value, gradient = value_and_gradient(loss, np.full_like(labels, 255), logits * 50)
    assert value == 0
    assert not gradient.any()


@every_loss
def test_certain_predictions_give_finite_numbers(name):
    """Right and wrong ones, with probabilities of exactly 0 and 1."""
    labels, logits, _ = make_batch()
    for scale in (60, 1000):
        certain = np.eye(CLASSES, dtype=np.float32)[logits.argmax(-1)] * scale
        value, gradient = value_and_gradient(CASES[name].loss(), labels, certain)
        assert 0 < value < np.inf
        assert np.isfinite(gradient).all()


@one_of_each
@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16])
def test_half_precision_logits_are_computed_in_float32(name, dtype):
    labels, logits, _ = make_batch()
    half = tf.cast(logits, dtype)
    rounded = tf.cast(half, tf.float32).numpy()
    value, gradient = value_and_gradient(CASES[name].loss(), labels, half)
    assert value.dtype == np.float32
    np.testing.assert_allclose(value, CASES[name].expected(labels, rounded), rtol=2e-6)
    _, full = value_and_gradient(CASES[name].loss(), labels, rounded)
    np.testing.assert_allclose(gradient.astype(np.float32), full, rtol=0.01, atol=1e-6)


# Each loss of a sum has a stride of its own.
@pytest.mark.parametrize("name", ALONE)
def test_every_stride_th_pixel(name):
    case, (labels, logits, weights) = CASES[name], make_batch(4, (2, 11, 14))
    few = [maps[:, ::3, ::3] for maps in (labels, logits, weights)]
    loss = case.loss(stride=3)
    np.testing.assert_allclose(loss(labels, logits, weights), case.expected(*few), rtol=2e-6)
    per_image = np.array([1.0, 3.0])
    few[2] = np.broadcast_to(per_image[:, None, None], few[0].shape)
    np.testing.assert_allclose(loss(labels, logits, per_image), case.expected(*few), rtol=2e-6)


@pytest.mark.parametrize("name", ["cross_entropy", "sum"])
def test_labels_and_shapes_are_checked(name):
    labels, logits, _ = make_batch()
    loss = CASES[name].loss()
    for arguments, message in (
        ((labels[:, 1:], logits), "`y_true` must be"),
        ((labels, logits[..., :1]), "at least 2"),
        ((labels, logits, np.ones((2, 7))), r"`sample_weight` must be .*class_weights="),
    ):
        with pytest.raises(ValueError, match=message):
            loss(*arguments)
    for wrong in (CLASSES, -1):
        labels[1, 2, 3] = wrong
        message = (
            rf"(?s)labels must be in 0\.\.3 or the ignored label 255.*from.*{wrong}.*to.*{wrong}"
        )
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            loss(labels, logits)


@every_loss
def test_serialisation(name):
    labels, logits, weights = make_batch()
    labels = np.where(labels == 255, 2, labels)
    case = CASES[name]
    more = {} if name == "sum" else {"ignore_label": 2, "stride": 2}
    for loss in (case.loss(name="mine"), case.loss(**more)):
        config = json.loads(json.dumps(keras.losses.serialize(loss)))
        again = keras.losses.deserialize(config)
        assert type(again) is case.kind
        assert again.get_config() == loss.get_config()
        np.testing.assert_array_equal(again(labels, logits, weights), loss(labels, logits, weights))
    assert {*case.options, *more} <= set(loss.get_config())


@pytest.mark.slow
def test_fit_in_half_precision_and_a_file(tmp_path):
    keras.utils.set_random_seed(0)
    images = np.random.default_rng(0).random((4, 6, 5, 3), np.float32)
    labels = images.argmax(-1)
    labels[:, 0] = 255
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(CLASSES, 1, dtype="mixed_float16")(inputs))
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.2))
    loss = Sum([CASES[name].loss() for name in ALONE])
    model.compile(optimizer, loss, run_eagerly=True)
    history = model.fit(images, labels, epochs=5, verbose=0, sample_weight=np.ones(4))
    fitted = history.history["loss"]
    assert fitted[-1] < 0.8 * fitted[0]
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    expected = model.loss(labels, model(images))
    np.testing.assert_allclose(again.loss(labels, again(images)), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "kind, arguments, message",
    [
        (CrossEntropy, {"class_weights": [1.0, float("nan")]}, "class_weights"),
        (CrossEntropy, {"class_weights": [1.0, -1.0]}, "`class_weights` must be non-negative"),
        (CrossEntropy, {"class_weights": {0: 1.0, 1: 5.0}}, "must be a list of num.*={0: 1.0, 1"),
        (CrossEntropy, {"class_weights": 3}, "`class_weights` must be a list of numbers. Rec.*=3"),
        (CrossEntropy, {"class_weights": "median"}, "must be a list of numbers. Rec.*='median'"),
        (CrossEntropy, {"reduction": "median"}, "`reduction` must be .*median"),
        (CrossEntropy, {"label_smoothing": 1}, r"`label_smoothing` .* in \[0, 1\)\. Rec"),
        (CrossEntropy, {"stride": 0}, "`stride` must be a positive integer. Rec"),
        (CrossEntropy, {"ignore_label": 0.5}, "`ignore_label` must be an integer or None"),
        (Focal, {"gamma": -1}, "`gamma` must be a non-negative number. Received: gamma=-1"),
        (Dice, {"smooth": -1}, "`smooth` must be a non-negative number. Rec"),
        (LovaszSoftmax, {"classes": "some"}, "`classes` must be one of .* classes='some'"),
        (HardPixelMining, {"fraction": 0}, r"`fraction` must be a number in \(0, 1\]. Rec"),
        (HardPixelMining, {"warmup_steps": 2.5}, "`warmup_steps` must be a non-negative"),
        (HardPixelMining, {"warmup_steps": 9}, "`optimizer` must be .* optimizer=None"),
        (HardPixelMining, {"warmup_steps": 9, "optimizer": "sgd"}, "`optimizer` .*'sgd'"),
        (Sum, {"losses": []}, "`losses` must be one or more"),
        (Sum, {"losses": ["mse"]}, "`losses` must be one or more .*mse"),
        (Sum, {"losses": [Focal(reduction="none")]}, "`losses` .* without reduction="),
        (Sum, {"losses": [Dice()], "weights": [1, 2]}, "each of the 1 losses. Rec"),
        (Sum, {"losses": [Dice()], "weights": [float("nan")]}, "`weights` must be a list of num"),
    ],
)
def test_arguments_are_checked(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)


def test_class_weights_are_also_an_array():
    for given in ((1, 0.5), np.array([1, 0.5], "float32"), tf.constant([1, 0.5])):
        assert CrossEntropy(class_weights=given).class_weights == [1, 0.5]


def test_a_sum_takes_keras_own_losses():
    labels, logits, _ = make_batch()
    labels = np.where(labels == 255, 0, labels)
    own = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    both = Sum([CrossEntropy(), own])
    np.testing.assert_allclose(both(labels, logits), 2 * own(labels, logits), rtol=1e-6)
