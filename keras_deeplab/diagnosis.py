"""Overfit one batch: the first test of a training, and a diagnosis where it fails."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_deeplab import validation
from keras_deeplab.batch_norm import reestimate_batch_norm
from keras_deeplab.data import IGNORE_LABEL, Source, open_source, training_dataset
from keras_deeplab.graph.network import all_layers, all_norms
from keras_deeplab.inference import logits_spec
from keras_deeplab.losses import CrossEntropy
from keras_deeplab.metrics import SegmentationMetrics
from keras_deeplab.models.deep_supervision import DeepSupervision
from keras_deeplab.names import first_few
from keras_deeplab.optimizers.groups import predictors
from keras_deeplab.schedules import PolynomialDecay

LEARNING_RATE, NORM_FREE_LEARNING_RATE = 8e-3, 3e-4
STEPS, WARMUP_STEPS, STEPS_PER_EPOCH = 300, 10, 10
TRIAL_EPOCHS = 3
LARGEST_SIDE = 160
FEW = 0.1  # of the weights

History = dict[str, list[float]]


@dataclasses.dataclass(frozen=True)
class OverfitReport:
    """Result of `overfit`; `print` shows it.

    Attributes:
        cause: None if the model fits, else `"data"` (labels without classes to separate),
            `"frozen"` (layers), `"batch_norm"` (training and inference mode differ), `"gradients"`
            (are lost), `"outputs"` (are not logits), `"learning_rate"` (too high or too low),
            `"steps"` (too few) or `"plateau"`.
        message: What was measured about the cause, and how to fix it.
        shape: `(images, height, width)` of the batch.
        history: As `keras.callbacks.History.history`, an entry per 10 steps, with the values of
            `metrics.SegmentationMetrics`; `val_mean_iou` is that in inference mode on the same
            images. Empty if nothing was trained.
    """

    cause: str | None
    message: str
    shape: tuple[int, int, int]
    history: History = dataclasses.field(repr=False)

    @property
    def fits(self) -> bool:
        """Whether the model reached the target."""
        return self.cause is None

    def __str__(self) -> str:
        """Returns the outcome and, if the model does not fit, the cause."""
        images, height, width = self.shape
        steps = STEPS_PER_EPOCH * len(self.history.get("loss", ()))
        text = f"{images} images of {width}x{height} after {steps} steps: "
        if self.history:
            text += f"mean IoU {self.history['val_mean_iou'][-1]:.3f}, "
        if self.fits:
            return f"{text}the model fits them."
        return f"{text}the model does not fit them.\n  CAUSE {self.cause}: {self.message}"


def overfit(
    model: keras.Model,
    source: Source | str | os.PathLike,
    count: int = 8,
    *,
    crop_size: int | tuple[int, int] | None = None,
    steps: int = STEPS,
    target: float = 0.95,
    optimizer: keras.optimizers.Optimizer | str | None = None,
    loss: Callable[[Any, Any], Any] | str | None = None,
    verbose: str | int = "auto",
) -> OverfitReport:
    """Overfits one batch of a few training images with `fit`, and diagnoses why if that fails.

    A model that cannot do this will not learn a data set either. One crop of each image, around a
    pixel of a random class, without augmentation, is the batch of every step. Training stops once
    the mean IoU in inference mode reaches the target. If it does not, the causes of `OverfitReport`
    are checked in turn; other learning rates are tried too. In the end the variables of model and
    optimizer are restored, and what the model was compiled with does not change.

    Args:
        model: A functional model from pixels 0..255 `(batch, height, width, 3)` to logits
            `(batch, height, width, num_classes)`.
        source: A `data.Source`, or what `data.open_source` takes, of as many classes, with a split
            "train".
        count: Number of images, drawn from the split, the same in every call; at most all of them.
        crop_size: `(height, width)` of the crops, or one integer for both. None for the model's own
            size if it is fixed, else the largest sides of the split's first `count` images, at most
            160.
        steps: Maximum number of steps, rounded up to a multiple of 10.
        target: Mean IoU to reach, from 0 to 1.
        optimizer: As `model.compile` takes it. By default AdamW with a learning rate that decays
            from 8e-3 (3e-4 for a model without batch norms).
        loss: As `model.compile` takes it; `losses.CrossEntropy` by default.
        verbose: As in `model.fit`.

    Returns:
        An `OverfitReport`.

    Raises:
        ValueError: If an argument is out of its range, or model and data do not fit together.

    Example:

    >>> inputs = keras.Input((None, None, 3))
    >>> model = keras.Model(inputs, keras.layers.Conv2D(6, 1, trainable=False)(inputs))
    >>> report = keras_deeplab.overfit(model, data.Shapes(train=8, val=0), steps=5)
    >>> report.fits, report.cause
    (False, 'frozen')

    Reference:
        [Karpathy, 2019, A Recipe for Training Neural Networks](
        https://karpathy.github.io/2019/04/25/recipe/), "overfit one batch".
    """
    validation.integer("count", count)
    validation.integer("steps", steps)
    validation.fraction("target", target)
    source = open_source(source)
    source.check_split("train")
    spec, num_classes = logits_spec(model)
    info = source.info
    if (num_classes, spec.shape[-1]) != (info.num_classes, info.channels):
        rule = f"a map from {info.channels} channels to the source's {info.num_classes} classes"
        raise validation.error("model", rule, {"channels": spec.shape[-1], "classes": num_classes})
    if crop_size is None and None not in spec.shape[1:3]:
        crop_size = tuple(spec.shape[1:3])
    images, labels = read_batch(source, count, crop_size)
    if message := _wrong_labels(labels, num_classes):
        return OverfitReport("data", message, labels.shape, {})
    if not model.trainable_variables:
        return OverfitReport(
            "frozen", _frozen(model) or "The model has no weights.", labels.shape, {}
        )
    optimizer = keras.optimizers.get(optimizer or default_optimizer(model, steps))
    one = _OneBatch(model, images, labels, target, optimizer, loss or CrossEntropy())
    try:
        history = one.train(math.ceil(steps / STEPS_PER_EPOCH), verbose)
        fits = history["val_mean_iou"][-1] >= target
        cause, message = (None, "") if fits else _diagnosis(one)
    finally:
        one.restore()
    return OverfitReport(cause, message, labels.shape, history)


def default_optimizer(model: keras.Model, steps: int = STEPS) -> keras.optimizers.Optimizer:
    """An optimizer with which a sound model fits a few images in `steps`."""
    rate = LEARNING_RATE if all_norms(model) else NORM_FREE_LEARNING_RATE
    warmup = min(WARMUP_STEPS, steps // 2)
    schedule = PolynomialDecay(rate, steps, warmup_steps=warmup, end_learning_rate=rate / 10)
    return keras.optimizers.AdamW(schedule, weight_decay=1e-4, global_clipnorm=5.0)


def read_batch(
    source: Source, count: int, crop_size: int | tuple[int, int] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Reads images drawn from "train", the same in every call, as one batch of crops."""
    images = len(source.names("train"))
    if not images:
        raise validation.error("source", "a source with images in its split 'train'", source)
    count = min(count, images)
    if crop_size is None:
        first = source.checked_dataset("train", tf.data.Dataset.range(count))
        sides = np.max([label.shape for _, label in first], axis=0)
        crop_size = tuple(int(min(side, LARGEST_SIDE)) for side in sides)
    batches = training_dataset(
        source,
        crop_size=crop_size,
        batch_size=count,
        scales=(1.0, 1.0),
        flip=False,
        color_jitter=None,
        class_focus=1.0,
        cache=False,
        repeat=True,
    )
    return next(batches.as_numpy_iterator())


class _OneBatch(DeepSupervision, keras.Model):
    """A model and one batch, under a `compile` of its own: the model's stays as it is."""

    def __init__(
        self,
        network: keras.Model,
        images: np.ndarray,
        labels: np.ndarray,
        target: float,
        optimizer: keras.optimizers.Optimizer,
        loss: Callable[[Any, Any], Any] | str,
    ) -> None:
        super().__init__(name=network.name, dtype=network.dtype_policy)
        self.network, self.images, self.labels, self.target = network, images, labels, target
        self.batch = tf.data.Dataset.from_tensors((images, labels))
        self.supervision_weights = getattr(network, "supervision_weights", (1.0,))
        metric = SegmentationMetrics(network.output_shape[-1], per_class=False)
        # XLA takes longer to compile than it saves in a few hundred small steps.
        self.compile(optimizer, loss, metrics=[metric], jit_compile=False)
        optimizer.build(network.trainable_variables)
        variables = (*network.variables, *optimizer.variables)
        start = [(v, np.array(keras.ops.convert_to_numpy(v))) for v in variables]
        # Past Keras' tracking, which would take the optimizer's variables for weights.
        object.__setattr__(self, "_start", start)

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> Any:
        graph = getattr(self.network, "training_graph", None) if training else None
        return (graph or self.network)(inputs, training=training)

    def restore(self) -> None:
        for variable, value in self._start:
            variable.assign(value)

    def training_loss(self) -> tf.Tensor:
        outputs = self(self.images, training=True)
        return self.compute_loss(self.images, self.labels, outputs)

    def train(self, epochs: int, verbose: str | int = 0) -> History:
        """Trains from the start until the target is reached or the loss is not finite."""

        def stop(epoch: int, logs: dict[str, float]) -> None:  # noqa: ARG001
            reached = logs["val_mean_iou"] >= self.target
            self.stop_training |= bool(reached or not math.isfinite(logs["loss"]))

        self.first_loss = float(self.training_loss())
        self.restore()
        self.fit(
            self.batch.repeat(STEPS_PER_EPOCH),
            epochs=epochs,
            validation_data=self.batch,
            callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=stop)],
            shuffle=False,
            verbose=verbose,
        )
        return self.history.history


def _wrong_labels(labels: np.ndarray, num_classes: int) -> str | None:
    values = np.unique(labels[labels != IGNORE_LABEL])
    if len(values) > 1 and values[-1] < num_classes:
        return None
    return (
        f"The labels must be of two classes at least, in 0..{num_classes - 1} (255 is ignored). "
        f"Received: {values.tolist()}. Do the label maps count from 1, or are the images too few?"
    )


def _frozen(model: keras.Model) -> str | None:
    """Whether few weights are trainable, or not those of the layers that compute the logits."""
    total = model.count_params()
    trainable = sum(math.prod(variable.shape) for variable in model.trainable_variables)
    layers = all_layers(model).values() if trainable < FEW * total else predictors(model)
    frozen = [layer.name for layer in layers if layer.weights and not layer.trainable]
    if not frozen:
        return None
    return f"{trainable} of {total} weights are trainable; frozen: {first_few(frozen)}."


def _differing_modes(one: _OneBatch) -> str | None:
    """Whether the trained model fits in training mode and not in inference mode."""
    history = one.history.history
    training, inference = history["mean_iou"][-1], history["val_mean_iou"][-1]
    measured = f"mean IoU is {training:.3f} in training mode and {inference:.3f} in inference mode"
    reestimated = 0
    if math.isfinite(history["loss"][-1]):
        with suppress(ValueError):  # norms with a mask or `renorm`
            reestimated = reestimate_batch_norm(one.network, [one.images])
    if reestimated:
        scores = one.evaluate(one.batch, return_dict=True, verbose=0)
        if scores["mean_iou"] >= one.target:
            return (
                f"The moving statistics of the batch norms lag behind the weights: {measured}. Use "
                "a smaller momentum, or keras_deeplab.reestimate_batch_norm."
            )
    if not training >= one.target:  # also NaN
        return None
    return f"A layer other than the batch norms differs between the modes: {measured}."


def _lost_gradients(one: _OneBatch) -> str | None:
    """Whether variables have no gradients: after the training, or where it failed before it."""
    trained = one.history.history["loss"][-1] < one.first_loss
    if not trained:
        one.restore()
    variables = one.network.trainable_variables
    with tf.GradientTape() as tape:
        loss = one.optimizer.scale_loss(one.training_loss())
    found = zip(variables, tape.gradient(loss, variables), strict=True)
    gradients = {variable.path: gradient for variable, gradient in found}
    lost = [path for path, g in gradients.items() if g is None or not np.isfinite(g).all()]
    kernels = [path for path, g in gradients.items() if path not in lost and g.ndim > 1]
    zero = [path for path in kernels if not np.any(gradients[path])]
    # A sound model has a few too, such as image pooling's of a single image, and before the first
    # step many, where the last layer begins with zeros.
    if trained and 2 * len(zero) >= len(kernels):
        lost += zero
    if not lost:
        return None
    return (
        f"There are no gradients of {first_few(lost)}. Look for activations that are dead (initial "
        "weights, scale of the input), stop_gradient, argmax, rounding or NumPy after these "
        "layers, for NaN in the weights, division by zero and the logarithm of zero."
    )


def _probabilities(one: _OneBatch) -> str | None:
    outputs = np.asarray(one.network(one.images, training=False))
    if outputs.min() < 0 or not np.allclose(outputs.sum(-1), 1, atol=1e-3):
        return None
    return "The outputs are probabilities, but losses expect logits: remove the model's softmax."


def _wrong_learning_rate(one: _OneBatch) -> str | None:
    """Whether the loss rises, or falls faster at another learning rate."""
    first, losses = one.first_loss, one.history.history["loss"]
    if losses[-1] < first / 2:
        return None
    optimizer = getattr(one.optimizer, "inner_optimizer", one.optimizer)  # without loss scaling
    optimizer.iterations.assign(WARMUP_STEPS)
    rate = float(optimizer.learning_rate)
    epochs, found, word = len(losses), {rate: losses[-1]}, "high"
    if losses[-1] <= first:
        epochs = min(TRIAL_EPOCHS, epochs)
        found = {rate: losses[epochs - 1]}
        for other in (0.1 * rate, 10 * rate):
            one.restore()
            batch = (one.network, one.images, one.labels, one.target)
            settings = {**optimizer.get_config(), "learning_rate": other}
            trial = _OneBatch(*batch, type(optimizer).from_config(settings), one.loss)
            loss = trial.train(epochs)["loss"][-1]
            found[other] = loss if math.isfinite(loss) else math.inf
        best = min(found, key=found.get)
        if best == rate or first - found[best] < max(2 * (first - found[rate]), 0.1 * first):
            return None
        word = "high" if best < rate else "low"
    measured = ", ".join(f"{loss:.3g} at {rate:.2g}" for rate, loss in sorted(found.items()))
    return (
        f"The learning rate is too {word}: after {epochs * STEPS_PER_EPOCH} steps the loss, "
        f"{first:.3g} before, is {measured}."
    )


def _falling_loss(one: _OneBatch) -> str | None:
    losses = one.history.history["loss"]
    third = max(1, len(losses) // 3)
    if len(losses) < 3 or np.mean(losses[-third:]) < 0.9 * np.mean(losses[-2 * third : -third]):
        return "The loss still falls: train more steps."
    return None


# The first that returns a message is the cause.
CHECKS: dict[str, Callable[[_OneBatch], str | None]] = {
    "frozen": lambda one: _frozen(one.network),
    "batch_norm": _differing_modes,
    "gradients": _lost_gradients,
    "outputs": _probabilities,
    "learning_rate": _wrong_learning_rate,
    "steps": _falling_loss,
}
PLATEAU = (
    "The model stopped learning. Thin or small objects need a smaller output stride, a decoder at "
    "finer features or larger images; else the model has too few weights, or too much dropout or "
    "weight decay."
)


def _diagnosis(one: _OneBatch) -> tuple[str, str]:
    """The cause and its message."""
    for cause, check in CHECKS.items():
        if message := check(one):
            return cause, message
    return "plateau", PLATEAU
