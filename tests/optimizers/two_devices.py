"""Trains on one device and on two logical ones; prints how far apart the weights end.

A program of its own, as TensorFlow takes the number of its devices before its first operation.
"""

from __future__ import annotations

import sys

import keras
import numpy as np
import tensorflow as tf
from optimizers.references import small_model, values_of

from keras_deeplab.optimizers import SGD, AdamW, ParameterGroup

GROUPS = [
    ParameterGroup("logits/*", learning_rate=10),
    ParameterGroup("*/bias", learning_rate=2, weight_decay=0),
]


def trained(which: str, scaled: bool, strategy: tf.distribute.Strategy) -> list[np.ndarray]:
    """The weights after some epochs of the same batches."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 24, 3)).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, y[:, :2])).batch(8)
    options = {"weight_decay": 0.1, "groups": GROUPS, "global_clipnorm": 5.0}
    with strategy.scope():
        model = small_model()
        if which == "sgd":
            optimizer = SGD(0.01, momentum=0.9, **options)
        else:
            optimizer = AdamW(0.01, use_ema=True, ema_momentum=0.5, **options)
        if scaled:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        model.compile(optimizer, "mse")
    model.fit(data, epochs=4, shuffle=False, verbose=0)
    return values_of(model)


def main(which: str, scaled: bool) -> None:
    """Prints the number of replicas, how far the weights moved and how far they are apart."""
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    many = trained(which, scaled, mirrored)
    one = trained(which, scaled, tf.distribute.get_strategy())
    start = values_of(small_model())
    apart = max(np.abs(a - b).max() for a, b in zip(many, one, strict=True))
    moved = min(np.abs(a - b).max() for a, b in zip(one, start, strict=True))
    print(mirrored.num_replicas_in_sync, float(moved), float(apart))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "scaled")
