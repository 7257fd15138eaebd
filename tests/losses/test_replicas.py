"""Losses under `tf.distribute`: what the replicas return adds up to what one process gets."""

from __future__ import annotations

import subprocess
import sys

import pytest

COMMON = """
import numpy as np, tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
from keras_deeplab.losses import CrossEntropy, Dice, Focal, HardPixelMining, LovaszSoftmax, Sum

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
rng = np.random.default_rng(0)
labels = rng.integers(0, 3, (4, 5, 5))
labels[2:][rng.random((2, 5, 5)) < 0.7] = 255  # the second half has far fewer pixels that count
images = rng.normal(size=(4, 5, 5, 6)).astype("float32")
kernel = tf.Variable(rng.normal(size=(6, 3)).astype("float32"))

def of_replica(loss, labels, images, training=True):
    with tf.GradientTape() as tape:
        value = loss(labels, tf.matmul(images, kernel))
    return value, tape.gradient(value, kernel) if training else 0.0

def of_replicas(loss, *halves, training=True):
    # As `fit` does: gradients are added, losses weighted by the number of images.
    parts = [
        strategy.experimental_distribute_values_from_function(
            lambda context, half=half: tf.constant(half[context.replica_id_in_sync_group]))
        for half in halves]
    run = tf.function(lambda *parts: strategy.run(of_replica, args=(loss, *parts, training)))
    values, gradients = map(strategy.experimental_local_results, run(*parts))
    images = [len(half) for half in halves[0]]
    shown = sum(2 * n * value for n, value in zip(images, values)) / sum(images)
    return shown.numpy(), np.sum(gradients, 0)
"""


def run(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMMON + code],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_value_and_gradient_are_those_of_one_process():
    """Also where the halves differ in pixels that count, in images, or one has none at all."""
    run("""
exact = [CrossEntropy(), CrossEntropy(class_weights=[1, 0.2, 3], label_smoothing=0.1), Focal(),
         Dice(), Dice(per_image=True), LovaszSoftmax(per_image=True), Sum([Dice(), Focal()])]
ignored = np.where(np.arange(4)[:, None, None] < 2, labels, 255)
for truth, cut, end in ((labels, 2, 4), (labels, 2, 3), (labels, 1, 1), (ignored, 2, 4)):
    halves = [[x[:cut], x[cut:end]] for x in (truth, images)]
    for loss in exact:
        value, gradient = of_replica(loss, truth[:end], images[:end])
        assert np.abs(gradient).max() > 1e-3
        shown, added = of_replicas(loss, *halves)
        case = f"{loss.name} {cut} {end}"
        np.testing.assert_allclose(shown, value, rtol=2e-6, err_msg=case)
        np.testing.assert_allclose(added, gradient, rtol=1e-4, atol=1e-6, err_msg=case)
""")


def test_what_each_replica_chooses_among_its_own_pixels():
    run("""
halves = [[x[:2], x[2:]] for x in (labels, images)]
lovasz = LovaszSoftmax()
alone = [of_replica(lovasz, *half) for half in zip(*halves)]
value, gradient = of_replicas(lovasz, *halves)
np.testing.assert_allclose(value, np.mean([v for v, _ in alone]), rtol=2e-6)
np.testing.assert_allclose(gradient, np.mean([g for _, g in alone], 0), rtol=1e-4, atol=1e-6)

mining = HardPixelMining(0.2)
maps = [HardPixelMining(0.2, reduction="none")(t, tf.matmul(x, kernel)) for t, x in zip(*halves)]
taken = [np.count_nonzero(losses) for losses in maps]
assert taken == [10, 10]
value, _ = of_replicas(mining, *halves)
np.testing.assert_allclose(value, np.sum(maps) / np.sum(taken), rtol=2e-6)
for loss in (mining, lovasz):  # a replica without an image, in an evaluation
    value, _ = of_replica(loss, labels[:1], images[:1])
    shown, _ = of_replicas(loss, *[[x[:1], x[1:1]] for x in (labels, images)], training=False)
    np.testing.assert_allclose(shown, value, rtol=2e-6)
""")
