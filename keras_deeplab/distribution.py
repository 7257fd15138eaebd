"""Synchronous data-parallel training: strategies, batches of replicas, clipping of gradients."""

from __future__ import annotations

import json
import os
from typing import Any

import tensorflow as tf

from keras_deeplab import validation

STRATEGIES = ("none", "mirrored", "multi_worker")


def open_strategy(name: str) -> tf.distribute.Strategy:
    """Returns a strategy by name; several machines wait here until all have started.

    TensorFlow sets up several machines before its first operation only: call this first.

    Args:
        name: `"none"` for one device; `"mirrored"` for all GPUs of this machine, or its logical
            CPUs; `"multi_worker"` for the machines of `TF_CONFIG`, each with all its GPUs.

    Raises:
        ValueError: If `name` is not a supported strategy, or `TF_CONFIG` does not describe a
            cluster.
    """
    validation.one_of("name", name, STRATEGIES)
    if name == "none":
        return tf.distribute.get_strategy()
    if name == "mirrored":
        found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in found])
    text = os.environ.get("TF_CONFIG")
    try:
        config = json.loads(text or "")
        cluster, task = config["cluster"], config["task"]
        cluster[task["type"]][int(task["index"])]
        several = len(cluster.get("chief", []) + cluster["worker"]) > 1
    except (ValueError, LookupError, TypeError, AttributeError):
        several = False
    if not several:
        raise ValueError(
            "multi_worker: the environment variable TF_CONFIG must describe a cluster of at least "
            "two machines and which of its tasks this is, such as "
            '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, '
            f'"task": {{"type": "worker", "index": 0}}}}. Received: TF_CONFIG={text!r}'
        )
    return tf.distribute.MultiWorkerMirroredStrategy()


def training_batches(
    dataset: tf.data.Dataset, strategy: tf.distribute.Strategy
) -> tf.distribute.DistributedDataset:
    """Splits every batch into equal parts, one for each replica, for `model.fit`.

    Every worker runs the whole dataset and keeps its part, so the dataset must give the same
    batches in every process, as `data.training_dataset` does for one seed.

    Args:
        dataset: Batches of one known size: tensors, or structures of them, whose first axis counts
            the images.
        strategy: Any `tf.distribute` strategy; with one replica nothing changes.

    Returns:
        A dataset with as many steps as there are batches.

    Raises:
        ValueError: If the size of the batches is unknown, or the replicas do not divide it.

    Example:

    >>> strategy = tf.distribute.get_strategy()
    >>> batches = training_batches(tf.data.Dataset.range(8).batch(4), strategy)
    >>> [batch.numpy().tolist() for batch in batches]
    [[0, 1, 2, 3], [4, 5, 6, 7]]
    """
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return dataset
    size = tf.nest.flatten(dataset.element_spec)[0].shape[0]
    if size is None or size % replicas:
        rule = (
            f"batches of a known size (`drop_remainder=True`) that the {replicas} replicas divide"
        )
        raise validation.error("dataset", rule, dataset.element_spec)
    parts = dataset.rebatch(size // replicas, drop_remainder=True)
    return _distributed(parts, strategy, int(dataset.cardinality()))


def evaluation_batches(
    dataset: tf.data.Dataset, strategy: tf.distribute.Strategy
) -> tf.distribute.DistributedDataset:
    """Distributes whole batches to the replicas, for `evaluate` and validation in `fit`.

    Batches are not split, so images of different sizes are padded as in one process. In the last
    step, replicas for which no batch is left get one without images, which does not count.

    Args:
        dataset: Batches of any sizes in an order that is the same in every process, as of
            `data.evaluation_dataset`.
        strategy: Any `tf.distribute` strategy; with one replica nothing changes.

    Returns:
        A dataset of as many steps as one replica has batches.

    Raises:
        ValueError: If it is not known how many batches there are, or there are no batches.

    Example:

    >>> strategy = tf.distribute.get_strategy()
    >>> batches = evaluation_batches(tf.data.Dataset.range(3).batch(2), strategy)
    >>> [batch.numpy().tolist() for batch in batches]
    [[0, 1], [2]]
    """
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return dataset
    count = int(dataset.cardinality())
    if count < 1:
        rule = "a dataset of a known number of batches (cardinality), at least 1"
        raise validation.error("dataset", rule, count)
    missing = -count % replicas

    def without_images(*batch: Any) -> Any:
        element = batch if len(batch) > 1 else batch[0]
        return tf.nest.map_structure(lambda values: values[:0], element)

    if missing:
        dataset = dataset.concatenate(dataset.take(1).map(without_images).repeat(missing))
    return _distributed(dataset, strategy, (count + missing) // replicas)


def _distributed(
    batches: tf.data.Dataset, strategy: tf.distribute.Strategy, steps: int
) -> tf.distribute.DistributedDataset:
    """The batches of replicas in turn, of which each worker has a share, in so many steps."""

    def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
        own = batches.shard(context.num_input_pipelines, context.input_pipeline_id)
        if steps == tf.data.INFINITE_CARDINALITY:  # `rebatch` loses it
            own = own.apply(tf.data.experimental.assert_cardinality(steps))
        return own.prefetch(tf.data.AUTOTUNE)

    made = strategy.distribute_datasets_from_function(of_worker)
    # Keras reads it; TensorFlow counts the batches of a worker's replicas one by one.
    made._cardinality = steps
    return made


class WholeGradientClipping:
    """Mixin of optimizers: under a strategy the gradient of the whole batch is clipped.

    Keras clips each replica's part before it adds them up: with `global_clipnorm=5` on 4 replicas
    a step of up to 20 passes. It comes before the optimizer's base class:
    `class Mine(WholeGradientClipping, keras.optimizers.SGD)`.
    """

    def _clip_gradients(self, grads: list[Any]) -> list[Any]:
        context = tf.distribute.get_replica_context()
        clips = self.clipnorm or self.global_clipnorm or self.clipvalue
        if not clips or context is None or context.num_replicas_in_sync == 1:
            return super()._clip_gradients(grads)
        present = [gradient for gradient in grads if gradient is not None]
        whole = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, present))
        clipped = super()._clip_gradients([None if g is None else next(whole) for g in grads])
        # Each replica returns its share of what is the same on all: Keras adds them up.
        return [None if g is None else g / context.num_replicas_in_sync for g in clipped]
