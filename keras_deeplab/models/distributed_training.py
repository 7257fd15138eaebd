"""`fit` and `evaluate` on several devices and machines, where Keras fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


class DistributedTraining:
    """Mixin of models for what Keras 3.15 lacks under `tf.distribute`; idle without a strategy.

    1. Before the first step Keras builds loss and metrics from a batch. It takes the mean over the
       replicas' batches, which fails where their sizes differ and on several machines, and consumes
       the batch: the first epoch is then not that of one process. Here the data set's element
       specification replaces the batch.
    2. On several machines Keras takes the mean over the steps' metrics along axis 0, which scalars
       do not have. Here a step returns vectors of one element, which become scalars again, also
       with a Keras that fixes this (issue 20585).
    3. When the last batch has fewer images than there are replicas, one of these gets no image, on
       which TensorFlow's convolutions fail on a CPU. Here it gets a black one, whose output is
       dropped.
    """

    _distribute_strategy: tf.distribute.Strategy | None

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        if self._distribute_strategy is None or iterator is None:
            super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)
            return
        spec = iterator.data_adapter.get_tf_dataset().element_spec
        super()._maybe_symbolic_build(data_batch=keras.tree.map_structure(_of_one_replica, spec))

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Returns the model's output."""
        context = tf.distribute.get_replica_context()
        if training or context is None or context.num_replicas_in_sync == 1:
            return super().call(inputs, training=training, mask=mask)
        images, *shape = tf.unstack(tf.shape(inputs))
        black = tf.zeros([tf.cast(images == 0, tf.int32), *shape], inputs.dtype)
        output = super().call(tf.concat([inputs, black], 0), training=training, mask=mask)
        return output[:images]

    def train_step(self, data: Any) -> Any:
        """Runs a step of `fit`."""
        return self._reshaped(super().train_step(data), [1])

    def test_step(self, data: Any) -> Any:
        """Runs a step of `evaluate`."""
        return self._reshaped(super().test_step(data), [1])

    def make_train_function(self, force: bool = False) -> None:
        """Sets the function that `fit` calls."""
        before = self.train_function
        super().make_train_function(force)
        if self.train_function is not before:
            self.train_function = self._returning_numbers(self.train_function)

    def make_test_function(self, force: bool = False) -> None:
        """Sets the function that `evaluate` calls."""
        before = self.test_function
        super().make_test_function(force)
        if self.test_function is not before:
            self.test_function = self._returning_numbers(self.test_function)

    def _returning_numbers(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda iterator: self._reshaped(function(iterator), [])

    def _reshaped(self, logs: Any, shape: list[int]) -> Any:
        if not isinstance(self._distribute_strategy, tf.distribute.MultiWorkerMirroredStrategy):
            return logs
        return keras.tree.map_structure(lambda value: tf.reshape(value, shape), logs)


def _of_one_replica(spec: tf.TypeSpec) -> tf.TensorSpec:
    """The batch of the first local replica of a distributed data set."""
    return tf.nest.flatten(spec, expand_composites=True)[0]
