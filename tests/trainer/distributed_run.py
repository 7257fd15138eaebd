"""A small training run as one process or as one of several: `python distributed_run.py OPTIONS`.

The project and tests/models are on PYTHONPATH. OPTIONS is a JSON object: `distribute`, `output`
(file of results, `{}` stands for the task) and `plant` (a mistake's name, or null).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from networks import tiny

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


def model(strategy: tf.distribute.Strategy, plant: str | None) -> keras.Model:
    keras.utils.set_random_seed(0)
    with strategy.scope():
        made = deeplab()
        for layer in all_layers(made).values():
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = plant != "batch norm"
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


def main(options: dict) -> None:
    if options["distribute"] == "mirrored":
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * 2
        )
    strategy = distribution.open_strategy(options["distribute"])
    chief = strategy.extended.should_checkpoint
    made = model(strategy, options["plant"])
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
    task = json.loads(os.environ.get("TF_CONFIG", "{}")).get("task", {}).get("index", 0)
    results = {f"history/{key}": np.array(value) for key, value in history.items()}
    results["losses"] = np.array(steps.losses)
    results["chief"] = np.array(chief)
    weights = {f"weights/{variable.path}": variable.numpy() for variable in made.weights}
    results |= weights
    if options["plant"] is None:
        numbers = tf.data.Dataset.range(24).map(lambda x: (x, x))
        parts = [
            [part.numpy() for part in strategy.experimental_local_results(first)]
            for first, _ in distribution.training_batches(numbers.batch(8), strategy)
        ]
        results["seen"] = np.array(parts)
        if strategy.num_replicas_in_sync > 1:
            assert distribution.training_batches(numbers.batch(8), strategy).cardinality == 3
            assert distribution.evaluation_batches(numbers.batch(5), strategy).cardinality == 3
        dealt = [
            np.concatenate(strategy.experimental_local_results(first))
            for first, _ in distribution.evaluation_batches(numbers.batch(5), strategy)
        ]
        results["dealt"] = np.concatenate(dealt)
        try:
            workers.on_chief(strategy, nothing_to_do)
        except ValueError as error:
            results["told"] = np.array(str(error))
        images = samples(4, SIZE, 0)[0]
        results["predicted"] = made.predict(images, batch_size=4, verbose=0)
        scores = made.evaluate(scored, verbose=0, return_dict=True)
        results |= {f"scored/{key}": np.array(value) for key, value in scores.items()}
        results |= {f"others/{key}": value for key, value in others(strategy).items()}
    if chief and "predicted" in results:
        file = Path(options["output"].format("model")).with_suffix(".keras")
        made.save(file)
        again = keras.models.load_model(file, compile=False)
        results["saved"] = np.array(again(images[:1]))
        results["not_saved"] = np.array(made(images[:1]))
    np.savez(options["output"].format(task), **results)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
