from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_deeplab.losses import CrossEntropy


def reference(labels, logits, ignore_label=255, class_weights=None, sample_weight=None):
    """Cross-entropy by loops over pixels, in float64."""
    total = divisor = 0.0
    for index in np.ndindex(labels.shape):
        label = labels[index]
        if label == ignore_label:
            continue
        row = logits[index].astype(np.float64)
        loss = np.log(np.sum(np.exp(row - row.max()))) + row.max() - row[label]
        weight = 1.0 if class_weights is None else class_weights[label]
        pixel = (
            1.0 if sample_weight is None else np.broadcast_to(sample_weight, labels.shape)[index]
        )
        total += pixel * weight * loss
        divisor += weight
    return total / divisor if divisor else 0.0


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, (2, 7, 9))
    labels[rng.random(labels.shape) < 0.3] = 255
    return labels, rng.normal(scale=4, size=(2, 7, 9, 5)).astype(np.float32)


@pytest.mark.parametrize("class_weights", [None, [1.0, 0.0, 2.5, 0.1, 7.0]])
@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "float32"])
@pytest.mark.parametrize("trailing", [False, True])
def test_equals_the_loop(batch, class_weights, dtype, trailing):
    labels, logits = batch
    given = labels.astype(dtype)[..., None] if trailing else labels.astype(dtype)
    result = CrossEntropy(class_weights=class_weights)(given, logits)
    np.testing.assert_allclose(result, reference(labels, logits, 255, class_weights), rtol=1e-6)


@pytest.mark.parametrize("stride", [2, 8])
def test_every_stride_th_pixel(batch, stride):
    labels, logits = batch
    few = labels[:, ::stride, ::stride], logits[:, ::stride, ::stride]
    loss = CrossEntropy(stride=stride)
    np.testing.assert_allclose(loss(labels, logits), reference(*few), rtol=1e-6)
    weights = np.random.default_rng(1).uniform(size=labels.shape).astype("float32")
    expected = CrossEntropy()(*few, weights[:, ::stride, ::stride])
    np.testing.assert_allclose(loss(labels, logits, weights), expected, rtol=1e-6)
    np.testing.assert_allclose(
        loss(labels, logits, np.array([1.0, 3.0])), CrossEntropy()(*few, np.array([1.0, 3.0]))
    )
    assert CrossEntropy.from_config(loss.get_config()).stride == stride


def test_another_ignored_label_and_none(batch):
    labels, logits = batch
    labels = np.where(labels == 255, -1, labels)
    np.testing.assert_allclose(
        CrossEntropy(ignore_label=-1)(labels, logits), reference(labels, logits, -1), rtol=1e-6
    )
    labels = np.where(labels == -1, 3, labels)
    np.testing.assert_allclose(
        CrossEntropy(ignore_label=None)(labels, logits), reference(labels, logits, None), rtol=1e-6
    )
    np.testing.assert_allclose(  # the ignored label may be one of the classes
        CrossEntropy(ignore_label=3)(labels, logits), reference(labels, logits, 3), rtol=1e-6
    )


@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 7, 9), (2, 7, 9, 1)])
def test_sample_weight(batch, shape):
    labels, logits = batch
    weight = np.random.default_rng(1).random(shape)
    broadcast = weight.reshape(2, 1, 1) if weight.size == 2 else weight.reshape(2, 7, 9)
    for class_weights in (None, [1, 2, 3, 4, 5]):
        np.testing.assert_allclose(
            CrossEntropy(class_weights=class_weights)(labels, logits, weight),
            reference(labels, logits, 255, class_weights, broadcast),
            rtol=1e-5,
        )


def test_reductions(batch):
    labels, logits = batch
    pixels = CrossEntropy(reduction="none")(labels, logits).numpy()
    assert pixels.shape == labels.shape
    assert not pixels[labels == 255].any()
    assert pixels[labels != 255].all()
    total = CrossEntropy(reduction="sum")(labels, logits)
    np.testing.assert_allclose(total, pixels.sum(), rtol=1e-5)
    mean = CrossEntropy()(labels, logits)
    np.testing.assert_allclose(mean, pixels.sum() / (labels != 255).sum(), rtol=1e-5)


@pytest.mark.parametrize("wrong", [5, 254, -1])
def test_a_label_out_of_range_is_not_silent(batch, wrong):
    labels, logits = batch
    labels[1, 2, 3] = wrong
    loss = CrossEntropy()
    message = rf"(?s)labels must be in 0\.\.4 or the ignored label 255.*from.*{wrong}.*to.*{wrong}"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        loss(labels, logits)
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        tf.function(loss)(tf.constant(labels), tf.constant(logits))
    assert np.isnan(tf.function(loss, jit_compile=True)(tf.constant(labels), tf.constant(logits)))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"class_weights": [1.0, -1.0]}, "class_weights"),
        ({"class_weights": [1.0, float("nan")]}, "class_weights"),
        ({"reduction": "median"}, "`reduction` must be .*median"),
        (
            {"label_smoothing": 1},
            "`label_smoothing` must be a number in .0, 1\\). Received: label_smoothing=1",
        ),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        CrossEntropy(**arguments)


def test_shapes_are_checked(batch):
    labels, logits = batch
    with pytest.raises(ValueError, match="one weight for each of the 5 classes"):
        CrossEntropy(class_weights=[1, 2, 3])(labels, logits)
    with pytest.raises(ValueError, match="`y_true` must be"):
        CrossEntropy()(labels[:, :, :8], logits)
    with pytest.raises(ValueError, match="at least 2"):
        CrossEntropy()(labels, logits[..., :1])
    with pytest.raises(ValueError, match="class_weights="):  # what fit(class_weight=) would send
        CrossEntropy()(labels, logits, np.ones((2, 7)))


@pytest.mark.parametrize(
    "policy, jit",
    [
        ("float32", False),
        ("mixed_bfloat16", False),
        ("mixed_float16", False),
        ("mixed_float16", True),
    ],
)
def test_fit(policy, jit):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((None, None, 3)), keras.layers.Conv2D(3, 1, dtype=policy)]
    )
    rng = np.random.default_rng(0)
    images = rng.random((8, 6, 5, 3), np.float32)
    labels = images.argmax(-1).astype(np.int32)
    labels[:, 0] = 255
    optimizer = keras.optimizers.Adam(0.1)
    if policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(optimizer, CrossEntropy(class_weights=[1, 2, 1]), jit_compile=jit)
    weight = np.where(np.arange(8) < 4, 1.0, 0.5)
    history = model.fit(
        images, labels, sample_weight=weight, batch_size=4, epochs=25, verbose=0
    ).history["loss"]
    assert history[-1] < 0.6 * history[0]
