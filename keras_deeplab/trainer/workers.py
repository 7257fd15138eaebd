"""Several workers: work of the chief, and weights shared with the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_deeplab.graph.network import finalize_state


def on_chief(strategy: tf.distribute.Strategy, work: Callable[[], int | None]) -> int:
    """Runs work on the chief alone, and returns its non-negative result in all processes.

    If it fails, its own error is raised on the chief and a ValueError in the others.
    """
    if not _has_several_workers(strategy):
        return work() or 0
    found, error = 0, None
    if strategy.extended.should_checkpoint:
        try:
            found = work() or 0
        except Exception as raised:
            found, error = -1, raised
    (shared,) = _of_chief(strategy, [tf.constant(found, tf.int64)])
    if error is not None:
        raise error
    if int(shared) < 0:
        raise ValueError("The chief stopped with an error; see its output.")
    return int(shared)


class StartTogether(keras.callbacks.Callback):
    """Copies the chief's weights and optimizer state to all workers when training begins.

    Only the chief has read the last model: this comes after `Checkpoint` in the list of callbacks.
    """

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        super().__init__()
        self.strategy = strategy

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Copies every variable."""
        if not _has_several_workers(self.strategy):
            return
        of_metrics = {id(v) for metric in self.model.metrics for v in metric.variables}
        every = {id(v): v for v in (*self.model.variables, *self.model.optimizer.variables)}
        variables = [v for number, v in every.items() if number not in of_metrics]
        values = _of_chief(self.strategy, [tf.convert_to_tensor(v) for v in variables])
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        finalize_state(self.model)


def _has_several_workers(strategy: tf.distribute.Strategy) -> bool:
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def _of_chief(strategy: tf.distribute.Strategy, values: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """The values of the first replica, which is one of the chief's."""
    # All are exchanged at once, so of one dtype; it holds float32 and counters exactly.
    sent = [tf.cast(value, tf.float64) for value in values]

    def exchange() -> list[tf.Tensor]:
        context = tf.distribute.get_replica_context()
        first = tf.equal(context.replica_id_in_sync_group, 0)
        own = [tf.where(first, value, tf.zeros_like(value)) for value in sent]
        return context.all_reduce(tf.distribute.ReduceOp.SUM, own)

    received = tf.function(lambda: strategy.run(exchange))()
    shared = [strategy.experimental_local_results(value)[0] for value in received]
    return [tf.cast(new, old.dtype) for new, old in zip(shared, values, strict=True)]
