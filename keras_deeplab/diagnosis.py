"""Overfit one batch: the first test of a training, and a diagnosis where it fails."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_deeplab import validation
from keras_deeplab.batch_norm import reestimate_batch_norm
from keras_deeplab.data import IGNORE_LABEL, Source
from keras_deeplab.data.augment import augment
from keras_deeplab.graph.network import all_layers, all_norms
from keras_deeplab.inference import logits_spec
from keras_deeplab.losses import CrossEntropy
from keras_deeplab.metrics import SegmentationMetrics
from keras_deeplab.models.deep_supervision import DeepSupervision
from keras_deeplab.optimizers.groups import predictors
from keras_deeplab.schedules import PolynomialDecay

LEARNING_RATE, NORM_FREE_LEARNING_RATE = 8e-3, 3e-4
STEPS, WARMUP_STEPS, STEPS_PER_EPOCH = 300, 10, 10
TRIAL_EPOCHS = 3
LARGEST_SIDE = 160
FEW = 0.1  # of the weights

History = dict[str, list[float]]
Finding = tuple[str, str]  # cause and message


@dataclasses.dataclass(frozen=True)
class OverfitReport:
    """Result of `overfit`; `print` shows it.

    Attributes:
        cause: None if the model fits, else `"data"`, `"frozen"`, `"gradients"`, `"outputs"`,
            `"batch_norm"`, `"learning_rate"`, `"steps"` or `"plateau"`.
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
    source: Source,
    count: int = 8,
    *,
    crop_size: tuple[int, int] | None = None,
    steps: int = STEPS,
    target: float = 0.95,
    optimizer: keras.optimizers.Optimizer | str | None = None,
    loss: Callable[[Any, Any], Any] | str | None = None,
    verbose: str | int = "auto",
) -> OverfitReport:
    """Overfits one batch of a few training images with `fit`, and diagnoses why if that fails.

    A model that cannot do this will not learn a data set either. One crop of each image, around a
    pixel of a random class, without augmentation, is the batch of every step. Training stops once
    the mean IoU in inference mode reaches the target. If it does not, causes are checked: labels
    without classes to separate, frozen layers, lost gradients, outputs that are not logits,
    batch-norm statistics that differ between training and inference, a learning rate that is too
    high or too low (others are tried), too few steps.

    The variables of model and optimizer are restored in the end, and what the model was compiled
    with does not change.

    Args:
        model: A functional model from pixels 0..255 `(batch, height, width, 3)` to logits
            `(batch, height, width, num_classes)`.
        source: A `data.Source` of as many classes, with a split "train".
        count: Number of images, spread over the split; at most all of them.
        crop_size: `(height, width)` of the crops. None for the model's own size if it is fixed,
            else the images' largest sides, at most 160.
        steps: Maximum number of steps, rounded up to a multiple of 10.
        target: Mean IoU to reach, from 0 to 1.
        optimizer: As `model.compile` takes it. By default AdamW with a learning rate that decays
            from 8e-3 (3e-4 for a model without batch norms).
        loss: As `model.compile` takes it; `losses.CrossEntropy` by default.
        verbose: As in `fit`.

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
    source.check_split("train")
    spec, num_classes = logits_spec(model)
    if num_classes != source.info.num_classes or spec.shape[-1] != 3:
        rule = f"a map from 3 channels to the source's {source.info.num_classes} classes"
        raise validation.error("model", rule, {"channels": spec.shape[-1], "classes": num_classes})
    if crop_size is not None:
        crop_size = validation.size("crop_size", crop_size)
    elif None not in spec.shape[1:3]:
        crop_size = tuple(spec.shape[1:3])
    images, labels = read_batch(source, count, crop_size)
    optimizer = keras.optimizers.get(optimizer or default_optimizer(model, steps))
    one = _OneBatch(model, images, labels, target, optimizer, loss or CrossEntropy())
    history: History = {}
    finding = _check_labels(labels, num_classes)
    if finding is None and not model.trainable_variables:
        finding = _check_frozen(model)
    try:
        if finding is None:
            history = one.train(optimizer, math.ceil(steps / STEPS_PER_EPOCH), verbose)
            if not history["val_mean_iou"][-1] >= target:
                finding = (
                    _check_frozen(model)
                    or _check_gradients(one, history)
                    or _check_outputs(one)
                    or _check_modes(one, history)
                    or _check_learning_rate(one, history)
                    or _check_steps(history)
                )
    finally:
        one.restore()
    cause, message = finding or (None, "")
    return OverfitReport(cause, message, labels.shape, history)


def default_optimizer(model: keras.Model, steps: int = STEPS) -> keras.optimizers.Optimizer:
    """An optimizer with which a sound model fits a few images in `steps`."""
    rate = LEARNING_RATE if all_norms(model) else NORM_FREE_LEARNING_RATE
    warmup = min(WARMUP_STEPS, steps // 2)
    schedule = PolynomialDecay(rate, steps, warmup_steps=warmup, end_learning_rate=rate / 10)
    return keras.optimizers.AdamW(schedule, weight_decay=1e-4, global_clipnorm=5.0)


def read_batch(
    source: Source, count: int, crop_size: tuple[int, int] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Reads images spread over "train", the same in every call, as one batch of crops."""
    images = len(source.names("train"))
    if not images:
        raise validation.error("source", "a source with images in its split 'train'", source)
    spread = np.unique(np.linspace(0, images - 1, min(count, images)).astype(np.int64))
    numbers = tf.data.Dataset.from_tensor_slices(spread)
    pairs = list(source.checked_dataset("train", numbers))
    if crop_size is None:
        sides = np.max([label.shape for _, label in pairs], axis=0)
        crop_size = tuple(int(min(side, LARGEST_SIDE)) for side in sides)
    crops = [
        augment(
            *pair,
            tf.constant([0, number]),
            crop_size=crop_size,
            scales=(1.0, 1.0),
            scale_step=None,
            flip=False,
            strengths=None,
            class_focus=1.0,
        )
        for number, pair in enumerate(pairs)
    ]
    images, labels = (np.stack(maps) for maps in zip(*crops, strict=True))
    return images, labels.astype(np.int32)


class _OneBatch(DeepSupervision, keras.Model):
    """A model that is trained on one batch under a `compile` of its own, each time from the start.

    What the model itself was compiled with stays as it is.
    """

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
        self.network = network
        self.supervision_weights = getattr(network, "supervision_weights", (1.0,))
        self.images, self.labels, self.target = images, labels, target
        self.batch = tf.data.Dataset.from_tensors((images, labels))
        self.loss_to_train = loss
        optimizer.build(network.trainable_variables)
        # In a function, as Keras would take a list of variables for weights of this model.
        self.restore = _restoring((*network.variables, *optimizer.variables))

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> Any:
        return self.network(inputs, training=training)

    def train(
        self, optimizer: keras.optimizers.Optimizer, epochs: int, verbose: str | int = 0
    ) -> History:
        """Trains from the start until the target is reached or the loss is not finite."""

        def stop(epoch: int, logs: dict[str, float]) -> None:  # noqa: ARG001
            reached = logs["val_mean_iou"] >= self.target
            self.stop_training |= bool(reached or not math.isfinite(logs["loss"]))

        self.restore()
        self.compile(
            optimizer,
            self.loss_to_train,
            metrics=[SegmentationMetrics(self.network.output_shape[-1], per_class=False)],
            jit_compile=False,  # takes longer than it saves in a few hundred small steps
        )
        self.first_loss = float(self.training_loss())
        self.restore()
        history = self.fit(
            self.batch.repeat(),
            steps_per_epoch=STEPS_PER_EPOCH,
            epochs=epochs,
            validation_data=self.batch,
            callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=stop)],
            shuffle=False,
            verbose=verbose,
        )
        return history.history

    def training_loss(self) -> tf.Tensor:
        """The loss in training mode with the present variables."""
        outputs = self(self.images, training=True)
        return self.compute_loss(self.images, self.labels, outputs)


def _restoring(variables: Iterable[keras.Variable]) -> Callable[[], None]:
    """Returns a function that sets variables back to their present values."""
    values = [(v, np.array(keras.ops.convert_to_numpy(v))) for v in variables]

    def restore() -> None:
        for variable, value in values:
            variable.assign(value)

    return restore


def _check_labels(labels: np.ndarray, num_classes: int) -> Finding | None:
    values = np.unique(labels[labels != IGNORE_LABEL])
    if len(values) > 1 and values[-1] < num_classes:
        return None
    return "data", (
        f"The labels must be of two classes at least, in 0..{num_classes - 1} (255 is ignored). "
        f"Received: {values.tolist()}. Do the label maps count from 1, or are the images too few?"
    )


def _check_frozen(model: keras.Model) -> Finding | None:
    """Whether few weights are trainable, or not those of the layers that compute the logits."""
    frozen = [layer for layer in predictors(model) if not layer.trainable]
    trainable, total = (
        sum(math.prod(v.shape) for v in variables)
        for variables in (model.trainable_variables, model.weights)
    )
    if trainable < FEW * total:
        layers = all_layers(model).values()
        frozen = [layer for layer in layers if layer.weights and not layer.trainable]
    if not frozen:
        return None
    names = _some([layer.name for layer in frozen])
    return "frozen", f"{trainable} of {total} weights are trainable; frozen: {names}."


def _check_gradients(one: _OneBatch, history: History) -> Finding | None:
    """Whether variables have no gradients: after the training, or where it failed before it."""
    if history["mean_iou"][-1] >= one.target:
        return None
    trained = history["loss"][-1] < one.first_loss
    if not trained:
        one.restore()
    variables = one.network.trainable_variables
    with tf.GradientTape() as tape:
        loss = one.training_loss()
    gradients = {
        v.path: value for v, value in zip(variables, tape.gradient(loss, variables), strict=True)
    }
    lost = [p for p, value in gradients.items() if value is None or not np.isfinite(value).all()]
    kernels = [path for path, value in gradients.items() if path not in lost and value.ndim > 1]
    zero = [path for path in kernels if not np.any(gradients[path])]
    # A sound model has a few too, such as image pooling's of a single image, and before the first
    # step many, where the last layer begins with zeros.
    if trained and 2 * len(zero) >= len(kernels):
        lost += zero
    if not lost:
        return None
    return "gradients", (
        f"There are no gradients of {_some(lost)}. Look for activations that are dead (initial "
        "weights, scale of the input), stop_gradient, argmax, rounding or NumPy after these "
        "layers, for NaN in the weights, division by zero and the logarithm of zero."
    )


def _check_outputs(one: _OneBatch) -> Finding | None:
    outputs = np.asarray(one.network(one.images, training=False))
    if outputs.min() < 0 or not np.allclose(outputs.sum(-1), 1, atol=1e-3):
        return None
    return "outputs", (
        "The outputs are probabilities, but losses expect logits: remove the model's softmax."
    )


def _check_modes(one: _OneBatch, history: History) -> Finding | None:
    """Whether the model, still trained, fits in training mode and not in inference mode."""
    training, inference = history["mean_iou"][-1], history["val_mean_iou"][-1]
    measured = f"mean IoU is {training:.3f} in training mode and {inference:.3f} in inference mode"
    if all_norms(one.network) and math.isfinite(history["loss"][-1]):
        reestimate_batch_norm(one.network, [one.images])
        if one.evaluate(one.batch, return_dict=True, verbose=0)["mean_iou"] >= one.target:
            return "batch_norm", (
                f"The moving statistics of the batch norms lag behind the weights: {measured}. Use "
                "a smaller momentum, or keras_deeplab.reestimate_batch_norm."
            )
    if training < one.target:
        return None
    return "batch_norm", (
        f"A layer other than the batch norms differs between the modes: {measured}."
    )


def _check_learning_rate(one: _OneBatch, history: History) -> Finding | None:
    """Whether the loss rises, or falls faster at another learning rate."""
    optimizer = getattr(one.optimizer, "inner_optimizer", one.optimizer)  # without loss scaling
    first, last = one.first_loss, history["loss"][-1]
    epochs = min(TRIAL_EPOCHS, len(history["loss"]))
    optimizer.iterations.assign(min(WARMUP_STEPS, epochs * STEPS_PER_EPOCH))
    rate = float(optimizer.learning_rate)
    losses = {rate: history["loss"][epochs - 1]}
    if last < first / 2 or history["mean_iou"][-1] >= one.target:
        return None
    rises = not last <= first
    if rises:
        epochs, losses = len(history["loss"]), {rate: last}
    else:
        for other in (0.1 * rate, 10 * rate):
            settings = {**optimizer.get_config(), "learning_rate": other}
            trial = type(optimizer).from_config(settings)
            losses[other] = one.train(trial, epochs)["loss"][-1]
        fell = {r: first - loss if math.isfinite(loss) else -math.inf for r, loss in losses.items()}
        best = max(fell, key=fell.get)
        if best == rate or fell[best] < max(2 * fell[rate], 0.1 * first):
            return None
    word = "high" if rises or best < rate else "low"
    measured = ", ".join(f"{loss:.3g} at {rate:.2g}" for rate, loss in sorted(losses.items()))
    return "learning_rate", (
        f"The learning rate is too {word}: after {epochs * STEPS_PER_EPOCH} steps the loss, "
        f"{first:.3g} before, is {measured}."
    )


def _check_steps(history: History) -> Finding:
    """Whether more steps may do; the last possible cause."""
    losses = history["loss"]
    third = max(1, len(losses) // 3)
    if len(losses) < 3 or np.mean(losses[-third:]) < 0.9 * np.mean(losses[-2 * third : -third]):
        return "steps", "The loss still falls: train more steps."
    return "plateau", (
        "The model stopped learning. Thin or small objects need a smaller output stride, a decoder "
        "at finer features or larger images; else the model has too few weights, or too much "
        "dropout or weight decay."
    )


def _some(names: list[str]) -> str:
    """The first names of a list."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
