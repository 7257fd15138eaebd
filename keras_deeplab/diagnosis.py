"""Overfit one batch: the first test of a training, and a diagnosis where it fails."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
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
from keras_deeplab.metrics import SegmentationMetrics, confusion_matrix, scores
from keras_deeplab.models.deep_supervision import DeepSupervision
from keras_deeplab.optimizers.groups import predictors
from keras_deeplab.schedules import PolynomialDecay

LEARNING_RATE, NORM_FREE_LEARNING_RATE = 8e-3, 3e-4
STEPS, WARMUP_STEPS, STEPS_PER_EPOCH = 300, 10, 10
LARGEST_SIDE = 160
FEW = 0.1  # of the parameters
FELL, STILL = 0.5, 0.9  # of the first loss: below it has clearly fallen, above it has not fallen
TRIAL_EPOCHS = 3
CROPS_PER_SIDE = 7

Pair = tuple[np.ndarray, np.ndarray]
Finding = tuple[str, str]  # cause and message


@dataclasses.dataclass(frozen=True)
class OverfitReport:
    """Result of `overfit`; `print` shows it, `to_dict` is ready for JSON.

    Attributes:
        fits: Whether the mean IoU in inference mode reached the target.
        cause: None if it did, else `"data"`, `"frozen"`, `"activations"`, `"gradients"`,
            `"learning_rate"`, `"batch_norm"`, `"steps"` or `"plateau"`.
        message: What was measured about the cause, and how to fix it; empty if the model fits.
        mean_iou: In inference mode, after the last step; None if nothing was trained.
        target: The mean IoU to reach.
        per_class: IoU in inference mode by class name; None for a class that does not occur.
        steps: Steps trained.
        seconds: Seconds of training, without the diagnosis.
        images: Number of images.
        crop_size: `(height, width)` of the crops.
        history: As `keras.callbacks.History.history`, an entry per 10 steps: `loss` and `mean_iou`
            in training mode, `val_mean_iou` in inference mode on the same images. None stands for
            what is not finite.
    """

    fits: bool
    cause: str | None
    message: str
    mean_iou: float | None
    target: float
    per_class: dict[str, float | None]
    steps: int
    seconds: float
    images: int
    crop_size: tuple[int, int]
    history: dict[str, list[float | None]] = dataclasses.field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Returns a plain dict, ready for `json.dump`."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """Returns the outcome and, if the model does not fit, the cause."""
        images = f"{self.images} images of {self.crop_size[1]}x{self.crop_size[0]}"
        if self.mean_iou is None:
            reached = f"Nothing was trained on {images}"
        else:
            reached = (
                f"Mean IoU {self.mean_iou:.3f} on {images} after {self.steps} steps, "
                f"{self.seconds:.0f} s"
            )
        if self.fits:
            return f"{reached}: the model fits them (target {self.target:g})."
        return (
            f"{reached}: the model does not fit them (target {self.target:g}).\n"
            f"  CAUSE {self.cause}: {self.message}"
        )


def overfit(
    model: keras.Model,
    source: Source,
    split: str = "train",
    *,
    count: int = 8,
    crop_size: tuple[int, int] | None = None,
    steps: int = STEPS,
    target: float = 0.95,
    compile: Mapping[str, Any] | None = None,
    keep_weights: bool = False,
    verbose: str | int = "auto",
) -> OverfitReport:
    """Overfits one batch of a few images with `fit`, and diagnoses the cause if that fails.

    A model that cannot do this will not learn a data set either, and here the cause is found in a
    minute or two. One crop of each image, the one with the most even spread of classes, without
    augmentation, is the batch of every step. Training stops once the mean IoU in inference mode
    reaches the target. If it does not, causes are checked from the most basic to the least: labels
    without classes to separate, frozen layers, dead activations, gradients that do not arrive or
    are not finite, a learning rate that is too high or too low (others are tried), batch-norm
    statistics that differ between training and inference, too few steps.

    The model's weights are restored in the end, and what it was compiled with does not change.

    Args:
        model: A functional model from pixels 0..255 `(batch, height, width, 3)` to logits
            `(batch, height, width, num_classes)`.
        source: A `data.Source` of as many classes.
        split: One of its splits.
        count: Number of images, spread over the split; at most all of them.
        crop_size: `(height, width)` of the crops. None for the model's own size if it is fixed,
            else the images' largest sides, at most 160.
        steps: Maximum number of steps, rounded up to a multiple of 10.
        target: Mean IoU to reach, between 0 and 1.
        compile: `optimizer` and `loss`, as `model.compile` takes them. The optimizer is copied; the
            original only counts `iterations` meanwhile, for losses that read them, such as
            `losses.HardPixelMining`. By default AdamW with a learning rate that decays from 8e-3
            (3e-4 for a model without batch norms), and `losses.CrossEntropy`.
        keep_weights: Whether the model keeps the trained weights.
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
    for name, value in (("count", count), ("steps", steps)):
        validation.integer(name, value)
    if not validation.is_number(target) or not 0 < target < 1:
        raise validation.error("target", "a number between 0 and 1", target)
    settings = dict(compile or {})
    if not settings.keys() <= {"optimizer", "loss"}:
        raise validation.error("compile", "a dict of 'optimizer' and 'loss'", settings)
    source.check_split(split)
    if not source.names(split):
        raise validation.error("split", "one with images", split)
    crop_size = _checked_crop_size(model, source.info.num_classes, crop_size)
    images, labels = read_batch(source, split, count, crop_size)
    classes = list(source.info.classes)
    optimizer = keras.optimizers.get(settings.get("optimizer") or default_optimizer(model, steps))
    loss = keras.losses.get(settings.get("loss") or CrossEntropy())
    per_epoch = min(STEPS_PER_EPOCH, steps)
    one = _OneBatch(model, images, labels, classes, optimizer, loss, target, per_epoch)
    finding = _check_data(one)
    if finding is None and not model.trainable_variables:
        finding = "frozen", "No weight is trainable: set `trainable`."
    result: dict[str, Any] = {"mean_iou": None, "per_class": dict.fromkeys(classes)}
    history: dict[str, list[float]] = {}
    done, seconds = 0, 0.0
    try:
        if finding is None:
            began = time.perf_counter()
            history, done = one.fit(math.ceil(steps / per_epoch), verbose)
            seconds = time.perf_counter() - began
            trained, result = one.state(), one.scores()
            if not result["mean_iou"] >= target:
                finding = _diagnose(one, history, trained, result)
            if keep_weights:
                one.restore(trained)
    finally:
        if not (keep_weights and history):
            one.restore(one.beginning)
    cause, message = finding or (None, "")
    return OverfitReport(
        fits=finding is None,
        cause=cause,
        message=message,
        mean_iou=result["mean_iou"],
        target=target,
        per_class=result["per_class"],
        steps=done,
        seconds=seconds,
        images=len(images),
        crop_size=labels.shape[1:],
        history={
            name: [value if math.isfinite(value) else None for value in history[name]]
            for name in ("loss", "mean_iou", "val_mean_iou")
            if history
        },
    )


def default_optimizer(model: keras.Model, steps: int = STEPS) -> keras.optimizers.Optimizer:
    """An optimizer with which a sound model fits a few images in `steps`."""
    rate = LEARNING_RATE if all_norms(model) else NORM_FREE_LEARNING_RATE
    warmup = min(WARMUP_STEPS, steps // 2)
    schedule = PolynomialDecay(
        rate, total_steps=steps, warmup_steps=warmup, end_learning_rate=rate / 10
    )
    return keras.optimizers.AdamW(schedule, weight_decay=1e-4, global_clipnorm=5.0)


def _checked_crop_size(
    model: keras.Model, num_classes: int, crop_size: tuple[int, int] | None
) -> tuple[int, int] | None:
    spec, predicted_classes = logits_spec(model)
    if predicted_classes != num_classes or spec.shape[-1] != 3:
        raise ValueError(
            f"`model` must map 3 channels to the source's {num_classes} classes. Received: a model "
            f"from {spec.shape[-1]} channels to {predicted_classes} classes"
        )
    fixed = tuple(spec.shape[1:3])
    if crop_size is None:
        return None if None in fixed else fixed
    size = validation.size("crop_size", crop_size)
    if any(own not in (None, side) for own, side in zip(fixed, size, strict=True)):
        raise validation.error("crop_size", f"the model's size {fixed}", crop_size)
    return size


def read_batch(source: Source, split: str, count: int, crop_size: tuple[int, int] | None) -> Pair:
    """Reads images spread over a split, the same ones in every call, and crops each.

    Args:
        source: A `data.Source`.
        split: One of its splits.
        count: Number of images; at most all of the split.
        crop_size: `(height, width)`; None for the images' largest sides, at most 160.

    Returns:
        `(images, labels)`: float32 `(batch, height, width, 3)` in 0..255 and int32
        `(batch, height, width)` with 255 ignored. Smaller images are padded with ignored grey.
    """
    images = len(source.names(split))
    spread = np.unique(np.linspace(0, images - 1, min(count, images)).astype(np.int64))
    numbers = tf.data.Dataset.from_tensor_slices(spread)
    pairs = list(source.checked_dataset(split, numbers).as_numpy_iterator())
    if crop_size is None:
        sides = np.max([label.shape for _, label in pairs], axis=0)
        crop_size = tuple(int(min(side, LARGEST_SIDE)) for side in sides)
    images, labels = zip(*(_richest_crop(*pair, crop_size) for pair in pairs), strict=True)
    return np.stack(images), np.stack(labels)


def _richest_crop(image: np.ndarray, label: np.ndarray, size: tuple[int, int]) -> Pair:
    """The crop whose labels have the largest entropy.

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
        """The model's outputs."""
        return self.network(inputs, training=training)


class _ScaledRate(keras.optimizers.schedules.LearningRateSchedule):
    """The learning rate in an optimizer's configuration, times a factor that can be changed."""

    def __init__(self, rate: Any) -> None:
        scheduled = isinstance(rate, dict)
        self.rate = keras.optimizers.schedules.deserialize(rate) if scheduled else lambda _: rate
        self.factor = tf.Variable(1.0, trainable=False)

    def __call__(self, step: Any) -> tf.Tensor:
        return self.factor * tf.cast(self.rate(step), tf.float32)


class _Monitor(keras.callbacks.Callback):
    """Counts steps, also on the optimizer that the loss may read, and stops in time."""

    def __init__(self, optimizer: keras.optimizers.Optimizer, target: float) -> None:
        super().__init__()
        self.optimizer, self.target, self.steps = optimizer, target, 0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Sets the number of the step, which starts at 0 in each run."""
        self.optimizer.iterations.assign(self.steps)
        self.steps += 1

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Stops at a loss that is not finite."""
        self.model.stop_training |= not math.isfinite(logs["loss"])

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Stops at the target."""
        self.model.stop_training |= bool(logs["val_mean_iou"] >= self.target)


class _OneBatch:
    """A model and the batch that it is trained on, always from the same variables.

    Attributes:
        beginning: The variables of model and optimizer, seeds of dropout included.
    """

    def __init__(
        self,
        model: keras.Model,
        images: np.ndarray,
        labels: np.ndarray,
        classes: list[str],
        optimizer: keras.optimizers.Optimizer,
        loss: Callable[[Any, Any], Any],
        target: float,
        steps_per_epoch: int,
    ) -> None:
        self.steps_per_epoch = steps_per_epoch
        self.model, self.images, self.labels = model, images, labels
        self.classes, self.optimizer, self.target = classes, optimizer, target
        self.dataset = tf.data.Dataset.from_tensors((images, labels))
        inner = getattr(optimizer, "inner_optimizer", optimizer)  # `compile` adds loss scaling
        config = inner.get_config()
        self.rate = _ScaledRate(config["learning_rate"])
        self.trained = _Trained(model)
        self.trained.compile(
            type(inner).from_config({**config, "learning_rate": self.rate}),
            loss,
            metrics=[SegmentationMetrics(len(classes), per_class=False)],
            jit_compile=False,  # takes longer than it saves in a few hundred small steps
        )
        self.trained.optimizer.build(model.trainable_variables)
        self.variables = [*model.variables, *self.trained.optimizer.variables]
        self.beginning = self.state()

    def state(self) -> list[np.ndarray]:
        """The present values of all variables."""
        return [np.array(keras.ops.convert_to_numpy(variable)) for variable in self.variables]

    def restore(self, state: list[np.ndarray]) -> None:
        """Gives all variables these values again."""
        for variable, value in zip(self.variables, state, strict=True):
            variable.assign(value)

    def fit(
        self, epochs: int, verbose: str | int = 0, factor: float = 1.0
    ) -> tuple[dict[str, list[float]], int]:
        """Trains from the beginning; returns the history and the number of steps.

        Args:
            epochs: Maximum number of epochs of `steps_per_epoch` steps.
            verbose: As in `keras.Model.fit`.
            factor: Multiplies the learning rate.
        """
        self.restore(self.beginning)
        self.rate.factor.assign(factor)
        monitor, before = _Monitor(self.optimizer, self.target), int(self.optimizer.iterations)
        try:
            history = self.trained.fit(
                self.dataset.repeat(),
                steps_per_epoch=self.steps_per_epoch,
                epochs=epochs,
                validation_data=self.dataset,
                callbacks=[monitor],
                shuffle=False,
                verbose=verbose,
            )
        finally:
            self.optimizer.iterations.assign(before)
        return history.history, monitor.steps

    def scores(self) -> dict[str, Any]:
        """The result of `metrics.scores` in inference mode."""
        valid = self.labels != IGNORE_LABEL
        predicted = np.argmax(self.model(self.images, training=False), -1)[valid]
        confusion = confusion_matrix(self.labels[valid], predicted, len(self.classes))
        return scores(confusion, self.classes)

    def loss(self) -> tf.Tensor:
        """The loss in training mode."""
        outputs = self.model(self.images, training=True)
        return self.trained.compute_loss(self.images, self.labels, outputs)

    def gradients(self) -> dict[str, float | None]:
        """The largest gradient of each layer by path; None if the loss does not depend on it."""
        variables = self.model.trainable_variables
        with tf.GradientTape() as tape:
            loss = self.loss()
        largest: dict[str, float | None] = {}
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            path = variable.path.rpartition("/")[0]
            largest.setdefault(path, None)
            if gradient is not None:
                value = np.abs(tf.convert_to_tensor(gradient)).max()
                largest[path] = float(np.maximum(value, largest[path] or 0.0))
        return largest


def _diagnose(
    one: _OneBatch, history: dict[str, list[float]], trained: list[np.ndarray], result: dict
) -> Finding:
    """The first cause that is found. The variables of model and optimizer change."""
    return (
        _check_frozen(one.model)
        or _check_activations(one)
        or _check_gradients(one, trained)
        or _check_learning_rate(one, history)
        or _check_batch_norm(one, history, trained, result["mean_iou"])
        or _check_steps(one, history, result)
    )


def _check_data(one: _OneBatch) -> Finding | None:
    labels, num_classes = one.labels, len(one.classes)
    values, counts = np.unique(labels[labels != IGNORE_LABEL], return_counts=True)
    wrong = values[(values < 0) | (values >= num_classes)]
    if not values.size:
        return "data", "All labels are 255 (ignored)."
    if wrong.size:
        return "data", (
            f"Labels must be in 0..{num_classes - 1}. Received: {wrong.tolist()}. Do the label "
            "maps count from 1?"
        )
    if values.size < 2:
        return "data", (
            f"All {counts.sum()} labelled pixels are {one.classes[values[0]]!r}. Are the label "
            "maps right, or the images too few?"
        )
    if not np.ptp(one.images, axis=(1, 2)).max():
        return "data", "Every image has one colour only."
    return None


def _check_frozen(model: keras.Model) -> Finding | None:
    frozen = [layer for layer in predictors(model) if not layer.trainable_variables]
    if frozen:
        names = _listed([layer.name for layer in frozen])
        return "frozen", f"The layers that compute the logits are frozen: {names}."
    trainable, total = (
        sum(math.prod(v.shape) for v in variables)
        for variables in (model.trainable_variables, model.weights)
    )
    if trainable < FEW * total:
        layers = all_layers(model).items()
        names = _listed([path for path, layer in layers if layer.weights and not layer.trainable])
        return "frozen", f"Only {trainable} of {total} weights are trainable; frozen: {names}."
    return None


def _check_activations(one: _OneBatch) -> Finding | None:
    """Whether features differ from pixel to pixel before training, and the outputs are logits."""
    one.restore(one.beginning)
    heads, layers = predictors(one.model), all_layers(one.model)
    constant: dict[str, bool] = {}
    dead_ends: list[str] = []

    def recorded(path: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if layers[path] in heads and _is_constant(args):
            dead_ends.append(f"The input of '{path}'")
        outputs = call(*args, **kwargs)
        constant.setdefault(path, _is_constant(outputs))
        return outputs

    with intercepted_calls(layers, recorded):  # in training mode, as for the loss
        one.model(one.images, training=True)
    if constant.get("backbone"):
        dead_ends.insert(0, "The backbone's output")
    if dead_ends:
        first = next((path for path, is_constant in constant.items() if is_constant), "input")
        return "activations", (
            f"{dead_ends[0]} is the same at every pixel, from layer '{first}' on: its activations "
            "are dead. Check its initial weights and the scale of its input."
        )
    logits = np.asarray(one.model(one.images, training=False))
    if logits.min() >= 0 and np.allclose(logits.sum(-1), 1, atol=1e-3):
        return "activations", (
            "The outputs are probabilities (their sum is 1), but losses expect logits: remove the "
            "softmax from the model."
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


def _check_gradients(one: _OneBatch, trained: list[np.ndarray]) -> Finding | None:
    one.restore(one.beginning)
    first = one.gradients()
    one.restore(trained)
    last = one.gradients()
    cut = [path for path, value in first.items() if value is None]
    broken = [path for path, v in first.items() if v is not None and not math.isfinite(v)]
    # Behind a scale that starts at zero gradients are zero in the first step only.
    zero = [path for path, value in first.items() if value == 0 and last[path] == 0]
    if cut:
        return "gradients", (
            f"The loss does not depend on the weights of {_listed(cut)}. Look for stop_gradient, "
            "argmax, rounding or NumPy after these layers."
        )
    if broken:
        return "gradients", (
            f"The gradients of {_listed(broken)} are not finite before the first step. Look for "
            "NaN in the weights, division by zero and the logarithm of zero."
        )
    if zero:
        return "gradients", f"The gradients of {_listed(zero)} are zero: they do not learn."
    return None


def _check_learning_rate(one: _OneBatch, history: dict[str, list[float]]) -> Finding | None:
    """Whether the loss falls, and falls faster at another learning rate."""
    losses, last = history["loss"], history["loss"][-1]
    one.restore(one.beginning)
    first = float(one.loss())
    if math.isfinite(last) and (last < FELL * first or history["mean_iou"][-1] >= one.target):
        return None
    epochs = min(TRIAL_EPOCHS, len(losses)) if math.isfinite(last) else TRIAL_EPOCHS
    low, high = (one.fit(epochs, factor=factor)[0]["loss"][-1] for factor in (0.1, 10.0))
    own, steps = losses[:epochs][-1], epochs * one.steps_per_epoch
    rate = float(one.rate.rate(min(WARMUP_STEPS, steps)))
    measured = (
        f"the loss went from {first:.3g} to {last:.3g}; after {steps} steps it "
        f"is {low:.3g} at {0.1 * rate:.2g}, {own:.3g} at {rate:.2g}, {high:.3g} at {10 * rate:.2g}"
    )
    # A loss that is not finite fell less than any other.
    fell, fell_low, fell_high = (
        first - loss if math.isfinite(loss) else -math.inf for loss in (own, low, high)
    )
    clearly = max(2 * fell, (1 - STILL) * first)
    if not math.isfinite(last):
        finding = "The learning rate is too high: the loss is not finite"
    elif fell_high >= max(fell_low, clearly):
        finding = "The learning rate is too low: the loss falls faster at ten times the rate"
    elif fell_low >= clearly or (last > first and fell_low > fell):
        finding = "The learning rate is too high: the loss falls faster at a tenth of the rate"
    elif last > STILL * first:
        finding = "The loss does not fall, nor at a tenth or ten times the learning rate"
    else:
        return None
    return "learning_rate", f"{finding} ({measured})."


def _check_batch_norm(
    one: _OneBatch, history: dict[str, list[float]], trained: list[np.ndarray], inference: float
) -> Finding | None:
    """Whether the model fits in training mode and not in inference mode."""
    one.restore(trained)
    training = history["mean_iou"][-1]
    measured = f"mean IoU is {training:.3f} in training mode and {inference:.3f} in inference mode"
    norms = all_norms(one.model).values()
    if norms:
        reestimate_batch_norm(one.model, [one.images])
        reestimated = one.scores()["mean_iou"]
        measured += f", {reestimated:.3f} with re-estimated statistics"
        if reestimated >= one.target:
            momenta = _listed(sorted({norm.momentum for norm in norms}))
            return "batch_norm", (
                f"The moving statistics of the batch norms lag behind the weights: {measured}. Use "
                f"a smaller momentum than {momenta}, or keras_deeplab.reestimate_batch_norm."
            )
    if training >= one.target:
        return "batch_norm", (
            f"A layer other than the batch norms differs between the modes: {measured}."
        )
    return None


def _check_steps(one: _OneBatch, history: dict[str, list[float]], result: dict) -> Finding:
    """Whether more steps may do; the last possible cause."""
    losses, ious = history["loss"], history["val_mean_iou"]
    third = max(1, len(losses) // 3)
    reached = f"mean IoU is {result['mean_iou']:.3f}"
    if len(losses) < 3 or np.mean(losses[-third:]) < STILL * np.mean(losses[-2 * third : -third]):
        return "steps", f"The loss still falls, and {reached}: train more steps."
    if ious[-1] >= max(ious[:-third]) + 0.01:
        return "steps", f"The mean IoU still rises, and {reached}: train more steps."
    low = sorted((v, k) for k, v in result["per_class"].items() if v is not None and v < one.target)
    classes = _listed([f"{name} {iou:.2f}" for iou, name in low])
    return "plateau", (
        f"The model stopped learning, and {reached} (per class: {classes}). Thin or small "
        "objects need a smaller output stride, a decoder at finer features or larger images; else "
        "the model has too few weights, or too much dropout or weight decay."
    )


def _listed(names: Sequence[Any], shown: int = 5) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(map(str, names[:shown])) + more
