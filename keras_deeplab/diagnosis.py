"""Overfit one batch: the first test of a training, and a diagnosis where it fails."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_deeplab import validation
from keras_deeplab.batch_norm import reestimate_batch_norm
from keras_deeplab.data import IGNORE_LABEL, Source
from keras_deeplab.data.augment import MEAN_COLOR
from keras_deeplab.graph.network import all_layers, all_norms, intercepted_calls
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
CROPS_PER_SIDE = 7
FEW = 0.1  # of the weights

History = dict[str, list[float]]
Finding = tuple[str, str]  # cause and message


@dataclasses.dataclass(frozen=True)
class OverfitReport:
    """Result of `overfit`; `print` shows it.

    Attributes:
        cause: None if the model fits, else `"data"`, `"frozen"`, `"activations"`, `"gradients"`,
            `"learning_rate"`, `"batch_norm"`, `"steps"` or `"plateau"`.
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

    A model that cannot do this will not learn a data set either. One crop of each image, the one
    with the most even spread of classes, without augmentation, is the batch of every step. Training
    stops once the mean IoU in inference mode reaches the target. If it does not, causes are
    checked: labels without classes to separate, frozen layers, dead activations, lost gradients, a
    learning rate that is too high or too low (others are tried), batch-norm statistics that differ
    between training and inference, too few steps.

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
    classes = source.info.classes
    if num_classes != len(classes) or spec.shape[-1] != 3:
        rule = f"a map from 3 channels to the source's {len(classes)} classes"
        raise validation.error("model", rule, {"channels": spec.shape[-1], "classes": num_classes})
    if crop_size is not None:
        crop_size = validation.size("crop_size", crop_size)
    elif None not in spec.shape[1:3]:
        crop_size = tuple(spec.shape[1:3])
    images, labels = read_batch(source, count, crop_size)
    optimizer = keras.optimizers.get(optimizer or default_optimizer(model, steps))
    one = _OneBatch(model, images, labels, num_classes, optimizer, loss or CrossEntropy(), target)
    history: History = {}
    finding = _check_labels(labels, classes)
    if finding is None and not model.trainable_variables:
        finding = _check_frozen(model)
    try:
        if finding is None:
            history = one.fit(optimizer, math.ceil(steps / STEPS_PER_EPOCH), verbose)
            if not history["val_mean_iou"][-1] >= target:
                finding = (
                    _check_frozen(model)
                    or _check_batch_norm(one, history)
                    or _check_activations(one)
                    or _check_gradients(one)
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
    pairs = list(source.checked_dataset("train", numbers).as_numpy_iterator())
    if crop_size is None:
        sides = np.max([label.shape for _, label in pairs], axis=0)
        crop_size = tuple(int(min(side, LARGEST_SIDE)) for side in sides)
    images, labels = zip(*(_richest_crop(*pair, crop_size) for pair in pairs), strict=True)
    return np.stack(images), np.stack(labels)


def _richest_crop(
    image: np.ndarray, label: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The crop whose labels have the largest entropy; a smaller image is padded, ignored there.

    The number of classes would prefer crops with slivers of many, in which a few wrong pixels
    decide the mean IoU.
    """
    after = [(0, max(0, want - have)) for want, have in zip(size, label.shape, strict=True)]
    image = np.pad(image.astype(np.float32), [*after, (0, 0)], constant_values=MEAN_COLOR)
    label = np.pad(label.astype(np.int32), after, constant_values=IGNORE_LABEL)
    tops, lefts = (
        np.unique(np.linspace(0, have - want, CROPS_PER_SIDE).astype(int))
        for want, have in zip(size, label.shape, strict=True)
    )

    def entropy(crop: tuple[slice, slice]) -> float:
        counts = np.unique(label[crop][label[crop] != IGNORE_LABEL], return_counts=True)[1]
        shares = counts / counts.sum()
        return -float((shares * np.log(shares)).sum()) if counts.size else -1.0

    crops = [np.s_[top : top + size[0], left : left + size[1]] for top in tops for left in lefts]
    best = max(crops, key=entropy)
    return image[best], label[best]


class _Trained(DeepSupervision, keras.Model):
    """A model under a `compile` of its own, so that the model's stays as it is."""

    def __init__(self, network: keras.Model) -> None:
        super().__init__(name=network.name, dtype=network.dtype_policy)
        self.network = network
        self.supervision_weights = getattr(network, "supervision_weights", (1.0,))

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> Any:
        return self.network(inputs, training=training)


class _OneBatch:
    """A model and the batch that it is trained on, always from the same variables."""

    def __init__(
        self,
        model: keras.Model,
        images: np.ndarray,
        labels: np.ndarray,
        num_classes: int,
        optimizer: keras.optimizers.Optimizer,
        loss: Callable[[Any, Any], Any] | str,
        target: float,
    ) -> None:
        self.model, self.images, self.labels = model, images, labels
        self.num_classes, self.loss, self.target = num_classes, loss, target
        self.optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # without loss scaling
        self.dataset = tf.data.Dataset.from_tensors((images, labels))
        self.trained = _Trained(model)
        optimizer.build(model.trainable_variables)
        self.beginning = [
            (variable, np.array(keras.ops.convert_to_numpy(variable)))
            for variable in (*model.variables, *optimizer.variables)
        ]

    def restore(self) -> None:
        for variable, value in self.beginning:
            variable.assign(value)

    def fit(
        self, optimizer: keras.optimizers.Optimizer, epochs: int, verbose: str | int = 0
    ) -> History:
        """Trains from the beginning until the target is reached or the loss is not finite."""

        def stop(epoch: int, logs: dict[str, float]) -> None:  # noqa: ARG001
            reached = logs["val_mean_iou"] >= self.target
            self.trained.stop_training |= bool(reached or not math.isfinite(logs["loss"]))

        self.restore()
        self.trained.compile(
            optimizer,
            self.loss,
            metrics=[SegmentationMetrics(self.num_classes, per_class=False)],
            jit_compile=False,  # takes longer than it saves in a few hundred small steps
        )
        history = self.trained.fit(
            self.dataset.repeat(),
            steps_per_epoch=STEPS_PER_EPOCH,
            epochs=epochs,
            validation_data=self.dataset,
            callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=stop)],
            shuffle=False,
            verbose=verbose,
        )
        return history.history

    def first_loss(self) -> tf.Tensor:
        """The loss in training mode before the first step."""
        self.restore()
        outputs = self.model(self.images, training=True)
        return self.trained.compute_loss(self.images, self.labels, outputs)


def _check_labels(labels: np.ndarray, classes: Sequence[str]) -> Finding | None:
    values = np.unique(labels[labels != IGNORE_LABEL])
    if values.size and not 0 <= values[0] <= values[-1] < len(classes):
        return "data", (
            f"Labels must be in 0..{len(classes) - 1}. Received: {values.tolist()}. Do the label "
            "maps count from 1?"
        )
    if values.size < 2:
        return "data", (
            "The labels must be of two classes at least (255 is ignored). Received: "
            f"{[classes[value] for value in values]}. Are the label maps right, or the images too "
            "few?"
        )
    return None


def _check_frozen(model: keras.Model) -> Finding | None:
    """Whether few weights are trainable, or not those of the layers that compute the logits."""
    layers = [layer for layer in all_layers(model).values() if layer.weights]
    frozen = [layer for layer in predictors(model) if not layer.trainable]
    trainable, total = (
        sum(math.prod(v.shape) for v in variables)
        for variables in (model.trainable_variables, model.weights)
    )
    if trainable < FEW * total:
        frozen = [layer for layer in layers if not layer.trainable]
    if not frozen:
        return None
    names = _listed(layer.name for layer in frozen)
    return "frozen", f"{trainable} of {total} weights are trainable; frozen: {names}."


def _check_activations(one: _OneBatch) -> Finding | None:
    """Whether features differ from pixel to pixel before training, and the outputs are logits."""
    one.restore()
    layers, heads = all_layers(one.model), predictors(one.model)
    constant: list[str] = []
    dead: list[str] = []

    def recorded(path: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if layers[path] in heads and _is_constant(args):
            dead.append(path)
        outputs = call(*args, **kwargs)
        if _is_constant(outputs):
            constant.append(path)
        return outputs

    with intercepted_calls(layers, recorded):  # in training mode, as for the loss
        one.model(one.images, training=True)
    if dead or "backbone" in constant:
        return "activations", (
            f"The output of layer '{constant[0]}' is the same at every pixel: its activations are "
            "dead. Check its initial weights and the scale of its input."
        )
    logits = np.asarray(one.model(one.images, training=False))
    if logits.min() >= 0 and np.allclose(logits.sum(-1), 1, atol=1e-3):
        return "activations", (
            "The outputs are probabilities, but losses expect logits: remove the softmax from the "
            "model."
        )
    return None


def _is_constant(values: Any) -> bool:
    """Whether the first map in a structure is the same at all pixels, up to rounding."""
    maps = [v for v in keras.tree.flatten(values) if tf.is_tensor(v) and v.dtype.is_floating]
    if not maps or maps[0].shape.rank != 4:
        return False
    x = tf.cast(maps[0], tf.float32)
    deviation = tf.reduce_max(tf.math.reduce_std(x, axis=(0, 1, 2)))
    return bool(deviation <= 1e-6 * tf.maximum(1.0, tf.reduce_max(tf.abs(x))))


def _check_gradients(one: _OneBatch) -> Finding | None:
    variables = one.model.trainable_variables
    with tf.GradientTape() as tape:
        loss = one.first_loss()
    gradients = zip(variables, tape.gradient(loss, variables), strict=True)
    lost = [v.path for v, value in gradients if value is None or not np.isfinite(value).all()]
    if not lost:
        return None
    return "gradients", (
        f"Before the first step there are no finite gradients of {_listed(lost)}. Look for "
        "stop_gradient, argmax, rounding or NumPy after these layers, for NaN in the weights, "
        "division by zero and the logarithm of zero."
    )


def _check_learning_rate(one: _OneBatch, history: History) -> Finding | None:
    """Whether the loss falls faster at another learning rate."""
    first, last = float(one.first_loss()), history["loss"][-1]
    epochs = min(TRIAL_EPOCHS, len(history["loss"]))
    steps = epochs * STEPS_PER_EPOCH
    one.optimizer.iterations.assign_add(min(WARMUP_STEPS, steps))
    rate = float(one.optimizer.learning_rate)
    if not math.isfinite(last):
        return "learning_rate", f"The learning rate {rate:.2g} is too high: the loss is {last}."
    if last < first / 2 or history["mean_iou"][-1] >= one.target:
        return None
    losses = {1.0: history["loss"][epochs - 1]}
    for factor in (0.1, 10.0):
        settings = {**one.optimizer.get_config(), "learning_rate": factor * rate}
        losses[factor] = one.fit(type(one.optimizer).from_config(settings), epochs)["loss"][-1]
    # A loss that is not finite fell less than any other.
    fell, low, high = (
        first - loss if math.isfinite(loss) else -math.inf for loss in losses.values()
    )
    clearly = max(2 * fell, 0.1 * first)
    if high >= max(low, clearly):
        word = "low"
    elif low >= clearly or (last > first and low > fell):
        word = "high"
    else:
        return None
    measured = ", ".join(
        f"{loss:.3g} at {factor * rate:.2g}" for factor, loss in sorted(losses.items())
    )
    return "learning_rate", (
        f"The learning rate is too {word}: after {steps} steps the loss, {first:.3g} before, is "
        f"{measured}."
    )


def _check_batch_norm(one: _OneBatch, history: History) -> Finding | None:
    """Whether the model, still trained, fits in training mode and not in inference mode."""
    training, inference = history["mean_iou"][-1], history["val_mean_iou"][-1]
    measured = f"mean IoU is {training:.3f} in training mode and {inference:.3f} in inference mode"
    norms = all_norms(one.model).values()
    if norms and math.isfinite(history["loss"][-1]):
        reestimate_batch_norm(one.model, [one.images])
        found = one.trained.evaluate(one.dataset, return_dict=True, verbose=0)["mean_iou"]
        if found >= one.target:
            return "batch_norm", (
                f"The moving statistics of the batch norms lag behind the weights: {measured}, "
                f"{found:.3f} with re-estimated statistics. Use a smaller momentum than "
                f"{_listed({norm.momentum for norm in norms})}, or "
                "keras_deeplab.reestimate_batch_norm."
            )
    if training < one.target:
        return None
    return "batch_norm", (
        f"A layer other than the batch norms differs between the modes: {measured}."
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


def _listed(names: Iterable[Any], shown: int = 5) -> str:
    names = list(map(str, names))
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
