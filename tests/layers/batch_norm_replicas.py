"""Batch norm over two logical devices; test_batch_normalization.py runs it on its own."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from keras_deeplab.layers import BatchNormalization

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
STRATEGY = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def trained(
    x: np.ndarray, synchronized: bool, layer_class: type = BatchNormalization
) -> list[np.ndarray]:
    """Outputs of a batch that two replicas share, and the moving statistics behind it."""
    with STRATEGY.scope():
        layer = layer_class(momentum=0.5, synchronized=synchronized)
        layer.build((None, *x.shape[1:]))
    parts = tf.data.Dataset.from_tensor_slices(x).batch(len(x))
    spread = STRATEGY.experimental_distribute_dataset(parts)

    @tf.function
    def step(images):
        return STRATEGY.run(lambda one: layer(one, training=True), (images,))

    outputs = STRATEGY.experimental_local_results(step(next(iter(spread))))
    return [np.concatenate(outputs), layer.moving_mean.numpy(), layer.moving_variance.numpy()]


def whole(x: np.ndarray, training: bool = True) -> list[np.ndarray]:
    """Keras' own layer on the whole batch."""
    layer = keras.layers.BatchNormalization(momentum=0.5)
    outputs = layer(x, training=training)
    return [outputs.numpy(), layer.moving_mean.numpy(), layer.moving_variance.numpy()]


def check(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    """All alike."""
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def main() -> None:
    """All checks."""
    random = np.random.default_rng(0)
    for shape in ((4, 3, 2, 3), (2, 1, 1, 3)):
        x = random.normal(2, 1, shape).astype(np.float32)
        x[: len(x) // 2] += 3  # the replicas differ
        check(trained(x, synchronized=True), whole(x))
    # One value per replica: by itself neither has statistics.
    check(trained(x, synchronized=False), whole(x, training=False))
    x = random.normal(2, 1, (4, 3, 2, 3)).astype(np.float32)
    x[:2] += 3
    own = trained(x, synchronized=False)
    check(own[:1], [np.concatenate([whole(half)[0] for half in (x[:2], x[2:])])])
    check(own, trained(x, synchronized=False, layer_class=keras.layers.BatchNormalization))
    # A single value in all replicas together, the second's batch being empty.
    one = random.normal(2, 1, (1, 1, 1, 3)).astype(np.float32)
    for synchronized in (True, False):
        check(trained(one, synchronized), whole(one, training=False))
    print("same")


if __name__ == "__main__":
    main()
