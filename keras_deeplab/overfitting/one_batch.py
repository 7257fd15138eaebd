"""A model and the one batch it is trained on again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_deeplab.data import IGNORE_LABEL
from keras_deeplab.graph.network import all_layers, own_weights
from keras_deeplab.metrics import scores

State = list[np.ndarray]
UNSEEN_RATE = 1e-3  # until the first step sets its own


class OneBatch:
    """Trains a model on one batch and measures it, without `compile` and `fit`.

    What the model was compiled with stays as it is, and every measurement can start from the same
    variables, seeds of dropout included.

    Args:
        model: A functional segmentation model with one input.
        images: Pixels `(batch, height, width, channels)` in 0..255.
        labels: Integers `(batch, height, width)`: classes, or 255 where a pixel does not count.
        optimizer: A Keras optimizer. It is copied; its learning rate may be a schedule. A loss that
            reads its `iterations` finds the number of the step there.
        loss: Called as `loss(labels, logits)`.

    Attributes:
        beginning: The model's variables before anything was trained.
        rate: The learning rate at a step counted from 0; None where the optimizer shows none.
    """

    def __init__(
        self,
        model: keras.Model,
        images: np.ndarray,
        labels: np.ndarray,
        optimizer: keras.optimizers.Optimizer,
        loss: Callable[[Any, Any], Any],
    ) -> None:
        self.model, self.images, self.labels = model, tf.constant(images), tf.constant(labels)
        self.num_classes = model.output_shape[-1]
        self.beginning = self.state()
        self.optimizer, self.rate = with_settable_rate(optimizer)
        self._given = optimizer
        self.optimizer.build(model.trainable_variables)
        self._fresh_optimizer = _values(self.optimizer.variables)
        self._loss = loss
        self._step = tf.function(self._train_step, autograph=False)
        self._answer = tf.function(lambda: self._labels(model(self.images)), autograph=False)

    def state(self) -> State:
        """The values of the model's variables."""
        return _values(self.model.variables)

    def restore(self, state: State) -> None:
        """Gives the model's variables these values again."""
        for variable, value in zip(self.model.variables, state, strict=True):
            variable.assign(value)

    def forget_steps(self) -> None:
        """Makes the optimizer as it was before its first step."""
        for variable, value in zip(self.optimizer.variables, self._fresh_optimizer, strict=True):
            variable.assign(value)

    def step(self, index: int, factor: float = 1.0) -> tuple[float, float]:
        """Trains one step.

        Args:
            index: The step's number from 0, which decides the learning rate.
            factor: Times the learning rate.

        Returns:
            Loss and mean IoU of the batch in training mode, before the step.
        """
        if self.rate is not None:
            self.optimizer.learning_rate = self.rate(index) * factor
        with counting(self._given, index):
            loss, predicted = self._step()
        return float(loss), self._scores(predicted)["mean_iou"]

    def scores(self, class_names: list[str] | None = None) -> dict[str, Any]:
        """What `metrics.scores` tells of the answer in inference mode."""
        return self._scores(self._answer(), class_names)

    def gradients(self) -> dict[str, float | None]:
        """The largest gradient of each layer with trainable weights; None behind a cut."""
        with tf.GradientTape() as tape:
            loss = self._total(self.model(self.images, training=True))
        variables = self.model.trainable_variables
        found = tape.gradient(loss, variables)
        by_id = {id(variable): g for variable, g in zip(variables, found, strict=True)}
        largest: dict[str, float | None] = {}
        for path, layer in all_layers(self.model).items():
            own = [id(w) for w in own_weights(layer) if id(w) in by_id]
            known = [by_id[key] for key in own if by_id[key] is not None]
            if own:
                values = [np.abs(tf.convert_to_tensor(g).numpy()).max() for g in known]
                largest[path] = float(np.max(values)) if values else None
        return largest

    def with_batch_statistics(self) -> dict[str, Any]:
        """Scores in inference mode once all moving statistics are those of this batch."""
        with momentum_zero(self.model):
            self.model(self.images, training=True)
        return self.scores()

    def _train_step(self) -> tuple[tf.Tensor, tf.Tensor]:
        variables = self.model.trainable_variables
        with tf.GradientTape() as tape:
            outputs = self.model(self.images, training=True)
            loss = self._total(outputs)
            scaled = self.optimizer.scale_loss(loss)
        found = tape.gradient(scaled, variables)
        if any(gradient is not None for gradient in found):  # else the optimizer would raise
            self.optimizer.apply(found, variables)
        return loss, self._labels(outputs)

    def _total(self, outputs: Any) -> tf.Tensor:
        """The loss as `fit` adds it up: of each of the logits, and what layers add."""
        several = outputs if isinstance(outputs, list | tuple) else [outputs]
        weights = getattr(self.model, "supervision_weights", (1.0,) * len(several))
        parts = [
            weight * self._loss(self.labels, logits)
            for weight, logits in zip(weights, several, strict=True)
        ]
        return tf.add_n([*parts, *(tf.cast(added, tf.float32) for added in self.model.losses)])

    @staticmethod
    def _labels(outputs: Any) -> tf.Tensor:
        answer = outputs[0] if isinstance(outputs, list | tuple) else outputs
        return tf.argmax(answer, -1, output_type=tf.int32)

    def _scores(self, predicted: tf.Tensor, class_names: list[str] | None = None) -> dict[str, Any]:
        return label_scores(self.labels.numpy(), predicted.numpy(), self.num_classes, class_names)


def label_scores(
    truth: np.ndarray,
    predicted: np.ndarray,
    num_classes: int,
    class_names: list[str] | None = None,
) -> dict[str, Any]:
    """What `metrics.scores` tells of two label maps, leaving out where the truth is 255."""
    counts = truth != IGNORE_LABEL
    cells = truth[counts].astype(np.int64) * num_classes + predicted[counts]
    confusion = np.bincount(cells, minlength=num_classes**2)
    return scores(confusion.reshape(num_classes, num_classes), class_names)


def with_settable_rate(
    optimizer: keras.optimizers.Optimizer,
) -> tuple[keras.optimizers.Optimizer, Callable[[int], float] | None]:
    """A new optimizer like this one whose learning rate can be set, and its rate by step."""
    config = keras.optimizers.serialize(optimizer)
    inner = config["config"]
    while "inner_optimizer" in inner:
        inner = inner["inner_optimizer"]["config"]
    rate = inner.get("learning_rate")
    if rate is None:
        return keras.optimizers.deserialize(config), None
    if isinstance(rate, dict):
        schedule = keras.optimizers.schedules.deserialize(rate)
        inner["learning_rate"] = UNSEEN_RATE
        return keras.optimizers.deserialize(config), lambda step: float(schedule(step))
    return keras.optimizers.deserialize(config), lambda _: float(rate)


@contextmanager
def counting(optimizer: keras.optimizers.Optimizer, step: int) -> Iterator[None]:
    """Inside, the optimizer's `iterations` are this number."""
    before = int(optimizer.iterations)
    try:
        optimizer.iterations.assign(step)
        yield
    finally:
        optimizer.iterations.assign(before)


def batch_norms(model: keras.Model) -> dict[str, keras.layers.BatchNormalization]:
    """The batch norms of a model by path."""
    layers = all_layers(model).items()
    return {p: layer for p, layer in layers if isinstance(layer, keras.layers.BatchNormalization)}


@contextmanager
def momentum_zero(model: keras.Model) -> Iterator[None]:
    """Inside, moving statistics become those of each batch."""
    norms = batch_norms(model).values()
    before = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum


def _values(variables: list[Any]) -> State:
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]
