"""Training where `keras.Model` fails or silently does something else."""

from __future__ import annotations

import inspect
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_deeplab.labels import warn_of_masks


class LabelMapTraining:
    """Mixin of models: calls in which Keras would silently misuse label maps are errors."""

    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        self._check_training(kwargs.get("class_weight"))
        if isinstance(y, np.ndarray | tf.Tensor) and len(self.output_shape) == 4:
            loss = getattr(self, "loss", None)
            for part in getattr(loss, "losses", [loss]):  # of a sum of losses each
                if isinstance(part, keras.losses.Loss):
                    warn_of_masks(y, self.output_shape[-1], getattr(part, "ignore_label", None))
        return super().fit(x, y, *args, **kwargs)

    def train_on_batch(self, x: Any, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        self._check_training(kwargs.get("class_weight"))
        return super().train_on_batch(x, y, *args, **kwargs)

    def _check_training(self, class_weight: Any) -> None:
        for loss in keras.tree.flatten(getattr(self, "loss", None)):
            if _is_of_probabilities(loss) and len(self.output_shape) == 4:
                name = (
                    loss
                    if isinstance(loss, str)
                    else getattr(loss, "__name__", type(loss).__name__)
                )
                raise ValueError(
                    "`loss` must be a loss of logits, which this model returns. Received: "
                    f"loss={name}, a loss of probabilities. Give "
                    "`keras_deeplab.losses.CrossEntropy()`, or Keras' loss with `from_logits=True`."
                )
        # Keras looks up one label per image: a TypeError of arrays, and of data sets wrong weights.
        if class_weight is not None and len(self.output_shape) == 4:
            raise ValueError(
                "`class_weight` must be None for label maps. Received: class_weight="
                f"{class_weight!r}. Give the weights to the loss: "
                "`CrossEntropy(class_weights=[...])`, one per class."
            )

    def save(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        # Keras would write HDF5, and not load it.
        if str(filepath).lower().endswith((".h5", ".hdf5")):
            raise ValueError(
                f"`filepath` must end in .keras. Received: filepath={str(filepath)!r}. For the "
                "weights alone use `model.save_weights` with a name that ends in .weights.h5."
            )
        super().save(filepath, *args, **kwargs)

    def quantize(self, *_: Any, **__: Any) -> None:
        # Of these models Keras would quantize dense layers alone, and could not load the file.
        raise ValueError(
            f"A {type(self).__name__} must not be quantized by Keras, which has no convolutions of "
            "integers. For int8 see `keras_deeplab.export.litert`."
        )

    def _run_through_graph(self, *args: Any, **kwargs: Any) -> Any:
        # Only `clone_model` passes both. It would return a plain network without the class.
        if {"operation_fn", "call_fn"} <= kwargs.keys():
            name = type(self).__name__
            raise ValueError(
                f"A {name} must not be cloned by `clone_model`, which loses its class. Use "
                f"`{name}.from_config(model.get_config())` or `copy.deepcopy(model)`, or clone "
                "`keras.Model(model.inputs, model.outputs)`."
            )
        return super()._run_through_graph(*args, **kwargs)


def _is_of_probabilities(loss: Any) -> bool:
    """Whether a loss of Keras expects probabilities, as its cross-entropies do by default."""
    loss = keras.losses.get(loss)  # also given by its name or class
    if inspect.isfunction(loss):
        argument = inspect.signature(loss).parameters.get("from_logits")
        return argument is not None and argument.default is False
    return getattr(loss, "from_logits", None) is False


class DistributedTraining:
    """Mixin of models for what Keras 3.15 lacks under `tf.distribute`; idle without a strategy.

    1. Loss and metrics are built from the specification of the batches. Keras takes the mean over
       the first batches of all replicas, which fails where their sizes differ and on several
       machines, and it consumes them.
    2. On several machines a step returns vectors of one element: Keras takes the mean of metrics
       along axis 0 (issue 20585).
    3. When the last batch has fewer images than there are replicas, one of these gets no image, on
       which TensorFlow's convolutions fail on a CPU. It gets a black one, whose output is dropped.
    """

    _distribute_strategy: tf.distribute.Strategy | None

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        if self._distribute_strategy is not None and iterator is not None:
            spec = iterator.data_adapter.get_tf_dataset().element_spec
            iterator, data_batch = None, keras.tree.map_structure(_of_one_replica, spec)
        super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        context = tf.distribute.get_replica_context()
        if training or context is None or context.num_replicas_in_sync == 1:
            return super().call(inputs, training=training, mask=mask)
        images, *shape = tf.unstack(tf.shape(inputs))
        black = tf.zeros([tf.cast(images == 0, tf.int32), *shape], inputs.dtype)
        output = super().call(tf.concat([inputs, black], 0), training=training, mask=mask)
        return output[:images]

    def train_step(self, data: Any) -> Any:
        return self._reducible(super().train_step(data))

    def test_step(self, data: Any) -> Any:
        return self._reducible(super().test_step(data))

    def _reducible(self, logs: Any) -> Any:
        if not isinstance(self._distribute_strategy, tf.distribute.MultiWorkerMirroredStrategy):
            return logs
        return keras.tree.map_structure(lambda value: tf.reshape(value, [1]), logs)


def _of_one_replica(spec: tf.TypeSpec) -> tf.TensorSpec:
    """The batch of the first local replica of a distributed data set."""
    return tf.nest.flatten(spec, expand_composites=True)[0]
