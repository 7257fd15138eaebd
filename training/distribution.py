"""From the option `--distribute` to a strategy, and what follows from it for a run."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

NAMES = ("none", "mirrored", "multi_worker")


def open_strategy(name: str) -> tf.distribute.Strategy:
    """The strategy of that name; several machines wait here for each other.

    TensorFlow sets up several machines before its first operation only: this is the first thing
    that a command does.

    Args:
        name: `"none"` for one device; `"mirrored"` for all GPUs of this machine, or all its logical
            CPUs where it has no GPU; `"multi_worker"` for the machines of `TF_CONFIG`, each with
            all its GPUs.

    Raises:
        ValueError: If the name is another, or `TF_CONFIG` names no cluster.
    """
    if name not in NAMES:
        raise ValueError(f"--distribute must be one of {NAMES}, received {name!r}.")
    if name == "none":
        return tf.distribute.get_strategy()
    if name == "mirrored":
        found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in found])
    _check_tf_config(os.environ.get("TF_CONFIG"))
    return tf.distribute.MultiWorkerMirroredStrategy()


def _check_tf_config(text: str | None) -> None:
    try:
        config = json.loads(text or "")
        addresses = config["cluster"].get("chief", []) + config["cluster"]["worker"]
        kind, index = config["task"]["type"], int(config["task"]["index"])
        config["cluster"][kind][index]
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ValueError(
            "--distribute multi_worker: the environment variable TF_CONFIG must say who is in the "
            'cluster and which of them this is, such as {"cluster": {"worker": ["host1:2222", '
            f'"host2:2222"]}}, "task": {{"type": "worker", "index": 0}}}}; received {text!r}.'
        ) from None
    if len(addresses) < 2:
        raise ValueError(
            "--distribute multi_worker: TF_CONFIG must name at least two machines, received "
            f"{addresses}; on one, use --distribute mirrored."
        )


def check_batch(batch_size: int, strategy: tf.distribute.Strategy) -> None:
    """Holds the batch, which is that of all replicas together, to a size that they divide.

    Raises:
        ValueError: If they do not.
    """
    replicas = strategy.num_replicas_in_sync
    if batch_size % replicas:
        lower = batch_size // replicas * replicas
        near = f"{lower} or {lower + replicas}" if lower else str(replicas)
        raise ValueError(
            f"--batch-size counts the images of all replicas together and must be divisible by "
            f"their number, here {replicas}: received {batch_size}; take {near}."
        )


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Tells whether this process writes files and talks: the only one, or the first of several."""
    resolver = strategy.cluster_resolver
    if resolver is None or resolver.task_type is None:
        return True
    if resolver.task_type == "chief":
        return True
    first = resolver.task_type == "worker" and resolver.task_id == 0
    return first and "chief" not in resolver.cluster_spec().jobs


def folder(strategy: tf.distribute.Strategy, path: Path) -> Path:
    """Where this process writes: the chief in the run's folder, others in one that is thrown away.

    So machines need no common disk; nothing but the chief's folder survives the run.
    """
    if is_chief(strategy):
        return path
    made = tempfile.TemporaryDirectory(prefix="worker-")
    _kept_until_exit.append(made)
    return Path(made.name)


_kept_until_exit: list[tempfile.TemporaryDirectory] = []


def on_chief(strategy: tf.distribute.Strategy, work: Callable[[], int | None]) -> int:
    """Has the chief do something alone, such as score and export, while the others wait.

    Args:
        strategy: From `open_strategy`.
        work: Called on the chief alone; returns an integer from 0, such as the epochs that were
            done, or None for 0.

    Returns:
        That number, on all.

    Raises:
        ValueError: On the others, if it failed on the chief, where its own error is raised.
    """
    if not _several_machines(strategy):
        return work() or 0
    found, error = 0, None
    if is_chief(strategy):
        try:
            found = work() or 0
        except Exception as raised:
            found, error = -1, raised
    (shared,) = _of_first_replica(strategy, [tf.constant(found, tf.int64)])
    if error is not None:
        raise error
    if int(shared) < 0:
        raise ValueError("the chief stopped: what it says tells why.")
    return int(shared)


class StartTogether(keras.callbacks.Callback):
    """Gives all machines the chief's weights and optimizer state as training begins.

    The chief alone has read the last model: it stands behind `KeepModels` in the list of callbacks.
    """

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        super().__init__()
        self.strategy = strategy

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Copies every variable."""
        if not _several_machines(self.strategy):
            return
        variables = [*self.model.variables, *self.model.optimizer.variables]
        known = {id(variable) for metric in self.model.metrics for variable in metric.variables}
        variables = list({id(v): v for v in variables if id(v) not in known}.values())
        values = _of_first_replica(self.strategy, [tf.convert_to_tensor(v) for v in variables])
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


def _several_machines(strategy: tf.distribute.Strategy) -> bool:
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def _of_first_replica(
    strategy: tf.distribute.Strategy, values: Sequence[tf.Tensor]
) -> list[tf.Tensor]:
    """What the first replica, one of the chief's, has in place of this process's values."""
    dtypes = [value.dtype for value in values]
    # All are exchanged at once, so of one kind; it holds float32 and counters exactly.
    sent = [tf.cast(value, tf.float64) for value in values]

    def exchange() -> list[tf.Tensor]:
        context = tf.distribute.get_replica_context()
        first = tf.equal(context.replica_id_in_sync_group, 0)
        own = [tf.where(first, value, tf.zeros_like(value)) for value in sent]
        return context.all_reduce(tf.distribute.ReduceOp.SUM, own)

    received = tf.function(lambda: strategy.run(exchange))()
    shared = [strategy.experimental_local_results(value)[0] for value in received]
    return [tf.cast(value, dtype) for value, dtype in zip(shared, dtypes, strict=True)]
