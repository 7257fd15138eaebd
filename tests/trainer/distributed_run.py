"""A small training run under any strategy, and one of several workers of TF_CONFIG.

    python -m trainer.distributed_run FOLDER

writes a worker's results to FOLDER/INDEX.npz.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from models.networks import tiny

import keras_deeplab
from keras_deeplab import distribution
from keras_deeplab.graph.network import all_layers
from keras_deeplab.trainer import workers

# After 15 steps rounding may tip an activation over 0 on some processors, and losses part by 1e-3.
EPOCHS, STEPS, BATCH, CLASSES, SIZE = 3, 5, 4, 3, (32, 48)


def samples(count: int, size: tuple[int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images with coloured halves and labels that leave out more pixels the later they come."""
    rng = np.random.default_rng(seed)
    images = rng.uniform(0, 90, (count, *size, 3)).astype(np.float32)
    labels = np.zeros((count, *size), np.int32)
    for number in range(count):
        row, column = rng.integers(8, np.array(size) - 8)
        labels[number, row:], labels[number, :, column:] = 1, 2
    images += 60.0 * labels[..., None] * np.array([0.2, 0.6, 1.0], np.float32)
    for number in range(count):
        labels[number, : number % BATCH * size[0] // BATCH] = 255
    return images, labels


def training() -> tf.data.Dataset:
    """Endless batches."""
    pairs = tf.data.Dataset.from_tensor_slices(samples(12, SIZE, 0)).repeat()
    return pairs.batch(BATCH, drop_remainder=True)


def validation() -> tf.data.Dataset:
    """Three images of three sizes, one at a time."""
    pairs = [samples(1, (28 + 8 * n, 40), n) for n in range(3)]
    spec = (tf.TensorSpec((None, None, None, 3)), tf.TensorSpec((None, None, None), tf.int32))
    made = tf.data.Dataset.from_generator(lambda: iter(pairs), output_signature=spec)
    return made.apply(tf.data.experimental.assert_cardinality(len(pairs)))


def deeplab() -> keras.Model:
    widths = {"aspp_filters": 8, "decoder_filters": 8, "low_level_filters": 6}
    return keras_deeplab.DeepLabV3Plus(CLASSES, tiny(), dropout=0.0, **widths)


def model(strategy: tf.distribute.Strategy, synchronized: bool) -> keras.Model:
    keras.utils.set_random_seed(0)
    with strategy.scope():
        made = deeplab()
        for layer in all_layers(made).values():
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = synchronized
                layer.momentum = 0.5  # so that validation says something after few steps
        made.compile(Optimizer(0.05, 0.9, global_clipnorm=1.0), loss(), metrics=[metric()])
        made.optimizer.build(made.trainable_variables)
    return made


class Optimizer(distribution.WholeGradientClipping, keras.optimizers.SGD):
    pass


def loss() -> keras.losses.Loss:
    return keras_deeplab.losses.CrossEntropy()


def metric() -> keras.metrics.Metric:
    return keras_deeplab.metrics.SegmentationMetrics(CLASSES)


class Steps(keras.callbacks.Callback):
    """Notes the loss of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.losses, self.total = [], 0.0

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        mean = float(logs["loss"])  # over the epoch's steps so far
        self.total = self.total * (batch > 0)
        self.losses.append(mean * (batch + 1) - self.total)
        self.total = mean * (batch + 1)


def others(strategy: tf.distribute.Strategy) -> dict[str, np.ndarray]:
    """The losses of the package's other kinds of model."""
    keras.utils.set_random_seed(1)
    found = {}
    with strategy.scope():
        several = keras_deeplab.MultiScale(deeplab(), (0.5, 1.0))
        classifier = keras_deeplab.SPPNet(CLASSES, tiny(), levels=(2, 1), dense=(), dropout=0.0)
        for made in (several, classifier):
            for layer in all_layers(made).values():
                if isinstance(layer, keras.layers.BatchNormalization):
                    layer.synchronized = True
        several.compile(Optimizer(0.01), loss())
        own = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        classifier.compile(Optimizer(0.01), own, metrics=["accuracy"])
    whole = training().map(lambda image, label: (image, label[:, -1, 0]))
    for made, data in ((several, training()), (classifier, whole)):
        data = distribution.training_batches(data, strategy)
        history = made.fit(data, steps_per_epoch=1, epochs=2, verbose=0).history
        found[made.name] = np.array(history["loss"])
    return found


def nothing_to_do() -> int:
    raise ValueError("the folder is full")


def results(strategy: tf.distribute.Strategy, synchronized: bool = True) -> dict[str, np.ndarray]:
    """Trains; what was seen, learned and scored, by name."""
    chief = strategy.extended.should_checkpoint
    made = model(strategy, synchronized)
    steps = Steps()
    scored = distribution.evaluation_batches(validation(), strategy)
    history = made.fit(
        distribution.training_batches(training(), strategy),
        validation_data=scored,
        epochs=EPOCHS,
        steps_per_epoch=STEPS,
        verbose=0,
        callbacks=[steps, workers.StartTogether(strategy)],
    ).history
    found = {f"history/{key}": np.array(value) for key, value in history.items()}
    found |= {"losses": np.array(steps.losses), "chief": np.array(chief)}
    found |= {f"weights/{variable.path}": variable.numpy() for variable in made.weights}
    if not synchronized:
        return found
    numbers = tf.data.Dataset.range(24).map(lambda x: (x, x))
    whole = distribution.training_batches(numbers.batch(8), strategy)
    dealt = distribution.evaluation_batches(numbers.batch(5), strategy)
    if strategy.num_replicas_in_sync > 1:
        assert (whole.cardinality, dealt.cardinality) == (3, 3)
    local = strategy.experimental_local_results
    found["seen"] = np.array([[part.numpy() for part in local(first)] for first, _ in whole])
    found["dealt"] = np.concatenate([np.concatenate(local(first)) for first, _ in dealt])
    try:
        workers.on_chief(strategy, nothing_to_do)
    except ValueError as error:
        found["error"] = np.array(str(error))
    images = samples(4, SIZE, 0)[0]
    found["predicted"] = made.predict(images, batch_size=4, verbose=0)
    scores = made.evaluate(scored, verbose=0, return_dict=True)
    found |= {f"scored/{key}": np.array(value) for key, value in scores.items()}
    found |= {f"others/{key}": value for key, value in others(strategy).items()}
    if chief:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.keras"
            made.save(file)
            again = keras.models.load_model(file, compile=False)
        found["saved"] = np.array(again(images[:1]))
        found["not_saved"] = np.array(made(images[:1]))
    return found


if __name__ == "__main__":
    task = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    found = results(distribution.open_strategy("multi_worker"))
    np.savez(Path(sys.argv[1]) / f"{task}.npz", **found)
