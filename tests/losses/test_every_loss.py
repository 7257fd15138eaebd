"""What holds for every loss: its numbers, its gradients, what is ignored, files."""

from __future__ import annotations

import inspect
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from loss_references import CASES, CLASSES, finite_differences, make_batch

from keras_deeplab import losses

every_loss = pytest.mark.parametrize("name", CASES)
# One of each class: what depends on the class and not on its options.
one_of_each = pytest.mark.parametrize(
    "name", {type(c.loss()): n for n, c in CASES.items()}.values()
)


def value_and_gradient(loss, labels, logits, jit=False, **more):
    @tf.function(jit_compile=jit)
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = loss(labels, x, **more)
        return value, tape.gradient(value, x)

    value, gradient = step(tf.constant(logits))
    return value.numpy(), tf.convert_to_tensor(gradient).numpy()


def test_the_list_is_complete():
    kinds = {case.kind.__name__ for case in CASES.values()}
    assert kinds == set(losses.__all__) - {
        "LOSSES",
        "class_weights",
        "parse",
        "shares_to_weights",
    }


@every_loss
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_numpy(name, weighted):
    case = CASES[name]
    for seed in range(3):
        labels, logits, weights = make_batch(seed)
        more = {"sample_weight": weights} if weighted else {}
        value = case.loss()(labels, logits, **more)
        np.testing.assert_allclose(value, case.expected(labels, logits, **more), rtol=2e-6)


@every_loss
def test_xla_computes_the_same(name):
    labels, logits, weights = make_batch()
    case = CASES[name]
    value, gradient = value_and_gradient(case.loss(), labels, logits, sample_weight=weights)
    jitted = value_and_gradient(case.loss(), labels, logits, jit=True, sample_weight=weights)
    np.testing.assert_allclose(jitted[0], value, rtol=2e-6)
    np.testing.assert_allclose(jitted[1], gradient, rtol=1e-4, atol=1e-7)


@every_loss
def test_weight_per_image_and_labels_of_other_forms(name):
    case = CASES[name]
    labels, logits, _ = make_batch(1)
    weight = np.array([0.5, 3.0])
    per_pixel = np.broadcast_to(weight[:, None, None], labels.shape)
    expected = case.expected(labels, logits, per_pixel)
    for shape in ((2,), (2, 1)):
        for given in (labels[..., None].astype("uint8"), labels.astype("float32")):
            value = case.loss()(given, logits, weight.reshape(shape))
            np.testing.assert_allclose(value, expected, rtol=2e-6)


@every_loss
def test_gradient_equals_finite_differences_of_numpy(name):
    case = CASES[name]
    labels, logits, weights = make_batch(2, (2, 3, 5))
    for sample_weight in (None, weights):
        _, gradient = value_and_gradient(case.loss(), labels, logits, sample_weight=sample_weight)
        expected = finite_differences(
            lambda x, w=sample_weight: case.expected(labels, x, w), logits
        )
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(gradient, expected, atol=2e-7, rtol=2e-5)


@every_loss
def test_ignored_pixels_have_no_part(name):
    labels, logits, _ = make_batch(3)
    loss = CASES[name].loss()
    value, gradient = value_and_gradient(loss, labels, logits)
    assert gradient[labels != 255].any()
    assert not gradient[labels == 255].any()
    logits[labels == 255] *= 20
    np.testing.assert_allclose(loss(labels, logits), value, rtol=1e-6)
    other = CASES[name].loss(ignore_label=-1) if name != "sum" else loss
    if other is not loss:
        moved = np.where(labels == 255, -1, labels)
        np.testing.assert_allclose(other(moved, logits), value, rtol=1e-6)


@every_loss
@pytest.mark.parametrize("jit", [False, True])
def test_nothing_valid_gives_zero_and_zero_gradients(name, jit):
    _, logits, _ = make_batch()
    labels = np.full(logits.shape[:3], 255)
    value, gradient = value_and_gradient(CASES[name].loss(), labels, logits * 50, jit)
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros_like(logits))


@every_loss
def test_one_image_without_a_valid_pixel(name):
    labels, logits, _ = make_batch()
    labels[1] = 255
    value, gradient = value_and_gradient(CASES[name].loss(), labels, logits)
    np.testing.assert_allclose(value, CASES[name].expected(labels, logits), rtol=2e-6)
    assert np.isfinite(gradient).all()


@every_loss
@pytest.mark.parametrize("scale", [60, 1000])
def test_certain_predictions_give_finite_numbers(name, scale):
    """Right and wrong ones, with probabilities of exactly 0 and 1."""
    labels, logits, _ = make_batch()
    logits = np.eye(CLASSES, dtype=np.float32)[logits.argmax(-1)] * scale
    value, gradient = value_and_gradient(CASES[name].loss(), labels, logits)
    assert value > 0
    assert np.isfinite(value)
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
@pytest.mark.parametrize("name", [name for name in CASES if name != "sum"])
def test_every_stride_th_pixel(name):
    labels, logits, weights = make_batch(4, (2, 11, 14))
    value = CASES[name].loss(stride=3)(labels, logits, weights)
    few = [maps[:, ::3, ::3] for maps in (labels, logits, weights)]
    np.testing.assert_allclose(value, CASES[name].expected(*few), rtol=2e-6)
    with pytest.raises(ValueError, match="`stride` must be a positive integer. Received: stride=0"):
        CASES[name].loss(stride=0)


@every_loss
@pytest.mark.parametrize("wrong", [CLASSES, -1])
def test_a_label_out_of_range_is_not_silent(name, wrong):
    labels, logits, _ = make_batch()
    labels[1, 2, 3] = wrong
    loss = CASES[name].loss()
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"labels must be in 0\.\.3"):
        loss(labels, logits)
    only_one_class = np.where(labels == wrong, wrong, 0)
    for given in (labels, only_one_class):
        value, _ = value_and_gradient(loss, given, logits, jit=True)
        assert np.isnan(value)


@one_of_each
def test_shapes_are_checked(name):
    labels, logits, _ = make_batch()
    loss = CASES[name].loss()
    with pytest.raises(ValueError, match="`y_true` must be"):
        loss(labels[:, 1:], logits)
    with pytest.raises(ValueError, match="at least 2"):
        loss(labels, logits[..., :1])
    with pytest.raises(ValueError, match="`sample_weight` must be"):
        loss(labels, logits, np.ones((2, 7)))


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
    arguments = set(inspect.signature(case.kind).parameters) - {"dtype"}
    assert arguments == set(loss.get_config())


@one_of_each
def test_fit_in_half_precision_and_a_file(name, tmp_path):
    keras.utils.set_random_seed(0)
    images = np.random.default_rng(0).random((4, 6, 5, 3), np.float32)
    labels = images.argmax(-1)
    labels[:, 0] = 255
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(CLASSES, 1, dtype="mixed_float16")(inputs))
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.2))
    model.compile(optimizer, CASES[name].loss())
    fitted = model.fit(
        images, labels, batch_size=2, epochs=12, verbose=0, sample_weight=np.ones(4)
    ).history["loss"]
    assert fitted[-1] < 0.8 * fitted[0]
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        again.evaluate(images, labels, verbose=0),
        model.evaluate(images, labels, verbose=0),
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: losses.Focal(gamma=-1),
            "`gamma` must be a non-negative number. Received: gamma=-1",
        ),
        (
            lambda: losses.Dice(smooth=-1),
            "`smooth` must be a non-negative number. Received: smooth=-1",
        ),
        (
            lambda: losses.Dice(classes="some"),
            "`classes` must be one of .* Received: classes='some'",
        ),
        (lambda: losses.LovaszSoftmax(classes="none"), "`classes` must be one of"),
        (lambda: losses.Sum([]), "`losses` must be one or more"),
        (lambda: losses.Sum(["mse"]), "`losses` must be one or more .*mse"),
        (lambda: losses.Sum([losses.Dice()], [1, 2]), "each of the 1 losses. Received"),
        (
            lambda: losses.Sum([losses.Dice()], [float("nan")]),
            "`weights` must be a list of numbers",
        ),
        (
            lambda: losses.Sum([losses.Focal(reduction="none")]),
            '`losses` must be .*reduction="none".*focal',
        ),
    ],
)
def test_arguments_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_sum_takes_keras_own_losses():
    labels, logits, _ = make_batch()
    labels = np.where(labels == 255, 0, labels)
    own = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    both = losses.Sum([losses.CrossEntropy(), own])
    np.testing.assert_allclose(both(labels, logits), 2 * own(labels, logits), rtol=1e-6)
