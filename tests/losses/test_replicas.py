"""Losses under `tf.distribute`: what the replicas return adds up to what one process gets."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_deeplab.losses import CrossEntropy, Dice, Focal, HardPixelMining, LovaszSoftmax, Sum

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 3, (4, 5, 5))
LABELS[2:][RANDOM.random((2, 5, 5)) < 0.7] = 255  # the second half has far fewer valid pixels
IMAGES = RANDOM.normal(size=(4, 5, 5, 6)).astype("float32")
KERNEL = RANDOM.normal(size=(6, 3)).astype("float32")
ONLY_FIRST_HALF = np.where(np.arange(4)[:, None, None] < 2, LABELS, 255)


@pytest.fixture(scope="module")
def kernel():
    return tf.Variable(KERNEL)


def of_replica(kernel, loss, labels, images):
    with tf.GradientTape() as tape:
        value = loss(labels, tf.matmul(images, kernel))
    return value, tape.gradient(value, kernel)


def of_replicas(strategy, kernel, loss, *halves):
    """As `fit` does: gradients are added, losses weighted by the number of images."""
    parts = [
        strategy.experimental_distribute_values_from_function(
            lambda context, half=half: tf.constant(half[context.replica_id_in_sync_group])
        )
        for half in halves
    ]
    # Traced, it would take seconds.
    found = strategy.run(lambda *half: of_replica(kernel, loss, *half), args=parts)
    values, added = map(strategy.experimental_local_results, found)
    images = [len(half) for half in halves[0]]
    shown = sum(2 * n * value for n, value in zip(images, values, strict=True)) / sum(images)
    return shown.numpy(), np.sum(added, 0)


@pytest.mark.parametrize(
    "labels, cut, end",
    [(LABELS, 2, 4), (LABELS, 2, 3), (LABELS, 1, 1), (ONLY_FIRST_HALF, 2, 4)],
    ids=["equal", "unequal", "empty", "ignored"],
)
def test_value_and_gradient_are_those_of_one_process(mirrored, kernel, labels, cut, end):
    """Also where the halves differ in valid pixels, in images, or one has none."""
    kinds = [
        CrossEntropy(class_weights=[1, 0.2, 3], label_smoothing=0.1),
        Dice(),
        Dice(per_image=True),
        LovaszSoftmax(per_image=True),
        Focal(),
    ]
    halves = [[x[:cut], x[cut:end]] for x in (labels, IMAGES)]
    loss = Sum(kinds, weights=[1, 0.7, 0.4, 0.3, 2])
    value, gradient = of_replica(kernel, loss, labels[:end], IMAGES[:end])
    assert np.abs(gradient).max() > 1e-3
    shown, added = of_replicas(mirrored, kernel, loss, *halves)
    np.testing.assert_allclose(shown, value, rtol=2e-6)
    np.testing.assert_allclose(added, gradient, rtol=1e-4, atol=1e-6)


def test_what_each_replica_chooses_among_its_own_pixels(mirrored, kernel):
    halves = [[x[:2], x[2:]] for x in (LABELS, IMAGES)]
    lovasz, mining = LovaszSoftmax(), HardPixelMining(0.2)
    alone = [of_replica(kernel, lovasz, *half) for half in zip(*halves, strict=True)]
    value, gradient = of_replicas(mirrored, kernel, lovasz, *halves)
    np.testing.assert_allclose(value, np.mean([v for v, _ in alone]), rtol=2e-6)
    expected = np.mean([g for _, g in alone], 0)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)

    loss_map = HardPixelMining(0.2, reduction="none")
    maps = [loss_map(y, tf.matmul(x, kernel)) for y, x in zip(*halves, strict=True)]
    assert [np.count_nonzero(losses) for losses in maps] == [10, 10]
    value, _ = of_replicas(mirrored, kernel, mining, *halves)
    np.testing.assert_allclose(value, np.sum(maps) / 20, rtol=2e-6)
    empty = [[x[:1], x[1:1]] for x in (LABELS, IMAGES)]  # a replica without an image
    for loss in (mining, lovasz):
        value, _ = of_replica(kernel, loss, LABELS[:1], IMAGES[:1])
        shown, added = of_replicas(mirrored, kernel, loss, *empty)
        np.testing.assert_allclose(shown, value, rtol=2e-6)
        assert np.isfinite(added).all()
